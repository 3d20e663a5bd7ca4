"""The figures of the demonstration: what calibration, search and audit found at each of its two targets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval.terminal import out, print_table

_NEXT_STEPS = """
Continue with your own images: a folder with one sub-folder per class, or a table with the columns id, uri, label:
  training split MY_IMAGES --out my
  training train --config emoji --data my/train.csv --validation my/validation.csv --out run
  training export run --out bundle
  retrieval calibrate --bundle bundle --data my/calibration.csv --cohort my/train.csv --far 0.01 --activate
  retrieval reindex my_catalog my/new.csv --embedded
  retrieval serve                                             # in a second terminal; then, in the first one:
  retrieval search --catalog my_catalog --image PICTURE.jpg
`--config emoji` trains small images for a few minutes. The README explains each step.
"""


@dataclass(frozen=True, slots=True)
class TriedTarget:
    """A target, the operating point that calibration chose for it, its contact sheet and the folder of its report."""

    target: str
    sheet: Path
    report: Path
    point: dict[str, Any]


def figures(
    trial: TriedTarget, report: dict[str, Any], queries: dict[str, Any], snapshot: dict[str, Any]
) -> dict[str, Any]:
    """Return what calibration, search and audit found at one threshold."""
    return {
        "target": trial.target,
        "r_at_1": report["recall_at_1"],
        "opis": _opis(report["opis"]),
        "opis_target": report["opis_target"] and _opis(report["opis_target"]),
        "score": report["score_kind"],
        "threshold": report["threshold"],
        "threshold_interval": _ends(trial.point["choice"]["threshold_interval"]),
        "far_target": report["far_target"],
        "far_new": report["far"],
        "far_promised": _ends(report["far_promised"]),
        "tar_new": report["tar"],
        "tar_promised": _ends(report["tar_promised"]),
        "n_new_classes": report["n_classes"],
        "n_new_images": report["n_images"],
        "index": {"spec": snapshot["index_spec"], **snapshot["index_details"]},
        "queries": queries,
        "verdict": report["verdict"],
        "contact_sheet": str(trial.sheet),
        "report": str(trial.report / "report.html"),
    }


def _opis(found: dict[str, Any]) -> dict[str, Any]:
    names = ("value", "floor", "debiased", "axis", "far_low", "far_high")
    interval = found["debiased_interval"] and _ends(found["debiased_interval"])
    return {**{name: found[name] for name in names}, "debiased_interval": interval}


def _ends(interval: dict[str, float]) -> list[float]:
    return [interval["low"], interval["high"]]


def print_figures(result: dict[str, Any]) -> None:
    """Print the figures of both targets side by side, what to look at and the next steps."""
    pairs = zip(_rows(result), _rows(result["loose"]), strict=True)
    rows = [(name, value, loose) for (name, value), (_, loose) in pairs]
    print_table("Results of the demonstration", ("", "threshold in use", "a loose one beside it"), rows)
    seconds = ", ".join(f"{step} {value:g}" for step, value in result["seconds"].items())
    out.print(f"{result['n_new_images']} images of {result['n_new_classes']} new classes; seconds: {seconds}")
    for name, found in (("in use", result), ("loose", result["loose"])):
        out.print(f"{name}: {found['contact_sheet']}, {found['report']}", markup=False, highlight=False, soft_wrap=True)
    out.print(_NEXT_STEPS, markup=False, highlight=False)


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    low, high = found["threshold_interval"]
    far_low, far_high = found["far_promised"]
    tar_low, tar_high = found["tar_promised"]
    queries = found["queries"]
    return [
        ("target", found["target"]),
        ("score", found["score"]),
        ("threshold", f"{found['threshold']:.4f} (95 %: {low:.4f} to {high:.4f})"),
        ("FAR, new classes", f"{found['far_new']:.3g}, target {found['far_target']:.3g}"),
        ("FAR promised", f"{far_low:.3g} to {far_high:.3g}"),
        ("TAR, new classes", f"{found['tar_new']:.3f}"),
        ("TAR promised", f"{tar_low:.3f} to {tar_high:.3f}"),
        ("R@1", f"{found['r_at_1']:.3f}"),
        ("OPIS, FAR 1e-2 to 1e-1", _sentence(found["opis"])),
        ("OPIS around the target", _sentence(found["opis_target"]) if found["opis_target"] else "unknown"),
        ("index", f"{found['index']['spec']}, {'complete' if found['index'].get('complete') else 'approximate'}"),
        ("queries", f"{queries['n_queries']}, of which {queries['n_without_match']} have no match"),
        ("matches right", f"{queries['matches_right'] or 0:.1%}, first ones {queries['first_match_right'] or 0:.1%}"),
        ("verdict", found["verdict"]),
    ]


def _sentence(opis: dict[str, Any]) -> str:
    debiased = "unknown" if opis["debiased"] is None else f"{opis['debiased']:.2e}"
    return f"{opis['value']:.2e}, noise floor {opis['floor']:.2e}, debiased {debiased}"
