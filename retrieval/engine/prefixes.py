"""Ids by any unambiguous prefix, for people who type them."""

from collections.abc import Iterable

from retrieval.errors import InvalidInput, NotFound

MIN_CHARACTERS = 4
_LISTED = 5


def resolve_prefix(
    prefix: str, ids: Iterable[str], *, kind: str = "id", unknown: type[NotFound] = NotFound, hint: str = ""
) -> str:
    """Return the one id that is `prefix` or starts with it.

    kind: what the ids name, hint: what to do if none fits; both are for the messages. Raises `unknown` if no id starts
    with the prefix or if it has fewer than 4 characters, and InvalidInput with the candidates if several ids do.

    >>> resolve_prefix("3f2a", ["3f2a91", "77c0de"])
    '3f2a91'
    """
    known = sorted(ids)
    if prefix in known:
        return prefix
    if len(prefix) < MIN_CHARACTERS:
        raise unknown(f"no {kind} {prefix!r}: give the whole id or at least its first {MIN_CHARACTERS} characters")
    found = [candidate for candidate in known if candidate.startswith(prefix)]
    if not found:
        raise unknown(f"no {kind} is or starts with {prefix!r}" + (f": {hint}" if hint else ""))
    if len(found) > 1:
        more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        raise InvalidInput(
            f"{prefix!r} is the start of {len(found)} ids: {', '.join(found[:_LISTED])}{more}. Give more characters"
        )
    return found[0]
