"""An operating point as people read it: the threshold, its rates, the promise for new classes, the certificates."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from retrieval.edge.cli.replies import moment

if TYPE_CHECKING:
    from retrieval.v1.operating_points_pb2 import Interval, OperatingPoint


def evidence(point: "OperatingPoint") -> str:
    """Return the evidence of a threshold in sentences, one a line."""
    return "\n".join(_sentences(point))


def origin(point: "OperatingPoint") -> str:
    """Return which data an operating point was chosen on, and when."""
    images = f"{point.n_images:,} images of {point.n_classes:,} classes"
    assumed = f"match probabilities assume that {point.prevalence:.2%} of the compared pairs match"
    return f"calibrated on {images}, {moment(point.created_at)} UTC; {assumed}"


def _sentences(point: "OperatingPoint") -> Iterator[str]:
    level = f"{point.confidence:.0%}"
    asked = point.target_description or point.target
    threshold = _span(point.threshold_interval, ".4f")
    yield f"threshold {point.threshold:.4f} ({level}: {threshold}) on the {point.score_kind} score, for {asked}"
    mean = ""
    if point.HasField("class_far_interval"):  # a server of an earlier version does not send it
        mean = f", mean over classes {point.class_far:.4g} ({level}: {_span(point.class_far_interval)})"
    yield f"FAR {point.far:.4g} ({level}: {_span(point.far_interval)}){mean}"
    yield (
        f"TAR {point.tar:.3f} ({level}: {_span(point.tar_interval, '.3f')}): the threshold rejects "
        f"{1 - point.tar:.1%} of the true pairs"
    )
    if point.HasField("far_promised"):
        yield (
            f"promise for {point.n_classes:,} new classes ({level}): FAR {_span(point.far_promised)}, "
            f"TAR {_span(point.tar_promised, '.3f')}"
        )
    if point.HasField("stranger_far"):
        yield (
            f"strangers, whose class the gallery does not hold: FAR {point.stranger_far:.4g} ({level}: "
            f"{_span(point.stranger_far_interval)}), promised {_span(point.stranger_far_promised)}"
        )
    if point.n_rounds:
        chose = f"; {point.n_choosing:,} other classes chose the parameters of the score" if point.n_choosing else ""
        yield f"counted in {point.n_rounds} rounds, in which half of the images of each class search the others{chose}"
    if point.HasField("n_families"):
        column = f" (column {point.family})" if point.family else ""
        yield f"intervals and promise count {point.n_families:,} families of classes{column}"
    for name, text, field in (
        ("certificate", point.certificate, "certificate_threshold"),
        ("certificate on average", point.mean_certificate, "mean_certificate_threshold"),
    ):
        if text:
            yield f"{name}: {text}"
        if point.HasField(field):  # type: ignore[arg-type]  # both are fields
            yield f"  {_holds(point.threshold, getattr(point, field))}"


def _holds(threshold: float, certified: float) -> str:
    """Return whether a certificate holds at the threshold: it does if the threshold is not below the certified one."""
    if threshold >= certified:
        return f"holds at the chosen threshold {threshold:.4f}, which is not below {certified:.4f}"
    return (
        f"DOES NOT HOLD at the chosen threshold {threshold:.4f}, which is below {certified:.4f}: use a "
        "stricter target, or certify a higher FAR"
    )


def _span(interval: "Interval", digits: str = ".4g") -> str:
    return f"{interval.low:{digits}} to {interval.high:{digits}}"
