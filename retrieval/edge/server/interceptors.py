"""Turns errors into gRPC statuses, and counts and times every call.

A known error keeps its message. For an unknown error the client gets only a request id; the log has the rest.
"""

import asyncio
import functools
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import structlog

from retrieval.client.statuses import status_of
from retrieval.edge import telemetry
from retrieval.errors import RetrievalError

log = structlog.get_logger()

Context = grpc.aio.ServicerContext[Any, Any]

# A status travels in a header, and clients refuse headers of more than 8 KiB. A byte takes up to three there.
_MESSAGE_BYTES = 2000


class ErrorsToStatuses(grpc.aio.ServerInterceptor):
    """Turns the errors of unary calls into statuses."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of a unary call."""
        handler = await continuation(details)
        if handler is None or handler.unary_unary is None:
            return handler
        return grpc.unary_unary_rpc_method_handler(
            functools.partial(_answer, details.method, handler.unary_unary),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


async def _answer(method: str, handler: Callable[..., Awaitable[Any]], request: Any, context: Context) -> Any:
    started = time.perf_counter()
    status = "OK"
    try:
        return await handler(request, context)
    except RetrievalError as error:
        code = status_of(error)
        status = code.name
        await context.abort(code, _shortened(str(error)))
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


def log_unknown(method: str, error: Exception) -> str:
    """Log a defect and return the text that a client may see."""
    request_id = uuid.uuid4().hex
    log.error("call_failed", method=method, request_id=request_id, exc_info=error)
    return f"internal error, request id {request_id}: see the server's log"


def _shortened(message: str) -> str:
    return message.encode("utf-8", "replace")[:_MESSAGE_BYTES].decode("utf-8", "ignore")
