"""What the tests of several packages share: the tiny model, a calibrated store, labelled embeddings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import hypothesis
import numpy as np
import pytest

from retrieval.contract.bundle import Bundle
from retrieval.contract.operating_point import OperatingPoint
from retrieval.contract.score import Score
from retrieval.engine.encoder import Encoder
from retrieval.engine.labelled_embeddings import LabelledEmbeddings
from retrieval.engine.store import Store
from retrieval.flows.calibrate import CalibrationTarget, calibrate
from tests.pictures import class_picture, encoded
from tests.stores import CREATED_AT, activate
from tests.tiny_bundle import write_tiny_bundle

# Two busy cores make single examples slow at times; derandomised, so that a failure seen once is seen again.
hypothesis.settings.register_profile("steady", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("steady")


# The developer's own settings: with RETRIEVAL_STORE_URL among them, tests would write to that store.
for name in [name for name in os.environ if name.startswith("RETRIEVAL_")]:
    del os.environ[name]


@pytest.fixture(autouse=True)
def _same_environment() -> Iterator[None]:
    """Restore the environment: commands that run in this process set the threads of libraries, for children too."""
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before) - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny model's bundle; read only."""
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of another model with the same shape; read only."""
    return write_tiny_bundle(tmp_path_factory.mktemp("other") / "bundle", seed=1)


@pytest.fixture(scope="session")
def tiny_encoder(tiny_bundle: Bundle) -> Encoder:
    return Encoder.open(tiny_bundle, threads=1, max_batch=16)


@pytest.fixture(scope="session")
def pool() -> Iterator[Executor]:
    with ThreadPoolExecutor(max_workers=2) as executor:
        yield executor


@pytest.fixture(scope="session")
def labelled(tiny_encoder: Encoder) -> LabelledEmbeddings:
    """Embeddings of 40 classes of 5 pictures each."""
    numbers = [(number, variant) for number in range(1000, 1040) for variant in range(5)]
    images = [encoded(class_picture(number, variant, spread=70)) for number, variant in numbers]
    return LabelledEmbeddings(
        embeddings=tiny_encoder.embed_images(images),
        labels=[f"class_{number}" for number, _ in numbers],
        data_digest="calibration-images",
    )


@pytest.fixture(scope="session")
def cohort_score(tiny_encoder: Encoder) -> Score:
    """A cohort of 60 pictures of classes that no other test uses."""
    images = [encoded(class_picture(number, 0)) for number in range(2000, 2060)]
    return Score(cohort=tiny_encoder.embed_images(images), k=5)


@pytest.fixture(scope="session")
def cosine_point(tiny_bundle: Bundle, labelled: LabelledEmbeddings) -> OperatingPoint:
    return _point(tiny_bundle, labelled, Score())


@pytest.fixture(scope="session")
def cohort_point(tiny_bundle: Bundle, labelled: LabelledEmbeddings, cohort_score: Score) -> OperatingPoint:
    return _point(tiny_bundle, labelled, cohort_score)


def _point(bundle: Bundle, data: LabelledEmbeddings, score: Score) -> OperatingPoint:
    return calibrate(
        data,
        bundle=bundle.digest,
        scores=[score],
        target=CalibrationTarget(),
        rng=np.random.default_rng(0),
        created_at=CREATED_AT,
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store on the local disk."""
    return Store(f"file://{tmp_path / 'store'}")


@pytest.fixture
def calibrated(store: Store, tiny_bundle: Bundle, cosine_point: OperatingPoint) -> Store:
    """A store with the tiny bundle and an active operating point for its cosine."""
    store.add_bundle(tiny_bundle.directory)
    activate(store, cosine_point, Score())
    return store
