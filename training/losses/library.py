"""Base losses and miners by name and options, from pytorch-metric-learning and from this package.

Decides which names and options a configuration may use, and explains what is wrong with others.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from pytorch_metric_learning import losses as library_losses
from pytorch_metric_learning import miners as library_miners
from torch import Tensor, nn

from retrieval.errors import InvalidSettings
from training.config import BaseLossConfig, suggestion
from training.losses.ranking import RecallAtKSurrogateLoss, SmoothAPLoss


class DynamicSoftMarginLoss(library_losses.DynamicSoftMarginLoss):  # type: ignore[misc]  # the library is untyped
    """Weights triplets by the share of earlier triplets that were easier: the library's loss with a lasting histogram.

    In the library (2.9) gradients flow through the histogram of earlier steps, so the second step fails, and the
    histogram is not in `state_dict`. Here the weights are constants within a step, as in the source.

    Source: Zhang and Rusinkiewicz, "Learning Local Descriptors With a CDF-Based Dynamic Soft Margin", ICCV 2019,
    section 3.3.
    """

    def __init__(self, min_val: float = -2.0, num_bins: int = 10, momentum: float = 0.01) -> None:
        super().__init__(min_val=min_val, num_bins=num_bins, momentum=momentum)
        histogram = self.hist_
        del self.hist_
        self.register_buffer("hist_", histogram)

    def update_histogram(self, data: Tensor) -> None:
        """Update the histogram with the values of a step, [triplets]."""
        super().update_histogram(data.detach())


# Classes of the library that cannot be used as base losses of labelled batches, with the reason or the alternative.
_UNUSABLE_LOSSES = {
    "BaseLossWrapper": "it is a base class of the library's wrappers",
    "BaseMetricLossFunction": "it is a base class of the library's losses",
    "GenericPairLoss": "it is a base class of the library's pair losses",
    "EmbeddingRegularizerMixin": "it is a base class of the library's losses",
    "WeightRegularizerMixin": "it is a base class of the library's losses",
    "CrossBatchMemory": "it wraps another loss; loss.tcm.memory pairs TCM with earlier batches",
    "MultipleLosses": "it wraps other losses; list them under loss.base",
    "SelfSupervisedLoss": "it wraps another loss and takes two views of each image instead of labels",
    "ManifoldLoss": "it takes no labels",
    "VICRegLoss": "it takes two views of each image instead of labels",
}
_UNUSABLE_MINERS = {
    "BaseMiner": "it is a base class of the library's miners",
    "EmbeddingsAlreadyPackagedAsTriplets": "it takes batches of triplets instead of labels",
}
# Losses that compare all rows and ignore the selection of a miner.
WITHOUT_MINER = frozenset(
    {"InstanceLoss", "P2SGradLoss", "PNPLoss", "RankedListLoss", "RecallAtKSurrogateLoss", "SmoothAPLoss"}
)
# They replace classes of the same name in the library, if it has them.
_OWN_LOSSES: dict[str, type[nn.Module]] = {
    "DynamicSoftMarginLoss": DynamicSoftMarginLoss,
    "RecallAtKSurrogateLoss": RecallAtKSurrogateLoss,
    "SmoothAPLoss": SmoothAPLoss,
}


def _subclasses(module: ModuleType, root: type, unusable: Mapping[str, str]) -> dict[str, type[nn.Module]]:
    modules = {
        key: value for key, value in vars(module).items() if inspect.isclass(value) and issubclass(value, nn.Module)
    }
    return {name: cls for name, cls in modules.items() if issubclass(cls, root) and name not in unusable}


LOSSES = _subclasses(library_losses, library_losses.BaseMetricLossFunction, _UNUSABLE_LOSSES) | _OWN_LOSSES
MINERS = _subclasses(library_miners, library_miners.BaseMiner, _UNUSABLE_MINERS)

# Arguments that are objects or tuples, which a file cannot hold, or that need such an argument.
_OBJECTS = frozenset(
    {
        "allowed_neg_range",
        "allowed_pos_range",
        "collect_stats",
        "distance",
        "embedding_reg_weight",
        "embedding_regularizer",
        "mat_based_loss",
        "reducer",
        "weight_init_func",
        "weight_reg_weight",
        "weight_regularizer",
    }
)
_SIZES = frozenset({"num_classes", "embedding_size", "descriptors_dim"})
# The library treats any other value like the first of these.
_CHOICES = {"type_of_triplets": ("all", "hard", "semihard", "easy")}
_COUNTS = ("num_", "n_", "pos_per_", "neg_per_", "centers_per_", "sub_centers")


def create_base_loss(config: BaseLossConfig, *, n_classes: int, dimension: int) -> nn.Module:
    """Create the loss of this name with these options, and with the number of classes and dimensions if it takes them.

    Its `forward` takes embeddings [n, d], labels [n] and, unless it is in WITHOUT_MINER, the output of a miner. Raises
    InvalidSettings if there is no such loss, if it takes no miner, or if an option is unknown, missing or of the wrong
    type.
    """
    cls = _find("loss.base.name", config.name, LOSSES, _UNUSABLE_LOSSES, "pytorch_metric_learning.losses")
    if config.miner is not None and config.name in WITHOUT_MINER:
        raise InvalidSettings(
            f"loss.base.miner: {config.name} compares all rows of a batch and takes no miner, found {config.miner!r}"
        )
    sizes = {"num_classes": n_classes, "embedding_size": dimension, "descriptors_dim": dimension}
    wanted = {name: size for name, size in sizes.items() if name in _arguments(cls)}
    return _construct(f"loss.base.options of {config.name}", cls, wanted, config.options)


def create_miner(config: BaseLossConfig) -> nn.Module | None:
    """Create the miner that selects pairs for this loss; None if it takes all pairs. Raises as `create_base_loss`."""
    if config.miner is None:
        if config.miner_options:
            raise InvalidSettings(
                f"loss.base.miner_options: expected none without a miner, found {config.miner_options}"
            )
        return None
    cls = _find("loss.base.miner", config.miner, MINERS, _UNUSABLE_MINERS, "pytorch_metric_learning.miners")
    return _construct(f"loss.base.miner_options of {config.miner}", cls, {}, config.miner_options)


def _find(
    where: str, name: str, known: Mapping[str, type[nn.Module]], unusable: Mapping[str, str], module: str
) -> type[nn.Module]:
    if name in unusable:
        raise InvalidSettings(f"{where}: {name} cannot be used: {unusable[name]}")
    if name not in known:
        raise InvalidSettings(f"{where}: expected a class of {module}, found {name!r}" + suggestion(name, known))
    return known[name]


def _construct(
    where: str, cls: type[nn.Module], sizes: Mapping[str, int], options: Mapping[str, float | int | str | bool]
) -> nn.Module:
    arguments = _arguments(cls)
    if problems := list(_problems(arguments, options)):
        raise InvalidSettings(f"{where}: " + "; ".join(problems))
    try:
        return cls(**sizes, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise InvalidSettings(f"{where}: {error}") from error


def _problems(
    arguments: Mapping[str, inspect.Parameter], options: Mapping[str, float | int | str | bool]
) -> Iterator[str]:
    usable = {name: argument for name, argument in arguments.items() if name not in _OBJECTS | _SIZES}
    for name, value in options.items():
        if name in _SIZES & set(arguments):
            yield f"{name} is known from the data and the model: remove it"
        elif name in _OBJECTS & set(arguments):
            yield f"{name} takes an object, which a configuration cannot hold; the library's default is used"
        elif name not in usable:
            yield f"unknown argument {name!r}, accepted: {', '.join(usable) or 'none'}" + suggestion(name, usable)
        elif not _fits(value, _expected(usable[name]), _CHOICES.get(name)):
            yield f"{name} takes {_expected(usable[name])}, found {value!r}"
    for name, argument in usable.items():
        if argument.default is argument.empty and name not in options:
            yield f"{name} is missing, it has no default"


def _arguments(cls: type) -> dict[str, inspect.Parameter]:
    """Return the named arguments of a constructor, including those that it passes on to its base classes."""
    found: dict[str, inspect.Parameter] = {}
    for ancestor in cls.__mro__:
        if ancestor is nn.Module:
            break
        if "__init__" in vars(ancestor):
            parameters = list(inspect.signature(vars(ancestor)["__init__"]).parameters.values())[1:]
            named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
            found |= {p.name: p for p in named if p.name not in found}
            if not any(p.kind == p.VAR_KEYWORD for p in parameters):
                break
    return found


def _expected(argument: inspect.Parameter) -> str:
    """Describe the values that an argument takes, by its name and default; the library has no annotations."""
    default: Any = argument.default
    if argument.name == "triplets_per_anchor":
        return 'a count or "all"'
    if argument.name in _CHOICES:
        return f"one of {', '.join(_CHOICES[argument.name])}"
    if isinstance(default, bool):
        return "true or false"
    if isinstance(default, str):
        return "a string"
    if argument.name.startswith(_COUNTS):
        return "a count"
    return "a number"


def _fits(value: float | int | str | bool, expected: str, choices: Sequence[str] | None) -> bool:
    if choices is not None:
        return value in choices
    is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
    match expected:
        case "true or false":
            return isinstance(value, bool)
        case "a string":
            return isinstance(value, str)
        case 'a count or "all"':
            return is_count or value == "all"
        case "a count":
            return is_count
        case _:
            return isinstance(value, int | float) and not isinstance(value, bool)
