"""Every error has a gRPC status and an exit code."""

from __future__ import annotations

import inspect

import grpc
import pytest

from retrieval import errors
from retrieval.client.statuses import EXIT_COULD_NOT_RUN, EXIT_WRONG_USAGE, STATUSES, error_of, exit_code_of, status_of

FAMILY = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.RetrievalError) and kind is not errors.RetrievalError
]


@pytest.mark.parametrize("kind", FAMILY)
def test_every_error_has_a_status(kind: type[errors.RetrievalError]) -> None:
    """No error of the family becomes INTERNAL, and a client gets back an error of the same branch."""
    status = status_of(kind("text"))
    assert status is not grpc.StatusCode.INTERNAL
    assert isinstance(kind("text"), type(error_of(status, "text")))


def test_table_has_one_status_for_each_branch() -> None:
    """The inverse is unambiguous."""
    assert len(set(STATUSES.values())) == len(STATUSES)


def test_exit_codes() -> None:
    """2 for what the caller must change, 3 for what the state must change."""
    assert exit_code_of(errors.InvalidImage("")) == EXIT_WRONG_USAGE
    assert exit_code_of(errors.NotReady("")) == EXIT_COULD_NOT_RUN
