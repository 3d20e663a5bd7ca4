"""Ids by any unambiguous prefix."""

from __future__ import annotations

import pytest

from retrieval.engine.prefixes import resolve_prefix
from retrieval.errors import InvalidInput, NotFound, UnknownSnapshot

IDS = ["3f2a91c0", "3f2a91", "3f2b07", "77c0de", "ab"]


@pytest.mark.parametrize(("prefix", "found"), [("77c0", "77c0de"), ("3f2b", "3f2b07"), ("3f2a91c", "3f2a91c0")])
def test_the_start_of_one_id_is_enough(prefix: str, found: str) -> None:
    """Four characters name an id if no other starts so."""
    assert resolve_prefix(prefix, IDS) == found


@pytest.mark.parametrize("whole", ["3f2a91", "ab"])
def test_a_whole_id_is_always_meant(whole: str) -> None:
    """An id wins over a longer one that starts with it, and may be shorter than four characters."""
    assert resolve_prefix(whole, IDS) == whole


def test_an_ambiguous_start_lists_the_candidates() -> None:
    """The error names the ids to choose from, five at most."""
    with pytest.raises(InvalidInput, match=r"'3f2a' is the start of 2 ids: 3f2a91, 3f2a91c0\. Give more characters"):
        resolve_prefix("3f2a", IDS)
    with pytest.raises(InvalidInput, match=r"8 ids: same0, same1, same2, same3, same4 and 3 more\."):
        resolve_prefix("same", [f"same{number}" for number in range(8)])


def test_no_match_is_not_found() -> None:
    """The error class and the message name the kind of object."""
    with pytest.raises(UnknownSnapshot, match=r"^no snapshot is or starts with 'dead': look around$"):
        resolve_prefix("dead", IDS, kind="snapshot", unknown=UnknownSnapshot, hint="look around")


@pytest.mark.parametrize("prefix", ["77c", "7", ""])
def test_fewer_than_four_characters_are_refused(prefix: str) -> None:
    """A short start may be the only one today and mean another object tomorrow."""
    with pytest.raises(NotFound, match="at least its first 4 characters"):
        resolve_prefix(prefix, IDS)
