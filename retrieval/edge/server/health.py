"""The standard health service with its newest call, List, which the servicer of grpcio lacks in its asyncio form."""

from typing import Any

from grpc_health.v1 import health, health_pb2


class HealthServicer(health.aio.HealthServicer):  # type: ignore[misc]  # the library has no types
    """Answers Check, Watch and List from the statuses that `set` was called with. Used from one event loop."""

    def __init__(self) -> None:
        super().__init__()
        self._listed: dict[str, Any] = {}

    async def set(self, service: str, status: Any) -> None:
        """Set the status of a service."""
        self._listed[service] = status
        await super().set(service, status)

    async def List(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Return the status of every service."""
        statuses = {service: health_pb2.HealthCheckResponse(status=status) for service, status in self._listed.items()}
        return health_pb2.HealthListResponse(statuses=statuses)
