"""Plain JSON -> the calibrator it describes, whatever its kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retrieval.consistency.calibration.calibrator import Calibrator
from retrieval.consistency.calibration.calibrators_parametric import BetaCalibrator, PlattCalibrator
from retrieval.consistency.calibration.kinds import IsotonicCalibrator, VennAbersCalibrator
from retrieval.errors import InvalidInput

_KINDS: dict[str, type[PlattCalibrator | BetaCalibrator | IsotonicCalibrator | VennAbersCalibrator]] = {
    kind.kind: kind for kind in (PlattCalibrator, BetaCalibrator, IsotonicCalibrator, VennAbersCalibrator)
}


def calibrator_from_json(document: Mapping[str, Any]) -> Calibrator:
    """Return the calibrator that `to_json` was called on, whatever its kind.

    Raises:
        InvalidInput: an unknown kind, a missing field or values that are no calibrator.

    >>> calibrator_from_json(PlattCalibrator(2.0, -1.0, 0.5, 10, 10).to_json()).kind
    'platt'
    """
    kind = _KINDS.get(str(document.get("kind")))
    if kind is None:
        raise InvalidInput(f"expected a calibrator of kind {', '.join(_KINDS)}, found {document.get('kind')!r}")
    return kind.from_json(document)
