"""The service of protos/retrieval/v1/search.proto."""

import asyncio

import grpc

from retrieval.client.statuses import status_of
from retrieval.edge import telemetry
from retrieval.edge.server import messages
from retrieval.edge.server.interceptors import Context, log_unknown
from retrieval.errors import InvalidInput, RetrievalError
from retrieval.flows.search import Searcher
from retrieval.v1 import search_pb2, search_pb2_grpc

MAX_BATCH_QUERIES = 256
_BATCH_AT_ONCE = 32  # enough to fill the model's batches; more would keep other callers out


class SearchServicer(search_pb2_grpc.SearchServiceServicer):
    """Answers queries."""

    def __init__(self, searcher: Searcher) -> None:
        self._searcher = searcher

    async def Search(self, request: search_pb2.SearchRequest, context: Context) -> search_pb2.SearchResponse:  # noqa: N802
        """Return everything above the threshold."""
        response = await self._search(request.catalog, request.query, messages.limit_from(request))
        telemetry.MATCHES.labels(catalog=request.catalog).observe(response.total_matches)
        return response

    async def BatchSearch(  # noqa: N802
        self, request: search_pb2.BatchSearchRequest, context: Context
    ) -> search_pb2.BatchSearchResponse:
        """Answer each query separately: the error of one does not affect the others."""
        if not 1 <= len(request.queries) <= MAX_BATCH_QUERIES:
            raise InvalidInput(f"queries: expected 1 to {MAX_BATCH_QUERIES}, found {len(request.queries)}")
        limit = messages.limit_from(request)
        slots = asyncio.Semaphore(_BATCH_AT_ONCE)

        async def search(query: search_pb2.Query) -> search_pb2.SearchResponse:
            async with slots:
                return await self._search(request.catalog, query, limit)

        answers = await asyncio.gather(*map(search, request.queries), return_exceptions=True)
        return search_pb2.BatchSearchResponse(results=[_batch_result(answer) for answer in answers])

    async def _search(self, catalog: str, query: search_pb2.Query, limit: int) -> search_pb2.SearchResponse:
        result = await self._searcher.search(catalog, messages.query_from(query), limit=limit)
        return messages.search_response(result)


def _batch_result(answer: search_pb2.SearchResponse | BaseException) -> search_pb2.BatchResult:
    if isinstance(answer, search_pb2.SearchResponse):
        return search_pb2.BatchResult(response=answer)
    if isinstance(answer, RetrievalError):
        code, message = status_of(answer), str(answer)
    elif isinstance(answer, Exception):
        code, message = grpc.StatusCode.INTERNAL, log_unknown("BatchSearch", answer)
    else:
        raise answer
    return search_pb2.BatchResult(error=search_pb2.QueryError(code=code.value[0], message=message))
