"""An operating point in sentences."""

from __future__ import annotations

from dataclasses import replace

from retrieval.contract.operating_point import OperatingPoint
from retrieval.edge.cli.evidence import evidence, origin
from retrieval.edge.messages import operating_point_message
from retrieval.v1.operating_points_pb2 import OperatingPoint as Message


def test_the_promise_for_new_classes_is_stated(cosine_point: OperatingPoint) -> None:
    """The interval of FAR and of TAR for as many other classes as there were calibration classes."""
    text = evidence(operating_point_message(cosine_point, active=True))
    promised = cosine_point.choice.predicted_far(cosine_point.choice.n_classes)
    assert f"promise for {cosine_point.choice.n_classes} new classes (95%): FAR {promised}, TAR " in text
    assert "for pooled FAR at most" in text
    assert "{" not in text


def test_a_threshold_below_its_certificate_is_named(cosine_point: OperatingPoint) -> None:
    """A certificate holds from its own threshold on upwards."""
    assert cosine_point.certificate is not None
    for difference, expected in ((-0.01, "  holds at the chosen threshold"), (0.01, "  DOES NOT HOLD")):
        certificate = replace(cosine_point.certificate, threshold=cosine_point.threshold + difference)
        point = replace(cosine_point, certificate=certificate, mean_certificate=None, mean_certificate_refusal="none")
        text = evidence(operating_point_message(point, active=True))
        assert expected in text
        assert "certificate on average: none" in text


def test_an_older_server_is_shown_without_what_it_does_not_send() -> None:
    text = evidence(Message(threshold=0.5, far=0.01, tar=0.9, confidence=0.95, target="far=0.01"))
    assert text.count("\n") == 2
    assert "mean over classes" not in text


def test_the_origin_names_the_data(cosine_point: OperatingPoint) -> None:
    text = origin(operating_point_message(cosine_point, active=False))
    assert f"{cosine_point.choice.n_classes} classes" in text
