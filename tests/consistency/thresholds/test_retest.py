from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from retrieval.consistency import Certificate, MeanCertificate, retest_certificate, retest_mean_certificate

SHARE = Certificate(threshold=0.5, rate="far", alpha=0.1, strict=True, n_classes=120, far=0.01, tar=0.9, delta=0.1)
MEAN = MeanCertificate(threshold=0.5, rate="far", alpha=0.1, strict=True, n_classes=120, far=0.01, tar=0.9)
FAMILIES = np.repeat(np.arange(10), 12)


def test_one_bad_family_is_one_event() -> None:
    """24 of 120 new classes above the limit, in two families of ten, may be chance; of classes alone they are not."""
    rates = np.where(FAMILIES < 2, 0.5, 0.0)
    assert not retest_certificate(SHARE, rates).passed
    found = retest_certificate(replace(SHARE, n_families=10), rates, FAMILIES)
    assert found.passed
    assert "24 of 120 new classes have FAR above 10%, on average 20% of the classes of 10 families" in found.explanation
    assert not retest_mean_certificate(replace(MEAN, alpha=0.04), rates).passed
    mean = retest_mean_certificate(replace(MEAN, alpha=0.04, n_families=10), rates, FAMILIES)
    assert mean.passed
    assert "120 new classes in 10 families is 10%; certified is at most 4%" in mean.explanation


def test_many_bad_families_fail() -> None:
    rates = np.where(FAMILIES < 8, 0.5, 0.0)
    assert not retest_certificate(replace(SHARE, n_families=10), rates, FAMILIES).passed
    assert not retest_mean_certificate(replace(MEAN, n_families=10), rates, FAMILIES).passed


@pytest.mark.parametrize("n", [1, 3])
def test_one_family_says_nothing(n: int) -> None:
    """One unit has no spread to compare with."""
    assert retest_certificate(SHARE, [0.9] * n, np.zeros(n, dtype=np.int64)).passed
    assert retest_mean_certificate(MEAN, [0.9] * n, np.zeros(n, dtype=np.int64)).passed
