"""The operating point: one threshold with its evidence, for one bundle and one score.

This file defines the record of a threshold and its id. `flows/calibrate.py` chooses the threshold.
"""

from dataclasses import asdict, dataclass
from typing import Annotated, Any, NewType

from retrieval.consistency import (
    Calibrator,
    Certificate,
    MeanCertificate,
    StrangerRate,
    ThresholdChoice,
    calibrator_from_json,
    parse_target,
)
from retrieval.contract.bundle import BundleDigest
from retrieval.contract.canonical import digest_json
from retrieval.contract.documents import NAME, Count, Moment, parse, read_json, read_object, without_format
from retrieval.contract.score import ScoreDigest
from retrieval.errors import CorruptArtifact, InvalidInput

OperatingPointId = NewType("OperatingPointId", str)

FORMAT = 2  # in format 1 pooled FAR was the only target


@dataclass(frozen=True, slots=True, kw_only=True)
class OpisAroundTarget:
    """OPIS over the pooled FARs far_low to far_high around the target, on the log-FAR axis, as in `ScoreComparison`."""

    far_low: float
    far_high: float
    opis: float
    floor: float
    debiased: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreComparison:
    """The rates of one score on the calibration data, at the target, and its consistency over classes.

    `achieved`: the value that the target limits, see `ThresholdChoice`; `far`, `tar`: pooled. `opis_debiased` is on the
    log-FAR axis, so it is comparable between scores; None if the classes are too small to estimate it. `around_target`:
    OPIS where the threshold works, see `consistency_around`; None if the data cannot show it, or in an older record.
    `stranger_far`: of queries whose class the gallery does not hold, None if the images were compared as one set;
    `refused`: whether it exceeds the target by more than chance explains, so that the score was not eligible.
    """

    score_digest: ScoreDigest
    kind: str
    k: int
    achieved: float
    far: float
    tar: float
    recall_at_1: float
    opis: float
    opis_floor: float
    opis_debiased: float | None
    around_target: "OpisAroundTarget | None" = None
    stranger_far: float | None = None
    refused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """A threshold (`choice.threshold`), its evidence, and digests of the data it was chosen on.

    `certificate` and `mean_certificate` are None if the data cannot support one; the refusal then gives the reason.
    `compared`: the rates of each tried score, the chosen one included. `data_digest`: of the labels and images.
    `family`: the column of families of classes that the intervals count, "" if they count classes.
    `n_rounds`: the rounds of searches in a labelled gallery that were counted, 0 if images were compared as one set.
    `strangers`: then the FAR of queries whose class the gallery does not hold, at the threshold. `n_choosing`: then the
    number of other classes that chose the terms of the score, which are not among those of `choice`.
    """

    bundle_digest: BundleDigest
    score_digest: ScoreDigest
    score_kind: str
    choice: ThresholdChoice
    certificate: Certificate | None
    certificate_refusal: str
    mean_certificate: MeanCertificate | None
    mean_certificate_refusal: str
    calibrator: Calibrator
    compared: tuple[ScoreComparison, ...]
    data_digest: str
    created_at: str
    family: str = ""
    n_rounds: int = 0
    strangers: StrangerRate | None = None
    n_choosing: int = 0

    @property
    def threshold(self) -> float:
        """A pair is accepted if its score is at least this."""
        return self.choice.threshold

    @property
    def id(self) -> OperatingPointId:
        """The digest of everything but the time: calibrating twice on the same data gives the same operating point."""
        content = self.to_json()
        del content["created_at"]
        return OperatingPointId(digest_json(content))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON that `from_json` turns back into an equal value."""
        parts = {"choice": self.choice.to_json(), "calibrator": self.calibrator.to_json()}
        document = {"format": FORMAT, **asdict(self), **parts}
        # Left out where they say nothing, as before they existed: the ids of older operating points stay what they are.
        for certificate in (document["certificate"], document["mean_certificate"]):
            if certificate and certificate["max_images"] is None:
                del certificate["max_images"], certificate["seed"]
            if certificate and certificate["n_families"] is None:
                del certificate["n_families"]
        for entry in document["compared"]:
            if entry["around_target"] is None:
                del entry["around_target"]
            if entry["stranger_far"] is None:
                del entry["stranger_far"], entry["refused"]
        if not self.family:
            del document["family"]
        if not self.n_rounds:
            del document["n_rounds"], document["strangers"], document["n_choosing"]
        return document

    @classmethod
    def from_json(cls, data: bytes, where: str) -> "OperatingPoint":
        """Read the bytes of `to_json`. Raises CorruptArtifact naming `where`."""
        document = read_json(data, where)
        value = without_format(document, FORMAT, where, what="operating point", remedy="calibrate again")
        parse(_PointDocument, value, where)
        try:
            _check_parts(value, where)
            return cls(
                **{
                    **value,
                    "choice": ThresholdChoice.from_json(value["choice"]),
                    "certificate": Certificate(**value["certificate"]) if value["certificate"] else None,
                    "mean_certificate": (
                        MeanCertificate(**value["mean_certificate"]) if value["mean_certificate"] else None
                    ),
                    "calibrator": calibrator_from_json(value["calibrator"]),
                    "compared": tuple(_comparison(entry) for entry in value["compared"]),
                    "strangers": StrangerRate.from_json(value["strangers"]) if value.get("strangers") else None,
                }
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, InvalidInput) as error:
            raise CorruptArtifact(f"{where} cannot be read: {error}") from error

    @staticmethod
    def id_of(data: bytes, where: str) -> OperatingPointId:
        """Return the id of a stored operating point, with fields that this version does not read."""
        document = read_object(data, where)
        document.pop("created_at", None)
        return OperatingPointId(digest_json(document))


def _comparison(entry: dict[str, Any]) -> ScoreComparison:
    around = entry.get("around_target")
    return ScoreComparison(**{**entry, "around_target": OpisAroundTarget(**around) if around else None})


@dataclass(frozen=True, slots=True, kw_only=True)
class _PointDocument:
    """The schema of the JSON of an operating point; `_check_parts` checks `choice` and `calibrator`."""

    bundle_digest: Annotated[BundleDigest, NAME]
    score_digest: Annotated[ScoreDigest, NAME]
    score_kind: str
    choice: dict[str, Any]
    certificate: Certificate | None
    certificate_refusal: str
    mean_certificate: MeanCertificate | None
    mean_certificate_refusal: str
    calibrator: dict[str, Any]
    compared: tuple[ScoreComparison, ...]
    data_digest: str
    created_at: Moment
    family: str = ""
    n_rounds: Count = 0
    strangers: StrangerRate | None = None
    n_choosing: Count = 0


def _check_parts(value: dict[str, Any], where: str) -> None:
    """Raise CorruptArtifact unless the fields of the choice and of the calibrator have the types of their classes."""
    choice, calibrator = value["choice"], value["calibrator"]
    parse(ThresholdChoice, {**choice, "target": asdict(parse_target(choice["target"]))}, f"{where}: choice")
    fields = {name: field for name, field in calibrator.items() if name != "kind"}
    parse(type(calibrator_from_json(calibrator)), fields, f"{where}: calibrator")
