"""The model bundle: an ONNX model with everything that belongs to it.

This file defines the content of a bundle and verifies it. `engine/encoder.py` runs the model, `engine/store/` stores
bundles.

    model.onnx        pixels [n, 3, h, w] float32 -> embeddings [n, d] float32, unit rows
    contract.json     format, dimension, preprocessing, input and output names, opset, checksums of the other files
    evaluation.json   measurements of training; free form
    probe.npz         a few inputs with their expected embeddings, to verify a bundle without data
    MODEL_CARD.md     for people: data, metrics, limits, licence; optional

The digest of a bundle is the digest of contract.json, which holds the checksums of everything else.
"""

import io
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NewType

import numpy as np
from numpy.typing import NDArray

from retrieval.contract.canonical import digest_bytes, digest_file, json_bytes
from retrieval.contract.documents import Count, Size, parse, read_json, read_object, without_format
from retrieval.contract.preprocessing import Preprocessing
from retrieval.errors import CorruptArtifact, InvalidInput

BundleDigest = NewType("BundleDigest", str)

FORMAT = 1
MODEL, CONTRACT, EVALUATION, PROBE = "model.onnx", "contract.json", "evaluation.json", "probe.npz"
MODEL_CARD = "MODEL_CARD.md"
BUNDLE_FILES = (MODEL, CONTRACT, EVALUATION, PROBE, MODEL_CARD)
_REQUIRED = (MODEL, EVALUATION, PROBE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """An opened bundle, its checksums verified. `directory` holds its `files`, contract.json among them."""

    digest: BundleDigest
    directory: Path
    files: tuple[str, ...]
    dimension: int
    preprocessing: Preprocessing
    input_name: str
    output_name: str
    opset: int
    evaluation: Mapping[str, Any]

    @property
    def model_path(self) -> Path:
        """The path of the ONNX model."""
        return self.directory / MODEL

    @property
    def model_card(self) -> str | None:
        """The model card, Markdown; None if the bundle was written without one."""
        return (self.directory / MODEL_CARD).read_text(encoding="utf-8") if MODEL_CARD in self.files else None

    def probe(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return inputs [n, 3, h, w] and their embeddings [n, d] as computed at export."""
        path = self.directory / PROBE
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return arrays["inputs"], arrays["embeddings"]
        except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile) as error:
            raise CorruptArtifact(f"{path} cannot be read: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """The bytes of an ONNX model, with the opset of its graph and the names of its input and output."""

    content: bytes
    opset: int
    input_name: str
    output_name: str


def write_bundle(
    directory: Path,
    model: ModelFile,
    *,
    preprocessing: Preprocessing,
    dimension: int,
    evaluation: Mapping[str, Any],
    probe: tuple[NDArray[np.float32], NDArray[np.float32]],
    model_card: str | None = None,
) -> Bundle:
    """Write a bundle into `directory`, which must not exist yet or be empty, and open it.

    probe: inputs and their embeddings, as `Bundle.probe` returns them. model_card: Markdown, optional. The directory
    appears whole or not at all. Raises InvalidInput if it already holds something else.
    """
    check_new_folder(directory)
    arrays = io.BytesIO()
    np.savez(arrays, inputs=probe[0], embeddings=probe[1])
    files = {MODEL: model.content, EVALUATION: json_bytes(evaluation), PROBE: arrays.getvalue()}
    if model_card is not None:
        files[MODEL_CARD] = model_card.encode()
    contract = {
        "format": FORMAT,
        "dimension": dimension,
        "unit_norm": True,
        "preprocessing": preprocessing.to_json(),
        "input_name": model.input_name,
        "output_name": model.output_name,
        "opset": model.opset,
        "checksums": {name: digest_bytes(content) for name, content in files.items()},
    }
    files[CONTRACT] = json_bytes(contract)
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
    try:
        staging.chmod(0o755)
        for name, content in files.items():
            (staging / name).write_bytes(content)
        staging.replace(directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return open_bundle(directory)


def check_new_folder(directory: Path) -> None:
    """Raise InvalidInput if `directory` is a file or a folder that is not empty: no bundle can be written there."""
    if (directory.exists() or directory.is_symlink()) and not directory.is_dir():
        raise InvalidInput(f"{directory} is not a folder: name a new one for the bundle")
    if directory.is_dir() and any(directory.iterdir()):
        raise InvalidInput(f"{directory} is not empty: name a new folder for the bundle")


def open_bundle(directory: Path) -> Bundle:
    """Open the bundle in `directory`. Raises CorruptArtifact if a file is missing, truncated or was changed."""
    contract_path = directory / CONTRACT
    try:
        raw = contract_path.read_bytes()
    except OSError as error:
        raise CorruptArtifact(f"{directory} is not a model bundle: {CONTRACT} cannot be read ({error})") from error
    where = str(contract_path)
    remedy = "export the bundle again, or use the version that wrote it"
    document = without_format(read_json(raw, where), FORMAT, where, what="bundle", remedy=remedy)
    contract = parse(_ContractDocument, document, where)
    _verify_checksums(directory, contract.checksums)
    return Bundle(
        digest=BundleDigest(digest_bytes(raw)),
        directory=directory,
        files=(*sorted(contract.checksums), CONTRACT),
        dimension=contract.dimension,
        preprocessing=contract.preprocessing,
        input_name=contract.input_name,
        output_name=contract.output_name,
        opset=contract.opset,
        evaluation=read_object((directory / EVALUATION).read_bytes(), str(directory / EVALUATION)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _ContractDocument:
    """The schema of contract.json without its format."""

    dimension: Size
    preprocessing: Preprocessing
    input_name: str
    output_name: str
    opset: Count
    checksums: dict[str, str]
    unit_norm: bool = True


def _verify_checksums(directory: Path, checksums: Mapping[str, str]) -> None:
    if unknown := sorted(set(checksums) - set(BUNDLE_FILES)):
        raise CorruptArtifact(
            f"bundle {directory}: its contract names the file {unknown[0]!r}, which this version does not know: "
            "open it with the version that wrote it, or a later one"
        )
    for name in sorted({*_REQUIRED, *checksums}):
        path = directory / name
        if not path.is_file():
            raise CorruptArtifact(f"bundle {directory}: {name} is missing; export or copy the bundle again")
        if name not in checksums:
            raise CorruptArtifact(f"{directory / CONTRACT}: a field is missing or wrong: checksums has no {name}")
        if (found := digest_file(path)) != checksums[name]:
            raise CorruptArtifact(
                f"bundle {directory}: {name} has checksum {found}, its contract states {checksums[name]}; "
                "the file was changed or truncated: export or copy the bundle again"
            )
