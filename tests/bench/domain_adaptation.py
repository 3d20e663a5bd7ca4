"""Does an embedder get better on a new domain by unlabelled images of it?

Trained on the emoji of five makers. Targets: `makers`, emoji of three others; `logos` of `measuring.domains`. Half of a
target's classes are the unlabelled images; the other half, with labels, is measured.

    bn           batch norms of the backbone with the statistics of the target (AdaBN); `bn-half`: half way to them
    mean         embeddings moved, before their normalisation, to the mean that training images have
    coral        moved and turned so that mean and covariance of the target become those of training images (CORAL);
                 `coral-half`: by half of the covariance (shrunk towards the source's)
    whitening    moved and turned so that the target has mean 0 and covariance 1

The last four are affine maps in front of the normalisation: a linear head takes them up, serving stays as it is. Each
seed is a split of the emoji classes, a training run and a split of the target; differences are paired by seed.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from retrieval.consistency import (
    OpisOptions,
    consistency_report,
    labelled,
    operating_curves,
    recall_at_k,
    thresholds_at_far,
)
from retrieval.contract.preprocessing import preprocess
from tests.bench.measuring.domains import DOMAINS, Picture
from training.loop import FinishedRun, load_finished

FOLDER = Path(".bench/adaptation")
EMOJI = Path(".bench/emoji")  # data-0, data-1, ...: made by tests.bench.measuring.emoji
TARGET_MAKERS = ("openmoji", "fluent-emoji-flat", "twemoji")
TARGETS = ("makers", "logos")
_FARS = (1e-2, 1e-3)
_SHRINKAGE = 0.1  # share of the mean variance added to each direction, as CORAL adds the identity
_BATCH = 64
_EVERY = 3  # of the training images, whose mean and covariance need no more

Rows = NDArray[np.float64]
Map = Callable[[Rows], Rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One method on the measured half of one target of one seed.

    above_floor, debiased: OPIS on the log-FAR axis, less its noise floor, or by halves of each class; the latter is NaN
    where classes have three images, as those of `makers` do.
    """

    recall_at_1: float
    tar_at_2: float
    tar_at_3: float
    above_floor: float
    debiased: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="0 to this, exclusive; each trains once, for minutes")
    parser.add_argument("--quick", action="store_true", help="seed 0 only")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the tables")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where runs and packages are kept")
    options = parser.parse_args()
    seeds = range(1 if options.quick else options.seeds)
    found = {seed: kept_or_measured(seed, options.folder) for seed in seeds}
    results = {
        target: {method: [found[seed][target][method] for seed in seeds] for method in found[0][target]}
        for target in TARGETS
    }
    if options.json:
        print(json.dumps({t: {m: [*map(asdict, rows)] for m, rows in by.items()} for t, by in results.items()}))
        return
    for target, by_method in results.items():
        fields = list(Measured.__dataclass_fields__)
        print(f"\n{target}, {len(seeds)} seeds: mean (paired difference to none, lowest to highest)")
        print(f"{'':16}" + "".join(f"{field:>36}" for field in fields))
        for method, rows in by_method.items():
            print(f"{method:16}" + "".join(f"{_cell(rows, by_method['none'], field):>36}" for field in fields))


def kept_or_measured(seed: int, folder: Path) -> dict[str, dict[str, Measured]]:
    """What `measure` found, now or on an earlier call."""
    kept = folder / f"measured-{seed}.json"
    if not kept.exists():
        found = measure(seed, folder)
        kept.write_text(json.dumps({t: {m: asdict(row) for m, row in by.items()} for t, by in found.items()}))
    by_target = json.loads(kept.read_text())
    return {t: {m: Measured(**row) for m, row in by.items()} for t, by in by_target.items()}


def measure(seed: int, folder: Path) -> dict[str, dict[str, Measured]]:
    """Every method on every target."""
    run = train_on_source(seed, folder)
    source_pictures = list(_emoji(seed, "train", TARGET_MAKERS, held_out=True))[::_EVERY]
    source = _rows_of(load_finished(run), source_pictures)
    results: dict[str, dict[str, Measured]] = {}
    for target in TARGETS:
        unlabelled, measured = _halves(_pictures(target, seed, folder), seed)
        labels = [label for label, _, _ in measured]
        results[target] = {}
        for suffix, share in (("", 0.0), ("bn-half", 0.5), ("bn", 1.0)):
            finished = load_finished(run)
            if share:
                adapt_batch_norms(finished, unlabelled, share)
            seen = _rows_of(finished, unlabelled)
            rows = _rows_of(finished, measured)
            # With other statistics the training images, too, are embedded anew before covariances are compared.
            aligned_to = _rows_of(finished, source_pictures) if share == 1.0 else source
            for name, apply in maps(aligned_to, seen).items():
                if name == "none" or share in (0.0, 1.0):
                    method = "+".join(part for part in (suffix, name) if part and part != "none") or "none"
                    results[target][method] = _measured(apply(rows), labels, seed)
    return results


def train_on_source(seed: int, folder: Path) -> Path:
    """The finished run of this seed, on the demonstration's recipe; trained where there is none."""
    run, data = folder / f"run-{seed}", folder / f"data-{seed}"
    if (run / "evaluation.json").exists():
        return run
    data.mkdir(parents=True, exist_ok=True)
    for part in ("train", "cohort"):
        with (EMOJI / f"data-{seed}" / f"{part}.csv").open() as lines, (data / f"{part}.csv").open("w") as kept:
            writer = csv.writer(kept)
            writer.writerow(("id", "uri", "label", "maker"))
            for row in csv.DictReader(lines):
                if row["maker"] not in TARGET_MAKERS:
                    uri = (EMOJI / f"data-{seed}" / row["uri"]).absolute()
                    writer.writerow((row["id"], uri, row["label"], row["maker"]))
    command = ["training", "train", "--config", "emoji", "--data", f"{data}/train.csv", "--seed", str(seed)]
    command += ["--validation", f"{data}/cohort.csv", "--out", str(run), "--resume"]
    subprocess.run([str(Path(sys.executable).with_name(command[0])), *command[1:]], check=True, env=os.environ)
    return run


