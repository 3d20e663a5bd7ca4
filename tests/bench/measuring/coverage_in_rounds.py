"""Coverage of intervals, predictions and certificates in rounds of searches, with a score that knows the classes.

As `coverage`, but pairs are those of a query and a gallery item that is pulled to its class: half of the images of each
class are queries, in five rounds. The true rates are those of a large draw of classes in the same rounds, with the same
law of sizes. Strangers meet a gallery of all images.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import (
    Interval,
    LabelledVectors,
    Target,
    ThresholdChoice,
    certify,
    certify_mean,
    choose_threshold,
    labelled,
    operating_curves,
    stranger_rate,
)
from retrieval.consistency.curves import Rates, count_accepted
from retrieval.contract.class_terms import ClassTerms
from retrieval.contract.score import Score
from retrieval.engine.labelled_embeddings import N_ROUNDS, LabelledEmbeddings
from retrieval.errors import NotEnoughEvidence
from tests.bench.measuring.coverage import Coverage, one_thread
from tests.bench.measuring.settings import Setting, draw

SCORE = Score(classes=ClassTerms(pull=0.7))
ALPHA, DELTA = 0.1, 0.1
_N_POPULATION, _N_DRAWS = 2500, 4
_GRID = np.linspace(-0.5, 1.001, 601)
_CHUNK = 25


@dataclass(frozen=True, slots=True)
class SearchSetting:
    """A setting in rounds; wrong: share of the images whose label is wrong; named: whether families are given.

    An image with a wrong label is of a class that is not in the collection, so that the true rates do not depend on the
    number of classes.
    """

    setting: Setting
    wrong: float = 0.0
    named: bool = False

    @property
    def name(self) -> str:
        """The name in the table."""
        return self.setting.name + (", named" if self.named else "")

    def draw(self, rng: np.random.Generator, n_classes: int | None = None) -> LabelledEmbeddings:
        """Draw one collection."""
        rows, labels, families = draw(rng, self.setting, n_classes)
        if self.wrong:
            rows = rows.copy()
            wrong = np.flatnonzero(rng.random(len(rows)) < self.wrong)
            one_each = replace(self.setting, sizes=(1, 1), law="log-uniform", large=0)
            rows[wrong] = draw(rng, one_each, len(wrong))[0]
        return LabelledEmbeddings(rows, labels, "drawn", families if self.named else None, n_rounds=N_ROUNDS)


SEARCHES = (
    SearchSetting(Setting("100 of 8, FAR 1e-2", 100, (8, 8), 1e-2, dimension=24)),
    SearchSetting(Setting("100 of 8, FAR 1e-3", 100, (8, 8), 1e-3, dimension=24)),
    SearchSetting(Setting("60 of 4, FAR 1e-2", 60, (4, 4), 1e-2)),
    SearchSetting(Setting("60 of 4, FAR 1e-3", 60, (4, 4), 1e-3)),
    SearchSetting(Setting("40 of 2, FAR 1e-2", 40, (2, 2), 1e-2)),
    SearchSetting(Setting("40 of 2, TAR near 1", 40, (2, 2), 2e-2, noise=0.28, spread=0.4)),
    SearchSetting(
        Setting("100 of Zipf sizes 1 to 200, FAR 1e-2", 100, (1, 200), 1e-2, dimension=24, law="zipf", crowding=0.5)
    ),
    SearchSetting(
        Setting("100 of Zipf sizes 1 to 200, FAR 1e-3", 100, (1, 200), 1e-3, dimension=24, law="zipf", crowding=0.5)
    ),
    SearchSetting(Setting("60 of 1 to 30, FAR 1e-2", 60, (1, 30), 1e-2, spread=0.5)),
    SearchSetting(Setting("60 of 4, heavy tails, FAR 1e-2", 60, (4, 4), 1e-2, heavy=True)),
    SearchSetting(Setting("100 of 4, heavy tails, FAR 1e-3", 100, (4, 4), 1e-3, heavy=True)),
    SearchSetting(
        Setting("80 of 4, Student's tails, d 24", 80, (4, 4), 1e-2, noise=0.8, tails=4.0, crowding=0.4, dimension=24)
    ),
    SearchSetting(Setting("100 of 8, 10 % wrong labels, FAR 1e-2", 100, (8, 8), 1e-2, dimension=24), wrong=0.1),
    SearchSetting(Setting("100 of 8, 10 % wrong labels, FAR 1e-3", 100, (8, 8), 1e-3, dimension=24), wrong=0.1),
    SearchSetting(Setting("20 families of 6", 120, (4, 4), 1e-2, family=6, alike=0.7, family_spread=0.3)),
    SearchSetting(Setting("20 families of 6", 120, (4, 4), 1e-2, family=6, alike=0.7, family_spread=0.3), named=True),
    SearchSetting(
        Setting("30 families of 4, d 24", 120, (5, 5), 1e-2, family=4, alike=0.75, family_spread=0.3, dimension=24)
    ),
    SearchSetting(
        Setting("30 families of 4, d 24", 120, (5, 5), 1e-2, family=4, alike=0.75, family_spread=0.3, dimension=24),
        named=True,
    ),
)


@dataclass(slots=True)
class Found:
    """What the draws of one setting found."""

    covered: dict[str, Coverage] = field(default_factory=dict)
    kept: dict[str, list[float]] = field(default_factory=dict)  # share of new classes that keep alpha, or mean FAR
    ratios: dict[str, list[float]] = field(default_factory=dict)  # widths of intervals over those of one set
    refused: int = 0

    def cover(self, name: str, interval: Interval, value: float) -> None:
        """Count one interval."""
        self.covered.setdefault(name, Coverage()).add(interval, value)

    def keep(self, name: str, value: float) -> None:
        """Count one certificate."""
        self.kept.setdefault(name, []).append(value)

    def join(self, other: Found) -> None:
        """Add the draws of another part."""
        for name, coverage in other.covered.items():
            self.covered.setdefault(name, Coverage()).join(coverage)
        for mine, others in ((self.kept, other.kept), (self.ratios, other.ratios)):
            for name, values in others.items():
                mine.setdefault(name, []).extend(values)
        self.refused += other.refused


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """The rates of a large draw of classes, at the thresholds of a grid: [601] each."""

    far: Rates
    tar: Rates
    strangers: Rates

    def at(self, threshold: float) -> tuple[float, float, float]:
        """Return FAR, TAR and the FAR of strangers."""
        far, tar, stranger = (
            float(np.interp(threshold, _GRID, rates)) for rates in (self.far, self.tar, self.strangers)
        )
        return far, tar, stranger

    def threshold(self, far: float) -> float:
        """Return where the FAR is reached."""
        log = np.log(np.maximum(self.far, 1e-12))
        return float(np.interp(-np.log(far), -log, _GRID))


@cache
def truth(searches: SearchSetting) -> Truth:
    """Return the mean rates of a few large draws; one round is enough, because their classes are many.

    Thresholds of six draws of 100 classes of 8 for FAR 1e-3 lay between 0.668 and 0.674: one draw alone misplaces the
    true threshold by so much that 2 % more of the intervals seem to miss it.
    """
    drawn = [searches.draw(np.random.default_rng(10**6 + number), _N_POPULATION) for number in range(_N_DRAWS)]
    rates = np.array([_rates_of(one) for one in drawn])
    far, tar, stranger = rates.mean(axis=0)
    return Truth(far, tar, stranger)


def _rates_of(drawn: LabelledEmbeddings) -> tuple[Rates, Rates, Rates]:
    """Return FAR, TAR and the FAR of strangers at the grid."""
    curves = operating_curves(replace(drawn, n_rounds=1).scored(SCORE), thresholds=_GRID)
    # A part of the classes, for the gallery holds all images.
    names = sorted(set(drawn.labels))[: _N_POPULATION // 2]
    part = drawn.subset(np.flatnonzero(np.isin(drawn.labels, names)))
    return curves.pooled_far, curves.pooled_tar, count_accepted(part.strangers(SCORE), _GRID).pooled_far


def promises(searches: SearchSetting, n_draws: int, seed: int | tuple[int, int] = 0) -> Found:
    """Count how often intervals, predictions and certificates of rounds hold in a setting."""
    setting, parts = searches.setting, [seed] if isinstance(seed, int) else seed
    rng, found = np.random.default_rng([*parts, setting.n_classes, setting.sizes[1]]), Found()
    true = truth(searches) if setting.alone else None
    for _ in range(n_draws):
        drawn, new = searches.draw(rng), searches.draw(rng)
        vectors = drawn.scored(SCORE)
        certificates(found, vectors, new, searches.named)
        try:
            choice = choose_threshold(vectors, target=Target("far", setting.far))
        except NotEnoughEvidence:
            found.refused += 1
            continue
        predictions(found, choice, drawn, new)
        if true is not None:
            of_population(found, choice, drawn, true)
        beside_one_set(found, choice, drawn)
    return found


def predictions(found: Found, choice: ThresholdChoice, drawn: LabelledEmbeddings, new: LabelledEmbeddings) -> None:
    """Count whether the rates of other classes are as predicted."""
    met = operating_curves(new.scored(SCORE), thresholds=[choice.threshold])
    n_new, n_with = len(met.classes), int(np.count_nonzero(met.with_positives))
    found.cover("predicted FAR", choice.predicted_far(n_new), float(met.pooled_far[0]))
    found.cover("predicted TAR", choice.predicted_tar(n_with), float(met.pooled_tar[0]))
    strange = stranger_rate(drawn.strangers(SCORE), choice.threshold)
    of_new = stranger_rate(new.strangers(SCORE), choice.threshold)
    found.cover("predicted strangers' FAR", strange.predicted(n_new), of_new.far)


def of_population(found: Found, choice: ThresholdChoice, drawn: LabelledEmbeddings, true: Truth) -> None:
    """Count whether the intervals hold the true rates, and the true threshold."""
    far, tar, stranger = true.at(choice.threshold)
    found.cover("FAR", choice.far_interval, far)
    found.cover("TAR", choice.tar_interval, tar)
    found.cover("threshold", choice.threshold_interval, true.threshold(choice.target_far))
    found.cover("strangers' FAR", stranger_rate(drawn.strangers(SCORE), choice.threshold).interval, stranger)


def beside_one_set(found: Found, choice: ThresholdChoice, drawn: LabelledEmbeddings) -> None:
    """Compare the widths with those of the cosine in one set of the same images; of FAR on the scale of its log."""
    try:
        other = choose_threshold(
            labelled(drawn.embeddings, drawn.labels, families=drawn.families), target=choice.target
        )
    except NotEnoughEvidence:
        return
    for name, widths in (
        ("FAR", [np.log(one.far_interval.high / one.far_interval.low) for one in (choice, other)]),
        ("TAR", [one.tar_interval.high - one.tar_interval.low for one in (choice, other)]),
        ("threshold", [one.threshold_interval.high - one.threshold_interval.low for one in (choice, other)]),
    ):
        found.ratios.setdefault(name, []).append(float(widths[0] / widths[1]))


def certificates(found: Found, vectors: LabelledVectors, new: LabelledEmbeddings, named: bool) -> None:
    """Record what new classes, in rounds with the calibration classes, keep of the certificates."""
    joined = new.scored(SCORE)
    for kind in ("certificate", "mean certificate"):
        try:
            threshold = (
                certify(vectors, alpha=ALPHA, delta=DELTA).threshold
                if kind == "certificate"
                else certify_mean(vectors, alpha=ALPHA).threshold
            )
        except NotEnoughEvidence:
            continue
        rates = far_with(joined, vectors, threshold)
        found.keep(kind, float(np.mean(rates <= ALPHA)) if kind == "certificate" else float(rates.mean()))


def far_with(new: LabelledVectors, old: LabelledVectors, threshold: float) -> NDArray[np.float64]:
    """Return the FAR of each new class over its pairs with the old ones, in the same rounds: [T] float64."""
    n_classes = len(new.classes)
    accepted, pairs = np.zeros(n_classes), np.zeros(n_classes)
    for (asked, held), (old_asked, old_held) in zip(new.rounds, old.rounds, strict=True):
        as_query = (new.query[asked] @ old.gallery[old_held].T >= threshold).sum(axis=1)
        as_item = (new.gallery[held] @ old.query[old_asked].T >= threshold).sum(axis=1)
        accepted += np.bincount(new.codes[asked], as_query, n_classes)
        accepted += np.bincount(new.gallery_codes[held], as_item, n_classes)
        n_old = old_held.stop - old_held.start, old_asked.stop - old_asked.start
        pairs += n_old[0] * np.bincount(new.codes[asked], minlength=n_classes)
        pairs += n_old[1] * np.bincount(new.gallery_codes[held], minlength=n_classes)
    return accepted / np.maximum(pairs, 1)


def table(n_draws: int, seed: int = 0, settings: Sequence[SearchSetting] = SEARCHES) -> Iterator[tuple[str, Found]]:
    """Yield each setting with what its draws found; the draws are shared out to the processors."""
    with ProcessPoolExecutor(os.cpu_count(), initializer=one_thread) as processes:
        parts = [
            [
                processes.submit(promises, searches, min(_CHUNK, n_draws - start), (seed, start))
                for start in range(0, n_draws, _CHUNK)
            ]
            for searches in settings
        ]
        for searches, futures in zip(settings, parts, strict=True):
            found = Found()
            for future in futures:
                found.join(future.result())
            yield searches.name, found
