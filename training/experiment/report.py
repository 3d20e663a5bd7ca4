"""Writes the result of an experiment as text, Markdown, CSV and JSON.

OUT/table.md     both tables, for people
OUT/table.csv    one row for each arm and figure: mean, interval, difference, tests
OUT/runs.csv     one row for each arm and seed: all figures
OUT/table.json   everything
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retrieval.consistency import Interval
from training.experiment.compared import N_ROUNDS
from training.experiment.figures import FIGURES, OPIS_FIGURES
from training.experiment.plan import Experiment
from training.experiment.running import TrialFailure
from training.experiment.summary import CONFIDENCE, ArmSummary, Difference, Estimate

TITLES = {
    "r_at_1": "R@1",
    "map_at_r": "mAP@R",
    "opis_distance": "OPIS, axis d",
    "opis_log_far": "OPIS, log FAR",
    "opis_deployed": "OPIS, deployed",
    "tar_at_1e_2": "TAR@1e-2",
    "tar_at_1e_3": "TAR@1e-3",
    "tar_at_1e_4": "TAR@1e-4",
    "transfer_far": "FAR, new classes",
    "transfer_tar": "TAR, new classes",
    "transfer_worst_tar": "worst tenth",
    "strangers_far": "strangers",
    "training_s": "training s",
}
_SEARCHES = (
    f" In {N_ROUNDS} rounds, half of the images of each class search the others. Strangers: FAR of queries whose class "
    "is absent, at that threshold, over the deployed FAR."
)
_TESTED = ("r_at_1", "map_at_r", *OPIS_FIGURES, "tar_at_1e_2", "tar_at_1e_3", "tar_at_1e_4", "transfer_worst_tar")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentResult:
    """The figures of all arms, and the failures; passed_over: see `retrieval/contract/manifest.py`."""

    experiment: Experiment
    arms: tuple[ArmSummary, ...]
    failures: tuple[TrialFailure, ...]
    passed_over: tuple[str, ...] = ()

    def __str__(self) -> str:
        return to_markdown(self)


def to_markdown(result: ExperimentResult) -> str:
    """Return both tables, aligned for a terminal, and how to read them."""
    far = result.experiment.far_target
    shown = [name for name in FIGURES if any(name in arm.figures for arm in result.arms)]
    head = ["arm", "seeds", *(TITLES[name] for name in shown)]
    rows = [
        [arm.name, str(arm.n_seeds), *(_estimate(name, arm.figures.get(name)) for name in shown)] for arm in result.arms
    ]
    explanation = (
        f"Mean over seeds ± half of its {CONFIDENCE:.0%} interval (Student's t over seeds, from 3 seeds). OPIS is "
        "debiased and given in units of 1e-3: over the pooled FARs 1e-2 to 1e-1 on the axis of distance, the same on "
        f"the axis of log FAR, and over the decade around the deployed FAR of {far:g}. New classes: at the threshold "
        f"for FAR {far:g} that was chosen on the calibration classes; worst tenth: mean TAR of the tenth of these "
        "classes with the lowest TAR." + (_SEARCHES if result.experiment.compare == "searches" else "")
    )
    blocks = [_aligned(head, rows), explanation, *_comparison(result.arms), *_remarks(result)]
    return "\n\n".join(blocks) + "\n"


def to_json(result: ExperimentResult) -> dict[str, Any]:
    """Return everything as plain values."""
    experiment = result.experiment
    return {
        "experiment": experiment.name,
        "far_target": experiment.far_target,
        "compare": experiment.compare,
        "confidence": CONFIDENCE,
        "seeds": list(experiment.seeds),
        "arms": [asdict(arm) for arm in result.arms],
        "failures": [asdict(failure) for failure in result.failures],
        "passed_over": list(result.passed_over),
    }


def write_report(result: ExperimentResult, out: Path) -> list[Path]:
    """Write the tables into `out`; return their paths."""
    contents = {
        "table.md": f"# {result.experiment.name}\n\n{to_markdown(result)}",
        "table.csv": _csv(_summary_rows(result.arms)),
        "runs.csv": _csv(_run_rows(result.arms)),
        "table.json": json.dumps(to_json(result), indent=1, allow_nan=False) + "\n",
    }
    for name, content in contents.items():
        (out / name).write_text(content, encoding="utf-8")
    return [out / name for name in contents]


def _comparison(arms: Sequence[ArmSummary]) -> Iterable[str]:
    compared = [arm for arm in arms if arm.differences]
    if not compared:
        return
    shown = [name for name in _TESTED if any(name in arm.differences for arm in compared)]
    head = ["arm", "against", *(TITLES[name] for name in shown)]
    rows = [
        [arm.name, arm.against or "", *(_difference(name, arm.differences.get(name)) for name in shown)]
        for arm in compared
    ]
    yield _aligned(head, rows)
    yield (
        "Difference from the other arm, paired by seed; for OPIS relative to it, seed by seed, unless it may be 0. "
        f"In parentheses: {CONFIDENCE:.0%} interval over seeds. p: paired t test of the difference over seeds, for "
        "new seeds; c: test over the draw of classes, for new test classes and the same trained models, with the "
        "p-values of the seeds combined by Vovk and Wang (2020). Neither is corrected for the number of comparisons: "
        "of twenty comparisons without any difference, one is expected below 0.05."
    )


def _remarks(result: ExperimentResult) -> Iterable[str]:
    reasons: dict[str, list[str]] = {}
    for arm in result.arms:
        for name, reason in arm.missing.items():
            reasons.setdefault(f"{TITLES[name]}: {reason}", []).append(arm.name)
    if reasons:
        yield "Not measured:\n" + "\n".join(f"- {reason} ({', '.join(names)})" for reason, names in reasons.items())
    if result.failures:
        yield "Failed:\n" + "\n".join(f"- {failure}" for failure in result.failures)


def _estimate(name: str, found: Estimate | None) -> str:
    if found is None:
        return ""
    half = "" if found.interval is None else f" ± {_number(name, (found.interval.high - found.interval.low) / 2)}"
    return _number(name, found.mean) + half


def _difference(name: str, found: Difference | None) -> str:
    if found is None:
        return ""
    if found.relative is not None:
        text = f"{100 * found.relative:+.1f} %{_range(found.relative_interval, 100, '.1f')}"
    elif name in OPIS_FIGURES:
        text = f"{1e3 * found.mean:+.2f}e-3{_range(found.interval, 1e3, '.2f')}"
    else:
        text = f"{found.mean:+.4f}{_range(found.interval, 1, '.4f')}"
    tests = [f"{letter} {p:.2g}" for letter, p in (("p", found.p_value), ("c", found.class_p_value)) if p is not None]
    return text + (f"; {', '.join(tests)}" if tests else "")


def _range(interval: Interval | None, scale: float, digits: str) -> str:
    return "" if interval is None else f" ({scale * interval.low:+{digits}} to {scale * interval.high:+{digits}})"


def _number(name: str, value: float) -> str:
    if name in OPIS_FIGURES:
        return f"{1e3 * value:.2f}"
    if name == "training_s":
        return f"{value:.0f}"
    return f"{value:.5f}" if name == "transfer_far" else f"{value:.4f}"


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def _summary_rows(arms: Sequence[ArmSummary]) -> Iterable[dict[str, object]]:
    for arm in arms:
        for name, found in arm.figures.items():
            apart = arm.differences.get(name)
            yield {
                "arm": arm.name,
                "figure": name,
                "n_seeds": len(found.values),
                "mean": found.mean,
                "low": found.interval and found.interval.low,
                "high": found.interval and found.interval.high,
                "against": arm.against if apart else None,
                "difference": apart and apart.mean,
                "difference_low": apart and apart.interval and apart.interval.low,
                "difference_high": apart and apart.interval and apart.interval.high,
                "p_value": apart and apart.p_value,
                "class_p_value": apart and apart.class_p_value,
                "relative": apart and apart.relative,
                "relative_low": apart and apart.relative_interval and apart.relative_interval.low,
                "relative_high": apart and apart.relative_interval and apart.relative_interval.high,
            }


def _run_rows(arms: Sequence[ArmSummary]) -> Iterable[dict[str, object]]:
    for arm in arms:
        for seed in sorted({seed for found in arm.figures.values() for seed in found.values}):
            figures = {name: arm.figures[name].values.get(seed) if name in arm.figures else None for name in FIGURES}
            yield {"arm": arm.name, "seed": seed, **figures}


def _csv(rows: Iterable[dict[str, object]]) -> str:
    listed = list(rows)
    buffer = io.StringIO()
    if listed:
        writer = csv.DictWriter(buffer, listed[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(listed)
    return buffer.getvalue()
