"""Do certificates hold for new classes where classes are unequal, few, or drawn together in families?

Each collection is drawn afresh from one population (`measuring/coverage.py`), with new classes, or new families, beside
those of the calibration. A new class meets all calibration classes and, if it comes with a family, the other new
classes of that family. `certify` promises that its FAR is at most alpha with probability 1 - delta, `certify_mean`
that its mean FAR is at most alpha. A certificate with a cap draws as many images of a new class. Each figure has its
95 % interval over collections (Student); a collection in which no certificate is given is counted apart.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from scipy.special import stdtrit
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from retrieval.consistency import certify, certify_mean, labelled
from retrieval.errors import NotEnoughEvidence
from tests.bench.measuring.coverage import Rows, Setting, draw

_N_NEW = 12  # new classes of a collection, or two families of so many


@dataclass(frozen=True, slots=True)
class Case:
    """A setting, the levels of its certificates, the cap on images, and whether families are named."""

    setting: Setting
    alpha: float = 0.1
    delta: float = 0.1
    max_images: int | None = None
    named: bool = False
    strict: bool = True

    @property
    def name(self) -> str:
        cap = f", at most {self.max_images}" if self.max_images else ""
        return f"{self.setting.name}{cap}{', named' if self.named else ''}{'' if self.strict else ', not strict'}"


UNEQUAL = Setting("60 of 2 to 30", 60, (2, 30), 1e-2, spread=0.5)
LARGE = Setting("59 of 2 to 30, one of 400", 59, (2, 30), 1e-2, spread=0.5, large=400)
FAMILIES = Setting("30 families of 4", 120, (3, 3), 1e-2, family=4, alike=0.7, family_spread=0.4)
UNEVEN_FAMILIES = Setting(
    "30 families of 4, 2 to 10 images", 120, (2, 10), 1e-2, family=4, alike=0.7, family_spread=0.4
)
CASES = (
    Case(UNEQUAL),
    Case(UNEQUAL, strict=False),
    Case(UNEQUAL, max_images=2),
    Case(UNEQUAL, max_images=6),
    Case(LARGE, max_images=2),
    Case(LARGE, strict=False),
    Case(Setting("25 of 2", 25, (2, 2), 1e-2, crowding=1.0), alpha=0.2),
    Case(Setting("25 of 2 to 12", 25, (2, 12), 1e-2, crowding=1.0), alpha=0.2, max_images=2),
    Case(FAMILIES, alpha=0.2),
    Case(FAMILIES, alpha=0.2, named=True),
    Case(UNEVEN_FAMILIES, alpha=0.2, named=True),
)


@dataclass(frozen=True, slots=True)
class Line:
    """One promise in one case."""

    case: str
    promise: str
    found: float
    half_width: float
    threshold: float
    refused: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, help="collections of each case (default 400, quick 5)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few draws: shows that it runs, measures little")
    options = parser.parse_args()
    n_draws, started, lines = options.draws or (5 if options.quick else 400), time.monotonic(), []
    title = __doc__.splitlines()[0]  # type: ignore[union-attr]  # this module has a docstring
    print(title)
    with threadpool_limits(1):
        for case in CASES[::4] if options.quick else CASES:
            for line in kept(case, n_draws, options.seed):
                lines.append(line)
                print(
                    f"{line.case:44} {line.promise:28} {line.found:.4f} +- {line.half_width:.4f}  threshold "
                    f"{line.threshold:.3f}, refused {line.refused}",
                    flush=True,
                )
    print(f"{time.monotonic() - started:.0f} s")
    print(json.dumps({"question": title, "draws": n_draws, "lines": [asdict(line) for line in lines]}))


def kept(case: Case, n_draws: int, seed: int) -> Iterator[Line]:
    """Measure both certificates of a case."""
    rng = np.random.default_rng([seed, case.setting.n_classes, case.setting.sizes[1]])
    shares: list[float] = []
    means: list[float] = []
    thresholds: tuple[list[float], list[float]] = [], []
    for _ in range(n_draws):
        fars = _fars(rng, case)
        for number, (thresholds_of, found) in enumerate(zip(thresholds, (shares, means), strict=True)):
            threshold, rates = fars[number]
            if threshold is None:
                continue
            thresholds_of.append(threshold)
            found.append(float((rates <= case.alpha).mean()) if number == 0 else float(rates.mean()))
    for number, (promise, found) in enumerate(
        ((f">= {1 - case.delta:g} keep FAR {case.alpha:g}", shares), (f"mean FAR <= {case.alpha:g}", means))
    ):
        if len(found) < 2:
            yield Line(case.name, promise, float("nan"), float("nan"), float("nan"), n_draws - len(found))
            continue
        error = float(np.std(found, ddof=1) / np.sqrt(len(found)) * stdtrit(len(found) - 1, 0.975))
        average = float(np.mean(thresholds[number]))
        yield Line(case.name, promise, float(np.mean(found)), error, average, n_draws - len(found))


def _fars(rng: np.random.Generator, case: Case) -> list[tuple[float | None, Rows]]:
    """Certify one collection; return both thresholds and the FARs of new classes at them."""
    family = case.setting.family
    n_old, n_new = case.setting.n_classes + bool(case.setting.large), _N_NEW // family * family
    low, high = case.setting.sizes
    sizes = np.floor(np.exp(rng.uniform(np.log(low), np.log(high + 1), size=n_old + n_new))).astype(np.int64)
    if case.setting.large:  # exchangeable: any of all classes may be the large one
        sizes[rng.integers(n_old + n_new)] = case.setting.large
    rows, labels, families = draw(rng, case.setting, n_old + n_new, sizes)
    codes = np.array([int(label) for label in labels])
    old = codes < n_old
    names = [labels[row] for row in np.flatnonzero(old)]
    units = [families[row] for row in np.flatnonzero(old)] if case.named else None
    vectors = labelled(rows[old], names, families=units)
    if case.max_images is not None:
        capped = np.concatenate([np.flatnonzero(codes == code)[: case.max_images] for code in range(n_old + n_new)])
        rows, codes, old = rows[capped], codes[capped], old[capped]
    found: list[tuple[float | None, Rows]] = []
    for certify_it in (
        lambda: (
            certify(
                vectors, alpha=case.alpha, delta=case.delta, max_images=case.max_images, strict=case.strict
            ).threshold
        ),
        lambda: certify_mean(vectors, alpha=case.alpha, max_images=case.max_images, strict=case.strict).threshold,
    ):
        try:
            threshold = certify_it()
        except NotEnoughEvidence:
            found.append((None, np.empty(0, dtype=np.float32)))
            continue
        rates = []
        for code in range(n_old, n_old + n_new):
            own = codes == code
            met = old | ((codes // family == code // family) & ~own) if family > 1 else old
            rates.append(float((rows[own] @ rows[met].T >= threshold).mean()))
        found.append((threshold, np.array(rates, dtype=np.float32)))
    return found


if __name__ == "__main__":
    main()
