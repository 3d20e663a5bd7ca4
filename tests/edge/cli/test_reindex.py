"""What a reindex and an audit print at their end."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrieval.edge.cli.audit import _show
from retrieval.edge.cli.reindex import _print_snapshot
from retrieval.v1.audits_pb2 import VERDICT_PASSED, Audit
from retrieval.v1.catalogs_pb2 import Snapshot


def test_a_reindex_ends_with_items_failures_and_recall(capsys: pytest.CaptureFixture[str]) -> None:
    """The first failures are named on stderr, the others counted."""
    failures = {f"item {number}": "is no image" for number in range(7)}
    _print_snapshot(
        Snapshot(
            id="ab12", catalog="shoes", n_items=1234, n_failed=7, failures=failures, index_spec="Flat", index_recall=1
        )
    )
    captured = capsys.readouterr()
    assert captured.out == (
        "reindex of shoes done: 1,234 items, 7 failed, index Flat with recall 1.000, snapshot ab12\n"
    )
    assert captured.err.count("is no image") == 5
    assert "left out 2 more" in captured.err


def test_an_audit_names_the_copy_of_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not the file in the store, which may be on another machine."""
    stored = tmp_path / "store"
    stored.mkdir()
    for name in ("report.html", "report.json"):
        (stored / name).write_text(name)
    found = Audit(
        catalog="shoes",
        verdict=VERDICT_PASSED,
        report_html_uri=(stored / "report.html").as_uri(),
        report_json_uri=(stored / "report.json").as_uri(),
    )
    folder = tmp_path / "copy"
    _show(found, folder, as_json=False)
    assert f"report: {folder / 'report.html'}" in capsys.readouterr().out
    assert (folder / "report.html").read_text() == "report.html"
