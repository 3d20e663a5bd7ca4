"""Reads stored JSON documents strictly: everything that is wrong with one ends in CorruptArtifact.

A schema is a dataclass, which the file of each document declares. A field that is missing, unknown, of
another type or outside its bounds is refused, and so are NaN, infinity and text that is not Unicode.
"""

import functools
import json
from datetime import datetime
from typing import Annotated, Any, NoReturn, TypeAlias, TypeVar, cast

import pydantic
from pydantic import AfterValidator, Field, StringConstraints

from retrieval.errors import CorruptArtifact, InvalidInput

_Schema = TypeVar("_Schema")

_MAX_COUNT = 2**31 - 1  # the largest number that every message of the API can carry
_FIRST_YEAR = 1970
_STRICT = pydantic.ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)


def _checked_moment(text: str) -> str:
    if datetime.fromisoformat(text).year < _FIRST_YEAR:
        raise ValueError(f"expected a time after {_FIRST_YEAR}")
    return text


# What fields hold. As annotations of a dataclass they have no effect until a document is read.
Count: TypeAlias = Annotated[int, Field(ge=0, le=_MAX_COUNT)]
Size: TypeAlias = Annotated[int, Field(ge=1, le=_MAX_COUNT)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
FileName: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,254}$")]
Moment: TypeAlias = Annotated[str, AfterValidator(_checked_moment)]
NAME_OR_NONE = StringConstraints(pattern=r"^[A-Za-z0-9_-]{0,64}$")
NAME = StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")  # of artefacts, as `checked_name` in the store wants them


def read_json(data: bytes, where: str) -> Any:
    """Return the JSON in `data`, of finite numbers and Unicode text. Raises CorruptArtifact naming `where`."""
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
        # again as a text: numbers such as 1e999 are infinite only now, and some escapes stand for no character
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # a UnicodeError is a ValueError
        raise CorruptArtifact(f"{where} cannot be read: {error}") from error
    return value


def read_object(data: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object in `data` as `read_json` does."""
    value = read_json(data, where)
    if not isinstance(value, dict):
        raise CorruptArtifact(f"{where} cannot be read: expected an object, found {_shown(value)}")
    return value


def without_format(document: Any, expected: int, where: str, *, what: str, remedy: str) -> dict[str, Any]:
    """Return a JSON object without its field `format`. Raises CorruptArtifact if that is another one."""
    found = document.get("format") if isinstance(document, dict) else document
    if type(found) is not int or found != expected or not isinstance(document, dict):  # True equals 1
        raise CorruptArtifact(f"{where}: expected {what} format {expected}, found {_shown(found)}: {remedy}")
    return {name: value for name, value in document.items() if name != "format"}


def parse(schema: type[_Schema], document: Any, where: str) -> _Schema:
    """Return a value of the schema from plain JSON. Raises CorruptArtifact naming `where` and the first wrong field."""
    try:
        parsed = _model(cast(Any, schema)).model_validate_json(json.dumps({"document": document}))
        return cast(_Schema, parsed.document)  # type: ignore[attr-defined]  # the field that `_model` adds
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"][1:])) or "the document"
        problem = f"{field}: {first['msg']}, found {_shown(first['input'])}"
        raise CorruptArtifact(f"{where}: a field is missing or wrong: {problem}") from error
    except (InvalidInput, ValueError, TypeError, OverflowError) as error:  # from the schema's own checks
        raise CorruptArtifact(f"{where}: {error}") from error


@functools.cache
def _model(schema: Any) -> type[pydantic.BaseModel]:
    """Return a model with one field of this schema: only a model can pass its strictness on to plain dataclasses."""
    return pydantic.create_model("Document", __config__=_STRICT, document=(schema, ...))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _shown(value: object) -> str:
    """Return at most 80 characters of a value."""
    return f"{value!r:.80}"
