"""Whitening makes classes spread alike; its result depends on nothing that it should not depend on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.consistency.normalisation import Whitening, fit_whitening
from retrieval.errors import InvalidEmbeddings, InvalidInput, NotEnoughEvidence

Vectors = NDArray[np.float32]


def unit(rows: NDArray[np.floating]) -> Vectors:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / lengths, dtype=np.float32)


def stretched(n_classes: int = 60, n_images: int = 5, d: int = 6, seed: int = 0) -> tuple[Vectors, list[str]]:
    """Classes that all vary more along the first axes than along the last ones."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_classes, d)).repeat(n_images, axis=0)
    noise = rng.normal(size=centres.shape) * np.geomspace(1, 0.1, d)
    return unit(centres + noise), [f"{code}" for code in range(n_classes) for _ in range(n_images)]


def within(rows: Vectors, labels: list[str]) -> NDArray[np.float64]:
    """Covariance inside classes: the slow reference."""
    total, freedom = np.zeros((rows.shape[1], rows.shape[1])), 0
    for name in set(labels):
        members = rows[[label == name for label in labels]].astype(float)
        for row in members:
            total += np.outer(row - members.mean(axis=0), row - members.mean(axis=0))
        freedom += len(members) - 1
    return total / freedom


def test_the_projection_is_the_root_of_the_shrunk_covariance_inside_classes() -> None:
    rows, labels = stretched()
    shrinkage = 0.2
    covariance = within(rows, labels)
    mean = np.trace(covariance) / len(covariance)
    shrunk = (1 - shrinkage) * covariance + shrinkage * mean * np.eye(len(covariance))
    found = fit_whitening(rows, labels, shrinkage=shrinkage)
    root = found.projection.astype(float)
    np.testing.assert_allclose(root @ shrunk @ root, mean * np.eye(len(covariance)), atol=1e-5)
    np.testing.assert_allclose(root, root.T, atol=1e-5)
    np.testing.assert_allclose(found.centre, rows.astype(float).mean(axis=0), atol=1e-6)


def test_without_labels_the_covariance_is_that_of_differences_to_neighbours() -> None:
    rows, _ = stretched()
    k, shrinkage = 3, 0.1
    covariance = np.zeros((rows.shape[1], rows.shape[1]))
    for i, row in enumerate(rows):
        order = np.argsort(-(rows @ row), kind="stable")
        for j in order[order != i][:k]:
            difference = row.astype(float) - rows[j]
            covariance += np.outer(difference, difference) / (len(rows) * k)
    mean = np.trace(covariance) / len(covariance)
    shrunk = (1 - shrinkage) * covariance + shrinkage * mean * np.eye(len(covariance))
    root = fit_whitening(rows, shrinkage=shrinkage, n_neighbours=k).projection.astype(float)
    np.testing.assert_allclose(root @ shrunk @ root, mean * np.eye(len(covariance)), atol=1e-5)


@pytest.mark.parametrize("with_labels", [True, False])
def test_new_classes_become_easier_to_tell_apart(with_labels: bool) -> None:
    """Fitted on some classes, the map raises the share of right nearest neighbours among others."""
    rows, labels = stretched(seed=1)
    fitted_rows, fitted_labels = stretched(n_classes=200, seed=2)
    whitening = fit_whitening(fitted_rows, fitted_labels if with_labels else None)

    def hits(vectors: Vectors) -> float:
        scores = vectors @ vectors.T
        np.fill_diagonal(scores, -np.inf)
        return float(np.mean(np.array(labels)[scores.argmax(axis=1)] == labels))

    assert hits(whitening.apply(rows)) > hits(rows) + 0.02


def test_full_shrinkage_only_centres() -> None:
    rows, labels = stretched()
    found = fit_whitening(rows, labels, shrinkage=1.0)
    np.testing.assert_allclose(found.projection, np.eye(rows.shape[1]), atol=1e-6)
    np.testing.assert_allclose(found.apply(rows), unit(rows - rows.mean(axis=0)), atol=1e-5)


