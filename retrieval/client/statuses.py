"""Errors to gRPC statuses and exit codes: one table, found by walking the MRO, so a new error inherits its place."""

from grpc import StatusCode

from retrieval import errors

STATUSES: dict[type[errors.RetrievalError], StatusCode] = {
    errors.InvalidInput: StatusCode.INVALID_ARGUMENT,
    errors.NotFound: StatusCode.NOT_FOUND,
    errors.FailedPrecondition: StatusCode.FAILED_PRECONDITION,
    errors.CorruptArtifact: StatusCode.DATA_LOSS,
    errors.Unavailable: StatusCode.UNAVAILABLE,
    errors.Overloaded: StatusCode.RESOURCE_EXHAUSTED,
}

EXIT_OK, EXIT_VERDICT_FAILED, EXIT_WRONG_USAGE, EXIT_COULD_NOT_RUN = 0, 1, 2, 3


def status_of(error: errors.RetrievalError) -> StatusCode:
    """The gRPC status of an error of the family."""
    for kind in type(error).__mro__:
        if kind in STATUSES:
            return STATUSES[kind]
    return StatusCode.INTERNAL


def error_of(status: StatusCode, message: str) -> errors.RetrievalError:
    """The error that a client raises for a status: the inverse of `status_of`, as far as there is one."""
    for kind, known in STATUSES.items():
        if known is status:
            return kind(message)
    return errors.RetrievalError(f"{status.name}: {message}")


def exit_code_of(error: errors.RetrievalError) -> int:
    """2 where the caller must change the request, 3 where the state must change."""
    return EXIT_WRONG_USAGE if isinstance(error, errors.InvalidInput) else EXIT_COULD_NOT_RUN
