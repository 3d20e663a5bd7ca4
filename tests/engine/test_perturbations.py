from __future__ import annotations

import io
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval.contract.limits import ImageLimits
from retrieval.contract.preprocessing import Preprocessing, decoded, preprocess
from retrieval.engine.perturbations import KINDS, SEVERITIES, Perturbation, preprocess_perturbed
from retrieval.errors import InvalidImage, InvalidInput
from tests import hostile

ROOT = Path(__file__).parents[2]

PREPROCESSING = Preprocessing(resize=40, crop=32, mean=(127.0,) * 3, std=(128.0,) * 3)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Edges, colours and smooth places, 90 x 60."""
    y, x = np.mgrid[:60, :90]
    pixels = np.stack([x * 2, 255 - y * 3, ((x // 10 + y // 10) % 2) * 255], axis=2)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def distance(a: Image.Image, b: Image.Image) -> float:
    size = (30, 20)
    return float(np.abs(np.asarray(a.resize(size), float) - np.asarray(b.resize(size), float)).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_a_perturbation_is_a_function_of_image_severity_and_generator(picture: Image.Image, kind: str) -> None:
    before = picture.tobytes()
    first, again = (Perturbation(kind, 3).apply(picture, np.random.default_rng(7)) for _ in range(2))
    assert first.tobytes() == again.tobytes()
    assert first.mode == "RGB"
    assert (first.size == picture.size) == (kind != "crop")
    assert picture.tobytes() == before, "the image itself was changed"
    assert first.tobytes() != before


@pytest.mark.parametrize("kind", KINDS)
def test_a_higher_severity_changes_more(picture: Image.Image, kind: str) -> None:
    changes = [
        np.mean([distance(picture, Perturbation(kind, s).apply(picture, np.random.default_rng(r))) for r in range(8)])
        for s in SEVERITIES
    ]
    assert changes == sorted(changes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (3, 2)])
def test_the_smallest_images_survive_the_most_severe_perturbation(kind: str, size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (200, 100, 50))
    changed = Perturbation(kind, 5).apply(image, np.random.default_rng(0))
    assert min(changed.size) >= 1


def test_strength_follows_the_size_of_the_image(picture: Image.Image) -> None:
    """Twice as large a picture, blurred and made small again, looks like the small one blurred."""
    large = picture.resize((360, 240), Image.Resampling.BICUBIC)
    blurred = [Perturbation("blur", 5).apply(image, np.random.default_rng(0)) for image in (picture, large)]
    assert distance(*blurred) < 2


def test_only_what_stands_between_decoding_and_preprocessing_is_new(
    picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that a perturbation leaves as it is becomes exactly what production makes of it."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    monkeypatch.setattr(Perturbation, "apply", lambda self, image, rng: image)
    same = preprocess_perturbed(buffer.getvalue(), PREPROCESSING, Perturbation("blur", 1), np.random.default_rng(0))
    assert np.array_equal(same, preprocess(buffer.getvalue(), PREPROCESSING))


def test_a_perturbed_image_has_the_models_shape(picture: Image.Image) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    for kind in KINDS:
        array = preprocess_perturbed(buffer.getvalue(), PREPROCESSING, Perturbation(kind, 5), np.random.default_rng(0))
        assert (array.shape, array.dtype) == ((3, 32, 32), np.float32)
    with pytest.raises(InvalidImage, match="found 8 bytes of something else"):
        preprocess_perturbed(b"no image", PREPROCESSING, Perturbation("blur", 1), np.random.default_rng(0))


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(InvalidInput, match="severity"):
        Perturbation("blur", 6)
    with pytest.raises(InvalidInput, match="jpeg"):
        Perturbation("melt", 1)
    with pytest.raises(InvalidInput, match="RGB"):
        Perturbation("blur", 1).apply(Image.new("L", (4, 4)), np.random.default_rng(0))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["noise", "brightness"])
def test_a_large_image_is_changed_in_rows(kind: str) -> None:
    """As floats, a whole one would take 84 bytes a pixel."""
    code = f"""
import resource, numpy as np
from PIL import Image
from retrieval.engine.perturbations import Perturbation
image = Image.new("RGB", (4000, 2000))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
Perturbation("{kind}", 3).apply(image, np.random.default_rng(0))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 8e6)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 8


def test_a_perturbed_image_keeps_within_the_budget_of_memory() -> None:
    """It waits until a large image that is decoded now gives its memory back."""
    limits = ImageLimits(memory_bytes=64 * 2**20)
    large, done = hostile.grey_16_bit_png(2200), threading.Event()

    def read() -> None:
        preprocess_perturbed(large, PREPROCESSING, Perturbation("crop", 1), np.random.default_rng(0), limits=limits)
        done.set()

    thread = threading.Thread(target=read)
    with decoded(large, limits=limits):
        thread.start()
        assert not done.wait(0.5)
    thread.join(20)
    assert done.is_set()
