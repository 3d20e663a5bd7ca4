"""Synthetic labelled vectors whose true spread between classes is set by the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval.consistency.pairs import tiles

Family: TypeAlias = Callable[..., tuple[NDArray[np.float32], list[str]]]


def draw_family(
    rng: np.random.Generator,
    *,
    n_classes: int,
    n_images: int,
    dimension: int = 32,
    spread: float = 0.0,
    crowding: float = 0.0,
) -> tuple[NDArray[np.float32], list[str]]:
    """Draw unit rows and labels from one fixed population of classes.

    spread: standard deviation of the log of the noise of a class, 0 gives every class the same true curve;
    crowding: pull of a class towards one of six fixed crowded places, by a random amount.
    """
    centres = rng.normal(size=(n_classes, dimension))
    if crowding:
        places = np.random.default_rng(99).normal(size=(6, dimension))
        centres += 2 * crowding * places[rng.integers(6, size=n_classes)] * rng.random((n_classes, 1))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    noise = np.exp(spread * rng.normal(size=(n_classes, 1, 1))) / np.sqrt(dimension)
    rows = (centres[:, None] + noise * rng.normal(size=(n_classes, n_images, dimension))).reshape(-1, dimension)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels = [f"class {code:04d}" for code in range(n_classes) for _ in range(n_images)]
    return rows.astype(np.float32), labels


@contextmanager
def tile_of(size: int) -> Iterator[None]:
    """Cut the pairs into tiles of this size, which no result may depend on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILE", size)
        yield


@pytest.fixture(scope="session")
def family() -> Family:
    return draw_family
