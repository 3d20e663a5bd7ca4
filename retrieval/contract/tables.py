"""Reads the rows of a .csv, .parquet or .jsonl table as text.

A value is the text that a person sees in the table, or "" if there is none (null, NaN). What has no such text is
refused in the columns of an item, and left out and reported elsewhere.
"""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retrieval.contract.files import suffix_of
from retrieval.contract.formats import IMAGE_SUFFIXES
from retrieval.errors import InvalidManifest

TABLE_SUFFIXES = (".csv", ".parquet", ".jsonl")


@dataclass(frozen=True, slots=True)
class Table:
    """A table as text: one mapping from column to value for each row; `left_out`: columns that are no text."""

    columns: tuple[str, ...]
    rows: Iterator[Mapping[str, str]]
    left_out: tuple[str, ...] = ()


def read_table(data: bytes, suffix: str, where: str, required: Sequence[str]) -> Table:
    """Read a table whose `required` columns have to be text.

    Raises InvalidManifest with the row if a value cannot be read; for CSV and JSON lines while the rows are drawn.
    """
    if suffix == ".csv":
        table = _read_csv(data, where)
    elif suffix == ".parquet":
        table = _read_parquet(data, where, required)
    else:
        table = _read_jsonl(data, where, required)
    if repeated := [name for name, count in Counter(table.columns).items() if count > 1]:
        raise InvalidManifest(f"{where}: the column {repeated[0]!r} occurs more than once: rename or remove one")
    return table


def _read_csv(data: bytes, where: str) -> Table:
    """Read with the standard library, because it keeps every value as text (007)."""
    lines = csv.reader(io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline=""), strict=True)
    records = _records(lines, where)
    columns = tuple(next(records, (0, 0, []))[2])
    return Table(columns, _csv_rows(records, columns, where))


def _records(lines: Any, where: str) -> Iterator[tuple[int, int, list[str]]]:
    """Yield number, first line and values of every record; the first, number 0, is the header."""
    number = 0
    while True:
        start = lines.line_num + 1
        try:
            values = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            raise InvalidManifest(
                f"{where}: row {number} (line {start}) cannot be read as .csv: {error}. Is a quote opened there and "
                'never closed? Write a quote inside a value as "", and put the value in quotes'
            ) from error
        except UnicodeDecodeError as error:
            raise InvalidManifest(f"{where}: cannot be read as .csv: {error}") from error
        if values:  # an empty line is none
            yield number, start, values
            number += 1


def _csv_rows(
    records: Iterator[tuple[int, int, list[str]]], columns: tuple[str, ...], where: str
) -> Iterator[Mapping[str, str]]:
    for number, start, values in records:
        if len(values) > len(columns):
            raise InvalidManifest(
                f"{where}: row {number} has more values than there are columns: put quotes around values with commas"
            )
        row = dict(zip(columns, [*values, *[""] * (len(columns) - len(values))], strict=True))
        for name, value in row.items():
            if "\n" in value and _swallows_rows(value, columns, row.get("uri", "")):
                raise InvalidManifest(
                    f"{where}: row {number} (line {start}): the value of {name!r} holds whole rows of the table: its "
                    "quote is not closed"
                )
        yield row


def _swallows_rows(value: str, columns: tuple[str, ...], own_uri: str) -> bool:
    """Return True if a line inside a value looks like a row: as many values, one the name of an image."""
    if "uri" not in columns:
        return False
    place = columns.index("uri")
    suffixes = IMAGE_SUFFIXES | ({suffix_of(own_uri)} - {""})
    inner = [line.split(",") for line in value.splitlines()[1:]]
    return any(len(found) == len(columns) and suffix_of(found[place].strip('" ')) in suffixes for found in inner)


def _read_jsonl(data: bytes, where: str, required: Sequence[str]) -> Table:
    rows = []
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InvalidManifest(f"{where}: line {number} cannot be read as .jsonl: {error}") from error
        if not isinstance(row, dict):
            raise InvalidManifest(f"{where}: line {number}: expected one JSON object per line")
        for name in required:
            if isinstance(row.get(name), list | dict):
                raise InvalidManifest(f"{where}: line {number}: {name} should be text, found {str(row[name])[:80]}")
        rows.append({name: _text(value) for name, value in row.items()})
    return Table(tuple(sorted({name for row in rows for name in row})), iter(rows))


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _read_parquet(data: bytes, where: str, required: Sequence[str]) -> Table:
    import pyarrow as pa  # slow to import, and few manifests need it
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(pa.BufferReader(data)).read()
        columns = {name: _column_text(column) for name, column in zip(table.column_names, table.columns, strict=True)}
    except (pa.ArrowException, OSError) as error:
        raise InvalidManifest(f"{where}: cannot be read as .parquet: {error}") from error
    kinds = dict(zip(table.column_names, table.schema.types, strict=True))
    for name in required:
        if name in columns and (columns[name] is None or pa.types.is_nested(kinds[name])):
            raise InvalidManifest(f"{where}: the column {name} should be text, found {kinds[name]}")
    texts = {name: values for name, values in columns.items() if values is not None}
    names = tuple(name for name in table.column_names if name in texts)
    rows = (dict(zip(texts, values, strict=True)) for values in zip(*texts.values(), strict=True))
    return Table(names, rows, tuple(name for name, values in columns.items() if values is None))


def _column_text(column: Any) -> list[str] | None:
    """Return the values of a column as text; None if they are bytes that are no text."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        return _column_text(column.cast(kind.value_type))
    try:
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
            column = column.cast(pa.binary()).cast(pa.string())
        elif pa.types.is_temporal(kind) and getattr(kind, "unit", "") == "ns":
            column = _without_nanoseconds(column)
        return [_text(value) for value in column.to_pylist()]
    except (ValueError, ImportError):  # no UTF-8; nanoseconds inside a nested value, which only pandas can hold
        return None


def _without_nanoseconds(column: Any) -> Any:
    """Return the times in microseconds, as Python has them, or as text if they are finer."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_timestamp(kind):
        coarse = pa.timestamp("us", kind.tz)
    else:
        coarse = pa.time64("us") if pa.types.is_time64(kind) else pa.duration("us")
    try:
        return column.cast(coarse)
    except pa.ArrowInvalid:
        return column.cast(pa.int64() if pa.types.is_duration(kind) else pa.string())
