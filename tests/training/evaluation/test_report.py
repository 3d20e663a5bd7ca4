"""An evaluation as files."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from retrieval.consistency import class_rates, labelled
from retrieval.errors import InvalidInput
from tests.consistency.conftest import draw_family
from training.evaluation import Evaluation, evaluate
from training.evaluation.report import class_table, to_markdown, write_report


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, list[str]]:
    rows, labels = draw_family(np.random.default_rng(0), n_classes=70, n_images=5, spread=0.6, crowding=0.6)
    labels[0] = "a class, alone"
    return rows, labels


@pytest.mark.slow
def test_files(drawn: tuple[np.ndarray, list[str]], tmp_path: Path) -> None:
    rows, labels = drawn
    found = evaluate(rows, labels)
    paths = write_report(found, rows, labels, tmp_path / "report")
    assert [path.name for path in paths] == [
        "evaluation.json",
        "evaluation.md",
        "classes.csv",
        "histograms.png",
        "classes.png",
        "identification.png",
    ]
    assert Evaluation.from_json(json.loads(paths[0].read_bytes())) == found
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths[3:])


def test_class_table(drawn: tuple[np.ndarray, list[str]]) -> None:
    """Every class once, worst first, with the rates of `class_rates`, and whom it is confused with."""
    rows, labels = drawn
    table = list(csv.DictReader(io.StringIO(class_table(rows, labels, 0.6))))
    rates = {rate.name: rate for rate in class_rates(labelled(rows, labels), 0.6)}
    assert {row["class"] for row in table} == rates.keys()
    fars = [float(row["far"]) for row in table]
    assert fars == sorted(fars, reverse=True)
    for row in table:
        rate = rates[row["class"]]
        assert (float(row["far"]), int(row["n_images"])) == (rate.far, rate.n_images)
        if rate.frr is None:
            assert row["tar"] == ""
        else:
            assert float(row["tar_low"]) <= float(row["tar"]) == 1 - rate.frr <= float(row["tar_high"])
        assert (row["confused_with"] == "") == (rate.far == 0)


def test_text_says_what_is_missing(drawn: tuple[np.ndarray, list[str]], tmp_path: Path) -> None:
    """A small set gets fewer tables and plots, and the reasons."""
    rows, labels = drawn
    few = evaluate(rows[:80], labels[:80])
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="a file is in its place"):
        write_report(few, rows[:80], labels[:80], tmp_path / "file")
    text = to_markdown(few)
    assert "mAP@R" in text
    assert "Not measured:\n" in text
    assert "- other_classes: a threshold for FAR 0.01 from half of the classes needs 10 false accepts there" in text
    names = [path.name for path in write_report(few, rows[:80], labels[:80], tmp_path)]
    assert "identification.png" not in names
