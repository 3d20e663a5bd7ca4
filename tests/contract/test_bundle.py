"""A bundle is whole or refused, and named by its content."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from retrieval.contract.bundle import (
    BUNDLE_FILES,
    CONTRACT,
    EVALUATION,
    MODEL,
    MODEL_CARD,
    PROBE,
    Bundle,
    ModelFile,
    open_bundle,
    write_bundle,
)
from retrieval.errors import CorruptArtifact, InvalidInput
from tests import tiny_bundle as tiny
from tests.tiny_bundle import write_tiny_bundle


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy of the tiny bundle that may be damaged."""
    return open_bundle(Path(shutil.copytree(tiny_bundle.directory, tmp_path / "bundle")))


def test_round_trip(bundle: Bundle) -> None:
    """What was written is what is opened."""
    assert (bundle.dimension, bundle.opset) == (tiny.DIMENSION, tiny.OPSET)
    assert (bundle.input_name, bundle.output_name) == ("pixels", "embedding")
    assert bundle.preprocessing == tiny.PREPROCESSING
    assert bundle.evaluation == {"model": "tiny", "seed": 0}
    assert bundle.model_path.read_bytes() == tiny.onnx_model()
    inputs, embeddings = bundle.probe()
    np.testing.assert_array_equal(embeddings, tiny.embed(inputs))
    assert {path.name for path in bundle.directory.iterdir()} == set(bundle.files) == set(BUNDLE_FILES) - {MODEL_CARD}
    assert bundle.model_card is None


def test_the_digest_is_that_of_the_content(tiny_bundle: Bundle, other_bundle: Bundle, tmp_path: Path) -> None:
    """Written again elsewhere the digest is the same; another model has another."""
    assert write_tiny_bundle(tmp_path / "again").digest == tiny_bundle.digest
    assert other_bundle.digest != tiny_bundle.digest


def write_with_card(directory: Path, tiny_bundle: Bundle, card: str) -> Bundle:
    inputs, embeddings = tiny_bundle.probe()
    return write_bundle(
        directory,
        ModelFile(content=tiny.onnx_model(), opset=tiny.OPSET, input_name="pixels", output_name="embedding"),
        preprocessing=tiny.PREPROCESSING,
        dimension=tiny.DIMENSION,
        evaluation={},
        probe=(inputs, embeddings),
        model_card=card,
    )


def test_the_card_belongs_to_the_bundle(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """It is verified, and another card makes another bundle."""
    bundle = write_with_card(tmp_path / "bundle", tiny_bundle, "# Übersicht\n")
    assert bundle.model_card == "# Übersicht\n"
    assert set(bundle.files) == set(BUNDLE_FILES)
    assert write_with_card(tmp_path / "other", tiny_bundle, "# Other\n").digest != bundle.digest
    for damage in (lambda path: path.write_text("# changed\n"), lambda path: path.unlink()):
        damage(bundle.directory / MODEL_CARD)
        with pytest.raises(CorruptArtifact, match=MODEL_CARD):
            open_bundle(bundle.directory)


def test_a_bundle_from_before_there_were_cards_opens() -> None:
    """Its files are next to this test; its digest, which operating points contain, has not changed."""
    bundle = open_bundle(Path(__file__).parent / "bundle_without_card")
    assert bundle.digest == "9187805b7ac46ec69e4eec17d6b70ade"
    assert bundle.model_card is None


@pytest.mark.parametrize("name", ["notes.txt", "../evaluation.json"])
def test_a_file_of_a_later_version_is_refused(bundle: Bundle, name: str) -> None:
    """Or a contract could make its reader look anywhere."""
    path = bundle.directory / CONTRACT
    contract = json.loads(path.read_bytes())
    contract["checksums"][name] = "0" * 32
    path.write_text(json.dumps(contract))
    with pytest.raises(CorruptArtifact, match="does not know"):
        open_bundle(bundle.directory)


@pytest.mark.parametrize("name", [MODEL, EVALUATION, PROBE])
@pytest.mark.parametrize("damage", ["truncate", "change", "remove"])
def test_a_damaged_file_is_named(bundle: Bundle, name: str, damage: str) -> None:
    path = bundle.directory / name
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "truncate" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CorruptArtifact, match=name):
        open_bundle(bundle.directory)


def test_every_truncation_of_the_contract_is_refused(bundle: Bundle) -> None:
    path = bundle.directory / CONTRACT
    content = path.read_bytes()
    for length in range(0, len(content) - 2, 11):  # the last two are the closing brace and its newline
        path.write_bytes(content[:length])
        with pytest.raises(CorruptArtifact, match=CONTRACT):
            open_bundle(bundle.directory)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"dimension": None},
        {"dimension": "many"},
        {"checksums": {}},
        {"checksums": None},
        {"preprocessing": {}},
        {"preprocessing": None},
    ],
)
def test_an_unusable_contract_is_refused(bundle: Bundle, change: dict[str, object]) -> None:
    path = bundle.directory / CONTRACT
    path.write_text(json.dumps(json.loads(path.read_bytes()) | change))
    with pytest.raises(
        CorruptArtifact, match=r"expected bundle format 1, found|a field is missing or wrong|preprocessing"
    ):
        open_bundle(bundle.directory)


@pytest.mark.parametrize("content", ["[]", "null", '"text"', "{}"])
def test_json_that_is_no_contract_is_refused(bundle: Bundle, content: str) -> None:
    (bundle.directory / CONTRACT).write_text(content)
    with pytest.raises(CorruptArtifact, match="expected bundle format 1"):
        open_bundle(bundle.directory)


def test_no_bundle_at_all(tmp_path: Path) -> None:
    with pytest.raises(CorruptArtifact, match="is not a model bundle"):
        open_bundle(tmp_path / "missing")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A folder that holds something stays as it is; an empty one is filled."""
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InvalidInput, match="is not empty"):
        write_tiny_bundle(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(InvalidInput, match="is not a folder"):
        write_tiny_bundle(tmp_path / "mine.txt")
    (tmp_path / "empty").mkdir()
    assert write_tiny_bundle(tmp_path / "empty").directory == tmp_path / "empty"


def test_a_failed_write_leaves_nothing(tmp_path: Path, tiny_bundle: Bundle) -> None:
    """What cannot be written as JSON leaves neither the bundle nor a half of it."""
    inputs, embeddings = tiny_bundle.probe()
    with pytest.raises(ValueError, match="JSON"):
        write_bundle(
            tmp_path / "bundle",
            ModelFile(content=b"", opset=tiny.OPSET, input_name="pixels", output_name="embedding"),
            preprocessing=tiny.PREPROCESSING,
            dimension=tiny.DIMENSION,
            evaluation={"loss": float("nan")},
            probe=(inputs, embeddings),
        )
    assert list(tmp_path.iterdir()) == []
