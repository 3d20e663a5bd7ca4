"""The value that every library of networks returns, and the errors of their downloads."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from retrieval.errors import Unavailable

Channels = tuple[float, float, float]
# A network and its pixels [n, 3, h, w] -> a feature map [n, c, h', w'], or patch tokens [n, t, c].
ToMap = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """A network without its classifier, and the normalisation that it was trained with (0..255).

    network: pixels [n, 3, h, w] -> features [n, f], with the pooling that it was trained with. to_map: computes the
    feature map before that pooling; None if there is none. mean and std do not depend on whether weights were loaded.
    """

    network: nn.Module
    mean: Channels
    std: Channels
    to_map: ToMap | None


def fetch(name: str, create: Callable[[], nn.Module]) -> nn.Module:
    """Call `create`. Raises Unavailable if the pretrained weights of `name` cannot be downloaded."""
    try:
        return create()
    except (OSError, RuntimeError) as error:  # every failure of a download raises one of the two
        raise Unavailable(
            f"the pretrained weights of {name} cannot be fetched: {error}; name a local file in model.weights, or"
            ' "random"'
        ) from error


def in_bytes(channels: Iterable[float]) -> Channels:
    """Convert values of R, G and B to units of 0..255."""
    red, green, blue = (255.0 * channel for channel in channels)
    return red, green, blue
