"""Plain JSON of values that are kept: a calibrator in an operating point, the state between two looks for drift."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, ClassVar, Self, TypeAlias, cast

from retrieval.errors import InvalidInput

Floats: TypeAlias = tuple[float, ...]
Ints: TypeAlias = tuple[int, ...]
FloatRows: TypeAlias = tuple[Floats, ...]


class Document:
    """A base for frozen dataclasses of numbers and tuples, whose document holds a word for the kind and every field."""

    __slots__ = ()
    noun: ClassVar[str]
    kind: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types from which `from_json` makes an equal value."""
        return {
            "kind": self.kind,
            **{field.name: _plain(getattr(self, field.name)) for field in fields(cast(Any, self))},
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Undo `to_json`. Raises InvalidInput on another kind, a missing field or an impossible value."""
        if document.get("kind") != cls.kind:
            raise InvalidInput(f"expected a {cls.noun} of kind {cls.kind!r}, found {document.get('kind')!r}")
        try:
            # Annotations are text here: the names of the types.
            values = {field.name: _READ[str(field.type)](document[field.name]) for field in fields(cast(Any, cls))}
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"the {cls.noun}'s document is incomplete or malformed: {error!r}") from error
        return cls(**values)


def _plain(value: Any) -> Any:
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value


_READ: Mapping[str, Callable[[Any], Any]] = {
    "float": float,
    "int": int,
    "Floats": lambda values: tuple(map(float, values)),
    "Ints": lambda values: tuple(map(int, values)),
    "FloatRows": lambda rows: tuple(tuple(map(float, row)) for row in rows),
}
