"""Reads the rows of a .csv, .parquet or .jsonl table as text.

A value is the text that a person sees in the table, or "" if there is none (null, NaN). What has no such text is
refused in the columns of an item, and left out and reported elsewhere.
"""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    for name in table.columns:
        if (meant := name.strip().lower()) in required and meant not in table.columns:
            raise InvalidManifest(f"{where}: expected the column {meant!r}, found {name!r}: rename it")
    return table


def _read_csv(data: bytes, where: str) -> Table:
    """Read with the standard library, because it keeps every value as text (007)."""
    records = _records(io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline=""), where)
    columns = tuple(next(records, _Record(0, 0, [], [])).values)
    return Table(columns, _csv_rows(records, columns, where))


@dataclass(frozen=True, slots=True)
class _Record:
    """A row of a CSV table: its number (the header has 0), the first of its lines, the lines and the values."""

    number: int
    start: int
    lines: list[str]
    values: list[str]


def _records(file: Iterable[str], where: str) -> Iterator[_Record]:
    number = 0
    lines: list[str] = []
    reader = csv.reader(_noted(file, lines), strict=True)
    while True:
        start = reader.line_num + 1
        lines.clear()
        try:
            values = next(reader)
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
            yield _Record(number, start, list(lines), values)
            number += 1


def _noted(file: Iterable[str], lines: list[str]) -> Iterator[str]:
    for line in file:
        lines.append(line)
        yield line


def _csv_rows(records: Iterator[_Record], columns: tuple[str, ...], where: str) -> Iterator[Mapping[str, str]]:
    for record in records:
        if len(record.values) > len(columns):
            raise InvalidManifest(
                f"{where}: row {record.number} has more values than there are columns: put quotes around values with "
                "commas"
            )
        row = dict(zip(columns, [*record.values, *[""] * (len(columns) - len(record.values))], strict=True))
        if len(record.lines) > 1 and _swallows_rows(record, columns):
            name = next(name for name, value in row.items() if "\n" in value or "\r" in value)
            raise InvalidManifest(
                f"{where}: row {record.number} (line {record.start}): the value of {name!r} holds whole rows of the "
                "table: its quote is not closed"
            )
        yield row


def _swallows_rows(record: _Record, columns: tuple[str, ...]) -> bool:
    """Return True if a later line of a record looks like a row: as many values, one like the uri of the first line.

    A value may have line breaks; its last line ends as its row does, so there the first line has to be a row too.
    """
    if "uri" not in columns:
        return False
    place = columns.index("uri")
    first, *others = (_uri_of(line, place, len(columns)) for line in record.lines)
    if first is None:
        own = record.values[place] if place < len(record.values) else ""
        return any(uri is not None and _alike(uri, own) for uri in others[:-1])
    return any(uri is not None and _alike(uri, first) for uri in others)


def _uri_of(line: str, place: int, n_values: int) -> str | None:
    """Return the uri of a line if it is a row, whether its quotes are closed or not."""
    for values in (line.split(","), next(csv.reader([line]), [])):
        if len(values) == n_values:
            return values[place].strip('" \t\r\n')
    return None


def _alike(uri: str, other: str) -> bool:
    """Return True if a text may be a uri of the same table: an image, or of the same kind as another uri."""
    if suffix_of(uri) in IMAGE_SUFFIXES:
        return True
    return bool(uri) and not any(map(str.isspace, uri)) and _kind(uri) == _kind(other)


def _kind(uri: str) -> tuple[str, str, bool]:
    scheme, found, _ = uri.partition("://")
    return suffix_of(uri), scheme.lower() if found else "", "/" in uri


def _read_jsonl(data: bytes, where: str, required: Sequence[str]) -> Table:
    rows = []
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise InvalidManifest(f"{where}: line {number} cannot be read as .jsonl: {error}") from error
        if not isinstance(row, dict):
            raise InvalidManifest(f"{where}: line {number}: expected one JSON object per line")
        for name in required:
            if isinstance(row.get(name), list | dict):
                raise InvalidManifest(f"{where}: line {number}: {name} should be text, found {str(row[name])[:80]}")
        rows.append({name: _text(value) for name, value in row.items()})
    return Table(tuple(sorted({name for row in rows for name in row})), iter(rows))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Raises ValueError if it has a name twice, of which one would win."""
    if repeated := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        raise ValueError(f"the name {repeated[0]!r} occurs more than once")
    return dict(pairs)


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=_plain)
    return str(_plain(value))


def _plain(value: Any) -> str:
    """Return a value of Arrow as text. Raises UnicodeDecodeError for bytes that are no text."""
    return value.decode() if isinstance(value, bytes) else str(value)


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
    """Return the values of a column as text; None if they are bytes that are no text, or have none."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        return _column_text(column.cast(kind.value_type))
    try:
        if pa.types.is_temporal(kind):
            column = _as_python_has_it(column)
        values = column.to_pylist()
    except (ValueError, OverflowError, ImportError):  # no UTF-8; a nested time that is too fine or too far for Python
        return None
    if pa.types.is_fixed_size_binary(kind):
        values = [value and value.rstrip(b"\0") for value in values]  # what fills it up is no text
    elif pa.types.is_float32(kind):
        import numpy as np

        values = [None if value is None else float(str(np.float32(value))) for value in values]  # not 0.10000000149
    try:
        return [_text(value) for value in values]
    except ValueError:
        return None


def _as_python_has_it(column: Any) -> Any:
    """Return times whose unit Python does not have in microseconds; as text if they are finer, or too far away."""
    import pyarrow as pa

    kind = column.type
    if getattr(kind, "unit", "") == "ns":
        if pa.types.is_timestamp(kind):
            coarse = pa.timestamp("us", kind.tz)
        else:
            coarse = pa.time64("us") if pa.types.is_time64(kind) else pa.duration("us")
        try:
            return column.cast(coarse)
        except pa.ArrowInvalid:
            return column.cast(pa.int64() if pa.types.is_duration(kind) else pa.string())
    try:
        column.to_pylist()
    except (ValueError, OverflowError):
        return column.cast(pa.int64() if pa.types.is_duration(kind) else pa.string())
    return column
