"""Labelled embeddings of places that are crowded or lonely, which one cosine threshold fits badly or well."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.contract.score import Score
from retrieval.engine.labelled_embeddings import LabelledEmbeddings


def normalised(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


def crowded(n_classes: int = 60, n_images: int = 5, *, seed: int = 0) -> LabelledEmbeddings:
    """Half of the classes crowd around one place, the others have room: one cosine threshold fits both badly."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_classes, 24))
    centres[: n_classes // 2] += 6 * np.random.default_rng(99).normal(size=24)
    rows = centres.repeat(n_images, axis=0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows += rng.normal(scale=0.05, size=rows.shape)
    labels = [f"class {code}" for code in range(n_classes) for _ in range(n_images)]
    return LabelledEmbeddings(normalised(rows), labels, "crowded")


def isolated(n_classes: int = 60, n_images: int = 5, *, seed: int = 0) -> LabelledEmbeddings:
    """Classes far apart from each other, all alike."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n_classes, 24)).repeat(n_images, axis=0) + rng.normal(size=(n_classes * n_images, 24))
    return LabelledEmbeddings(normalised(rows), [f"{code}" for code in range(n_classes) for _ in range(n_images)], "i")


def cohort_of_strangers(k: int = 10) -> Score:
    """A cohort from the same two places, of classes that are not calibrated on."""
    return Score(cohort=crowded(200, 1, seed=1).embeddings, k=k)
