"""Checks the raw bytes of requests and replies, turns errors into gRPC statuses, and counts and times every call.

Requests are parsed here and not by gRPC, which answers bytes that it cannot parse with UNKNOWN. A known error keeps its
message. For an unknown error the client gets only a request id; the log has the rest.
"""

import asyncio
import functools
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from retrieval.client.statuses import status_of
from retrieval.contract.limits import ImageLimits
from retrieval.edge import telemetry
from retrieval.edge.server.limits import CallsInFlight, check_reply, check_request, largest_request, reply_limit
from retrieval.errors import InvalidInput, Overloaded, RetrievalError

log = structlog.get_logger()

Context = grpc.aio.ServicerContext[Any, Any]

# A status travels in a header, and clients refuse headers of more than 8 KiB. A byte takes up to three there.
_MESSAGE_BYTES = 2000


class ErrorsToStatuses(grpc.aio.ServerInterceptor):
    """Turns the errors of unary calls into statuses, those of parsing and of size included."""

    def __init__(self, limits: ImageLimits) -> None:
        self._limits = limits
        self._in_flight = CallsInFlight(max_bytes=4 * largest_request(limits))

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of a unary call: it gets and returns bytes."""
        handler = await continuation(details)
        if handler is None or handler.unary_unary is None:
            return handler
        return grpc.unary_unary_rpc_method_handler(functools.partial(self._answer, details.method, handler))

    async def _answer(self, method: str, handler: Any, data: bytes, context: Context) -> bytes:
        started = time.perf_counter()
        status = "OK"
        try:
            self._in_flight.enter(len(data))
            try:
                return await self._reply(method, handler, data, context)
            finally:
                self._in_flight.leave(len(data))
        except RetrievalError as error:
            code = status_of(error)
            status = code.name
            message = _shortened(str(error))
            await context.abort(code, message, _retry_hint(message, error) if isinstance(error, Overloaded) else ())
        except grpc.aio.AbortError:
            status = "ABORTED"
            raise
        except asyncio.CancelledError:
            status = "CANCELLED"
            raise
        except Exception as error:  # noqa: BLE001  # a defect must not leak to the client; the log has it
            status = "INTERNAL"
            await context.abort(grpc.StatusCode.INTERNAL, log_unknown(method, error))
        finally:
            telemetry.CALLS.labels(method=method, status=status).observe(time.perf_counter() - started)

    async def _reply(self, method: str, handler: Any, data: bytes, context: Context) -> bytes:
        check_request(method, data, self._limits)
        try:
            request = handler.request_deserializer(data)
        except DecodeError as error:
            raise InvalidInput(f"request: {len(data):,} bytes are no request of {method}") from error
        reply = await handler.unary_unary(request, context)
        check_reply(reply.ByteSize(), reply_limit(context))
        content: bytes = handler.response_serializer(reply)
        return content


def _retry_hint(message: str, error: Overloaded) -> tuple[tuple[str, str | bytes], ...]:
    """Return the trailing metadata that says when to try again (google.rpc.RetryInfo)."""
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromMilliseconds(round(1000 * error.retry_after_s))
    detail = AnyMessage()
    detail.Pack(info)
    status = status_pb2.Status(code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], message=message, details=[detail])
    return tuple(rpc_status.to_status(status).trailing_metadata)


def log_unknown(method: str, error: Exception) -> str:
    """Log a defect and return the text that a client may see."""
    request_id = uuid.uuid4().hex
    log.error("call_failed", method=method, request_id=request_id, exc_info=error)
    return f"internal error, request id {request_id}: see the server's log"


def _shortened(message: str) -> str:
    return message.encode("utf-8", "replace")[:_MESSAGE_BYTES].decode("utf-8", "ignore")
