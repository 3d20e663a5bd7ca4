"""Every document that differs from a given one in a single field."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

# JSON texts: some of them no writer of ours would make.
VALUES = (
    "null", "true", "5", "-1", "0.5", "1e308", "1e999", "-1e999", "NaN", "Infinity", str(10**30), "1" * 5000,
    '""', '"x"', '"../x"', '"\\ud800"', '"0001-01-01"', "[]", "{}", "[[]]", '{"x": null}', "[" * 300 + "]" * 300,
)  # fmt: skip
_MARK = "@@ here @@"


def mutations(document: Any) -> Iterator[tuple[str, bytes]]:
    """What was changed, and the bytes: each field with another value, each field missing, each object with one more.

    Of a list, only the first entry is changed.
    """
    for path, value in _fields(document):
        for text in VALUES:
            if text != json.dumps(value):
                yield f"{path} = {text[:40]}", _written(document, path, text)
        yield f"{path} missing", json.dumps(_changed(document, path, missing=True)).encode()
    for path, value in ((), document), *_fields(document):
        if isinstance(value, dict):
            yield f"{path} + extra", _written(document, (*path, "extra"), '"x"')


def _fields(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    entries = (
        value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else ()
    )
    for name, entry in entries:
        yield (*path, name), entry
        yield from _fields(entry, (*path, name))


def _changed(document: Any, path: tuple[Any, ...], *, missing: bool = False) -> Any:
    changed = copy.deepcopy(document)
    holder = changed
    for name in path[:-1]:
        holder = holder[name]
    if missing:
        del holder[path[-1]]
    else:
        holder[path[-1]] = _MARK
    return changed


def _written(document: Any, path: tuple[Any, ...], text: str) -> bytes:
    return json.dumps(_changed(document, path)).replace(json.dumps(_MARK), text).encode()
