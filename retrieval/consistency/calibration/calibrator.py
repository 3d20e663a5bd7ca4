"""What every calibrator promises, and what they share: checks of their values, and plain JSON.

The kinds are in `calibrators_parametric` and `calibrators_isotonic`; `calibrators` tells them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from retrieval.errors import InvalidInput

MAX_KNOTS = 256

Probabilities: TypeAlias = NDArray[np.float64]
Knots: TypeAlias = tuple[float, ...]


class Calibrator(Protocol):
    """A map from score to match probability that never falls as the score rises, so that no ranking changes.

    kind: the word `calibrator_from_json` goes by; prevalence: share of matches among the pairs the probability is
    about; n_positives, n_negatives: pairs fitted on.
    """

    kind: ClassVar[str]

    @property
    def prevalence(self) -> float: ...  # noqa: D102

    @property
    def n_positives(self) -> int: ...  # noqa: D102

    @property
    def n_negatives(self) -> int: ...  # noqa: D102

    def probability(self, scores: ArrayLike) -> Probabilities:
        """Return the match probability of scores [n], any real numbers: [n] float64 in [0, 1].

        Raises:
            InvalidInput: NaN among the scores.
        """
        ...

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types from which `calibrator_from_json` makes an equal calibrator."""
        ...


def document_of(calibrator: Any) -> dict[str, Any]:
    """Return the plain JSON of a calibrator that is a dataclass: its kind and its fields."""
    values = {field.name: getattr(calibrator, field.name) for field in fields(calibrator)}
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return {"kind": calibrator.kind, **lists}


def fields_of(
    kind: str, document: Mapping[str, Any], *, floats: tuple[str, ...] = (), knots: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return the fields of a calibrator's document, typed; those that all kinds have are added to those named.

    Raises:
        InvalidInput: another kind, or a field that is missing or malformed.
    """
    if document.get("kind") != kind:
        raise InvalidInput(f"expected a calibrator of kind {kind!r}, found {document.get('kind')!r}")
    try:
        return {
            **{name: float(document[name]) for name in (*floats, "prevalence")},
            **{name: tuple(float(value) for value in document[name]) for name in knots},
            **{name: int(document[name]) for name in ("n_positives", "n_negatives")},
        }
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"the calibrator's document is incomplete or malformed: {error!r}") from error


def numbers(scores: ArrayLike) -> NDArray[np.float64]:
    """Return scores as float64. Raises InvalidInput on NaN."""
    values = np.asarray(scores, dtype=np.float64)
    if np.isnan(values).any():
        raise InvalidInput("scores must be numbers, found NaN")
    return values


def interpolate(values: NDArray[np.float64], scores: Knots, probabilities: Knots) -> Probabilities:
    """Return the piecewise linear map at values [n], constant beyond its knots, rising without a rounding error."""
    knots = np.asarray(probabilities, dtype=np.float64)
    after = np.searchsorted(np.asarray(scores), values, side="right")
    left, right = knots[np.maximum(after - 1, 0)], knots[np.minimum(after, len(knots) - 1)]
    return np.asarray(np.clip(np.interp(values, scores, knots), left, right), dtype=np.float64)


def check_prevalence(prevalence: float) -> None:
    """Raise InvalidInput where prevalence does not lie strictly between 0 and 1."""
    if not 0 < prevalence < 1:
        raise InvalidInput(
            f"a calibrator's prevalence is the share of matches and lies strictly between 0 and 1, found {prevalence}"
        )


def check_knots(scores: Knots, probabilities: Knots) -> None:
    """Raise InvalidInput where these are not the knots of a map that rises from 0 at least to 1 at most."""
    x, p = np.array(scores, dtype=np.float64), np.array(probabilities, dtype=np.float64)
    ordered = (
        x.shape == p.shape and 0 < len(x) <= MAX_KNOTS and bool((np.diff(x) > 0).all() and (np.diff(p) >= 0).all())
    )
    if not ordered or not np.isfinite(x).all() or not ((p >= 0) & (p <= 1)).all():
        raise InvalidInput(
            f"a calibrator needs 1 to {MAX_KNOTS} ascending finite scores with non-decreasing probabilities between 0 "
            f"and 1, found {len(x)} scores and {len(p)} probabilities that are not"
        )
