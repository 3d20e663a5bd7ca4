"""Errors to gRPC statuses and back: one table. A new error takes the status of its nearest ancestor in the table."""

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


def status_of(error: errors.RetrievalError) -> StatusCode:
    """Return the gRPC status of an error of the family; INTERNAL if no ancestor of it has one."""
    for kind in type(error).__mro__:
        if kind in STATUSES:
            return STATUSES[kind]
    return StatusCode.INTERNAL


def error_of(status: StatusCode, message: str) -> errors.RetrievalError:
    """Return the error that a client raises for a status; a status without one becomes a bare RetrievalError."""
    for kind, known in STATUSES.items():
        if known is status:
            return kind(message)
    return errors.RetrievalError(f"{status.name}: {message}")
