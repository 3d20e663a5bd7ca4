"""Real collections to count coverage on: emoji, brand logos and flags, at several rates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.bench.measuring.coverage import RealData
from tests.bench.measuring.domains import domain
from tests.bench.measuring.emoji import Embedded, emoji


def real_data(model: str) -> list[RealData]:
    """Return the collections by the frozen model and by the one named; with "none", none."""
    if model == "none":
        return []
    found = []
    for name in dict.fromkeys(("frozen", model)):
        parts = emoji(name)
        kinds = {kind: domain(kind, model=name) for kind in ("logos", "flags")}
        kinds["emoji"] = _joined([parts[part] for part in ("cohort", "calibration", "audit")])
        for kind, data in kinds.items():
            most = len(set(data.labels.tolist())) // 2
            for n_classes, far in ((40, 1e-1), (min(100, most), 1e-2), (most, 1e-3)):
                where = f"{n_classes} {kind}, {name}, FAR {far:g}"
                found.append(RealData(where, data.embeddings, data.labels, n_classes, far))
    return found


def _joined(parts: Sequence[Embedded]) -> Embedded:
    return Embedded(*(np.concatenate([getattr(part, field) for part in parts]) for field in Embedded.__slots__))
