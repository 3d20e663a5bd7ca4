from __future__ import annotations

import json

import numpy as np
import pytest

from retrieval.consistency import StrangerRate, labelled, operating_curves, stranger_rate, strangers
from retrieval.consistency.thresholds.look_alike import class_means
from retrieval.consistency.thresholds.rate_variances import rate_variances
from retrieval.errors import InvalidEmbeddings, InvalidInput
from tests.searches import uneven

SIZES = [1, 2, 3, 4, 5, 1, 7, 2] * 3


def drawn(family, **names):
    """Return rows and an item of each that differs from it, labels, and the vectors of strangers."""
    rows, labels = uneven(
        *family(np.random.default_rng(0), n_classes=24, n_images=7, dimension=16, spread=0.3, crowding=0.8), SIZES
    )
    gallery = (rows + np.roll(rows, 1, axis=1) / 4).astype(np.float32)
    return rows, gallery, labels, strangers(rows, gallery, labels, **names)


def test_rate_and_variances_are_those_of_all_pairs_of_other_classes(family) -> None:
    rows, gallery, labels, vectors = drawn(family)
    codes = np.unique(labels, return_inverse=True)[1]
    found = stranger_rate(vectors, 0.4)
    accepted = rows @ gallery.T >= np.float32(0.4)
    every = np.multiply.outer(SIZES, SIZES) * 2.0
    hits = np.array([[accepted[codes == i][:, codes == j].sum() for j in range(24)] for i in range(24)])
    hits = hits + hits.T
    np.fill_diagonal(hits, 0)
    np.fill_diagonal(every, 0)
    far = hits.sum() / every.sum()
    assert found.far == pytest.approx(far)
    residual = (hits - far * every) / (hits.sum() / 2)
    of_pair = (np.tril(residual, -1) ** 2).sum()
    shares = every.sum(axis=1) / (every.sum() / 2)
    by_class = residual.sum(axis=1) / (1 - shares)
    even = (by_class**2 / shares).sum() / shares.sum() * (shares @ shares)
    assert found.pair_variance == pytest.approx(of_pair)
    assert found.class_variance == pytest.approx(max(by_class @ by_class, even) - 2 * of_pair)
    assert found.far_units == pytest.approx((by_class**2).sum() ** 2 / (by_class**4).sum())
    assert (found.n_classes, found.n_images) == (24, len(rows))
    assert found.interval.low < found.far < found.interval.high
    assert not found.exceeds(found.far)
    assert found.exceeds(found.interval.low * 0.99)
    assert stranger_rate(vectors, 0.4, confidence=0.99).interval.low < found.interval.low


def test_families_are_the_units(family) -> None:
    rows, gallery, labels, _ = drawn(family)
    names = [str(int(label.split()[1]) // 4) for label in labels]
    found = stranger_rate(strangers(rows, gallery, labels, families=names), 0.4)
    assert found.far_units <= 6
    alone = stranger_rate(strangers(rows, gallery, labels, families=labels), 0.4)
    assert alone == stranger_rate(strangers(rows, gallery, labels), 0.4)


def test_no_false_accept_leaves_three_pairs_of_classes_possible(family) -> None:
    """0.05^(1 / 276) is about 1 - 3 / 276: so high may the FAR be, if each of the 276 pairs of classes is one draw."""
    rows, gallery, labels, vectors = drawn(family)
    found = stranger_rate(vectors, 9.0)
    assert found.far == 0
    assert found.interval.low == 0
    assert found.interval.high == pytest.approx(1 - 0.05 ** (1 / 276), rel=0.01)
    assert stranger_rate(vectors, 9.0, confidence=0.99).interval.high == pytest.approx(4.605 / 276, rel=1e-3)
    assert found.predicted(24) == found.predicted(1000) == found.interval
    assert found.predicted(12).high == pytest.approx(2.9957 / 66, rel=1e-3)
    assert not found.exceeds(1e-9)
    # Six families, of which four classes each are drawn together.
    names = [str(int(label.split()[1]) // 4) for label in labels]
    named = stranger_rate(strangers(rows, gallery, labels, families=names), 9.0)
    assert named.interval.high == pytest.approx(2.9957 / 15, rel=1e-3)
    assert named.predicted(12).high == pytest.approx(2.9957 / 3, rel=1e-3)
    assert named.predicted(2).high == 1


def test_predictions_widen_as_the_new_set_shrinks(family) -> None:
    found = stranger_rate(drawn(family)[-1], 0.4)
    widths = [found.predicted(n).high - found.predicted(n).low for n in (5, 24, 10**9)]
    assert widths == sorted(widths, reverse=True)
    assert found.predicted(10**9).high == pytest.approx(found.interval.high)
    with pytest.raises(InvalidInput, match="at least 2 new classes, found 1"):
        found.predicted(1)


def test_json_gives_an_equal_rate_back(family) -> None:
    for threshold in (0.4, 9.0):
        found = stranger_rate(drawn(family)[-1], threshold)
        assert StrangerRate.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize("change", [{"surprise": 1}, {"interval": None}, {"interval": {"low": 0}}])
def test_documents_that_are_no_rate_are_refused(change: dict[str, object], family) -> None:
    document = stranger_rate(drawn(family)[-1], 0.4).to_json()
    with pytest.raises(InvalidInput, match="rate of strangers is incomplete or malformed"):
        StrangerRate.from_json(document | change)
    del document["far"]
    with pytest.raises(InvalidInput, match="incomplete or malformed"):
        StrangerRate.from_json(document)


def test_impossible_thresholds_and_levels_are_refused(family) -> None:
    rows, gallery, labels, vectors = drawn(family)
    with pytest.raises(InvalidInput, match="threshold must be finite, found nan"):
        stranger_rate(vectors, float("nan"))
    with pytest.raises(InvalidInput, match="confidence must lie strictly"):
        stranger_rate(vectors, 0.4, confidence=1.0)
    with pytest.raises(InvalidEmbeddings, match="expected gallery_vectors of 16 columns, found 15"):
        strangers(rows, gallery[:, :15], labels)


def test_groups_of_look_alikes_widen_the_interval_unless_classes_are_named_alone() -> None:
    """Twenty families of six: as in the interval of members, whose groups are found in the same way."""
    rng, family_of = np.random.default_rng(5), np.arange(120) // 6
    centres = 0.87 * rng.normal(size=(20, 24))[family_of] + 0.5 * rng.normal(size=(120, 24))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    rows = centres.repeat(4, axis=0) + 0.8 / np.sqrt(24) * rng.normal(size=(480, 24))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    labels = [f"{row // 4:03d}" for row in range(480)]
    every, own = class_means(strangers(rows, rows, labels))
    expected = class_means(labelled(rows, labels))
    np.testing.assert_allclose(every, expected[0])
    np.testing.assert_allclose(own, expected[1])
    found = stranger_rate(strangers(rows, rows, labels), 0.5)
    alone = stranger_rate(strangers(rows, rows, labels, families=labels), 0.5)
    assert found.far == alone.far
    assert found.class_variance > 1.3 * alone.class_variance
    assert found.interval.low < alone.interval.low
    choice = rate_variances(labelled(rows, labels), operating_curves((rows, labels), thresholds=[0.5]))
    assert found.class_variance == pytest.approx(choice.class_variance)
    assert found.pair_variance == pytest.approx(choice.pair_variance)
