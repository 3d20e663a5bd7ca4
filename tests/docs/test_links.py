"""The pages for people: links and anchors lead somewhere, the README stays short, the glossary is complete."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "deploy" / "README.md", *ROOT.glob("docs/*.md")])
TERMS = (
    "audit", "bundle", "calibration classes", "catalogue", "certificate", "cohort", "cohort score", "cosine similarity",
    "debiased", "embedding", "FAR", "FRR", "gallery", "job", "log-FAR axis", "manifest", "match probability",
    "noise floor", "operating point", "OPIS", "prevalence", "query", "R@1", "score", "snapshot", "store", "TAR", "TCM",
    "unit vector", "verdict", "whitened",
)  # fmt: skip
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(page: Path) -> Iterator[str]:
    """Yield the lines of a page that are not in a fenced block."""
    fenced = False
    for line in page.read_text().splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield line


def headings(page: Path) -> list[str]:
    """Return the titles of a page, without their markers."""
    return [line.lstrip("#").strip() for line in prose(page) if re.match(r"#{1,6} ", line)]


def anchor(title: str) -> str:
    """Return the anchor that GitHub gives a title.

    >>> anchor("What is R@1, and the log-FAR axis?")
    'what-is-r1-and-the-log-far-axis'
    """
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_anchors_exist(page: Path) -> None:
    """Every relative link names a file, and every anchor a title of that file."""
    broken = []
    for link in _LINK.findall(" ".join(prose(page))):
        if "://" in link:
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (fragment and fragment not in map(anchor, headings(target))):
            broken.append(link)
    assert broken == []


def test_readme_is_a_quick_start() -> None:
    """The README has at most 200 lines and names every other page."""
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    assert [page.name for page in ROOT.glob("docs/*.md") if f"(docs/{page.name})" not in text] == []


def test_glossary_defines_every_term() -> None:
    """The glossary has each term as a title of its own, in alphabetical order."""
    found = headings(ROOT / "docs" / "glossary.md")[1:]
    assert set(TERMS) - {title if title in TERMS else title[0].lower() + title[1:] for title in found} == set()
    assert found == sorted(found, key=str.lower)
