"""Lists of stored documents: one that is damaged does not hide the others."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from retrieval.errors import BundleMismatch, CorruptArtifact, NotFound

_Id = TypeVar("_Id", bound=str)
_Document = TypeVar("_Document")


@dataclass(frozen=True, slots=True)
class Listed(Generic[_Document]):
    """The documents that can be read, and by its id why another one cannot."""

    readable: list[_Document]
    damaged: dict[str, str]


def listed(
    ids: Iterable[_Id],
    read: Callable[[_Id], _Document],
    created_at: Callable[[Any], str] = lambda document: str(document.created_at),
) -> Listed[_Document]:
    """Read the documents with these ids, newest first. One that was removed meanwhile is left out."""
    readable: list[_Document] = []
    damaged: dict[str, str] = {}
    for name in ids:
        try:
            readable.append(read(name))
        except NotFound:
            continue
        except (CorruptArtifact, BundleMismatch) as error:
            damaged[name] = str(error)
    return Listed(sorted(readable, key=created_at, reverse=True), damaged)
