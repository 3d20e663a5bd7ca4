"""Removes duplicates from the parts of a split: each picture stays in one part, under one label."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from retrieval.contract.manifest import Item
from training.data.duplicates import Duplicate

_Key = tuple[str, str]  # part and id
Node = TypeVar("Node", bound="str | _Key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaned:
    """The parts without duplicates.

    n_dropped: items that were left out; merged: for each label that was replaced, the label that replaces it.
    """

    parts: Mapping[str, Sequence[Item]]
    n_dropped: int
    merged: Mapping[str, str]


def clean(parts: Mapping[str, Sequence[Item]], pairs: Iterable[Duplicate], *, merge: bool) -> Cleaned:
    """Leave out items until at most one is left of those that pairs connect, directly or through others.

    Connected items count as one picture, and the first in the order of the parts stays. If their labels differ, nobody
    knows which is right: all are left out. With merge, such labels become one class instead, everywhere, and the first
    item stays.
    """
    pairs = list(pairs)
    merged = _merged_labels(pairs) if merge else {}
    dropped: set[_Key] = set()
    for same in _components([_keys(pair) for pair in pairs]):
        order = _in_order(same, parts)
        labels = {merged.get(item.label, item.label) for _, item in order}
        dropped |= {key for key, _ in (order[1:] if len(labels) == 1 else order)}
    kept = {
        part: [
            replace(item, label=merged.get(item.label, item.label)) for item in items if (part, item.id) not in dropped
        ]
        for part, items in parts.items()
    }
    return Cleaned(parts=kept, n_dropped=len(dropped), merged=merged)


def _keys(pair: Duplicate) -> tuple[_Key, _Key]:
    return (pair.parts[0], pair.ids[0]), (pair.parts[1], pair.ids[1])


def _in_order(keys: set[_Key], parts: Mapping[str, Sequence[Item]]) -> list[tuple[_Key, Item]]:
    """Return the items in the order of the parts and of their rows."""
    return [((part, item.id), item) for part, items in parts.items() for item in items if (part, item.id) in keys]


def _merged_labels(pairs: Sequence[Duplicate]) -> dict[str, str]:
    """Return the label that replaces each label of a class that shares a picture with another: the first by name."""
    merged: dict[str, str] = {}
    for labels in _components([pair.labels for pair in pairs if pair.labels[0] != pair.labels[1]]):
        first = min(labels)
        merged.update(dict.fromkeys(labels - {first}, first))
    return merged


def _components(edges: Sequence[tuple[Node, Node]]) -> list[set[Node]]:
    """Return the sets of nodes that edges connect."""
    component_of: dict[Node, set[Node]] = {}
    for edge in edges:
        small, large = sorted((component_of.get(node, {node}) for node in edge), key=len)
        large |= small
        component_of.update(dict.fromkeys([*small, *edge], large))
    return list({id(found): found for found in component_of.values()}.values())
