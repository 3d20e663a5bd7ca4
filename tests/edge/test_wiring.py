"""Parts built from the settings: the limits of the settings reach them."""

from __future__ import annotations

import asyncio

from retrieval.edge.wiring import make_searcher
from retrieval.engine.matches import SearchResult
from retrieval.errors import Overloaded
from tests import pictures
from tests.edge.conftest import CATALOG, Running
from tests.photos import shot


def test_too_many_queries_are_refused_before_they_are_decoded(running: Running) -> None:
    """The limit on waiting queries also counts those whose image is still to be decoded."""
    settings = running.settings.model_copy(update={"max_waiting": 3, "threads": 1})
    searcher = make_searcher(settings)
    searcher.refresh()
    image = pictures.encoded(shot(3, 0))

    async def bursts() -> list[list[SearchResult | BaseException]]:
        return [
            await asyncio.gather(*(searcher.search(CATALOG, image) for _ in range(10)), return_exceptions=True)
            for _ in range(2)  # the count goes down again
        ]

    for answers in asyncio.run(bursts()):
        assert sum(isinstance(answer, SearchResult) for answer in answers) == 3
        assert sum(isinstance(answer, Overloaded) for answer in answers) == 7
