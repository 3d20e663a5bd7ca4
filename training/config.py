"""What a training run can be told: frozen values, read from TOML that lists only what differs from the defaults.

Decides names, types, bounds and defaults; leaves what they do to the modules that take them.
"""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from retrieval.errors import InvalidSettings

CONFIGS = Path(__file__).parent / "configs"

Count = Annotated[int, Field(ge=1)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Similarity = Annotated[float, Field(ge=-1, le=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputConfig:
    """Pixels: shorter side after resizing, side of the centre square, Pillow's filter. They go into the bundle."""

    resize: Count = 256
    crop: Count = 224
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """backbone: efficientnet-lite0 to 2, torchvision/NAME or timm/NAME; dimension: of the embedding.

    frozen: names of parameters, or of modules that hold them ("stem", "blocks.0"), that keep their pretrained values;
    leading ones also save the time of their backward pass.
    """

    backbone: str = "efficientnet-lite0"
    pretrained: bool = True
    dimension: Count = 128
    frozen: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentationConfig:
    """How far a training image may be changed; every amount is drawn anew per image, 0 switches it off.

    zoom, stretch: largest log-ratio of size and of aspect; rotate_degrees; shift: share of the side; flip, grey: shares
    of the images mirrored and made grey; mix_colours: standard deviation by which the colour matrix leaves identity;
    brightness: largest relative change.
    """

    zoom: Amount = 0.2
    stretch: Amount = 0.1
    rotate_degrees: Amount = 10.0
    shift: Share = 0.06
    flip: Share = 0.5
    grey: Share = 0.1
    mix_colours: Amount = 0.05
    brightness: Share = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """base: a class of pytorch_metric_learning.losses; options: its arguments.

    The others are TCM's: weights (0 switches a side off) and margins of positive and negative pairs.
    """

    base: str = "NormalizedSoftmaxLoss"
    options: Mapping[str, float | int | str | bool] = field(default_factory=lambda: {"temperature": 0.07})
    tcm_positive_weight: Amount = 1.0
    tcm_negative_weight: Amount = 1.0
    tcm_positive_margin: Similarity = 0.9
    tcm_negative_margin: Similarity = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """How long and how fast. Steps, not seconds, end a run, so that it can be repeated.

    classes, images: of one batch, images per class. head_steps: taken first, by the head alone, on the features of the
    unchanged backbone. warmup_steps: in which the learning rates rise linearly, before they fall along a cosine.
    loss_learning_rate: of the parameters that some base losses own (class proxies).
    """

    steps: Count = 2000
    head_steps: Annotated[int, Field(ge=0)] = 300
    classes: Count = 32
    images: Annotated[int, Field(ge=2)] = 4
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    learning_rate: Amount = 1e-3
    head_learning_rate: Amount = 5e-3
    loss_learning_rate: Amount = 2e-2
    weight_decay: Amount = 1e-2
    checkpoint_every: Count = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """One training run. max_unreadable: share of the images that may be unreadable before the run is refused."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    seed: Annotated[int, Field(ge=0)] = 0
    max_unreadable: Share = 0.01
    input: InputConfig = InputConfig()
    model: ModelConfig = ModelConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    loss: LossConfig = LossConfig()
    schedule: ScheduleConfig = ScheduleConfig()


_ADAPTER = TypeAdapter(TrainingConfig)


def load_config(name_or_path: str) -> TrainingConfig:
    """The configuration of this name in `training/configs`, or in this TOML file.

    Raises InvalidSettings, with all problems at once, where it is missing, not TOML, or holds an unknown key or value.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = CONFIGS / f"{name_or_path}.toml"
    if not path.is_file():
        names = sorted(config.stem for config in CONFIGS.glob("*.toml"))
        raise InvalidSettings(
            f"configuration {name_or_path!r} does not exist: name a .toml file, or one of {', '.join(names)}"
            + suggestion(name_or_path, names)
        )
    try:
        values = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"{path} is not TOML: {error}") from error
    return parse_config(values, source=str(path))


def parse_config(values: Mapping[str, Any], *, source: str) -> TrainingConfig:
    """`values` over the defaults. Raises InvalidSettings as `load_config` does; `source` is named in its message."""
    problems = list(_unknown_keys(values, TrainingConfig()))
    if not problems:
        try:
            config = _ADAPTER.validate_python(values)
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}, found {e['input']!r}" for e in error.errors()]
        else:
            problems = list(_contradictions(config))
            if not problems:
                return config
    raise InvalidSettings(f"{source}: " + "; ".join(problems))


def to_json(config: TrainingConfig) -> dict[str, Any]:
    """A plain dictionary that `parse_config` turns back into an equal value."""
    values: dict[str, Any] = _ADAPTER.dump_python(config, mode="json")
    return values


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the known names nearest to `name`, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _unknown_keys(values: Mapping[str, Any], default: Any, prefix: str = "") -> Iterable[str]:
    known = {f.name: getattr(default, f.name) for f in fields(default)}
    for key, value in values.items():
        if key not in known:
            yield f"unknown key {prefix}{key}" + suggestion(key, known)
        elif is_dataclass(known[key]) and isinstance(value, Mapping):
            yield from _unknown_keys(value, known[key], f"{prefix}{key}.")


def _contradictions(config: TrainingConfig) -> Iterable[str]:
    if config.input.crop > config.input.resize:
        yield f"input.crop is at most input.resize, found {config.input.crop} and {config.input.resize}"
