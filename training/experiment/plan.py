"""The plan of an experiment: arms, seeds and data, read from a TOML file. All its problems are reported at once.

Decides which arms are trained and whether their budgets are equal; `running.py` trains them.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from retrieval.errors import InvalidSettings
from training.config import CONFIGS, TrainingConfig, find_named, load_config, parse_config, suggestion, to_json
from training.experiment.compared import Compare
from training.experiment.scores import ScoreConfig

EXPERIMENTS = CONFIGS / "experiments"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]*")  # names of arms are names of folders, next to the result files
_RESULT_SUFFIXES = (".md", ".csv", ".json", ".png")
_STRICT = ConfigDict(extra="forbid")
_OF_ONE_SET = ("isotonic", "cluster_offsets", "cluster_isotonic")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentData:
    """The manifests of the parts. Only validation and cohort may share classes; "{seed}" in a path stands for the seed.

    validation: for the evaluations of training; cohort: to fit scores and to choose their class terms; calibration: to
    choose thresholds; test: for the reported figures.
    """

    __pydantic_config__ = _STRICT

    train: str
    validation: str
    cohort: str
    calibration: str
    test: str

    def of_seed(self, seed: int, root: Path) -> "ExperimentData":
        """Return the paths for this seed; relative paths start at `root`, URLs stay."""

        def located(path: str) -> str:
            named = path.replace("{seed}", str(seed))
            return named if "://" in named else str(root / named)

        return ExperimentData(
            train=located(self.train),
            validation=located(self.validation),
            cohort=located(self.cohort),
            calibration=located(self.calibration),
            test=located(self.test),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmConfig:
    """One arm. config: the differences from the common configuration, or from that of the earlier arm `like`.

    model: an earlier arm whose trained runs this arm uses; it then trains nothing, and only `score` may differ.
    against: the arm that it is compared with, by default the first.
    """

    __pydantic_config__ = _STRICT

    name: str
    like: str | None = None
    model: str | None = None
    against: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    score: ScoreConfig = field(default_factory=ScoreConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentConfig:
    """The file. config: name or path of a training configuration; common: differences from it that all arms share.

    compare: "pairs" compares every image of a part with all others; "searches" lets half of the images of each class
    search the others, several times, as in a labelled catalogue. budget: "equal" rejects arms with different numbers of
    steps or images. far_target: the deployed pooled pair FAR.
    """

    __pydantic_config__ = _STRICT

    data: ExperimentData
    arms: Annotated[tuple[ArmConfig, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2)
    config: str = "default"
    common: Mapping[str, Any] = field(default_factory=dict)
    compare: Compare = "pairs"
    budget: Literal["equal", "free"] = "equal"
    far_target: Annotated[float, Field(ge=1e-6, le=0.1)] = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """An arm with its whole configuration; trained_by: the arm whose runs it uses, its own name if it trains."""

    name: str
    trained_by: str
    against: str | None
    training: TrainingConfig
    score: ScoreConfig

    @property
    def trains(self) -> bool:
        """Return whether it has runs of its own."""
        return self.trained_by == self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A checked experiment. arms: in the order of the file; root: the folder at which relative paths of data start."""

    name: str
    root: Path
    data: ExperimentData
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    far_target: float
    compare: Compare = "pairs"

    @property
    def trained_arms(self) -> tuple[Arm, ...]:
        """Return the arms that have runs of their own."""
        return tuple(arm for arm in self.arms if arm.trains)

    def with_seeds(self, seeds: tuple[int, ...]) -> "Experiment":
        """Return the same experiment with these seeds."""
        return replace(self, seeds=seeds)


def load_experiment(name_or_path: str, *, root: Path) -> Experiment:
    """Load an experiment by its name in `training/configs/experiments`, or from a TOML file.

    Raises InvalidSettings, with all problems at once, if it is missing, is not TOML, holds an unknown key or value,
    refers to an arm that is not an earlier one, or has unequal budgets without `budget = "free"`.
    """
    path = find_named(name_or_path, EXPERIMENTS, kind="experiment")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"{path} is not TOML: {error}") from error
    return parse_experiment(values, name=path.stem, folder=path.parent, root=root)


def parse_experiment(values: Mapping[str, Any], *, name: str, folder: Path, root: Path) -> Experiment:
    """Check the values of an experiment. folder: at which the relative path of a configuration starts.

    Raises InvalidSettings as `load_experiment` does; its message contains `name`.
    """
    try:
        config = TypeAdapter(ExperimentConfig).validate_python(values)
    except ValidationError as error:
        raise InvalidSettings(f"experiment {name}: " + "; ".join(_described(error))) from error
    problems = [*_problems_of_names(config.arms), *_problems_of_scores(config), *_problems_of_seeds(config)]
    if problems:
        raise InvalidSettings(f"experiment {name}: " + "; ".join(problems))
    arms = _resolve(config, name, folder)
    if config.budget == "equal" and (unequal := list(_unequal_budgets(arms))):
        raise InvalidSettings(
            f'experiment {name}: {"; ".join(unequal)}; give all arms the same, or set budget = "free"'
        )
    return Experiment(
        name=name,
        root=root,
        data=config.data,
        seeds=config.seeds,
        arms=arms,
        far_target=config.far_target,
        compare=config.compare,
    )


