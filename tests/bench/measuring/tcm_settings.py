"""Which recipes the search for settings of TCM tries: base losses, the arms' settings, and what stands beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests.bench.measuring.extra_terms import Extra, Kind
from tests.bench.measuring.short_runs import Setting

BASES: dict[str, Setting] = {
    "softmax": Setting(base="NormalizedSoftmaxLoss", options={"temperature": 0.07}),
    "proxy-anchor": Setting(base="ProxyAnchorLoss", options={"margin": 0.1, "alpha": 32.0}),
    "multi-similarity": Setting(base="MultiSimilarityLoss", options={"alpha": 2.0, "beta": 50.0, "base": 0.5}),
}
TUNED_BASES: dict[str, tuple[Mapping[str, Any], ...]] = {
    "softmax": (
        {},
        {"options": {"temperature": 0.05}},
        {"options": {"temperature": 0.1}},
        {"loss_learning_rate": 1e-1},
    ),
    "proxy-anchor": (
        {},
        {"options": {"margin": 0.1, "alpha": 16.0}},
        {"options": {"margin": 0.1, "alpha": 64.0}},
        {"loss_learning_rate": 1e-1},
    ),
    "multi-similarity": (
        {},
        {"options": {"alpha": 2.0, "beta": 20.0, "base": 0.5}},
        {"options": {"alpha": 2.0, "beta": 50.0, "base": 0.3}},
        {"options": {"alpha": 2.0, "beta": 50.0, "base": 0.2}},
    ),
}


def _margins(kind: Kind, positive: float, negative: float, upper: float, lower: float) -> Extra:
    return Extra(
        kind=kind, positive_weight=positive, negative_weight=negative, positive_margin=upper, negative_margin=lower
    )


def _quantiles(weight: float, positive: float, negative: float) -> Extra:
    return Extra(
        kind="adaptive",
        positive_weight=weight,
        negative_weight=weight,
        positive_quantile=positive,
        negative_quantile=negative,
    )


TERMS: dict[str, tuple[Extra, ...]] = {
    "tcm": (
        _margins("tcm", 1, 1, 0.9, 0.5),
        _margins("tcm", 10, 10, 0.9, 0.5),
        _margins("tcm", 10, 10, 0.7, 0.3),
        _margins("tcm", 10, 10, 0.5, 0.3),
    ),
    # About one negative pair in a hundred is active: over all pairs its side weighs a hundredth of TCM's.
    "contrastive": (
        _margins("all-pairs", 1, 1, 0.9, 0.5),
        _margins("all-pairs", 10, 100, 0.9, 0.5),
        _margins("all-pairs", 10, 1000, 0.9, 0.5),
        _margins("all-pairs", 3, 30, 0.7, 0.3),
    ),
    "adaptive": (
        _quantiles(1, 0.5, 0.99),
        _quantiles(10, 0.5, 0.99),
        _quantiles(10, 0.2, 0.99),
        _quantiles(10, 0.8, 0.99),
    ),
}
_TCM = _margins("tcm", 10, 10, 0.9, 0.5)
# Beside the arms and their budgets. "strength": the base loss alone, from weak to strong, to tell how OPIS goes with
# accuracy when nothing else changes.
_OTHERS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    *(("softmax", "strength", {"steps": steps}) for steps in (50, 100, 200, 600)),
    ("softmax", "strength", {"loss_learning_rate": 0.3}),
    ("softmax", "strength", {"loss_learning_rate": 0.1, "steps": 600}),
    ("softmax", "negative side only", {"extra": replace(_TCM, positive_weight=0)}),
    ("softmax", "positive side only", {"extra": replace(_TCM, negative_weight=0)}),
    ("softmax", "mean over classes", {"extra": replace(_TCM, kind="class-mean")}),
    ("softmax", "scheduled margins", {"extra": replace(_TCM, kind="scheduled")}),
    ("softmax", "second half only", {"extra": replace(_TCM, start=0.5)}),
    ("softmax", "sides 3 and 10", {"loss_learning_rate": 0.1, "extra": _margins("tcm", 3, 10, 0.9, 0.5)}),
    ("softmax", "sides 10 and 30", {"loss_learning_rate": 0.1, "extra": _margins("tcm", 10, 30, 0.9, 0.5)}),
    ("softmax", "fast proxies, tcm", {"loss_learning_rate": 0.1, "extra": _TCM}),
    ("softmax", "fast proxies, tcm", {"loss_learning_rate": 0.1, "extra": _TCM, "steps": 600}),
    ("multi-similarity", "base 0.2, tcm", {"options": {"alpha": 2.0, "beta": 50.0, "base": 0.2}, "extra": _TCM}),
)


_QUANTILES = replace(_quantiles(10, 0.5, 0.99), ramp=0.1)
# The base loss as the search chose it, and TCM with one setting each: that of the search, then two whose margins are
# quantiles, which differ in the score alone. Their ramp is warmup_steps = 12 of the shipped experiment.
_COMPARED: dict[str, Extra] = {
    "base": Extra(),
    "tcm": _TCM,
    "adaptive": _QUANTILES,
    "tcm on cohort": replace(_QUANTILES, kind="cohort"),
}


def comparison(regime: str) -> dict[tuple[str, str], Setting]:
    """Base, arm and setting of the comparison of TCM on the cosine with TCM on the cohort score."""
    tuned = replace(BASES["softmax"], loss_learning_rate=0.1)
    return {("softmax", arm): _in(regime, replace(tuned, extra=extra)) for arm, extra in _COMPARED.items()}


def plan(regime: str) -> list[tuple[str, str, Setting]]:
    """Base, arm and setting of everything to try."""
    settings = []
    for base, default in BASES.items():
        settings += [(base, "base", replace(default, **changes)) for changes in TUNED_BASES[base]]
        settings += [(base, arm, replace(default, extra=extra)) for arm, terms in TERMS.items() for extra in terms]
    settings += [(base, arm, replace(BASES[base], **changes)) for base, arm, changes in _OTHERS]
    return [(base, arm, _in(regime, setting)) for base, arm, setting in settings]


def _in(regime: str, setting: Setting) -> Setting:
    return replace(setting, regime="tail", steps=120) if regime == "tail" else setting
