"""Drawings of many icon sets, rendered: the pictures that galleries of realistic embeddings are made of.

Emoji of eight makers, brand logos and flags, fetched by name from npm and kept. No picture comes twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.measuring.domains import FLAG_MAKERS, LOGO_MAKERS, npm_pack
from training.emoji.dataset import PACKAGES, EmojiRecipe, render_drawings, split_drawings
from training.emoji.drawings import Drawing, IconSet, fetch_packages, join_drawings, read_icon_set

Progress = Callable[[int, int], None]

_SIDE = 96


@dataclass(frozen=True, slots=True)
class Picture:
    """One rendered drawing. label: its class, "" if it is no emoji of the demonstration's training classes."""

    path: Path
    label: str


def pictures(folder: Path, progress: Progress) -> list[Picture]:
    """Return all drawings, rendered under `folder`; the first call fetches and renders them, for minutes.

    Raises Unavailable without npm, network or resvg-py.
    """
    archives = fetch_packages(folder / PACKAGES)
    emoji = [read_icon_set(maker, path) for maker, path in archives.items()]
    of_training = split_drawings(join_drawings(emoji, min_makers=EmojiRecipe().min_makers), EmojiRecipe())["train"]
    others = [
        read_icon_set(maker, npm_pack(f"@iconify-json/{maker}", version, folder / PACKAGES))
        for maker, version in (LOGO_MAKERS | FLAG_MAKERS).items()
    ]
    labels = {drawing.label for drawing in of_training}
    drawings = {drawing.svg: drawing for drawing in join_drawings(emoji, min_makers=1)}
    for icon_set in others:
        drawings |= {drawing.svg: drawing for drawing in _drawings(icon_set) if drawing.svg not in drawings}
    found = list(drawings.values())
    render_drawings(found, folder, size=_SIDE, progress=progress)
    return [
        Picture(
            folder / f"images-{_SIDE}px/{drawing.label}/{drawing.maker}.png",
            drawing.label if drawing.label in labels else "",
        )
        for drawing in found
    ]


def _drawings(icon_set: IconSet) -> list[Drawing]:
    """Return the drawings of a set that has no other makers: each is a class of its own."""
    return [
        Drawing(label=f"{icon_set.maker}-{name}", maker=icon_set.maker, svg=svg) for name, svg in icon_set.svgs.items()
    ]
