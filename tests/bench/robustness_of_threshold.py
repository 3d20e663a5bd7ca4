"""How robust is the threshold: to perturbed images, to bad calibration data, to single classes?

Real emoji, base+tcm model, cosine. The threshold is calibrated on the calibration classes, decisions are about audit
classes. Perturbed images go through the production decoding and preprocessing and the model. No timings.

    OMP_NUM_THREADS=1 python -m tests.bench.robustness_of_threshold --seed 0
"""

from __future__ import annotations

import argparse
import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retrieval.consistency import DecisionFlips, decision_flips, label_margins, labelled, thresholds_at_far
from retrieval.contract.manifest import read_manifest
from retrieval.contract.preprocessing import Preprocessing, to_array
from retrieval.engine.perturbations import KINDS, Perturbation, preprocess_perturbed
from tests.bench.measuring.contamination import KINDS as CONTAMINATIONS
from tests.bench.measuring.contamination import LabelledData, contaminate, threshold_under_contamination
from tests.bench.measuring.emoji import FOLDER, Embedded, emoji
from tests.bench.measuring.influence import threshold_influence
from training.evaluation import Embed
from training.loop import embedding_function, load_finished

_MODEL = "base+tcm"
_TARGETS = (1e-2, 1e-3)
_STRETCH = 256  # images whose pixels are held at once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="split and training of the model, random draws here")
    parser.add_argument("--repeats", type=int, default=5, help="draws of bad data for each share")
    parser.add_argument("--classes", type=int, default=40, help="audit classes whose images are perturbed")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, measures little")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the tables")
    options = parser.parse_args()
    if options.quick:
        options.repeats, options.classes = 2, 10
    parts = emoji(_MODEL, seed=options.seed)
    calibration, audit = (data_of(parts[part]) for part in ("calibration", "audit"))
    finished = load_finished(FOLDER / f"run-{_MODEL}-{options.seed}")
    embed = embedding_function(finished.embedder)
    threshold = float(thresholds_at_far(calibration.vectors, [_TARGETS[0]])[0])
    flips = flips_of(parts["audit"], embed, finished.preprocessing, threshold, options)
    noise = pictures_of_nothing(embed, finished.preprocessing, np.random.default_rng(options.seed))
    curves = [
        threshold_under_contamination(
            calibration,
            kind,
            target_far=target,
            shares=(0.05,) if options.quick else (0.01, 0.02, 0.05, 0.1, 0.2),
            n_repeats=options.repeats,
            rng=np.random.default_rng(options.seed),
            clean=audit,
            outliers=(noise, noise) if kind == "outliers" else None,
        )
        for target in _TARGETS
        for kind in CONTAMINATIONS
    ]
    influences = [threshold_influence(calibration.vectors, target_far=target) for target in _TARGETS]
    found = [found_labels(audit, kind, threshold, options) for kind in CONTAMINATIONS[:2]]
    if options.json:
        print(json.dumps(as_json(flips, curves, influences, found, vars(options))))
        return
    print(__doc__.splitlines()[0], vars(options), sep="\n", end="\n\n")
    print_flips(flips)
    print(
        "\nthreshold against the share of bad calibration data; median (lowest to highest) of the draws",
        *curves,
        sep="\n",
    )
    print("\nwithout one class", *influences, sep="\n")
    print("\n5 % of the audit labels made wrong, found again", *found, sep="\n")


def data_of(embedded: Embedded) -> LabelledData:
    return LabelledData(embedded.embeddings, embedded.embeddings, tuple(str(label) for label in embedded.labels))


