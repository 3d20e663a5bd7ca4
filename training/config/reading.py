"""Reads a configuration from TOML or JSON. A file lists only what differs from the defaults.

All problems of a file are reported at once: unknown keys, values out of bounds, values that contradict each other.
"""

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from retrieval.errors import InvalidSettings
from training.config.sections import InputConfig, LoopConfig, LossConfig, MarginConfig, ModelConfig, TrainingConfig

CONFIGS = Path(__file__).parents[1] / "configs"

_ADAPTER = TypeAdapter(TrainingConfig)


def load_config(name_or_path: str) -> TrainingConfig:
    """Load a configuration by its name in `training/configs`, from a TOML file, or from the config.json of a run.

    Raises InvalidSettings, with all problems at once, if it is missing, not TOML, or holds an unknown key or value.
    """
    path = find_named(name_or_path, CONFIGS, kind="configuration", suffixes=(".toml", ".json"))
    try:
        text = path.read_text()
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:  # the TOML, JSON and UTF-8 decoders all raise subclasses of it
        raise InvalidSettings(f"{path} is not {path.suffix[1:].upper()}: {error}") from error
    return parse_config(values, source=str(path))


def parse_config(values: Mapping[str, Any], *, source: str) -> TrainingConfig:
    """Apply `values` to the defaults. Raises InvalidSettings as `load_config` does; its message names `source`."""
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
    """Return a plain dictionary that `parse_config` turns back into an equal value."""
    values: dict[str, Any] = _ADAPTER.dump_python(config, mode="json")
    return values


def find_named(name_or_path: str, folder: Path, *, kind: str, suffixes: Sequence[str] = (".toml",)) -> Path:
    """Return a path with one of the suffixes as it is, and for any other name the TOML file of that name in `folder`.

    Raises InvalidSettings with the names in the folder if the file is missing. kind: what the file holds, for the
    message.
    """
    path = Path(name_or_path)
    if path.suffix not in suffixes:
        path = folder / f"{name_or_path}.toml"
    if not path.is_file():
        names = sorted(file.stem for file in folder.glob("*.toml"))
        raise InvalidSettings(
            f"{kind} {name_or_path!r} does not exist: name a .toml file, or one of {', '.join(names)}"
            + suggestion(name_or_path, names)
        )
    return path


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the known names closest to `name`, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _unknown_keys(values: Mapping[str, Any], default: Any, prefix: str = "") -> Iterable[str]:
    known = {f.name: getattr(default, f.name) for f in fields(default)}
    for key, value in values.items():
        if key not in known:
            yield f"unknown key {prefix}{key}" + suggestion(key, known)
        elif is_dataclass(known[key]) and isinstance(value, Mapping):
            yield from _unknown_keys(value, known[key], f"{prefix}{key}.")
        elif isinstance(value, list) and isinstance(known[key], tuple) and any(map(is_dataclass, known[key])):
            for row, entry in enumerate(entry for entry in value if isinstance(entry, Mapping)):
                yield from _unknown_keys(entry, known[key][0], f"{prefix}{key}.{row}.")


def _contradictions(config: TrainingConfig) -> Iterable[str]:
    """Return one sentence for each contradiction: what is wrong and what to do."""
    yield from _of_input(config.input)
    yield from _of_model(config.model)
    yield from _of_loss(config.loss)
    yield from _of_loop(config.loop)


def _of_input(config: InputConfig) -> Iterable[str]:
    if config.crop > config.resize:
        yield f"input.crop must be at most input.resize, found {config.crop} and {config.resize}"


def _of_model(config: ModelConfig) -> Iterable[str]:
    if not config.lora.rank:
        return
    if config.frozen:
        yield "model.frozen has no effect with model.lora, which trains only the adapters: remove one of them"
    if config.batch_norm == "trained":
        yield 'model.batch_norm = "trained" has no effect with model.lora, which trains only the adapters: remove it'


def _of_loss(config: LossConfig) -> Iterable[str]:
    tcm = config.tcm
    if not any(base.weight for base in config.base) and not tcm.positive_weight and not tcm.negative_weight:
        yield (
            "loss: there is nothing to minimise: every weight of loss.base, loss.tcm.positive_weight and "
            "loss.tcm.negative_weight is 0: raise one of them"
        )
    if _margins_meet(tcm):
        yield (
            f"loss.tcm.positive_margin must be above loss.tcm.negative_margin, found {tcm.positive_margin} and "
            f"{tcm.negative_margin}: positive pairs must be more similar than negative pairs"
        )
    if tcm.score == "cohort":
        yield from _of_cohort_margin(tcm)


def _of_cohort_margin(tcm: MarginConfig) -> Iterable[str]:
    if tcm.margins != "quantiles":
        yield (
            f'loss.tcm.score = "cohort" needs loss.tcm.margins = "quantiles", found "{tcm.margins}": positive_margin '
            "and negative_margin are cosines, and this score has another range"
        )
    if tcm.cohort < 4 * tcm.cohort_k:
        yield (
            f"loss.tcm.cohort: expected at least 4 times loss.tcm.cohort_k, which is {tcm.cohort_k}, found "
            f"{tcm.cohort}: raise it, or lower cohort_k"
        )


def _margins_meet(tcm: MarginConfig) -> bool:
    """Check fixed and scheduled margins only: quantiles follow the model, in any order at first."""
    is_used = tcm.positive_weight > 0 and tcm.negative_weight > 0 and tcm.margins != "quantiles"
    return is_used and tcm.positive_margin <= tcm.negative_margin


def _of_loop(config: LoopConfig) -> Iterable[str]:
    if config.patience and not config.evaluate_every:
        yield f"loop.patience needs loop.evaluate_every, found {config.patience} and 0"
