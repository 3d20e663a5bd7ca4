"""docs/architecture.md names files that exist, and no file of the code is missing from its tree."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
TREE = re.search(r"^## The tree\n+```\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
NAME = re.compile(r"[\w/]+(?:/|\.py)(?=[\s,;:]|$)")


def drawn() -> set[Path]:
    """The files and folders of the tree: those a line begins with, and files that the text behind a folder names."""
    assert TREE is not None
    found: set[Path] = set()
    folders: list[Path] = []
    for line in TREE[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        parent = ROOT.joinpath(*folders[:depth])
        first, *others = (match[0] for match in NAME.finditer(line))
        found.add(parent / first)
        if first.endswith("/"):
            folders[depth:] = [Path(first)]
        for name in others:
            places = (parent / name, ROOT / name, parent / first / name)
            found.add(next((place for place in places if place.exists()), places[-1]))
    return found


def code(folder: Path) -> set[Path]:
    """The modules and packages in a folder."""
    modules = {path for path in folder.glob("*.py") if not path.name.startswith("__")}
    return modules | {path.parent for path in folder.glob("*/__init__.py")}


def test_everything_in_the_tree_exists() -> None:
    assert len(drawn()) > 80, "the tree was not read"
    assert {path for path in drawn() if not path.exists()} == set()


def test_no_file_is_missing_from_the_tree() -> None:
    """Every module and package of retrieval two levels deep, and of training one level deep."""
    retrieval = ROOT / "retrieval"
    expected = code(retrieval) | code(ROOT / "training")
    for package in code(retrieval):
        if package.is_dir() and package.name != "v1":
            expected |= code(package)
    assert expected - drawn() == set()


def test_every_file_that_the_text_names_exists() -> None:
    """Paths with a folder in them begin in the package retrieval."""
    named = re.findall(r"`((?:\w+/)+\w+\.\w+)`", PAGE)
    assert len(named) > 40
    assert [path for path in named if not (ROOT / "retrieval" / path).exists()] == []