def adapt_batch_norms(finished: FinishedRun, pictures: list[Picture], share: float) -> None:
    """Move the statistics of the backbone's batch norms by `share` of the way to those of the pictures.

    Source: Li et al., "Revisiting Batch Normalization For Practical Domain Adaptation", 2016; the share as in
    Schneider et al., "Improving robustness against common corruptions by covariate shift adaptation", NeurIPS 2020.
    """
    norms = [m for m in finished.embedder.backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]  # type: ignore[union-attr]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a mean over all batches
        norm.train()
    for _ in _features(finished, pictures):
        pass
    for norm, (mean, variance) in zip(norms, before, strict=True):
        norm.eval()
        norm.running_mean = torch.lerp(mean, norm.running_mean, share)  # type: ignore[arg-type]
        norm.running_var = torch.lerp(variance, norm.running_var, share)  # type: ignore[arg-type]


def maps(source: Rows, target: Rows) -> dict[str, Map]:
    """Affine maps of rows of the target, made from unlabelled rows before their normalisation.

    Source: Sun et al., "Return of Frustratingly Easy Domain Adaptation", AAAI 2016, algorithm 1, turned round: the
    source's covariance is given to the target, so that the trained head and the threshold keep their meaning.
    """
    here, there = source.mean(axis=0), target.mean(axis=0)
    of_source, of_target = (_shrunk(np.cov(rows, rowvar=False)) for rows in (source, target))
    half = (of_source + of_target) / 2
    return {
        "none": lambda rows: rows,
        "mean": lambda rows: rows - there + here,
        "coral": lambda rows: (rows - there) @ _power(of_target, -0.5) @ _power(of_source, 0.5) + here,
        "coral-half": lambda rows: (rows - there) @ _power(half, -0.5) @ _power(of_source, 0.5) + here,
        "whitening": lambda rows: (rows - there) @ _power(of_target, -0.5),
    }


def _shrunk(covariance: Rows) -> Rows:
    return covariance + _SHRINKAGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))


def _power(covariance: Rows, exponent: float) -> Rows:
    values, vectors = np.linalg.eigh(covariance)
    result: Rows = (vectors * values**exponent) @ vectors.T
    return result


def _pictures(target: str, seed: int, folder: Path) -> list[Picture]:
    if target != "makers":
        return list(DOMAINS[target](folder / "packages"))
    parts = ("calibration", "audit")  # neither was trained on
    return [picture for part in parts for picture in _emoji(seed, part, TARGET_MAKERS, held_out=False)]


def _emoji(seed: int, part: str, makers: tuple[str, ...], *, held_out: bool) -> Iterator[Picture]:
    folder = EMOJI / f"data-{seed}"
    with (folder / f"{part}.csv").open() as lines:
        for row in csv.DictReader(lines):
            if (row["maker"] in makers) is not held_out:
                yield row["label"], row["maker"], (folder / row["uri"]).read_bytes()


def _halves(pictures: list[Picture], seed: int) -> tuple[list[Picture], list[Picture]]:
    """The pictures of a random half of the classes, and the others."""
    classes = sorted({label for label, _, _ in pictures})
    chosen = set(np.random.default_rng(seed).permutation(classes)[: len(classes) // 2].tolist())
    return [p for p in pictures if p[0] in chosen], [p for p in pictures if p[0] not in chosen]


def _rows_of(finished: FinishedRun, pictures: list[Picture]) -> Rows:
    """What the head gives, before it is normalised."""
    with torch.inference_mode():
        rows = [finished.embedder.head(features).double().numpy() for features in _features(finished, pictures)]
    return np.concatenate(rows)


def _features(finished: FinishedRun, pictures: list[Picture]) -> Iterator[torch.Tensor]:
    for start in range(0, len(pictures), _BATCH):
        pixels = [preprocess(content, finished.preprocessing) for _, _, content in pictures[start : start + _BATCH]]
        with torch.inference_mode():
            yield finished.embedder.features(torch.from_numpy(np.stack(pixels)))


def _measured(rows: Rows, labels: list[str], seed: int) -> Measured:
    vectors = labelled((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels)
    levels = thresholds_at_far(vectors, _FARS)
    curves = operating_curves(vectors, thresholds=levels)
    report = consistency_report(vectors, OpisOptions(axis="log_far"), rng=np.random.default_rng(seed))
    tars = [float(curves.at(level).pooled_tar[0]) for level in levels]
    return Measured(
        recall_at_1=recall_at_k(vectors)[1],
        tar_at_2=tars[0],
        tar_at_3=tars[1],
        above_floor=report.value - report.floor,
        debiased=math.nan if report.debiased is None else report.debiased,
    )


def _cell(rows: list[Measured], reference: list[Measured], field: str) -> str:
    values, others = ([getattr(row, field) for row in side] for side in (rows, reference))
    differences = np.subtract(values, others)
    change = f"{differences.mean():+.4f}, {differences.min():+.4f} to {differences.max():+.4f}"
    return f"{np.mean(values):.4f}" if rows is reference else f"{np.mean(values):.4f} ({change})"


if __name__ == "__main__":
    main()
