"""Manifests: lists of items with the paths or URLs of their images and, usually, their labels.

A manifest is a folder with one sub-folder for each class, or a CSV, Parquet or JSON-lines table. `engine/images.py`
reads the images.
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from retrieval.contract.files import Place, failing_as, is_absolute, suffix_of
from retrieval.contract.formats import HEAD_BYTES, IMAGE_SUFFIXES, RAW_SUFFIXES, sniffed
from retrieval.contract.tables import TABLE_SUFFIXES, read_table
from retrieval.errors import EmptyCatalog, InvalidManifest

_COLUMNS = ("id", "uri", "label")
_EXAMPLES = 3  # of the files passed over, in a sentence
_LOOKERS = 16  # threads that look into remote files at the same time


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One image: `uri` is its path or fsspec URL, `label` its class ("" if unknown)."""

    id: str
    uri: str
    label: str = ""
    attributes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The items of a source, in order.

    `passed_over`: a sentence for each kind of what it holds and is no item, and for what is probably meant differently.
    """

    items: list[Item]
    passed_over: tuple[str, ...] = ()


def read_manifest(source: str) -> list[Item]:
    """Return the items of `read_source`, where nobody is there to be told what was passed over."""
    return read_source(source).items


def read_source(source: str, roots: Sequence[str] | None = None) -> Manifest:
    """Read the items of a folder (one sub-folder for each class) or of a .csv, .parquet or .jsonl table, in order.

    A table has the columns id and uri, usually label, and any others, which become attributes. Relative uris are
    relative to the table's folder. In a folder the id is the path inside it and the label the sub-folder's name; its
    images are the files with the suffix or, without a known one, the first bytes of an image. Hidden files, files of
    the system and folders that were read already under another name are passed over.
    roots: where a server of the web may lead, see `Place.of`.
    Raises InvalidManifest if the source or a column is missing, an id is empty or occurs twice, or a text is not UTF-8;
    EmptyCatalog if there is no item.
    """
    if not source:
        raise InvalidManifest("manifest: expected a path or URL, found nothing")
    with failing_as(InvalidManifest, f"{source} cannot be read"):
        place = Place.of(source, roots=roots)
        is_table = place.is_web and suffix_of(place.path) in TABLE_SUFFIXES  # or the links in it would be a folder
        if not is_table and place.is_folder():
            found = _read_folder(place)
        elif is_table or place.is_file():
            found = _read_table(place)
        else:
            raise InvalidManifest(
                f"{source}: expected a folder or a .csv, .parquet or .jsonl file, found nothing there"
            )
    if not found.items:
        reasons = f". Passed over: {'; '.join(found.passed_over)}" if found.passed_over else ""
        raise EmptyCatalog(f"{source}: expected at least one image, found none{reasons}")
    _check_ids(source, found.items)
    _check_text(source, found.items)
    return replace(found, passed_over=(*found.passed_over, *_alike_labels(found.items)))


def check_labels(items: Sequence[Item], source: str, columns: Sequence[str] = ()) -> None:
    """Raise InvalidManifest if an item of `source` has no label or lacks one of the columns."""
    unlabelled = [item.id for item in items if not item.label]
    if unlabelled:
        raise InvalidManifest(
            f"{source}: every item needs a label here, {len(unlabelled)} have none, for instance {unlabelled[0]!r}"
        )
    for column in columns:
        if any(column not in item.attributes for item in items):
            found = ", ".join(sorted({name for item in items for name in item.attributes})) or "none"
            raise InvalidManifest(f"{source}: expected a column {column!r} to group by, found {found}")


def families_of(items: Sequence[Item], source: str, column: str) -> list[str] | None:
    """Return the family of each item from a column, "" for none; None without a column.

    Call it before the images are embedded: raises InvalidManifest if the column is missing, or if items of one label
    are in several families.
    """
    if not column:
        return None
    if not any(column in item.attributes for item in items):
        found = ", ".join(sorted({name for item in items for name in item.attributes})) or "none"
        raise InvalidManifest(f"{source}: expected a column {column!r} of families, found {found}")
    families, family_of = [item.attributes.get(column, "") for item in items], dict[str, str]()
    for item, family in zip(items, families, strict=True):
        if family_of.setdefault(item.label, family) != family:
            raise InvalidManifest(
                f"{source}: column {column!r}: expected all images of a class in one family, found class "
                f"{item.label!r} in {family_of[item.label]!r} and {family!r}"
            )
    return families


def _read_folder(folder: Place) -> Manifest:
    walk = folder.walk()
    passed_over = list(walk.passed_over)
    unknown = [name for name in walk.files if suffix_of(name) not in IMAGE_SUFFIXES]
    looks = _looks(folder, unknown)
    items = []
    for name in walk.files:
        if reason := looks.get(name):
            passed_over.append((name, reason))
            continue
        label, found, _ = name.partition("/")
        items.append(Item(id=name, uri=folder.inside(name).url, label=label if found else "", attributes={}))
    return Manifest(items, _sentences(passed_over))


def _looks(folder: Place, names: Sequence[str]) -> dict[str, str]:
    """Look into files whose suffix is not that of an image; return why each is none, "" if it is one."""

    def look(name: str) -> str:
        if suffix_of(name) in RAW_SUFFIXES:
            return "raw files of a camera"
        try:
            return "" if sniffed(folder.inside(name).read_file(HEAD_BYTES)) else "no images"
        except OSError:
            return "without an image's suffix, and unreadable"

    if folder.is_local:
        return {name: look(name) for name in names}
    with ThreadPoolExecutor(_LOOKERS) as pool:
        return dict(zip(names, pool.map(look, names), strict=True))


def _sentences(passed_over: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Return a sentence for each reason, with the number of files and folders and a few of their names."""
    names: dict[str, list[str]] = {}
    for name, reason in sorted(passed_over):
        names.setdefault(reason, []).append(name)
    return tuple(
        f"{len(found):,} passed over ({reason}): {', '.join(found[:_EXAMPLES])}{', ...' * (len(found) > _EXAMPLES)}"
        for reason, found in sorted(names.items())
    )


