"""Checks of a local manifest before a job starts. Reads names and numbers only; the workers read the rest."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from retrieval.errors import InvalidManifest

_RESERVED = frozenset({"id", "uri", "label"})


def check_manifest(manifest: str, *, group_by: Sequence[str] = (), family: str = "", index: str = "") -> None:
    """Raise an error of wrong usage if a job with this manifest could only fail.

    group_by, family: columns that the manifest must have; index: an index that needs a number of items. URLs are not
    read, because only the workers may be able to. Raises InvalidManifest, and InvalidInput for the index.
    """
    if not manifest or "://" in manifest:
        return
    path = Path(manifest)
    if not path.exists():
        raise InvalidManifest(
            f"{manifest}: expected a folder or a .csv, .parquet or .jsonl file, found nothing there. Write "
            "file:///FOLDER/FILE for a path that only the workers have"
        )
    wanted = dict.fromkeys(group_by, "to group by") | ({family: "of families"} if family else {})
    if wanted:
        _check_columns(path, wanted)
    if index:
        from retrieval.engine.index.spec import IndexSpec

        if (spec := IndexSpec.parse(index)).n_lists:
            spec.check_items(_most_items(path))


def _check_columns(path: Path, wanted: Mapping[str, str]) -> None:
    """Raise InvalidManifest if a column is missing; wanted: what each column is for."""
    columns = _columns(path)
    if columns is None:  # the worker reports what is wrong with it
        return
    others = [column for column in columns if column not in _RESERVED]
    for column, purpose in wanted.items():
        if column not in others:
            what = "a folder has no columns" if path.is_dir() else f"found {', '.join(others) or 'none'}"
            raise InvalidManifest(f"{path}: expected a column {column!r} {purpose}, {what}")


def _columns(path: Path) -> Sequence[str] | None:
    """Return the names of the columns; None if they cannot be read here."""
    if path.is_dir():
        return ()
    suffix = path.suffix.lower()
    try:
        if suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                return next(csv.reader(file), [])
        if suffix == ".parquet":
            import pyarrow.parquet  # slow to import, and few manifests need it

            names: list[str] = pyarrow.parquet.read_schema(path).names
            return names
        if suffix == ".jsonl":
            from retrieval.contract.tables import read_table

            return read_table(path.read_bytes(), suffix, str(path), ()).columns
    except (OSError, ValueError, csv.Error, InvalidManifest):
        return None
    return None


def _most_items(path: Path) -> int:
    """Return a number that the items of a manifest do not exceed: its files, rows or lines."""
    if path.is_dir():
        return sum(len(files) for _, _, files in os.walk(path, followlinks=True))
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet

        return int(pyarrow.parquet.read_metadata(path).num_rows)
    with path.open("rb") as file:
        return sum(1 for _ in file)
