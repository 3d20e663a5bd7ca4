"""The one family of exceptions, named by what is wrong.

Every message states what was expected, what was found, in which object, and what to do. The edge maps the classes to
gRPC statuses and exit codes along the MRO. It reports any other exception as an internal error without details.
"""


class RetrievalError(Exception):
    """Root of the family; its text may be shown to a client."""


class InvalidInput(RetrievalError):
    """The caller sent something that can never work; sending it again is useless."""


class InvalidImage(InvalidInput):
    """The bytes are not an image that can be decoded."""


class ImageTooLarge(InvalidInput):
    """The image exceeds the limit on bytes or on pixels; this is checked before decoding."""


class SourceNotAllowed(InvalidInput):
    """A path or URL lies outside of what this process may read for others."""


class ReplyTooLarge(InvalidInput):
    """The reply would have more bytes than the caller can receive."""


class InvalidManifest(InvalidInput):
    """A manifest of items has a missing column, a duplicate id or an unusable row."""


class InvalidEmbeddings(InvalidInput):
    """An array of embeddings or labels has the wrong shape, is not normalised or holds NaN."""


class NotFound(RetrievalError):
    """A named object does not exist."""


class UnknownBundle(NotFound):
    """No model bundle with this digest is in the store."""


class UnknownCatalog(NotFound):
    """No catalogue of this name has a published snapshot."""


class UnknownSnapshot(NotFound):
    """The catalogue has no snapshot with this id."""


class UnknownOperatingPoint(NotFound):
    """The bundle has no operating point with this id, or none is active."""


class UnknownJob(NotFound):
    """No job, or no audit, with this id is known."""


class FailedPrecondition(RetrievalError):
    """The request is well formed, but the present state does not allow it."""


class BundleMismatch(FailedPrecondition):
    """Model, score, threshold and index were not made for each other."""


class NotEnoughEvidence(FailedPrecondition):
    """The labelled data cannot support the requested statement."""


class EmptyCatalog(FailedPrecondition):
    """A manifest holds no usable item."""


class TooManyFailures(FailedPrecondition):
    """More items could not be read than the declared limit allows."""


class ValidationFailed(FailedPrecondition):
    """A freshly built artefact did not pass its own checks and was not published."""


class DeviceUnavailable(FailedPrecondition):
    """A requested accelerator is missing; the CPU is not used in its place."""


class InvalidSettings(FailedPrecondition):
    """The configuration is unusable; all problems are listed at once."""


class OutOfSpace(FailedPrecondition):
    """A file could not be written whole; the file that it would have replaced is unchanged."""


class TrainingDiverged(FailedPrecondition):
    """A loss or gradient is NaN or infinite; training stopped, because the weights would become useless."""


class CorruptArtifact(RetrievalError):
    """A stored artefact is truncated or differs from its checksum."""


class Unavailable(RetrievalError):
    """A needed service cannot be reached now; the same call may work later."""


class NotReady(Unavailable):
    """The server has nothing live for this request yet."""


class JobsUnavailable(Unavailable):
    """The job queue cannot be reached; queries are not affected."""


class Overloaded(RetrievalError):
    """A bounded queue is full; try again after `retry_after_s` seconds."""

    retry_after_s: float = 1.0
