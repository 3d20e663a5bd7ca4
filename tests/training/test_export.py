"""The exported bundle gives what the trained embedder gives, or is not written."""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from retrieval.contract.bundle import open_bundle
from retrieval.engine.encoder import Encoder
from retrieval.errors import InvalidInput, ValidationFailed
from training import export
from training.config import to_json
from training.loop import FinishedRun, embedding_function


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "tiny"
    export.export_run(run, out)
    return out


def test_production_gives_what_training_gives(exported: Path, finished: FinishedRun) -> None:
    """At batch sizes other than those of the check, too."""
    encoder = Encoder.open(open_bundle(exported))
    pixels = np.random.default_rng(0).normal(size=(5, 3, 32, 32)).astype(np.float32)
    rows = encoder.embed(pixels)
    assert_allclose(rows, embedding_function(finished.embedder)(pixels), atol=export.PARITY_TOLERANCE)
    assert_allclose(encoder.embed(pixels[:3]), rows[:3], atol=1e-6)
    assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_the_bundle_says_how_it_came_about(exported: Path, finished: FinishedRun) -> None:
    bundle = open_bundle(exported)
    assert bundle.preprocessing == finished.preprocessing
    assert bundle.dimension == 16
    assert bundle.evaluation["training"] == to_json(finished.config)
    assert bundle.evaluation["held_out"]["n_classes"] == 14
    inputs, embeddings = bundle.probe()
    assert_allclose(embedding_function(finished.embedder)(inputs), embeddings, atol=1e-6)
    assert sorted(path.name for path in exported.parent.iterdir()) == ["tiny"]


def test_the_model_names_no_path_of_this_machine(exported: Path) -> None:
    """Otherwise the digest would depend on where the software is installed."""
    model = (exported / "model.onnx").read_bytes()
    assert b"container.py" not in model
    assert str(Path(export.__file__).parent).encode() not in model


def test_a_model_that_differs_is_not_written(
    exported: Path, finished: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tolerance of zero stands for an export that went wrong."""
    model = (exported / "model.onnx").read_bytes()
    monkeypatch.setattr(export, "to_onnx", lambda *_: model)
    monkeypatch.setattr(export, "PARITY_TOLERANCE", 0.0)
    with pytest.raises(ValidationFailed, match="nothing was written"):
        export.export_embedder(finished.embedder, finished.preprocessing, tmp_path / "out", evaluation={})
    assert list(tmp_path.iterdir()) == []


def test_an_occupied_folder_is_refused_before_any_work(exported: Path, run: Path) -> None:
    with pytest.raises(InvalidInput, match="not empty"):
        export.export_run(run, exported)
