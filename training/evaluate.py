"""How well an embedder serves classes it was not trained on: ranking, one threshold for all, consistency."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.curves.curves import operating_curves
from retrieval.consistency.opis.opis import consistency_report
from retrieval.consistency.pairs.selection import thresholds_at_far
from retrieval.consistency.ranking import recall_at_k
from retrieval.contract.manifest import Item
from retrieval.contract.preprocessing import Preprocessing
from training.data import Progress, Unreadable, read_items

Embed = Callable[[NDArray[np.float32]], NDArray[np.float32]]

_BOOTSTRAP_SEED = 0  # an interval must not change when nothing else does


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Leave-one-out over all images. threshold: lowest with a pooled pair FAR of at most far_target on these images.

    tar: pooled TAR at it; opis with its noise floor and, where the images allow it, the estimate without noise.
    n_single: classes with one image, which have no positive pair.
    """

    n_images: int
    n_classes: int
    n_single: int
    n_unreadable: int
    r_at_1: float
    far_target: float
    threshold: float
    tar: float
    opis: float
    opis_floor: float
    opis_debiased: float | None

    def __str__(self) -> str:
        return (
            f"{self.n_images} images of {self.n_classes} classes: R@1 {self.r_at_1:.3f}, TAR {self.tar:.3f} at FAR "
            f"{self.far_target:g} (threshold {self.threshold:.3f}), "
            f"OPIS {self.opis:.2e} (noise floor {self.opis_floor:.2e})"
        )


def evaluate_items(
    items: Sequence[Item],
    embed: Embed,
    preprocessing: Preprocessing,
    *,
    far_target: float = 1e-2,
    max_unreadable: float = 0.01,
    progress: Progress,
) -> Evaluation:
    """Embed the items through production preprocessing and evaluate them.

    Raises TooManyFailures where too many are unreadable, NotEnoughEvidence where they are too few to say anything.
    """
    parts: list[NDArray[np.float32]] = []
    labels: list[str] = []
    unreadable: list[Unreadable] = []
    for batch in read_items(items, preprocessing, max_unreadable=max_unreadable, progress=progress):
        parts.append(embed(batch.pixels))
        labels += [item.label for item in batch.items]
        unreadable += batch.unreadable
    return evaluate(np.concatenate(parts), labels, far_target=far_target, n_unreadable=len(unreadable))


def evaluate(
    embeddings: NDArray[np.float32], labels: Sequence[str], *, far_target: float = 1e-2, n_unreadable: int = 0
) -> Evaluation:
    """Evaluate embeddings [n, d] float32, unit rows, with their n labels. Cost: n * n * d, a few times.

    Raises NotEnoughEvidence where there are too few classes, images of a class, or pairs for the target.
    """
    (threshold,) = thresholds_at_far(embeddings, labels, fars=[far_target])
    curves = operating_curves(embeddings, labels, thresholds=np.array([threshold]))
    consistency = consistency_report(embeddings, labels, rng=np.random.default_rng(_BOOTSTRAP_SEED))
    return Evaluation(
        n_images=len(labels),
        n_classes=len(curves.classes),
        n_single=curves.n_excluded,
        n_unreadable=n_unreadable,
        r_at_1=recall_at_k(embeddings, labels, k=(1,))[1],
        far_target=far_target,
        threshold=float(threshold),
        tar=float(curves.pooled_tar[0]),
        opis=consistency.value,
        opis_floor=consistency.floor,
        opis_debiased=consistency.debiased,
    )
