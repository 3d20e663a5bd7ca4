"""Logs are structured and hold no secret; metrics are served where the settings say."""

from __future__ import annotations

import json
import logging
import socket
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from retrieval.edge import telemetry
from retrieval.edge.jobs.connection import redis_url
from retrieval.edge.jobs.queue import make_app, submit
from retrieval.edge.jobs.records import Jobs
from retrieval.edge.settings import load_settings
from retrieval.errors import JobsUnavailable
from retrieval.flows.reindex import ReindexRequest


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Give the process its own logging back after each test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []  # `setup` closes those that it replaces
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The log: one JSON object per line of stderr, nothing on stdout."""
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_a_log_line_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    """Event, level, time in UTC and values, line breaks escaped."""
    telemetry.setup(load_settings())
    structlog.get_logger().info("snapshot_published", id="a\nb", items=3)
    (line,) = lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "snapshot_published", "level": "info", "id": "a\nb", "items": 3}


def test_context_is_in_every_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Job and task, bound once, are found in the lines of the flow."""
    telemetry.setup(load_settings())
    with structlog.contextvars.bound_contextvars(job="7"):
        structlog.get_logger().info("inside")
    structlog.get_logger().info("outside")
    inside, outside = lines(capsys)
    assert inside["job"] == "7"
    assert "job" not in outside


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_lines_below_the_level_are_left_out(level: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Our own log follows the setting."""
    telemetry.setup(load_settings(log_level=level))
    levels = ["debug", "info", "warning", "error"]
    for name in levels:
        getattr(structlog.get_logger(), name)("event")
    assert [line["level"] for line in lines(capsys)] == levels[levels.index(level) :]


def test_a_trace_is_part_of_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A defect is one line too; the trace names no values of variables."""
    telemetry.setup(load_settings())
    hidden = "-".join(["se", "cret"])
    try:
        raise KeyError(len(hidden))
    except KeyError:
        structlog.get_logger().exception("call_failed", request_id="7")
    (line,) = lines(capsys)
    assert line["request_id"] == "7"
    assert "KeyError: 7" in line["exception"]
    assert hidden not in line["exception"]


def test_logs_of_libraries_have_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    """Warnings of Celery or gRPC are lines of the same log; their chatter is left out."""
    telemetry.setup(load_settings(log_level="debug"))
    logging.getLogger("celery.worker").info("chatter")
    logging.getLogger("celery.worker").warning("connection lost: %s", "reset")
    (line,) = lines(capsys)
    assert (line["event"], line["level"]) == ("connection lost: reset", "warning")


def test_a_terminal_gets_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """People read no JSON."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    telemetry.setup(load_settings())
    structlog.get_logger().info("snapshot_published", items=3)
    text = capsys.readouterr().err
    assert "snapshot_published" in text
    assert not text.startswith("{")


def test_the_password_of_redis_is_in_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither logged settings nor the trace of a queue that is away show it."""
    settings = load_settings(redis_url="redis://:hunter2@127.0.0.1:1/0")
    telemetry.setup(settings)
    log = structlog.get_logger()
    log.info("settings", settings=repr(settings), values={name: str(value) for name, value in settings})
    try:
        submit(make_app(settings), Jobs(redis_url(settings)), "reindex", ReindexRequest(catalog="a", manifest_uri="b"))
    except JobsUnavailable:
        log.exception("resume_failed")
    found = lines(capsys)
    assert [line["event"] for line in found] == ["settings", "resume_failed"]
    assert "JobsUnavailable" in found[1]["exception"]
    assert "hunter2" not in json.dumps(found)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_metrics_are_served_on_the_host_of_the_server() -> None:
    """Prometheus finds our own metrics there, by names that do not change."""
    port = free_port()
    telemetry.serve_metrics(load_settings(address="127.0.0.1:50051", metrics_port=port))
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        text = reply.read().decode()
    for name in (
        "retrieval_call_seconds",
        "retrieval_matches",
        "retrieval_live_since_seconds",
        "retrieval_refused_snapshots_total",
    ):
        assert f"# TYPE {name} " in text


@pytest.mark.parametrize(
    ("address", "host"),
    [("10.0.0.1:50051", "10.0.0.1"), ("[::1]:50051", "::1"), (":50051", "0.0.0.0"), ("localhost:1", "localhost")],
)
def test_every_address_of_a_server_has_a_host_for_metrics(
    address: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IPv6 addresses are written in brackets; gRPC takes an empty host as all interfaces."""
    opened = []
    monkeypatch.setattr(telemetry, "start_http_server", lambda port, *, addr: opened.append((port, addr)))
    telemetry.serve_metrics(load_settings(address=address, metrics_port=9000))
    assert opened == [(9000, host)]


def test_without_a_port_no_metrics_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default opens no port."""
    monkeypatch.setattr(telemetry, "start_http_server", lambda *_, **__: pytest.fail("a port was opened"))
    assert load_settings().metrics_port == 0
    telemetry.serve_metrics(load_settings())
