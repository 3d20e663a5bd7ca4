from __future__ import annotations

import numpy as np
import pytest

from retrieval.consistency import label_margins, labelled
from retrieval.consistency.pairs import tiles
from retrieval.consistency.separation.mislabelled import LINKAGES
from retrieval.errors import InvalidInput, NotEnoughEvidence


@pytest.mark.parametrize("linkage", LINKAGES)
@pytest.mark.parametrize("tile", [4, 1000])
def test_margins_agree_with_their_definition(family, linkage: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE", tile)
    rows, labels = family(np.random.default_rng(0), n_classes=5, n_images=4, crowding=0.5)
    rows, labels = rows[:18], [*labels[:16], "alone", labels[0]]
    result = label_margins(labelled(rows, labels), 0.3, linkage=linkage)
    for i, label in enumerate(labels):
        to_class = {}
        for name in set(labels):
            scores = [float(rows[i] @ rows[j]) for j, other in enumerate(labels) if other == name and j != i]
            if scores:
                to_class[name] = np.mean(scores) if linkage == "mean" else max(scores)
        likely = max((n for n in to_class if n != label), key=lambda n: to_class[n])
        assert result.classes[result.likely[i]] == likely
        assert result.other[i] == pytest.approx(to_class[likely], abs=1e-6)
        if label == "alone":
            assert not result.known[i]
            assert result.margins[i] == 0
        else:
            assert result.margins[i] == pytest.approx(to_class[label] - to_class[likely], abs=1e-6)


def test_a_wrong_label_among_well_kept_ones_is_the_first_suspect_and_says_what_it_looks_like(family) -> None:
    rows, labels = family(np.random.default_rng(1), n_classes=8, n_images=5)
    wrong = [*labels]
    wrong[12] = "class 0005"
    suspects = label_margins(labelled(rows, wrong), 0.4).suspects
    assert (suspects[0].row, suspects[0].label, suspects[0].likely) == (12, "class 0005", labels[12])
    assert [s.margin for s in suspects] == sorted(s.margin for s in suspects)


def test_what_cannot_be_judged_is_refused() -> None:
    rows = np.eye(2, dtype=np.float32)
    with pytest.raises(NotEnoughEvidence, match="no class has two images"):
        label_margins(labelled(rows, ["a", "b"]), 0.5)
    with pytest.raises(InvalidInput, match="linkage"):
        label_margins(labelled(rows, ["a", "b"]), 0.5, linkage="median")
