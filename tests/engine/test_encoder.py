"""The encoder: faithful to the bundle, honest about devices."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.contract.bundle import Bundle, ModelFile, write_bundle
from retrieval.contract.limits import ImageLimits
from retrieval.contract.preprocessing import preprocess
from retrieval.engine.encoder import Encoder
from retrieval.engine.index.faiss_index import n_gpus
from retrieval.errors import (
    BundleMismatch,
    CorruptArtifact,
    DeviceUnavailable,
    ImageTooLarge,
    InvalidEmbeddings,
    InvalidImage,
    InvalidInput,
)
from tests import tiny_bundle as tiny
from tests.pictures import class_picture, encoded, jpeg, truncated_jpeg

PIXELS = np.random.default_rng(5).uniform(-1, 1, (40, 3, tiny.SIDE, tiny.SIDE)).astype(np.float32)


def write_variant(
    directory: Path, *, onnx_model: bytes | None = None, dimension: int = tiny.DIMENSION, probe_seed: int = 0
) -> Bundle:
    """The tiny bundle with one part replaced by something that does not belong to it."""
    probe = PIXELS[:2]
    return write_bundle(
        directory,
        ModelFile(
            content=tiny.onnx_model() if onnx_model is None else onnx_model,
            opset=tiny.OPSET,
            input_name="pixels",
            output_name="embedding",
        ),
        preprocessing=tiny.PREPROCESSING,
        dimension=dimension,
        evaluation={},
        probe=(probe, tiny.embed(probe, probe_seed)),
    )


def test_agrees_with_the_reference(tiny_encoder: Encoder) -> None:
    """What ONNX Runtime computes is what the graph says."""
    # float32 sums in another order
    np.testing.assert_allclose(tiny_encoder.embed(PIXELS), tiny.embed(PIXELS), atol=2e-6)


@given(n=st.integers(0, 40), max_batch=st.integers(1, 41))
def test_batches_equal_singles(tiny_bundle: Bundle, n: int, max_batch: int) -> None:
    """How inputs are grouped into batches changes nothing."""
    encoder = Encoder(tiny_bundle, Encoder.open(tiny_bundle, threads=1)._session, max_batch=max_batch)
    singles = [encoder.embed(PIXELS[i : i + 1])[0] for i in range(n)]
    expected = np.stack(singles) if singles else np.empty((0, tiny.DIMENSION), dtype=np.float32)
    np.testing.assert_allclose(encoder.embed(PIXELS[:n]), expected, atol=2e-6)


def test_no_input_gives_no_embedding(tiny_encoder: Encoder) -> None:
    assert tiny_encoder.embed(PIXELS[:0]).shape == (0, tiny.DIMENSION)
    assert tiny_encoder.embed_images([]).shape == (0, tiny.DIMENSION)


def test_images_go_through_the_bundles_preprocessing(tiny_encoder: Encoder) -> None:
    images = [jpeg(), encoded(class_picture(1, 0))]
    pixels = np.stack([preprocess(image, tiny.PREPROCESSING) for image in images])
    np.testing.assert_array_equal(tiny_encoder.embed_images(images), tiny_encoder.embed(pixels))


def test_bad_images_are_refused(tiny_encoder: Encoder) -> None:
    with pytest.raises(InvalidImage, match="is damaged or truncated"):
        tiny_encoder.embed_images([jpeg(), truncated_jpeg()])
    with pytest.raises(ImageTooLarge, match="pixels, the limit is 100"):
        tiny_encoder.embed_images([jpeg()], limits=ImageLimits(pixels=100))


def test_pictures_of_a_class_lie_closer_than_those_of_two(tiny_encoder: Encoder) -> None:
    """The tiny model is good enough for the tests that build on it."""
    embeddings = tiny_encoder.embed_images([encoded(class_picture(c, v)) for c in range(20) for v in range(2)])
    similarities = embeddings @ embeddings.T
    within = similarities[np.arange(0, 40, 2), np.arange(1, 40, 2)]
    between = similarities[np.arange(40)[:, None] // 2 != np.arange(40) // 2]
    assert np.median(within) > np.quantile(between, 0.99)


def test_refuses_a_machine_that_computes_something_else(tmp_path: Path) -> None:
    """A probe that the model does not reproduce stops the start."""
    bundle = write_variant(tmp_path / "bundle", probe_seed=1)
    with pytest.raises(BundleMismatch, match=rf"{bundle.digest}.*differ by"):
        Encoder.open(bundle)


def test_refuses_a_model_of_another_dimension(tmp_path: Path) -> None:
    bundle = write_variant(tmp_path / "bundle", onnx_model=tiny.onnx_model(dimension=16))
    with pytest.raises(InvalidEmbeddings, match=r"expected embeddings \(2, 32\), found \(2, 16\)"):
        Encoder.open(bundle)


def test_refuses_a_file_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(CorruptArtifact, match=r"model\.onnx"):
        Encoder.open(write_variant(tmp_path / "bundle", onnx_model=b"not a model"))


def test_refuses_a_model_with_other_input_names(tiny_bundle: Bundle) -> None:
    with pytest.raises(CorruptArtifact, match="image"):
        Encoder.open(dataclasses.replace(tiny_bundle, input_name="image"))


def test_nan_never_leaves_the_encoder(tiny_encoder: Encoder) -> None:
    poisoned = PIXELS[:3].copy()
    poisoned[1, 0, 0, 0] = np.nan
    with pytest.raises(InvalidEmbeddings, match="row 1"):
        tiny_encoder.embed(poisoned)


def test_unknown_device(tiny_bundle: Bundle) -> None:
    with pytest.raises(InvalidInput, match="expected one of cpu, cuda, auto, found 'tpu'"):
        Encoder.open(tiny_bundle, device="tpu")


@pytest.mark.skipif(n_gpus() > 0, reason="this machine has a GPU")
def test_a_missing_gpu_stops_the_start(tiny_bundle: Bundle) -> None:
    """If a GPU is requested, the CPU never replaces it; auto uses a GPU if there is one."""
    with pytest.raises(DeviceUnavailable, match="device=cuda was requested"):
        Encoder.open(tiny_bundle, device="cuda")
    assert Encoder.open(tiny_bundle, device="auto").device == "cpu"


@pytest.mark.slow
def test_loading_the_runtime_leaves_no_file_and_sends_nothing(tmp_path: Path) -> None:
    """ONNX Runtime reports to its maker unless it is told not to, and keeps its session in the temporary folder."""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    subprocess.run([sys.executable, "-c", "import retrieval.engine.encoder"], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []
