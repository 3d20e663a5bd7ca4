"""Every error has a gRPC status, and every status gives an error back."""

from __future__ import annotations

import inspect

import grpc
import pytest

from retrieval import errors
from retrieval.client.statuses import STATUSES, error_of, status_of

FAMILY = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.RetrievalError) and kind is not errors.RetrievalError
]

# Written out, because the table under test must not be its own expectation.
EXPECTED = {
    errors.InvalidImage: "INVALID_ARGUMENT",
    errors.ImageTooLarge: "INVALID_ARGUMENT",
    errors.InvalidManifest: "INVALID_ARGUMENT",
    errors.InvalidEmbeddings: "INVALID_ARGUMENT",
    errors.UnknownBundle: "NOT_FOUND",
    errors.UnknownCatalog: "NOT_FOUND",
    errors.UnknownSnapshot: "NOT_FOUND",
    errors.UnknownOperatingPoint: "NOT_FOUND",
    errors.UnknownJob: "NOT_FOUND",
    errors.BundleMismatch: "FAILED_PRECONDITION",
    errors.EmptyCatalog: "FAILED_PRECONDITION",
    errors.InvalidSettings: "FAILED_PRECONDITION",
    errors.NotEnoughEvidence: "FAILED_PRECONDITION",
    errors.CorruptArtifact: "DATA_LOSS",
    errors.Unavailable: "UNAVAILABLE",
    errors.NotReady: "UNAVAILABLE",
    errors.JobsUnavailable: "UNAVAILABLE",
    errors.Overloaded: "RESOURCE_EXHAUSTED",
}


@pytest.mark.parametrize(("kind", "status"), EXPECTED.items())
def test_the_status_of_an_error(kind: type[errors.RetrievalError], status: str) -> None:
    """Clients in other languages act on these statuses, so they must not change."""
    assert status_of(kind("text")).name == status


@pytest.mark.parametrize("kind", FAMILY)
def test_a_client_gets_the_branch_and_the_text_back(kind: type[errors.RetrievalError]) -> None:
    """What the server raised and what its client raises share the branch of the family below its root."""
    raised = error_of(status_of(kind("which object, what to do")), "which object, what to do")
    assert type(raised) is not errors.RetrievalError
    assert isinstance(kind("text"), type(raised))
    assert str(raised) == "which object, what to do"


def test_an_unknown_error_is_internal() -> None:
    """The root of the family has no status of its own."""
    assert status_of(errors.RetrievalError("text")) is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("status", [status for status in grpc.StatusCode if status not in STATUSES.values()])
def test_a_status_without_an_error_keeps_its_name(status: grpc.StatusCode) -> None:
    """Deadlines, cancellations and defects reach the caller as errors of the family that name the status."""
    raised = error_of(status, "the text")
    assert type(raised) is errors.RetrievalError
    assert str(raised) == f"{status.name}: the text"


def test_each_status_gives_back_the_error_it_stands_for() -> None:
    """Two errors with one status would make the way back depend on the order of the table."""
    assert len(set(STATUSES.values())) == len(STATUSES)
    for kind, status in STATUSES.items():
        assert type(error_of(status, "")) is kind
