"""Looks at a manifest before a job is accepted, and refuses one with which the job could only fail.

Reads a limited part: whether it is there, the names of its columns, and how many items it can have at most. The job
reads everything, and has the last word.
"""

import csv
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from retrieval.contract.files import Place, failing_as, is_absolute, local_path, read_file, suffix_of
from retrieval.contract.folders import walk_local
from retrieval.contract.tables import TABLE_SUFFIXES, read_table
from retrieval.engine.index.spec import IndexSpec
from retrieval.errors import InvalidManifest, Unavailable

_MOST_BYTES = 32 * 1024**2  # of a table; a longer one has at least its header here
_ITEM_COLUMNS = frozenset({"id", "uri", "label"})


def check_manifest(
    source: str,
    *,
    labels_for: str = "",
    group_by: Sequence[str] = (),
    family: str = "",
    index: str = "Exact",
    roots: Sequence[str] | None = None,
) -> None:
    """Raise an error if a job with this manifest could only fail.

    labels_for: what needs labels, if the job does; group_by, family: columns that the manifest must have; index: may
    need a number of items; roots: see `Place.of`.
    A relative path, and a file:// URL in a folder that is not here, are left to the job: workers see others.
    Raises InvalidManifest, InvalidInput for the index, Unavailable if the manifest cannot be read now.
    """
    spec = IndexSpec.parse(index)
    wanted = dict.fromkeys(group_by, "to group by") | ({family: "of families"} if family else {})
    with failing_as(Unavailable, f"{source} cannot be read"):
        kind = _kind(source, roots)
        if kind == "folder":
            _check_folder(source, wanted, spec, roots)
        elif kind == "file":
            _check_table(source, labels_for=labels_for, wanted=wanted, spec=spec, roots=roots)
        elif not _may_be_elsewhere(source):
            raise InvalidManifest(
                f"{source}: expected a folder or a .csv, .parquet or .jsonl file, found nothing there. Write "
                "file:///FOLDER/FILE for a path that only the workers have"
            )


def _kind(source: str, roots: Sequence[str] | None) -> Literal["folder", "file", "nothing"]:
    """Return what a source names; a local one without fsspec, which is slow to import."""
    if (path := local_path(source)) is not None:
        return "folder" if path.is_dir() else "file" if path.is_file() else "nothing"
    place = Place.of(source, roots=roots)
    is_table = place.is_web and suffix_of(place.path) in TABLE_SUFFIXES  # or the links in it would be a folder
    if not is_table and place.is_folder():
        return "folder"
    return "file" if place.is_file() else "nothing"


def _may_be_elsewhere(source: str) -> bool:
    """Return True for a relative path, and for a file:// URL in a folder that this machine does not have."""
    path = local_path(source)
    if path is None or not is_absolute(source):
        return path is not None
    return source.startswith("file:") and not path.parent.exists()


def _check_folder(source: str, wanted: Mapping[str, str], spec: IndexSpec, roots: Sequence[str] | None) -> None:
    for column, purpose in wanted.items():
        raise InvalidManifest(f"{source}: expected a column {column!r} {purpose}, a folder has no columns")
    if not spec.n_lists:
        return
    if (path := local_path(source)) is not None:  # without fsspec
        spec.check_items(len(walk_local(str(path)).files))
    else:
        spec.check_items(len(Place.of(source, roots=roots).walk().files))


def _check_table(
    source: str, *, labels_for: str, wanted: Mapping[str, str], spec: IndexSpec, roots: Sequence[str] | None
) -> None:
    """Check a table; wanted: what each further column is for."""
    suffix = suffix_of(source if local_path(source) is not None else Place.of(source).path)
    if suffix not in TABLE_SUFFIXES:
        raise InvalidManifest(f"{source}: expected .csv, .parquet or .jsonl, found {suffix or 'no suffix'}")
    data = read_file(source, _MOST_BYTES, roots=roots)
    is_whole = len(data) < _MOST_BYTES
    found = (_read(data, suffix) if is_whole else None) or _outline(data, suffix)
    if found is None:  # the job reports what is wrong with it
        return
    # Of a long JSONL only the first row is seen, and others may have a label.
    seen = is_whole or suffix in {".csv", ".parquet"}
    needed = ("id", "uri", "label") if labels_for and seen else ("id", "uri")
    if missing := [name for name in needed if name not in found.columns]:
        raise InvalidManifest(
            f"{source}: expected the columns {', '.join(needed)}, missing {', '.join(missing)}, found "
            f"{', '.join(found.columns) or 'none'}{f': labels are needed for {labels_for}' if labels_for else ''}"
        )
    others = [column for column in found.columns if column not in _ITEM_COLUMNS]
    for column, purpose in wanted.items():
        if column not in others:
            raise InvalidManifest(
                f"{source}: expected a column {column!r} {purpose}, found {', '.join(others) or 'none'}"
            )
    if is_whole:
        spec.check_items(found.n_most)


@dataclass(frozen=True, slots=True)
class _Outline:
    """The columns of a table, and a number that its rows do not exceed."""

    columns: Sequence[str]
    n_most: int


def _read(data: bytes, suffix: str) -> _Outline | None:
    """Read a whole table as the job will; return None if that fails."""
    try:
        table = read_table(data, suffix, "", ())
        rows = list(table.rows)
    except InvalidManifest:
        return None
    return _Outline(list(dict.fromkeys([*table.columns, *itertools.chain.from_iterable(rows)])), len(rows))


def _outline(data: bytes, suffix: str) -> _Outline | None:
    """Look at the head of a table; return None if its columns cannot be found there."""
    if suffix == ".parquet":
        return _outline_of_parquet(data)
    n_lines = max(data.count(b"\n"), data.count(b"\r")) + (not data.endswith((b"\n", b"\r")))
    try:
        if suffix == ".csv":
            text = io.StringIO(data[: 1024**2].decode("utf-8-sig", errors="replace"), newline="")
            return _Outline(next((row for row in csv.reader(text) if row), []), max(0, n_lines - 1))
        row: Any = json.loads(data.lstrip().split(b"\n", 1)[0])
        return _Outline(tuple(row), n_lines) if isinstance(row, dict) else None
    except (ValueError, csv.Error):
        return None


def _outline_of_parquet(data: bytes) -> _Outline | None:
    import pyarrow as pa  # slow to import, and few manifests need it
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(pa.BufferReader(data))
        return _Outline(file.schema_arrow.names, int(file.metadata.num_rows))
    except (pa.ArrowException, OSError):  # damaged, or longer than what was read
        return None
