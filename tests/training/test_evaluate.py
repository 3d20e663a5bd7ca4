"""The figures of an evaluation, against a case that can be checked by hand."""

import numpy as np
import pytest

from retrieval.contract.manifest import Item
from retrieval.contract.preprocessing import Preprocessing
from retrieval.errors import NotEnoughEvidence
from training.evaluate import evaluate, evaluate_items


def test_perfect_classes() -> None:
    """Classes in nearly orthogonal directions: every neighbour is right, every pair accepted, all classes are alike."""
    directions = np.eye(20) + np.random.default_rng(0).normal(0, 0.01, (20, 20))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    embeddings = directions.astype(np.float32).repeat(4, axis=0)
    found = evaluate(embeddings, [f"class {row // 4}" for row in range(80)])
    assert (found.n_images, found.n_classes, found.n_single) == (80, 20, 0)
    assert (found.r_at_1, found.tar) == (1.0, 1.0)
    assert found.opis < 1e-3


def test_items_are_embedded_in_order_and_damaged_ones_counted(held_out_items: list[Item]) -> None:
    """The embedding is the mean colour of each cell: pictures of a class share it, so most are found."""
    lost = Item(id="lost", uri="file:///nowhere/lost.png", label="class_100", attributes={})
    preprocessing = Preprocessing(resize=4, crop=4, mean=(127, 127, 127), std=(60, 60, 60))

    def embed(pixels: np.ndarray) -> np.ndarray:
        rows = pixels.reshape(len(pixels), -1)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    found = evaluate_items(
        [*held_out_items, lost], embed, preprocessing, max_unreadable=0.1, progress=lambda done, total: None
    )
    assert (found.n_images, found.n_classes, found.n_unreadable) == (70, 14, 1)
    assert found.r_at_1 > 0.9
    assert found.tar > 0.9
    assert "R@1" in str(found)


def test_too_little_is_refused() -> None:
    with pytest.raises(NotEnoughEvidence):
        evaluate(np.eye(3, dtype=np.float32), ["a", "b", "c"])