@given(seed=st.integers(0, 50), with_labels=st.booleans())
def test_order_and_names_of_classes_do_not_matter(seed: int, with_labels: bool) -> None:
    rows, labels = stretched(n_classes=20)
    order = np.random.default_rng(seed).permutation(len(rows))
    renamed = [f"class {label}" for label in labels]
    one = fit_whitening(rows, labels if with_labels else None)
    other = fit_whitening(rows[order], [renamed[i] for i in order] if with_labels else None)
    np.testing.assert_allclose(one.projection, other.projection, atol=1e-4)


def test_neighbours_are_found_across_tiles() -> None:
    """More rows than fit a tile, all similarities at once as the reference."""
    rows, _ = stretched(n_classes=300)
    similarities = rows @ rows.T
    np.fill_diagonal(similarities, -np.inf)
    nearest = np.argsort(-similarities, axis=1)[:, :5]
    differences = (rows[:, None].astype(float) - rows[nearest]).reshape(-1, rows.shape[1])
    values, vectors = np.linalg.eigh(differences.T @ differences / len(differences))
    root = vectors * np.sqrt(values.mean() / (0.9 * values + 0.1 * values.mean())) @ vectors.T
    np.testing.assert_allclose(fit_whitening(rows).projection, root, atol=1e-5)


def test_rows_are_of_length_one_and_the_centre_has_no_direction() -> None:
    whitening = Whitening(np.array([1, 0], np.float32), np.eye(2, dtype=np.float32))
    rows = np.array([[1, 0], [0, 1], [-1, 0]], dtype=np.float32)
    expected = [[0, 0], [-np.sqrt(0.5), np.sqrt(0.5)], [-1, 0]]
    np.testing.assert_allclose(whitening.apply(rows), expected, atol=1e-6)
    assert whitening.apply(rows[:0]).shape == (0, 2)


@pytest.mark.parametrize("shape", [(5,), (5, 3)])
def test_embeddings_of_another_model_are_refused(shape: tuple[int, ...]) -> None:
    whitening = Whitening(np.zeros(4, np.float32), np.eye(4, dtype=np.float32))
    with pytest.raises(InvalidEmbeddings, match="expected embeddings of 4 columns"):
        whitening.apply(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("centre", "projection"),
    [
        (np.zeros(3), np.eye(3)),
        (np.zeros(3, np.float32), np.eye(4, dtype=np.float32)),
        (np.full(3, np.nan, np.float32), np.eye(3, dtype=np.float32)),
        (np.zeros((3, 1), np.float32), np.eye(3, dtype=np.float32)),
        (np.zeros(3, np.float32), np.zeros((3, 0), np.float32)),
    ],
)
def test_a_whitening_fits_together(centre: NDArray[np.float32], projection: NDArray[np.float32]) -> None:
    with pytest.raises(InvalidEmbeddings, match="whitening"):
        Whitening(centre, projection)


def test_bad_input_is_refused() -> None:
    rows, labels = stretched(n_classes=20)
    with pytest.raises(InvalidInput, match="shrinkage"):
        fit_whitening(rows, labels, shrinkage=0)
    with pytest.raises(InvalidInput, match="n_neighbours"):
        fit_whitening(rows, n_neighbours=0)
    with pytest.raises(InvalidEmbeddings, match="one label per row"):
        fit_whitening(rows, labels[:-1])
    with pytest.raises(InvalidEmbeddings, match="finite float32"):
        fit_whitening(np.full_like(rows, np.nan), labels)
    with pytest.raises(InvalidEmbeddings, match="finite float32"):
        fit_whitening(rows.astype(float), labels)  # type: ignore[arg-type]  # what is tested


def test_too_little_is_refused() -> None:
    """Classes of one image, a few images, none, or copies of one image say nothing about how classes spread."""
    rows, _ = stretched(n_classes=20)
    names = [f"{i}" for i in range(len(rows))]
    same = np.tile(rows[:1], (100, 1))
    for embeddings, labels in ((rows, names), (rows[:3], None), (rows[:0], None), (rows[:1], None), (same, None)):
        with pytest.raises(NotEnoughEvidence, match="at least 50 differences"):
            fit_whitening(embeddings, labels)
