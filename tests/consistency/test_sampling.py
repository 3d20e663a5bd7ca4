from __future__ import annotations

import numpy as np
import pytest

from retrieval.consistency import crossed, judged_curves, labelled, operating_curves, sampled_curves
from retrieval.errors import InvalidEmbeddings, InvalidInput, NotEnoughEvidence


def test_judged_pairs_by_hand() -> None:
    """Two matches of a; a non-match of a and b; a pair inside b that somebody says is none."""
    scores = np.array([0.9, 0.4, 0.7, 0.8], dtype=np.float32)
    matches = np.array([True, True, False, False])
    curves = judged_curves(scores, matches, ["a", "a", "a", "b"], ["a", "a", "b", "b"], thresholds=[0.75, 0.5])
    assert curves.classes == ("a", "b")
    assert curves.positives_accepted.tolist() == [[1, 1], [0, 0]]
    assert curves.negatives_accepted.tolist() == [[1, 0], [3, 2]]
    assert curves.negatives.tolist() == [1, 3]
    assert curves.pooled_far.tolist() == [1.0, 0.5]
    assert curves.n_negative_pairs == 2


def test_judged_pairs_of_labelled_images_equal_their_curves(family) -> None:
    rows, labels = family(np.random.default_rng(0), n_classes=8, n_images=4)
    i, j = np.triu_indices(len(labels), k=1)
    names = np.array(labels)
    scores = (rows @ rows.T)[i, j]
    thresholds = [0.1, 0.3, 0.5]
    judged = judged_curves(scores, names[i] == names[j], names[i].tolist(), names[j].tolist(), thresholds=thresholds)
    curves = operating_curves((rows, labels), thresholds=thresholds)
    np.testing.assert_array_equal(judged.tar, curves.tar)
    np.testing.assert_array_equal(judged.far, curves.far)


def test_unusable_judgements_are_refused() -> None:
    scores, matches = np.array([0.5, 0.6], dtype=np.float32), np.array([True, False])
    with pytest.raises(InvalidEmbeddings, match="as many scores"):
        judged_curves(scores, matches[:1], ["a", "b"], thresholds=[0.5])
    with pytest.raises(InvalidEmbeddings, match="1 that are not"):
        judged_curves(np.array([0.5, np.nan], dtype=np.float32), matches, ["a", "b"], thresholds=[0.5])
    with pytest.raises(NotEnoughEvidence, match="found 2 of 2"):
        judged_curves(scores, np.array([True, True]), ["a", "b"], thresholds=[0.5])
    with pytest.raises(InvalidInput, match="at least one threshold"):
        judged_curves(scores, matches, ["a", "b"], thresholds=[])


@pytest.mark.slow
def test_sampled_far_is_unbiased_and_its_error_is_stated(family) -> None:
    """Over 60 samples of a tenth of the pairs, the FAR errs by about its stated error; positives are all there."""
    rows, labels = family(np.random.default_rng(1), n_classes=200, n_images=5, dimension=8, spread=0.3, crowding=1.0)
    thresholds = [0.5, 0.7]
    whole = operating_curves((rows, labels), thresholds=thresholds)
    rng = np.random.default_rng(2)
    vectors = labelled(rows, labels)
    samples = [sampled_curves(vectors, thresholds=thresholds, share=0.1, rng=rng) for _ in range(60)]
    for sample in samples:
        np.testing.assert_array_equal(sample.curves.positives_accepted, whole.positives_accepted)
        assert sample.share == pytest.approx(0.1, rel=0.25)
    standardised = np.array([(s.curves.pooled_far - whole.pooled_far) / s.far_error for s in samples])
    # A mean of 60 has a standard error of 0.13 and, with 7 degrees of freedom, a t variable a deviation of 1.18.
    assert abs(standardised.mean(axis=0)).max() < 0.5
    assert (standardised.std(axis=0) < 1.7).all()
    assert (standardised.std(axis=0) > 0.7).all()


def test_every_image_is_met_equally_often(family) -> None:
    """The design is balanced: with whole blocks, each image meets as many others as any other."""
    rows, labels = family(np.random.default_rng(3), n_classes=170, n_images=1)
    rows, labels = np.repeat(rows, 2, axis=0), [label for label in labels for _ in range(2)]
    sample = sampled_curves(labelled(rows, labels), thresholds=[0.5], share=0.5, rng=np.random.default_rng(4))
    met = sample.curves.negatives
    assert met.max() - met.min() <= 4 * 10  # blocks of up to 10 images, of which the last is shorter


def test_impossible_samples_are_refused(family) -> None:
    rows, labels = family(np.random.default_rng(5), n_classes=10, n_images=2)
    for share in (0.0, 0.6):
        with pytest.raises(InvalidInput, match="share"):
            sampled_curves(labelled(rows, labels), thresholds=[0.5], share=share, rng=np.random.default_rng(0))
    with pytest.raises(NotEnoughEvidence, match="too few to sample"):
        sampled_curves(labelled(rows, labels), thresholds=[0.5], share=0.1, rng=np.random.default_rng(0))
    with pytest.raises(NotEnoughEvidence, match="no class has two images"):
        sampled_curves(labelled(rows[::2], labels[::2]), thresholds=[0.5], share=0.1, rng=np.random.default_rng(0))
    two_sets = crossed(rows, labels, rows, labels)
    with pytest.raises(InvalidInput, match="one set of images"):
        sampled_curves(two_sets, thresholds=[0.5], share=0.1, rng=np.random.default_rng(0))
