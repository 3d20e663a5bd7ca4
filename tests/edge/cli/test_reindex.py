"""What a reindex and an audit print at their end."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from retrieval.contract.operating_point import OperatingPoint
from retrieval.contract.score import Score
from retrieval.edge.cli.audit import _show
from retrieval.edge.cli.reindex import _print_snapshot, _reindex_here
from retrieval.edge.label_warning import label_warning
from retrieval.engine.store import Store
from retrieval.errors import InvalidManifest
from retrieval.v1.audits_pb2 import VERDICT_PASSED, Audit
from retrieval.v1.catalogs_pb2 import Snapshot
from tests.stores import activate, with_labels

EXACT = {
    "complete": True, "bytes_at_level_1": 16, "lists": 0, "slack": 0.02, "bytes_per_vector": 660.2,
    "expected_microseconds": 43.6,
}  # fmt: skip


def printed(capsys: pytest.CaptureFixture[str], **fields: Any) -> tuple[list[str], str]:
    """The lines that a reindex ends with, and what it prints on stderr."""
    _print_snapshot(Snapshot(**{"id": "ab12", "catalog": "shoes", "n_items": 1234, "index_recall": 1, **fields}))
    captured = capsys.readouterr()
    return captured.out.splitlines(), captured.err


def test_a_reindex_ends_with_items_failures_and_what_its_index_promises(capsys: pytest.CaptureFixture[str]) -> None:
    """The first failures are named on stderr, the others counted."""
    failures = {f"item {number}": "is no image" for number in range(7)}
    lines, errors = printed(capsys, n_failed=7, failures=failures, index_spec="Exact", index_details=json.dumps(EXACT))
    assert lines == [
        "reindex of shoes done: 1,234 items, 7 failed, index Exact (complete), snapshot ab12",
        "index Exact: scans 16 of 660.2 bytes a vector, no lists; a query took 43.6 microseconds of CPU time",
    ]
    assert errors.count("is no image") == 5
    assert "left out 2 more" in errors


def test_an_index_that_was_not_timed_states_no_time(capsys: pytest.CaptureFixture[str]) -> None:
    details = json.dumps({**EXACT, "lists": 1024, "expected_microseconds": 0.0})
    (_, chosen), _ = printed(capsys, index_spec="Exact", index_details=details)
    assert chosen == "index Exact: scans 16 of 660.2 bytes a vector, 1,024 lists"


@pytest.mark.parametrize(
    ("recall", "low", "high", "shown"),
    [
        (0.9996, 0.9899, 0.99999, "recall 0.999, 95 %: 0.989 to 1.000"),  # only a recall of 1 is shown as 1
        (1, 0.932, 1, "recall 1.000, 95 %: 0.932 to 1.000"),
        (1, 0, 1, "recall 1.000, 95 %: 0.000 to 1.000"),
        (0.95, 0.95, 0.95, "recall 0.950"),  # of an earlier version, without an interval
    ],
)
def test_an_approximate_index_states_its_recall_and_what_it_misses(
    recall: float, low: float, high: float, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    details = {"complete": False, "cannot_promise": "a match in a list that is not looked at is missed"}
    fields = {"index_recall": recall, "index_recall_low": low, "index_recall_high": high}
    lines, _ = printed(capsys, index_spec="IVF16,nprobe=4", index_details=json.dumps(details), **fields)
    assert lines == [
        f"reindex of shoes done: 1,234 items, 0 failed, index IVF16,nprobe=4 ({shown}), snapshot ab12",
        "index IVF16,nprobe=4: not complete: a match in a list that is not looked at is missed",
    ]


def test_a_snapshot_of_an_earlier_version_states_its_recall_only(capsys: pytest.CaptureFixture[str]) -> None:
    lines, _ = printed(capsys, index_spec="Flat")
    assert lines == ["reindex of shoes done: 1,234 items, 0 failed, index Flat (recall 1.000), snapshot ab12"]


def test_a_score_that_uses_the_labels_states_how_many_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    labels = {"n_classes": 1200, "n_unlabelled": 34}
    lines, errors = printed(capsys, index_spec="Flat", labels=labels)
    assert lines[-1] == "labels: 1,200; items without a label: 34"
    assert errors == ""


@pytest.mark.parametrize(
    ("n_far", "named", "sentence"),
    [
        (0, 0, ""),
        (1, 1, "1 item is far from the others with the same label, so the label may be wrong: id 0"),
        (5, 5, "5 items are far from .*: id 0, id 1, id 2, id 3, id 4"),
        (1234, 100, r"1,234 items are far from .*: id 0, id 1, id 2, id 3, id 4, \.\.\."),
    ],
)
def test_the_first_items_whose_label_may_be_wrong_are_named(n_far: int, named: int, sentence: str) -> None:
    found = label_warning(n_far, [f"id {number}" for number in range(named)])
    assert re.fullmatch(sentence, found)


def test_labels_are_missed_before_anything_starts(
    calibrated: Store, cosine_point: OperatingPoint, tmp_path: Path
) -> None:
    """Neither a queue nor a worker: the state folder is not even made."""
    activate(calibrated, *with_labels(cosine_point, Score()))
    table = tmp_path / "items.csv"
    table.write_text("id,uri\n1,1.png\n")
    wanted = {"catalog": "shop", "manifest_uri": str(table)}
    with pytest.raises(InvalidManifest, match="labels are needed for the catalogue cosine score of the active"):
        _reindex_here(wanted, state_dir=tmp_path / "state", store_url=calibrated.url)
    assert not (tmp_path / "state").exists()


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
