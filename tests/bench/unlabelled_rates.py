"""What does `estimate_rates` say about domains it was given no labels of, and is it true?

Reference: emoji, calibration classes. New: other emoji (all makers, or three of them only) and other image sets, all
embedded by one model. Two kinds of scores: of each image and its nearest other one; of disjoint pairs, half of which
match in the reference and three in ten among the new. FAR and TAR are theirs, at the threshold where the reference's
FAR is 0.1 (nearest) or 0.01 (pairs). MOVED is allowed here, which it is not by default.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.drift.unlabelled_rates import MOVED, estimate_rates
from retrieval.errors import NotEnoughEvidence
from tests.bench.measuring.domains import domain
from tests.bench.measuring.emoji import Embedded, emoji


def nearest(images: Embedded) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Similarity of each image to its nearest other one, and whether that is of its class."""
    similarities = images.embeddings @ images.embeddings.T
    np.fill_diagonal(similarities, -2)
    found = similarities.argmax(axis=1)
    return similarities.max(axis=1).astype(np.float64), images.labels == images.labels[found]


def pairs(images: Embedded, share: float, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Similarities of disjoint pairs, a share of which match, and whether they do."""
    order = rng.permutation(len(images.labels))
    # One half of the images gives the matches, pair by pair inside a class, the other the rest.
    half, rest = order[: len(order) // 2], order[len(order) // 2 :]
    half = half[np.argsort(images.labels[half], kind="stable")]
    same = _apart(half, images.labels, match=True)
    other = _apart(rest, images.labels, match=False)
    n = int(min(len(same) / share, len(other) / (1 - share)))
    chosen = np.concatenate([same[: round(n * share)], other[: n - round(n * share)]])
    scores = np.einsum("ij,ij->i", images.embeddings[chosen[:, 0]], images.embeddings[chosen[:, 1]])
    return scores.astype(np.float64), np.arange(n) < round(n * share)


def _apart(rows: NDArray[np.int64], labels: NDArray[np.str_], *, match: bool) -> NDArray[np.int64]:
    """Neighbours in this order that match, or do not, each row once: [p, 2], in random order of a fixed seed."""
    found, i = [], 0
    while i + 1 < len(rows):
        if (labels[rows[i]] == labels[rows[i + 1]]) == match:
            found.append((rows[i], rows[i + 1]))
            i += 1
        i += 1
    return np.random.default_rng(0).permutation(np.array(found))


def of_makers(images: Embedded, n: int) -> Embedded:
    rows = np.flatnonzero(np.isin(images.makers, np.unique(images.makers)[:n]))
    return Embedded(*(getattr(images, name)[rows] for name in Embedded.__slots__))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="other emoji only")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    parts = emoji("base+tcm")
    sets = {"other emoji": parts["audit"], "three makers": of_makers(parts["audit"], 3)}
    if not options.quick:
        sets |= {name: domain(name) for name in ("logos", "photos", "fashion")}
    rows = []
    for kind, level in (("nearest", 0.1), ("pairs", 0.01)):
        rng = np.random.default_rng(options.seed)
        calibration = parts["calibration"]
        scores, matches = nearest(calibration) if kind == "nearest" else pairs(calibration, 0.5, rng)
        within, between = scores[matches], scores[~matches]
        threshold = float(np.quantile(between, 1 - level))
        for name, images in sets.items():
            new, match = nearest(images) if kind == "nearest" else pairs(images, 0.3, rng)
            true = [float((new[rows_] >= threshold).mean()) for rows_ in (~match, match)] + [float(match.mean())]
            try:
                found = estimate_rates(new, within, between, threshold, rng=rng, allow_moved=True)
                said = [found.far, found.tar, found.match_share]
                intervals = [found.far_interval, found.tar_interval, found.match_share_interval]
                verdict = "moved" if found.assumption == MOVED else "unchanged"
            except NotEnoughEvidence as refusal:
                said, intervals, verdict = [], [], f"refused: {str(refusal)[:60]}"
            ends = [[interval.low, interval.high] for interval in intervals]
            row = {"kind": kind, "set": name, "n": len(new), "true": true, "verdict": verdict, "said": said}
            rows.append(row | {"intervals": ends})
    if options.json:
        print(json.dumps({"options": vars(options), "rows": rows}))
        return
    print(f"{'scores':9}{'set':14}{'':16}{'FAR':>24}{'TAR':>24}{'share of matches':>24}")
    for row in rows:
        values = "".join(f"{value:24.3f}" for value in row["true"])
        print(f"{row['kind']:9}{row['set']:14}{'true':9}{row['n']:7}{values}")
        told = zip(row["said"], row["intervals"], strict=True)
        cells = "".join(f"{f'{value:.3f} ({low:.3f} to {high:.3f})':>24}" for value, (low, high) in told)
        print(f"{'':23}{row['verdict']:16}{cells}")


if __name__ == "__main__":
    main()
