"""Icons of one name as drawn by many icon sets, and photographs of food, embedded: catalogues with labels.

icons        a name is a class, of 4 to 40 drawings; sets give one name to different drawings, so some labels are wrong
             as in real catalogues
photographs  one of food is a class, of five shots that cropping, brightness and JPEG make

The features are those of the pretrained backbone; a linear head is trained on a part of the names, and the others are
measured. Fetched by name from npm, rendered and kept; none of it is distributed here but for a sample of embeddings.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.contract.preprocessing import preprocess
from tests.bench.measuring.domains import DOMAINS, npm_pack, png_of
from tests.bench.measuring.emoji import frozen_features
from tests.bench.measuring.shown import Shown
from training.emoji.drawings import read_icon_set

Vectors = NDArray[np.float32]
Names = NDArray[np.str_]

VERSIONS = {
    "akar-icons": "1.2.7",
    "ant-design": "1.2.9",
    "basil": "1.2.4",
    "bi": "1.2.7",
    "bx": "1.2.3",
    "carbon": "1.2.29",
    "cil": "1.2.3",
    "clarity": "1.2.4",
    "entypo": "1.2.1",
    "eva": "1.2.3",
    "fa6-solid": "1.2.4",
    "fluent": "1.2.60",
    "gg": "1.2.2",
    "gridicons": "1.2.5",
    "heroicons": "1.2.3",
    "humbleicons": "1.2.20",
    "icon-park-outline": "1.2.4",
    "iconamoon": "1.2.2",
    "iconoir": "1.2.11",
    "ion": "1.2.7",
    "jam": "1.2.3",
    "lucide": "1.2.137",
    "majesticons": "1.2.5",
    "maki": "1.2.5",
    "material-symbols": "1.2.98",
    "mdi": "1.2.3",
    "mingcute": "1.2.8",
    "mynaui": "1.2.19",
    "octicon": "1.2.36",
    "pepicons-pop": "1.2.4",
    "ph": "1.2.2",
    "prime": "1.2.5",
    "radix-icons": "1.2.6",
    "ri": "1.2.10",
    "solar": "1.2.13",
    "streamline": "1.2.5",
    "system-uicons": "1.2.4",
    "tabler": "1.2.41",
    "teenyicons": "1.2.2",
    "typcn": "1.2.2",
    "uil": "1.2.3",
    "zondicons": "1.2.2",
}
FEATURES = "icon-features.npz"
_SAMPLE = Path(__file__).with_name("catalogue_icons.npz")
# Words that say how a drawing is made, not what it shows.
_STYLE = re.compile(
    r"(-(outline|outlined|outlines|o|fill|filled|line|linear|bold|duotone|broken|solid|regular|light|thin|sharp|rounded"
    r"|round|rounded-fill|twotone|two-tone|alt|[0-9]+|sm|lg|md|circle-fill|baseline|remix|off-outline))+$"
)
_SOURCE = re.compile(r"^(interface|basic)-")
_LEAST_LETTERS, _LEAST_SETS, _N_RARE = 3, 4, 4000
_SAME_DRAWING = 0.995  # similarity of features
_BATCH = 64
_N_HEAD_NAMES, _N_HEAD_PHOTOGRAPHS = 500, 200
_DIMENSION, _STEPS, _ROWS = 128, 150, 512
_TEMPERATURE, _LEARNING_RATE, _PROXY_LEARNING_RATE, _DECAY = 0.07, 0.005, 0.1, 0.01  # of the demonstration's recipe
_SAMPLE_NAMES, _SAMPLE_COHORT = 280, 1200


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """Embeddings [n, d] float32, unit rows, and names of classes the head never saw; cohort: of other classes."""

    embeddings: Vectors
    names: Names
    cohort: Vectors


def icons(seed: int, folder: Path, shown: Shown) -> Embedded:
    """Return the icons embedded by a head that was trained on other names; the first call takes minutes.

    seed: draws the names of the head. Raises CalledProcessError if npm cannot fetch the sets.
    """
    kept = folder / FEATURES
    if not kept.exists():
        _make_features(kept, folder / "packages", shown)
    with np.load(kept) as arrays:
        features, names = arrays["features"].astype(np.float32), arrays["names"]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    different = _different_drawings(features, names)
    features, names = features[different], names[different]
    found, counts = np.unique(names, return_counts=True)
    frequent = np.random.default_rng(seed).permutation(found[counts >= _LEAST_SETS])
    of_head, measured = (np.isin(names, part) for part in np.split(frequent, [_N_HEAD_NAMES]))
    embeddings = _with_head(features, of_head, names, seed)
    cohort = ~np.isin(names, frequent)
    return Embedded(embeddings[measured], names[measured], embeddings[cohort])


def photographs(seed: int, folder: Path, shown: Shown) -> Embedded:
    """Return shots of food embedded by a head that was trained on other photographs, which are the cohort.

    seed: draws the photographs of the head. Raises CalledProcessError if npm cannot fetch them.
    """
    kept = folder / "photograph-features.npz"
    if not kept.exists():
        entries = [(name, image) for name, _, image in DOMAINS["photos"](folder / "packages")]
        _write_features(kept, entries, len(entries), shown.watch("embed photographs"))
    with np.load(kept) as arrays:
        features, names = arrays["features"].astype(np.float32), arrays["names"]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    of_head = np.isin(names, np.random.default_rng(seed).permutation(np.unique(names))[:_N_HEAD_PHOTOGRAPHS])
    embeddings = _with_head(features, of_head, names, seed)
    return Embedded(embeddings[~of_head], names[~of_head], embeddings[of_head])


def kept_icons() -> Embedded:
    """Return the sample of embeddings that is part of the sources, rounded to whole numbers and scaled again."""
    with np.load(_SAMPLE) as arrays:
        parts = [arrays[name].astype(np.float32) for name in ("embeddings", "cohort")]
        names = arrays["names"]
    rows, cohort = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts)
    return Embedded(rows, names, cohort)


def keep_icons(found: Embedded) -> None:
    """Write the sample."""
    rng = np.random.default_rng(0)
    names = rng.permutation(np.unique(found.names))[:_SAMPLE_NAMES]
    rows = np.flatnonzero(np.isin(found.names, names))
    cohort = rng.permutation(len(found.cohort))[:_SAMPLE_COHORT]
    parts = {"embeddings": found.embeddings[rows], "cohort": found.cohort[cohort]}
    scale = 127 / max(float(np.abs(part).max()) for part in parts.values())
    codes = {name: np.rint(part * scale).astype(np.int8) for name, part in parts.items()}
    np.savez_compressed(_SAMPLE, names=found.names[rows], **codes)


def _drawings(packages: Path) -> dict[str, dict[str, str]]:
    """Return SVG documents by name and set; of the variants that a set has of a name, the one named shortest."""
    drawn: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for maker, version in VERSIONS.items():
        svgs = read_icon_set(maker, npm_pack(f"@iconify-json/{maker}", version, packages)).svgs
        for name in sorted(svgs, key=lambda name: (len(name), name)):
            plain = _SOURCE.sub("", _STYLE.sub("", name))
            if len(plain) >= _LEAST_LETTERS:
                drawn[plain].setdefault(maker, svgs[name])
    return drawn


def _make_features(kept: Path, packages: Path, shown: Shown) -> None:
    """Write the pretrained features of all names of four sets or more, and of some icons of rarer names."""
    drawn = _drawings(packages)
    of_name = [(name, svg) for name, by_set in sorted(drawn.items()) for _, svg in sorted(by_set.items())]
    frequent = [entry for entry in of_name if len(drawn[entry[0]]) >= _LEAST_SETS]
    rare = [entry for entry in of_name if len(drawn[entry[0]]) < _LEAST_SETS]
    chosen = np.sort(np.random.default_rng(0).permutation(len(rare))[:_N_RARE])
    entries = frequent + [rare[row] for row in chosen]
    images = ((name, png_of(svg.replace("currentColor", "#000000"))) for name, svg in entries)
    _write_features(kept, images, len(entries), shown.watch("render and embed icons"))


def _write_features(
    kept: Path, images: Iterable[tuple[str, bytes]], total: int, progress: Callable[[int, int], None]
) -> None:
    """Write the pretrained features of images, and their names."""
    embed, preprocessing = frozen_features()
    features, names = [], []
    remaining = iter(images)
    while batch := list(islice(remaining, _BATCH)):
        features.append(embed(np.stack([preprocess(image, preprocessing) for _, image in batch])))
        names += [name for name, _ in batch]
        progress(len(names), total)
    staging = kept.with_suffix(".part.npz")
    np.savez(staging, features=np.concatenate(features).astype(np.float16), names=np.array(names))
    staging.replace(kept)


def _different_drawings(features: Vectors, names: Names) -> NDArray[np.int64]:
    """Return the rows without those that show nearly the same as an earlier one of their name."""
    kept: list[int] = []
    order = np.argsort(names, kind="stable")
    for members in np.split(order, np.flatnonzero(names[order][1:] != names[order][:-1]) + 1):
        similarities = features[members] @ features[members].T
        own: list[int] = []
        for place in range(len(members)):
            if not own or similarities[place, own].max() < _SAME_DRAWING:
                own.append(place)
        kept += members[own].tolist()
    return np.sort(np.array(kept, dtype=np.int64))


def _with_head(features: Vectors, rows: NDArray[np.bool_], names: Names, seed: int) -> Vectors:
    """Return all features through a linear head that a softmax over class proxies trained on some rows."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    centre, scale = features[rows].mean(axis=0), features[rows].std(axis=0).mean()
    inputs = torch.from_numpy((features - centre) / scale)
    classes = torch.from_numpy(np.unique(names[rows], return_inverse=True)[1])
    head = torch.nn.Linear(features.shape[1], _DIMENSION, bias=False)
    proxies = torch.nn.Parameter(torch.randn(int(classes.max()) + 1, _DIMENSION))
    groups = [
        {"params": head.parameters(), "lr": _LEARNING_RATE},
        {"params": [proxies], "lr": _PROXY_LEARNING_RATE},
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=_DECAY)
    unit, known = torch.nn.functional.normalize, inputs[torch.from_numpy(rows)]
    for _ in range(_STEPS):
        batch = torch.from_numpy(rng.permutation(len(known))[:_ROWS])
        similarities = unit(head(known[batch])) @ unit(proxies).T
        loss = torch.nn.functional.cross_entropy(similarities / _TEMPERATURE, classes[batch])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not declare its types
        optimiser.step()
    with torch.inference_mode():
        made: Vectors = unit(head(inputs)).numpy()
    return made
