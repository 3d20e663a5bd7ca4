"""Small random changes of training images, with the kernels of torchvision's transforms v2.

Decides how much and in which order an image is changed. The random numbers are drawn here and not by the library's
random transforms, which use torch's global generator: a batch must be the same in any thread or process. Geometry uses
torch's grid_sample directly: the library's affine kernel calls it too, but cannot stretch, crop or mirror at the edges,
and its perspective kernel takes twice as long.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from retrieval.contract.preprocessing import Preprocessing
from training.config import AugmentationConfig
from training.model.torchvision_compat import allow_mismatched_torchvision

allow_mismatched_torchvision()

from torchvision.transforms.v2 import functional as kernels  # noqa: E402 - can be imported only after the call above

_TOP = 255.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Change:
    """The changes of one image.

    geometry: [2, 2], maps an offset in the result to an offset in the image; shift: [2], right and down, as a share of
    the side. colours: [3, 3], rows sum to 1, so that white stays white. brightness: factor.
    """

    geometry: NDArray[np.float64]
    shift: NDArray[np.float64]
    is_flipped: bool
    is_grey: bool
    colours: NDArray[np.float32]
    brightness: float


def draw_changes(config: AugmentationConfig, n: int, rng: np.random.Generator) -> list[Change]:
    """Draw the changes of the n images of a batch; switched-off ones also draw, so that the others stay equal."""
    zoom, stretch, angle, brightness = rng.uniform(-1, 1, (4, n))
    shift = rng.uniform(-1, 1, (n, 2)) * config.shift
    is_flipped, is_grey = rng.uniform(size=(2, n)) < np.array([[config.flip], [config.grey]])
    colours = np.eye(3) + config.mix_colours * rng.standard_normal((n, 3, 3))
    colours /= colours.sum(axis=2, keepdims=True).clip(min=0.5)

    size, aspect = np.exp(zoom * config.zoom), np.exp(stretch * config.stretch / 2)
    turn = np.deg2rad(angle * config.rotate_degrees)
    across = np.stack([np.cos(turn) * size * aspect, -np.sin(turn) * size * aspect], axis=1)
    down = np.stack([np.sin(turn) * size / aspect, np.cos(turn) * size / aspect], axis=1)
    geometry = np.stack([across, down], axis=1)
    return [
        Change(
            geometry=geometry[row],
            shift=shift[row],
            is_flipped=bool(is_flipped[row]),
            is_grey=bool(is_grey[row]),
            colours=colours[row].astype(np.float32),
            brightness=float(1 + brightness[row] * config.brightness),
        )
        for row in range(n)
    ]


def apply_change(square: NDArray[np.uint8], change: Change, preprocessing: Preprocessing) -> Tensor:
    """Change, crop and normalise one image: [side, side, 3] uint8 -> [3, crop, crop] float32.

    Without any change the result equals that of production preprocessing. Beyond its edges an image is mirrored.
    """
    image = kernels.to_dtype(torch.from_numpy(square).permute(2, 0, 1), torch.float32, scale=True)
    image = _look_through(image, change, preprocessing.crop)
    if change.is_flipped:
        image = kernels.horizontal_flip(image)
    if change.is_grey:
        image = kernels.rgb_to_grayscale(image, num_output_channels=3)
    image = (torch.from_numpy(change.colours) @ image.flatten(1)).view_as(image).clamp(0, 1)
    image = kernels.adjust_brightness(image, change.brightness)
    mean, std = ([value / _TOP for value in values] for values in (preprocessing.mean, preprocessing.std))
    normalised: Tensor = kernels.normalize(image, mean, std)
    return normalised


def _look_through(image: Tensor, change: Change, crop: int) -> Tensor:
    """Sample the turned, scaled and moved window of the crop: [3, side, side] -> [3, crop, crop]."""
    side = image.shape[-1]
    # Offsets of the pixel centres from the centre of the window, in grid_sample's unit: half a side.
    (a, b), (c, d) = change.geometry
    offset = (torch.arange(crop) + (0.5 - crop / 2)) * (2 / side)
    right, down = offset, offset[:, None]
    across, along = (2 * float(distance) for distance in change.shift)
    grid = torch.stack([right * a + (down * b + across), right * c + (down * d + along)], dim=-1)
    return functional.grid_sample(image[None], grid[None], padding_mode="reflection", align_corners=False)[0]
