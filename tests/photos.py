"""Labelled data from real photographs: each class is a place in a photo, its images are shaky shots of that place.

The photographs come with scikit-learn and matplotlib, so nothing is fetched.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib.cbook import get_sample_data
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_images

_SIDE = 120  # of a shot, in pixels


@cache
def _photographs() -> tuple[NDArray[np.uint8], ...]:
    hopper = Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB")
    return (*load_sample_images().images, np.asarray(hopper))


def shot(place: int, number: int) -> Image.Image:
    """Shot `number` of a place: shifted by some pixels, brighter or darker, turned a little."""
    rng = np.random.default_rng(place)
    photo = _photographs()[place % 3]
    height, width = photo.shape[:2]
    top, left = int(rng.integers(10, height - _SIDE - 10)), int(rng.integers(10, width - _SIDE - 10))
    shake = np.random.default_rng((place, number))
    top, left = top + int(shake.integers(-6, 7)), left + int(shake.integers(-6, 7))
    image = Image.fromarray(photo[top : top + _SIDE, left : left + _SIDE])
    image = image.rotate(float(shake.uniform(-4, 4)), Image.Resampling.BILINEAR)
    return ImageEnhance.Brightness(image).enhance(float(shake.uniform(0.9, 1.1)))


def write_shots(folder: Path, *, places: range, n_shots: int) -> Path:
    """JPEG files of every shot of some places, and the manifest (CSV) that names them; returns the manifest."""
    folder.mkdir(parents=True)
    manifest = folder / "manifest.csv"
    with manifest.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "uri", "label", "camera"])
        for place in places:
            for number in range(n_shots):
                name = f"{place}-{number}.jpg"
                shot(place, number).save(folder / name, quality=90)
                writer.writerow([name.removesuffix(".jpg"), name, f"place {place}", "ab"[number % 2]])
    return manifest
