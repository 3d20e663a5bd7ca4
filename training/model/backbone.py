"""What the libraries of networks have in common: the value they give, and how their failures are told."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from retrieval.errors import Unavailable

IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))  # mean and std of R, G, B, in units of 0..255

Channels = tuple[float, float, float]
# A network and its pixels [n, 3, h, w] -> a map of features [n, c, h', w'], or patch tokens [n, t, c].
ToMap = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """A network without its classifier, and the normalisation it was trained with (0..255).

    network: pixels [n, 3, h, w] -> features [n, f], by the pooling that it was trained with. to_map: what it computes
    before that pooling; None where it has no such map. Neither mean nor std depend on whether weights were loaded.
    """

    network: nn.Module
    mean: Channels
    std: Channels
    to_map: ToMap | None


def fetch(name: str, create: Callable[[], nn.Module]) -> nn.Module:
    """What `create` gives. Raises Unavailable where the pretrained weights of `name` cannot be had."""
    try:
        return create()
    except (OSError, RuntimeError) as error:  # every way a download fails is one of the two
        raise Unavailable(
            f"the pretrained weights of {name} cannot be fetched: {error}; name a local file in model.weights, or"
            ' "random"'
        ) from error


def in_bytes(channels: Iterable[float]) -> Channels:
    """Values of R, G and B in units of 0..255."""
    red, green, blue = (255.0 * channel for channel in channels)
    return red, green, blue
