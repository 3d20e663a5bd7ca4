from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2_contingency, norm

from retrieval.consistency.drift.unlabelled_rates import (
    MOVED,
    UNCHANGED,
    UnlabelledRates,
    _chi_square,
    _shares,
    estimate_rates,
)
from retrieval.errors import InvalidInput, NotEnoughEvidence

RNG = np.random.default_rng
THRESHOLD = 0.5


def estimated(seed: int, *, share: float = 0.6, moved: float = 0.0) -> UnlabelledRates:
    rng = RNG(seed)
    within, between = rng.normal(0.7, 0.12, 800), rng.normal(0.25, 0.12, 800)
    old = np.where(rng.random(600) < share, rng.normal(0.7, 0.12, 600), rng.normal(0.25, 0.12, 600))
    return estimate_rates(old + moved, within, between, THRESHOLD, rng=rng, allow_moved=moved != 0)


def test_intervals_hold_the_truth_where_only_shares_changed() -> None:
    held, unchanged = [], 0
    for seed in range(8):
        found = estimated(seed)
        unchanged += found.assumption == UNCHANGED
        held.append(0.6 in found.match_share_interval)
        held.append(norm.sf(THRESHOLD, 0.7, 0.12) in found.tar_interval)
    assert unchanged >= 7
    assert np.mean(held) >= 0.8


def test_both_moved_alike_is_seen_and_followed() -> None:
    found = estimated(0, moved=0.1)
    assert found.assumption == MOVED
    assert found.fit_p_value_unchanged < 0.01 <= found.fit_p_value
    assert found.moved_by + found.stretched_by * 0.5 == pytest.approx(0.6, abs=0.03)
    assert norm.sf(THRESHOLD, 0.35, 0.12) in found.far_interval
    assert found.far in found.far_interval
    assert "assumed, not known: scores of matches and of non-matches moved" in str(found)


def test_moved_scores_are_refused_where_not_allowed() -> None:
    rng = RNG(0)
    within, between = rng.normal(0.7, 0.12, 800), rng.normal(0.25, 0.12, 800)
    new = np.concatenate([rng.normal(0.8, 0.12, 300), rng.normal(0.35, 0.12, 300)])
    with pytest.raises(NotEnoughEvidence, match="and is not allowed"):
        estimate_rates(new, within, between, THRESHOLD, rng=rng)


def test_another_shape_is_refused() -> None:
    rng = RNG(0)
    within, between = rng.normal(0.7, 0.1, 800), rng.normal(0.2, 0.1, 800)
    with pytest.raises(NotEnoughEvidence, match="label some pairs and calibrate again"):
        estimate_rates(rng.uniform(0, 1, 800), within, between, THRESHOLD, rng=rng, allow_moved=True)


def test_misfit_to_one_distribution_is_pearsons() -> None:
    """All matches: the distance is that of two samples, which Pearson's statistic of a 2 x b table agrees with."""
    rng = RNG(1)
    first, second = np.sort(rng.normal(size=2000)), np.sort(rng.normal(size=3000))
    edges = np.quantile(first, [0.2, 0.4, 0.6, 0.8])
    found = _chi_square(_shares(first, edges), 2000, 1.0, (second, first), edges)
    table = [np.bincount(np.searchsorted(edges, sample), minlength=5) for sample in (first, second)]
    assert found == pytest.approx(chi2_contingency(table).statistic, rel=0.05)


def test_precision_follows_from_share_and_rates() -> None:
    found = estimated(2)
    accepted = found.match_share * found.tar + (1 - found.match_share) * found.far
    assert found.precision == pytest.approx(found.match_share * found.tar / accepted)


@pytest.mark.parametrize("short", [0, 1, 2])
def test_few_scores_are_refused(short: int) -> None:
    samples = [np.linspace(0, 1, 99 if row == short else 200) for row in range(3)]
    with pytest.raises(NotEnoughEvidence, match=r"at least 100 scores in .*, found 99"):
        estimate_rates(*samples, THRESHOLD, rng=RNG(0))


def test_bad_input_is_refused() -> None:
    enough = np.linspace(0, 1, 200)
    with pytest.raises(InvalidInput, match="one finite number each"):
        estimate_rates(np.append(enough, np.nan), enough, enough, THRESHOLD, rng=RNG(0))
    with pytest.raises(InvalidInput, match="finite threshold"):
        estimate_rates(enough, enough, enough, np.nan, rng=RNG(0))


def test_distributions_that_hardly_differ_are_refused() -> None:
    """Any share of matches would explain the scores, a wrong one too."""
    rng = RNG(0)
    within, between = rng.normal(0.55, 0.1, 500), rng.normal(0.5, 0.1, 500)
    with pytest.raises(NotEnoughEvidence, match=r"with probability 0\.6\d only"):
        estimate_rates(within, within, between, THRESHOLD, rng=rng)
