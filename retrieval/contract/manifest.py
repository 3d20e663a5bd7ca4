"""Manifests: lists of items with the paths or URLs of their images and, usually, their labels.

A manifest is a folder with one sub-folder for each class, or a CSV, Parquet or JSON-lines table. `engine/images.py`
reads the images.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import fsspec

from retrieval.errors import EmptyCatalog, InvalidManifest

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
_COLUMNS = ("id", "uri", "label")
_SURPLUS = "(surplus)"  # the CSV reader puts values beyond the last column under this name


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One image: `uri` is its path or fsspec URL, `label` its class ("" if unknown)."""

    id: str
    uri: str
    label: str = ""
    attributes: Mapping[str, str]


def read_manifest(source: str) -> list[Item]:
    """Read the items of a folder (one sub-folder for each class) or of a .csv, .parquet or .jsonl table, in order.

    A table has the columns id and uri, usually label, and any others, which become attributes. Relative uris are
    relative to the table's folder. In a folder the id is the path inside it and the label the sub-folder's name.
    Raises InvalidManifest if the source or a column is missing, an id is empty or occurs twice, or a text is not UTF-8;
    EmptyCatalog if there is no item.
    """
    if not source:
        raise InvalidManifest("manifest: expected a path or URL, found nothing")
    try:
        filesystem, path = fsspec.core.url_to_fs(source)
    except (ValueError, ImportError) as error:  # an unknown protocol, or one whose package is not installed
        raise InvalidManifest(f"{source} cannot be opened: {error}") from error
    if filesystem.isdir(path):
        items = _read_folder(filesystem, path)
    elif filesystem.isfile(path):
        items = _read_table(filesystem, path)
    else:
        raise InvalidManifest(f"{source}: expected a folder or a .csv, .parquet or .jsonl file, found nothing there")
    if not items:
        raise EmptyCatalog(f"{source}: expected at least one image, found none")
    _check_ids(source, items)
    _check_text(source, items)
    return items


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


def _read_folder(filesystem: Any, folder: str) -> list[Item]:
    root = PurePosixPath(folder)
    paths = sorted(p for p in filesystem.find(folder) if PurePosixPath(p).suffix.lower() in IMAGE_SUFFIXES)
    items = []
    for path in paths:
        inside = PurePosixPath(path).relative_to(root)
        label = inside.parts[0] if len(inside.parts) > 1 else ""
        items.append(Item(id=str(inside), uri=filesystem.unstrip_protocol(path), label=label, attributes={}))
    return items


def _read_table(filesystem: Any, path: str) -> list[Item]:
    columns, rows = _load_rows(filesystem, path)
    missing = [name for name in ("id", "uri") if name not in columns]
    if missing:
        raise InvalidManifest(
            f"{path}: expected the columns id and uri (and usually label), "
            f"missing {', '.join(missing)}, found {', '.join(columns) or 'none'}"
        )
    parent = PurePosixPath(path).parent
    items = []
    for number, row in enumerate(rows, start=1):
        if _SURPLUS in row:
            raise InvalidManifest(
                f"{path}: row {number} has more values than there are columns: put quotes around values with commas"
            )
        values = {str(name): "" if value is None else str(value) for name, value in row.items()}
        if not values.get("id") or not values.get("uri"):
            raise InvalidManifest(f"{path}: row {number} has an empty id or uri")
        uri = values["uri"]
        if "://" not in uri:
            uri = filesystem.unstrip_protocol(str(parent / uri))
        attributes = {name: value for name, value in values.items() if name not in _COLUMNS}
        items.append(Item(id=values["id"], uri=uri, label=values.get("label", ""), attributes=attributes))
    return items


def _load_rows(filesystem: Any, path: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Return column names and rows. The standard library reads CSV, because it keeps every value as text (007)."""
    suffix = PurePosixPath(path).suffix.lower()
    try:
        with filesystem.open(path, "rb") as file:
            if suffix == ".csv":
                reader = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), restkey=_SURPLUS)
                return list(reader.fieldnames or ()), list(reader)
            if suffix == ".parquet":
                import pyarrow.parquet  # slow to import, and few manifests need it

                table = pyarrow.parquet.read_table(file)
                return table.column_names, table.to_pylist()
            if suffix == ".jsonl":
                rows = [json.loads(line) for line in file if line.strip()]
                if not all(isinstance(row, dict) for row in rows):
                    raise InvalidManifest(f"{path}: expected one JSON object per line")
                return sorted({name for row in rows for name in row}), rows
    except (csv.Error, ValueError) as error:  # pyarrow.ArrowInvalid is a ValueError
        raise InvalidManifest(f"{path}: cannot be read as {suffix}: {error}") from error
    raise InvalidManifest(f"{path}: expected .csv, .parquet or .jsonl, found {suffix or 'no suffix'}")


def _check_ids(source: str, items: list[Item]) -> None:
    repeated = [name for name, count in Counter(item.id for item in items).items() if count > 1]
    if repeated:
        raise InvalidManifest(
            f"{source}: ids must be unique, {len(repeated)} occur more than once, for instance {repeated[0]!r}"
        )


def _check_text(source: str, items: list[Item]) -> None:
    """Raise InvalidManifest for a file name, or an escape in JSON, that no store and no message could hold."""
    for item in items:
        try:
            "".join((item.id, item.uri, item.label, *item.attributes, *item.attributes.values())).encode()
        except UnicodeEncodeError as error:
            raise InvalidManifest(f"{source}: item {item.id!a} has text that is not UTF-8") from error