def _read_table(place: Place) -> Manifest:
    where, suffix = place.path, suffix_of(place.path)
    if suffix not in TABLE_SUFFIXES:
        raise InvalidManifest(f"{where}: expected .csv, .parquet or .jsonl, found {suffix or 'no suffix'}")
    table = read_table(place.read_file(), suffix, where, _COLUMNS)
    missing = [name for name in ("id", "uri") if name not in table.columns]
    if missing:
        raise InvalidManifest(
            f"{where}: expected the columns id and uri (and usually label), "
            f"missing {', '.join(missing)}, found {', '.join(table.columns) or 'none'}"
        )
    items = []
    for number, row in enumerate(table.rows, start=1):
        if not row.get("id") or not row.get("uri"):
            raise InvalidManifest(f"{where}: row {number} has an empty id or uri")
        uri = row["uri"] if is_absolute(row["uri"]) and not row["uri"].startswith("/") else place.beside(row["uri"])
        attributes = {name: value for name, value in row.items() if name not in _COLUMNS}
        items.append(Item(id=row["id"], uri=uri, label=row.get("label", ""), attributes=attributes))
    left_out = tuple(f"column {name} left out: its values are no text" for name in table.left_out)
    return Manifest(items, left_out)


def _check_ids(source: str, items: list[Item]) -> None:
    repeated = [name for name, count in Counter(item.id for item in items).items() if count > 1]
    if repeated:
        raise InvalidManifest(
            f"{source}: ids must be unique, {len(repeated)} occur more than once, for instance {repeated[0]!r}"
        )


def _alike_labels(items: Sequence[Item]) -> tuple[str, ...]:
    """Return a sentence if labels differ in what nobody sees: spaces at their ends, or how an umlaut is composed."""
    written = defaultdict(set)
    for label in {item.label for item in items}:
        written[" ".join(unicodedata.normalize("NFC", label).split())].add(label)
    twins = [" and ".join(map(ascii, sorted(labels))) for _, labels in sorted(written.items()) if len(labels) > 1]
    if not twins:
        return ()
    return (f"{len(twins):,} labels are written in more than one way and count as several classes: {twins[0]}",)


def _check_text(source: str, items: list[Item]) -> None:
    """Raise InvalidManifest for a file name, or an escape in JSON, that no store and no message could hold."""
    for item in items:
        try:
            "".join((item.id, item.uri, item.label, *item.attributes, *item.attributes.values())).encode()
        except UnicodeEncodeError as error:
            raise InvalidManifest(f"{source}: item {item.id!a} has text that is not UTF-8") from error