def flips_of(
    audit: Embedded, embed: Embed, preprocessing: Preprocessing, threshold: float, options: argparse.Namespace
) -> DecisionFlips:
    """Flips of every kind at every second severity, on some classes drawn at random."""
    rng = np.random.default_rng(options.seed)
    chosen = audit.of_classes(rng.choice(np.unique(audit.labels), size=options.classes, replace=False))
    uris = {item.id: item.uri for item in read_manifest(f"{FOLDER}/data-{options.seed}/audit.csv")}
    files = [Path(uris[str(name)].removeprefix("file://")).read_bytes() for name in chosen.ids]
    severities = (3,) if options.quick else (1, 3, 5)
    perturbed, labels = {}, [str(label) for label in chosen.labels]
    for perturbation in (Perturbation(kind, severity) for kind in KINDS for severity in severities):
        # A generator for each image: the same picture is changed alike whatever else is measured.
        rngs = [
            np.random.default_rng([options.seed, row, zlib.crc32(str(perturbation).encode())])
            for row in range(len(files))
        ]
        copies = embed_perturbed(files, embed, preprocessing, perturbation, rngs)
        perturbed[str(perturbation)] = labelled(copies, labels)
    return decision_flips(labelled(chosen.embeddings, labels), perturbed, threshold)


def embed_perturbed(
    files: list[bytes],
    embed: Embed,
    preprocessing: Preprocessing,
    perturbation: Perturbation,
    rngs: list[np.random.Generator],
) -> NDArray[np.float32]:
    rows = []
    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(files), _STRETCH):
            stretch = slice(start, start + _STRETCH)
            pixels = pool.map(
                lambda data, rng: preprocess_perturbed(data, preprocessing, perturbation, rng),
                files[stretch],
                rngs[stretch],
            )
            rows.append(embed(np.stack(list(pixels))))
    return np.concatenate(rows)


def pictures_of_nothing(embed: Embed, preprocessing: Preprocessing, rng: np.random.Generator) -> NDArray[np.float32]:
    """Embeddings of pictures of noise, of one colour each in the mean and of several grains."""
    images = []
    for grain in rng.choice([1, 4, 16, 96], size=200):
        small = rng.integers(256, size=(96 // grain, 96 // grain, 3)).astype(np.uint8)
        images.append(Image.fromarray(small).resize((96, 96), Image.Resampling.NEAREST))
    return embed(np.stack([to_array(image, preprocessing) for image in images]))


def found_labels(data: LabelledData, kind: str, threshold: float, options: argparse.Namespace) -> dict[str, object]:
    """How many of 5 % wrong labels are flagged, and how high they rank."""
    shares = []
    for repeat in range(options.repeats):
        bad = contaminate(data, kind, 0.05, rng=np.random.default_rng([options.seed, repeat]))
        wrong = np.array(bad.labels) != np.array(data.labels)
        margins = label_margins(bad.vectors, threshold)
        flagged = np.zeros(len(wrong), dtype=bool)
        flagged[[suspect.row for suspect in margins.suspects]] = True
        lowest = np.argsort(np.where(margins.known, margins.margins, np.inf))[: wrong.sum()]
        shares.append((wrong[flagged].mean() if flagged.any() else 0.0, flagged[wrong].mean(), wrong[lowest].mean()))
    names = ("flagged_are_wrong", "wrong_are_flagged", "of_as_many_lowest_margins_wrong")
    return {"kind": kind} | {n: float(np.round(v, 3)) for n, v in zip(names, np.median(shares, axis=0), strict=True)}


def print_flips(flips: DecisionFlips) -> None:
    print(
        f"decisions at {flips.threshold:.4f} that flip, per cent; {100 * flips.confidence:g} % intervals over classes"
    )
    print(f"{'perturbation':16}{'sides':8}{'true pairs lost':>28}{'non-matches gained':>28}{'TAR':>16}{'FAR':>18}")
    for f in flips.flips:
        print(
            f"{f.perturbation:16}{f.sides:8}{f.lost!s:>28}{f.gained!s:>28}"
            f"{100 * f.tar_clean:8.1f} {100 * f.tar:7.1f}{100 * f.far_clean:10.2f} {100 * f.far:7.2f}"
        )


def as_json(*values: object) -> dict[str, object]:
    flips, curves, influences, found, options = values
    return {
        "question": __doc__.splitlines()[0],
        "options": options,
        "flips": json.loads(json.dumps(flips, default=_plain)),
        "contamination": json.loads(json.dumps(curves, default=_plain)),
        "influence": json.loads(json.dumps(influences, default=_plain)),
        "found_labels": found,
    }


def _plain(value: object) -> object:
    return {name: getattr(value, name) for name in value.__slots__}  # type: ignore[attr-defined]  # slotted values only


if __name__ == "__main__":
    main()
