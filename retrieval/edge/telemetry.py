"""Logs and metrics for operators.

Sets the format of logs and the names of metrics; the callers decide when to log and count. A label has few values
(catalogue, method, status), never a request, an item or a class.
"""

import logging
import sys

import structlog
from prometheus_client import Counter, Gauge, Histogram, start_http_server

from retrieval.edge.settings import Settings

CALLS = Histogram("retrieval_call_seconds", "Time of gRPC calls", ["method", "status"])
MATCHES = Histogram(
    "retrieval_matches",
    "Matches above the threshold for a query",
    ["catalog"],
    buckets=[0, 1, 2, 5, 10, 100, 1000, 10000],
)
LIVE = Gauge("retrieval_live_since_seconds", "When the live snapshot went live, Unix time", ["catalog"])
REFUSED = Counter("retrieval_refused_snapshots", "Snapshots or operating points that could not go live", ["catalog"])
LEFT_BEHIND = Gauge("retrieval_store_calls_left_behind", "Calls to the store that did not end in time and still run")


def setup(settings: Settings) -> None:
    """Write structured logs to stderr: JSON lines, or coloured text if stderr is a terminal."""
    level = getattr(logging, settings.log_level.upper())
    renderer: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    finish: list[structlog.types.Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        renderer,
    ]
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=finish, foreign_pre_chain=shared))
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)


def serve_metrics(settings: Settings) -> None:
    """Serve Prometheus metrics over HTTP on the server's host if a port is set."""
    if settings.metrics_port:
        host = settings.address.rsplit(":", 1)[0].strip("[]")  # brackets enclose an IPv6 address
        start_http_server(settings.metrics_port, addr=host or "0.0.0.0")
