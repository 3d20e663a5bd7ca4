"""Test the certificates of a threshold again, on classes that calibration has not seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.arguments import checked
from retrieval.consistency.intervals import student_quantile
from retrieval.consistency.thresholds.certificate import Certificate, MeanCertificate
from retrieval.consistency.verdict import Finding

_LEVEL = 0.025  # a certificate that holds is found broken with at most about this probability

Values: TypeAlias = Sequence[float] | NDArray[np.float64]


@checked
def retest_certificate(certificate: Certificate, rates: Values, families: NDArray[np.int64] | None = None) -> Finding:
    """Return whether the share of new classes above the certified limit can be chance, given the certificate.

    rates: of each new class, at the threshold of the certificate; families: the family of each, as in
    `LabelledVectors`. The certificate took a rank among its calibration classes, so the number of m new classes above
    the limit is at most beta-binomial: it varies more than binomially, because the calibration classes were a draw too.
    Assumes that rates of new classes are exchangeable. If families are given, they are the units and each counts once:
    the mean over families of the share above the limit is tested as in `retest_mean_certificate`.

    >>> certified = Certificate(
    ...     threshold=0.5, rate="far", alpha=0.1, strict=True, n_classes=99, far=0.01, tar=0.9, delta=0.05
    ... )
    >>> [retest_certificate(certified, [0.2] * n + [0.0] * (100 - n)).passed for n in (5, 11, 20)]
    [True, True, False]
    """
    is_above = np.asarray(rates, dtype=np.float64) > certificate.alpha
    above, n_new = int(np.count_nonzero(is_above)), len(is_above)
    found = (
        f"At threshold {certificate.threshold:.4f}, {above} of {n_new} new classes have {certificate.rate.upper()} "
        f"above {_percent(certificate.alpha)}"
    )
    certified = f"certified is a share of at most {_percent(certificate.delta)}"
    if families is not None:
        shares = _by_family(is_above, families)
        passed = _mean_is_within(shares, certificate.delta, certificate.n_families or certificate.n_classes)
        found += f", on average {_percent(float(shares.mean()))} of the classes of {len(shares)} families"
        note = "" if passed else ", and the difference is more than chance"
        return Finding(limit="certificate", passed=passed, explanation=f"{found}; {certified}{note}")
    from scipy.stats import betabinom  # slow to import

    n = certificate.n_classes
    rank = math.ceil((n + 1) * (1 - certificate.delta) - 1e-9)
    chance = float(betabinom.sf(above - 1, n_new, n + 1 - rank, rank))
    passed = chance >= _LEVEL
    note = "" if above <= certificate.delta * n_new else ", and so many may be chance"
    if not passed:
        note = f", and so many happen by chance with a probability of {chance:.2g} only"
    return Finding(limit="certificate", passed=passed, explanation=f"{found}; {certified}{note}")


@checked
def retest_mean_certificate(
    certificate: MeanCertificate, rates: Values, families: NDArray[np.int64] | None = None
) -> Finding:
    """Return whether the mean rate of new classes is above the certified one by more than chance.

    rates: of each new class, at the threshold of the certificate; at least two. Chance is the spread of the mean over
    the new and over as varied calibration classes. families: the family of each class; each family then counts once.

    >>> certified = MeanCertificate(threshold=0.5, rate="far", alpha=0.1, strict=True, n_classes=99, far=0.01, tar=0.9)
    >>> [retest_mean_certificate(certified, [0.0, mean, 2 * mean] * 30).passed for mean in (0.1, 0.2)]
    [True, False]
    """
    values = np.asarray(rates, dtype=np.float64)
    units = values if families is None else _by_family(values, families)
    known = certificate.n_classes if families is None else certificate.n_families or certificate.n_classes
    passed = _mean_is_within(units, certificate.alpha, known)
    named = "" if families is None else f" in {len(units)} families"
    return Finding(
        limit="certificate_on_average",
        passed=passed,
        explanation=f"At threshold {certificate.threshold:.4f}, the mean {certificate.rate.upper()} of {len(values)} "
        f"new classes{named} is {_percent(float(units.mean()))}; certified is at most {_percent(certificate.alpha)}"
        + (", and the difference is more than chance" if not passed else ""),
    )


def _mean_is_within(values: NDArray[np.float64], limit: float, n_known: int) -> bool:
    """Return whether the mean of new units may be at most the limit; n_known: units that the limit comes from."""
    if len(values) < 2:
        return True
    quantile = student_quantile(len(values), 1 - 2 * _LEVEL)
    spread = math.sqrt(float(values.var(ddof=1)) * (1 / len(values) + 1 / n_known))
    return float(values.mean()) <= limit + quantile * spread


def _by_family(values: NDArray[np.bool_] | NDArray[np.float64], families: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean of each family."""
    numbers = np.unique(families, return_inverse=True)[1]
    return np.asarray(np.bincount(numbers, values.astype(np.float64)) / np.bincount(numbers), dtype=np.float64)


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"
