"""Weights from a local file: read without running code from it, and loaded only if all of them fit.

Decides which names and shapes fit a network. The error for a file that does not fit names the differences.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from retrieval.errors import InvalidSettings
from training.config import suggestion

State = Mapping[str, Tensor]

# Keys under which training programs, this one first, store the state dictionary next to other values.
_WRAPPERS = ("embedder", "state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "teacher")
_COUNTER = "num_batches_tracked"  # of batch norms; older files lack it, and inference does not read it
_SHOWN = 3


def read_state(path: str) -> State:
    """Read the state dictionary in a .pt, .pth or .safetensors file, without the keys around it.

    Raises InvalidSettings if the file is missing, of another type, or holds more than tensors in containers.
    """
    file = Path(path)
    if file.suffix not in (".pt", ".pth", ".safetensors"):
        raise InvalidSettings(
            f'model.weights: expected "pretrained", "random" or a .pt, .pth or .safetensors file, found {path!r}'
            + suggestion(path, ("pretrained", "random"))
        )
    if not file.is_file():
        raise InvalidSettings(f"model.weights: the file {path} does not exist")
    try:
        content: Any = load_file(file) if file.suffix == ".safetensors" else _load_tensors(file)
    except safetensors.SafetensorError as error:
        raise InvalidSettings(f"model.weights: {path} is not a complete safetensors file ({error})") from error
    while (inner := next((content[w] for w in _WRAPPERS if isinstance(content.get(w), Mapping)), None)) is not None:
        content = inner
    state = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not state:
        raise InvalidSettings(f"model.weights: {path} holds no named tensors, but {_some([*map(str, content)])}")
    return state


def load_and_resize(
    network: nn.Module, weights: str, *, classifiers: Collection[str], resize: Callable[[nn.Module], None] | None
) -> None:
    """Load the file `weights`, unless it is "pretrained" or "random", and resize the network with `resize`.

    The file may be made for the size before or after resizing. Raises as `read_state` and `load_state`.
    """
    if weights not in ("pretrained", "random"):
        state = read_state(weights)
        expected = network.state_dict()
        if resize is not None and _difference(expected, _weights_for(expected, state, classifiers)):
            resize(network)
        load_state(network, state, source=weights, classifiers=classifiers)
    if resize is not None:
        resize(network)


def load_state(network: nn.Module, state: State, *, source: str, classifiers: Collection[str] = ()) -> None:
    """Load `state` into `network`; it must hold all weights of the network, under one common prefix.

    A prefix such as "module." or "backbone." is removed; entries without the prefix are ignored. classifiers: modules
    that were removed from the network; their weights are dropped. Raises InvalidSettings, which names `source`, if a
    weight is missing, unknown or of another shape; the network is then unchanged.
    """
    expected = network.state_dict()
    found = _weights_for(expected, state, classifiers)
    if problem := _difference(expected, found):
        raise InvalidSettings(f"model.weights: {source} {problem}")
    network.load_state_dict(found, strict=False)  # only the counters may be missing


def _load_tensors(file: Path) -> Any:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InvalidSettings(
            f"model.weights: {file} cannot be read as tensors only ({error}): save the network's state_dict()"
        ) from error
    return content if isinstance(content, Mapping) else {"": content}


def _weights_for(expected: State, state: State, classifiers: Collection[str]) -> dict[str, Tensor]:
    """Return the weights under the prefix that most often precedes an expected name, without classifiers."""
    prefixes = Counter("" for key in state if key in expected)
    for key in state:
        dots = [place + 1 for place, letter in enumerate(key) if letter == "."]
        prefixes.update(key[:dot] for dot in dots if key[dot:] in expected)
    prefix = min(prefixes, key=lambda prefix: (-prefixes[prefix], len(prefix)), default="")
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    starts = tuple(f"{classifier}." for classifier in classifiers)
    return {key: value for key, value in found.items() if key in expected or not key.startswith(starts)}


def _difference(expected: State, found: State) -> str:
    """Describe the differences between the weights found and expected; empty if they fit."""
    missing = [key for key in expected if key not in found and not key.endswith(_COUNTER)]
    unknown = [key for key in found if key not in expected]
    shapes = [key for key in expected if key in found and found[key].shape != expected[key].shape]
    n_fitting = len(expected.keys() & found.keys()) - len(shapes)
    if 2 * n_fitting < len(expected):
        return (
            f"holds another architecture: {n_fitting} of {len(expected)} weights fit; it has {_some(found)}, "
            f"the backbone {_some(expected)}"
        )
    parts = []
    if missing:
        parts.append(f"lacks {_some(missing)}" + suggestion(missing[0], unknown))
    if unknown:
        parts.append(f"also has {_some(unknown)}{_whole_modules(expected, unknown)}")
    if shapes:
        key = shapes[0]
        parts.append(
            f"has {len(shapes)} of another shape, {key} {list(found[key].shape)} instead of "
            f"{list(expected[key].shape)}: was it made for another input.crop or another size of the network?"
        )
    return "; ".join(parts)


def _whole_modules(expected: State, unknown: list[str]) -> str:
    """Return advice if all surplus weights belong to modules that the network does not have."""
    modules = {key.partition(".")[0] for key in unknown}
    if modules & {key.partition(".")[0] for key in expected}:
        return ""
    return f": if {' and '.join(sorted(modules))} are heads or losses of its training, drop them from the file"


def _some(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown or "nothing"
