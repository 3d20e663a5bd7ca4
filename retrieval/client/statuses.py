"""Convert errors to gRPC statuses and back, by one table. An error takes the status of its nearest ancestor in it."""

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
    """Return the gRPC status of an error; INTERNAL if no ancestor of it has one."""
    for kind in type(error).__mro__:
        if kind in STATUSES:
            return STATUSES[kind]
    return StatusCode.INTERNAL


def error_of(status: StatusCode, message: str, *, retry_after_s: float | None = None) -> errors.RetrievalError:
    """Return the error that a client raises for a status; RetrievalError for a status that is not in the table."""
    if status is StatusCode.RESOURCE_EXHAUSTED and "message larger than max" in message:  # gRPC's own, either side's
        return errors.InvalidInput(f"{message}: send or ask for less in one call")
    for kind, known in STATUSES.items():
        if known is status:
            error = kind(message)
            if isinstance(error, errors.Overloaded) and retry_after_s is not None:
                error.retry_after_s = retry_after_s
            return error
    return errors.RetrievalError(f"{status.name}: {message}")
