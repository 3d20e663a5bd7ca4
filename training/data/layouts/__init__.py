"""Reads published data sets in their own file layout, with the split by class that they prescribe."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from retrieval.contract.files import suffix_of
from retrieval.contract.manifest import read_source
from retrieval.contract.tables import TABLE_SUFFIXES
from retrieval.errors import EmptyCatalog, InvalidInput, InvalidManifest
from training.config import suggestion
from training.data.layouts import cars_196, inaturalist_2018, text_tables
from training.data.layouts.tree import Layout, Tree
from training.data.splits import require_disjoint

__all__ = ["AUTO", "LAYOUTS", "PLAIN", "Layout", "read_layout"]

AUTO, PLAIN = "auto", "plain"


@dataclass(frozen=True, slots=True)
class _Published:
    """A published data set. markers: sets of files, one of which is present; read: the function that reads it."""

    markers: tuple[tuple[str, ...], ...]
    read: Callable[[Tree], Layout]

    def fits(self, tree: Tree) -> bool:
        return any(tree.has(*names) for names in self.markers)


LAYOUTS: Mapping[str, _Published] = {
    "sop": _Published(text_tables.SOP_MARKERS, text_tables.read_sop),
    "cub": _Published(text_tables.CUB_MARKERS, text_tables.read_cub),
    "cars": _Published(cars_196.MARKERS, cars_196.read),
    "inat": _Published(inaturalist_2018.MARKERS, inaturalist_2018.read),
    "inshop": _Published(text_tables.INSHOP_MARKERS, text_tables.read_inshop),
}


def read_layout(source: str, name: str = AUTO) -> Layout:
    """Read the images at `source`, in one of LAYOUTS or "plain" (a manifest); "auto" detects it.

    Raises InvalidInput if the name is unknown, InvalidManifest with file and line if the source does not match the
    layout, EmptyCatalog if it holds no image.
    """
    if name not in (AUTO, PLAIN, *LAYOUTS):
        hint = suggestion(name, (AUTO, PLAIN, *LAYOUTS))
        raise InvalidInput(f"layout: expected one of {', '.join((AUTO, PLAIN, *LAYOUTS))}, found {name!r}{hint}")
    if name == PLAIN or (name == AUTO and _is_file(source)):
        return _plain(source)
    tree = Tree.open(source)
    if name == AUTO:
        name = next((candidate for candidate, layout in LAYOUTS.items() if layout.fits(tree)), PLAIN)
        if name == PLAIN:
            return _plain(source)
    if not LAYOUTS[name].fits(tree):
        expected = " or ".join(" and ".join(names) for names in LAYOUTS[name].markers)
        raise InvalidManifest(f"{source}: expected the folder of {name} with {expected}, found none of them")
    layout = LAYOUTS[name].read(tree)
    if not layout.known or layout.new == []:
        raise EmptyCatalog(f"{source}: expected images of classes to train on and of new ones, found none of one kind")
    if layout.new is not None:
        require_disjoint({"its training images": layout.known, "its test images": layout.new})
    return layout


def _plain(source: str) -> Layout:
    found = read_source(source)
    return Layout(known=found.items, new=None, passed_over=found.passed_over)


def _is_file(source: str) -> bool:
    return suffix_of(source) in TABLE_SUFFIXES