def merge(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Replace `values` with those of `over`; tables are merged key by key, all other values are replaced.

    >>> merge({"a": {"b": 1, "c": 2}, "d": [1, 2]}, {"a": {"b": 3}, "d": [4]})
    {'a': {'b': 3, 'c': 2}, 'd': [4]}
    """
    merged = dict(values)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _resolve(config: ExperimentConfig, name: str, folder: Path) -> tuple[Arm, ...]:
    path = folder / config.config
    common = to_json(load_config(str(path) if path.is_file() else config.config))
    overrides: dict[str, dict[str, Any]] = {}
    arms: dict[str, Arm] = {}
    for number, arm in enumerate(config.arms):
        start = overrides[arm.like] if arm.like else dict(config.common)
        overrides[arm.name] = overrides[arm.model] if arm.model else merge(start, arm.config)
        model = arms[arm.model] if arm.model else None
        arms[arm.name] = Arm(
            name=arm.name,
            trained_by=model.trained_by if model else arm.name,
            against=None if number == 0 else arm.against or config.arms[0].name,
            training=model.training
            if model
            else parse_config(merge(common, overrides[arm.name]), source=f"experiment {name}, arm {arm.name!r}"),
            score=arm.score,
        )
    return tuple(arms.values())


def _problems_of_names(arms: Iterable[ArmConfig]) -> Iterator[str]:
    known: list[str] = []
    for arm in arms:
        if not _NAME.fullmatch(arm.name):
            yield f"an arm's name consists of letters, digits, spaces and . _ + -, found {arm.name!r}"
        if arm.name.lower().endswith(_RESULT_SUFFIXES):
            yield f"an arm's name ends with none of {', '.join(_RESULT_SUFFIXES)}, found {arm.name!r}"
        if arm.name.lower() in map(str.lower, known):  # the same folder on a file system without case
            yield f"two arms are named {arm.name!r}, ignoring case"
        for key in ("like", "model", "against"):
            other = getattr(arm, key)
            if other is not None and other not in known:
                yield f"arm {arm.name!r}: {key} names an earlier arm, found {other!r}" + suggestion(other, known)
        if arm.model is not None and (arm.config or arm.like):
            yield f"arm {arm.name!r} uses the runs of {arm.model!r}: config and like have no effect, remove them"
        known.append(arm.name)


def _problems_of_scores(config: ExperimentConfig) -> Iterator[str]:
    for arm in config.arms:
        score, where = arm.score, f"arm {arm.name!r}"
        if score.fitted_on == "train" and score.kind not in ("cohort", "catalogue"):
            yield f'{where}: only a score with a cohort may be fitted on "train", found {score.kind!r}'
        if score.kind == "catalogue" and score.base == "cohort" and score.fitted_on != "train":
            yield (
                f"{where}: the class terms are chosen on the part cohort, so its images cannot be the cohort of the "
                'score: set fitted_on = "train"'
            )
        if score.kind == "catalogue" and config.compare == "pairs":
            yield f'{where}: a catalogue score needs a labelled gallery: set compare = "searches"'
        if score.kind in _OF_ONE_SET and config.compare == "searches":
            yield f'{where}: {score.kind!r} is computed for one set of images: set compare = "pairs", or remove the arm'


def _problems_of_seeds(config: ExperimentConfig) -> Iterator[str]:
    if len(set(config.seeds)) < len(config.seeds):
        yield f"seeds must differ from each other, found {list(config.seeds)}"
    if "seed" in config.common or any("seed" in arm.config for arm in config.arms):
        yield "seed is set by seeds, equally for every arm: remove it from common and config"


def _unequal_budgets(arms: Iterable[Arm]) -> Iterator[str]:
    trained = [arm for arm in arms if arm.trains]
    first = trained[0]
    for arm in trained[1:]:
        if _budget(arm.training) != _budget(first.training):
            yield (
                f"arm {arm.name!r} takes {_spelled(arm.training)}, arm {first.name!r} takes {_spelled(first.training)}"
            )


def _budget(config: TrainingConfig) -> tuple[int, ...]:
    schedule = config.schedule
    return (schedule.steps, schedule.head_steps, schedule.classes * schedule.images, config.loop.accumulate)


def _spelled(config: TrainingConfig) -> str:
    steps, head_steps, images, accumulate = _budget(config)
    return f"{steps} steps of {images * accumulate} images after {head_steps} of the head"


def _described(error: ValidationError) -> Iterator[str]:
    """Describe each problem with its place in the file, and an unknown key with the closest known keys."""
    known = {name for part in (ExperimentConfig, ExperimentData, ArmConfig, ScoreConfig) for name in part.__slots__}
    for problem in error.errors():
        place = ".".join(map(str, problem["loc"]))
        if problem["type"] == "unexpected_keyword_argument":
            yield f"unknown key {place}" + suggestion(str(problem["loc"][-1]), known)
        elif problem["type"] == "missing":
            yield f"{place} is missing"
        else:
            yield f"{place}: {problem['msg']}, found {problem['input']!r}"
