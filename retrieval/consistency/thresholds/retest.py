"""Test the certificates of a threshold again, on classes that calibration has not seen."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.arguments import checked
from retrieval.consistency.thresholds.certificate import Certificate, MeanCertificate
from retrieval.consistency.verdict import Finding

_LEVEL = 0.025  # a certificate that holds is found broken with at most about this probability


@checked
def retest_certificate(certificate: Certificate, rates: Sequence[float] | NDArray[np.float64]) -> Finding:
    """Return whether the share of new classes above the certified limit can be chance, given the certificate.

    rates: of each new class, at the threshold of the certificate. The certificate took a rank among its calibration
    classes, so the number of m new classes above the limit is at most beta-binomial: it varies more than binomially,
    because the calibration classes were a draw too. Assumes that rates of new classes are exchangeable.

    >>> certified = Certificate(
    ...     threshold=0.5, rate="far", alpha=0.1, strict=True, n_classes=99, far=0.01, tar=0.9, delta=0.05
    ... )
    >>> [retest_certificate(certified, [0.2] * n + [0.0] * (100 - n)).passed for n in (5, 11, 20)]
    [True, True, False]
    """
    from scipy.stats import betabinom  # slow to import

    above, n_new = int(np.count_nonzero(np.asarray(rates) > certificate.alpha)), len(rates)
    n = certificate.n_classes
    rank = math.ceil((n + 1) * (1 - certificate.delta) - 1e-9)
    chance = float(betabinom.sf(above - 1, n_new, n + 1 - rank, rank))
    passed = chance >= _LEVEL
    note = "" if above <= certificate.delta * n_new else ", and so many may be chance"
    if not passed:
        note = f", and so many happen by chance with a probability of {chance:.2g} only"
    return Finding(
        limit="certificate",
        passed=passed,
        explanation=f"at threshold {certificate.threshold:.4f}, {above} of {n_new} new classes have "
        f"{certificate.rate.upper()} above {certificate.alpha:g}; certified is a share of at most {certificate.delta:g}"
        + note,
    )


@checked
def retest_mean_certificate(certificate: MeanCertificate, rates: Sequence[float] | NDArray[np.float64]) -> Finding:
    """Return whether the mean rate of new classes is above the certified one by more than chance.

    rates: of each new class, at the threshold of the certificate; at least two. Chance is the spread of the mean over
    the new and over as varied calibration classes.

    >>> certified = MeanCertificate(threshold=0.5, rate="far", alpha=0.1, strict=True, n_classes=99, far=0.01, tar=0.9)
    >>> [retest_mean_certificate(certified, [0.0, mean, 2 * mean] * 30).passed for mean in (0.1, 0.2)]
    [True, False]
    """
    from scipy.stats import norm

    values = np.asarray(rates, dtype=np.float64)
    mean, variance = float(values.mean()), float(values.var(ddof=1)) if len(values) > 1 else math.inf
    margin = float(norm.isf(_LEVEL)) * math.sqrt(variance * (1 / len(values) + 1 / certificate.n_classes))
    passed = mean <= certificate.alpha + margin
    return Finding(
        limit="certificate_on_average",
        passed=passed,
        explanation=f"at threshold {certificate.threshold:.4f} the mean {certificate.rate.upper()} of {len(values)} "
        f"new classes is {mean:.4g}; certified is at most {certificate.alpha:g}"
        + (", and the difference is more than chance" if not passed else ""),
    )
