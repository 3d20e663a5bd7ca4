"""Bundles, scores and embeddings are verified when opened; a damaged or misnamed one is refused."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
import pytest

from retrieval.contract.bundle import Bundle, BundleDigest, ModelFile, write_bundle
from retrieval.contract.score import ScoreDigest
from retrieval.engine.store import Store
from retrieval.errors import (
    CorruptArtifact,
    InvalidInput,
    UnknownBundle,
)
from tests.engine.store.artefacts import VECTORS


def test_bundles(store: Store, tiny_bundle: Bundle, other_bundle: Bundle) -> None:
    with pytest.raises(UnknownBundle, match="holds no bundle"):
        store.only_bundle()
    assert store.bundles() == []
    added = store.add_bundle(tiny_bundle.directory)
    assert added.digest == tiny_bundle.digest == store.only_bundle()
    assert added.directory != tiny_bundle.directory
    assert store.add_bundle(tiny_bundle.directory) == added, "adding it again changes nothing"
    store.add_bundle(other_bundle.directory)
    assert set(store.bundles()) == {tiny_bundle.digest, other_bundle.digest}
    with pytest.raises(InvalidInput, match=r"holds 2 bundles, name one of them: .*"):
        store.only_bundle()


def test_a_model_card_comes_along(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Into a store elsewhere, and from there to who fetches the bundle."""
    store = Store(f"memory://{uuid.uuid4().hex}", cache=tmp_path / "cache")
    inputs, embeddings = tiny_bundle.probe()
    with_card = write_bundle(
        tmp_path / "with card",
        ModelFile(
            content=tiny_bundle.model_path.read_bytes(),
            opset=tiny_bundle.opset,
            input_name=tiny_bundle.input_name,
            output_name=tiny_bundle.output_name,
        ),
        preprocessing=tiny_bundle.preprocessing,
        dimension=tiny_bundle.dimension,
        evaluation={},
        probe=(inputs, embeddings),
        model_card="# Card\n",
    )
    assert store.add_bundle(with_card.directory).model_card == "# Card\n"


def test_unknown_bundle(store: Store) -> None:
    with pytest.raises(UnknownBundle, match="bundle abc is not in the store"):
        store.bundle(BundleDigest("abc"))


def test_a_bundle_under_anothers_name_is_refused(store: Store, tiny_bundle: Bundle) -> None:
    added = store.add_bundle(tiny_bundle.directory)
    added.directory.rename(added.directory.with_name("abc"))
    with pytest.raises(CorruptArtifact, match=f"bundle abc: its contract has digest {tiny_bundle.digest}"):
        store.bundle(BundleDigest("abc"))


def test_a_damaged_bundle_is_refused(store: Store, tiny_bundle: Bundle) -> None:
    path = store.add_bundle(tiny_bundle.directory).model_path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptArtifact, match=r"model\.onnx has checksum"):
        store.bundle(tiny_bundle.digest)


def test_embeddings(store: Store) -> None:
    key = store.put_embeddings(BundleDigest("b"), "e1", VECTORS)
    np.testing.assert_array_equal(store.embeddings(key), VECTORS)
    empty = store.put_embeddings(BundleDigest("b"), "e0", VECTORS[:0])
    assert store.embeddings(empty).shape == (0, 8)
    with pytest.raises(CorruptArtifact, match="missing"):
        store.embeddings("bundles/b/embeddings/none.npz")


def test_every_truncation_of_embeddings_is_refused(store: Store) -> None:
    key = store.put_embeddings(BundleDigest("b"), "e1", VECTORS)
    data = store.objects.get(key)
    assert data is not None
    for length in range(0, len(data), 13):
        store.objects.put(key, data[:length])
        with pytest.raises(CorruptArtifact, match=r"e1\.npz cannot be read"):
            store.embeddings(key)


def test_an_unknown_score(store: Store) -> None:
    with pytest.raises(CorruptArtifact, match="missing from the store"):
        store.score(BundleDigest("b"), ScoreDigest("none"))
