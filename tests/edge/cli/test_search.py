"""Which match of a reply is the query's own file."""

from __future__ import annotations

import pytest

from retrieval.edge.cli.search import Query, _own
from retrieval.v1.search_pb2 import Match, Provenance, SearchResponse


@pytest.mark.parametrize(
    ("kind", "uri", "expected"),
    [
        ("cosine", "/images/cup/1.png", 1),
        ("cosine", "/elsewhere/1.png", 0),
        ("whitened cohort", "/elsewhere/1.png", 0),
        ("catalogue cosine", "/images/cup/1.png", 1),
        ("catalogue whitened cohort", "/elsewhere/1.png", None),  # its cosine is not that of the two images
        ("cosine", "/elsewhere/2.png", None),
    ],
)
def test_the_own_file_is_known_by_its_path_or_its_picture(kind: str, uri: str, expected: int | None) -> None:
    """By its name and picture only if the score compares the images themselves."""
    matches = [
        Match(item_id="a", uri="/images/hat/1.png", similarity=1.0),
        Match(item_id="b", uri="/images/cup/1.png", similarity=0.9),
    ]
    reply = SearchResponse(matches=matches, provenance=Provenance(score_kind=kind))
    assert _own(reply, Query("query", uri)) == expected
