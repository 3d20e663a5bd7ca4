"""The service of protos/retrieval/v1/search.proto."""

import asyncio

import grpc

from retrieval.client.statuses import status_of
from retrieval.edge import telemetry
from retrieval.edge.server import messages
from retrieval.edge.server.interceptors import Context, log_unknown
from retrieval.edge.server.limits import MAX_BATCH_QUERIES, check_reply, reply_limit
from retrieval.errors import InvalidInput, Overloaded, RetrievalError
from retrieval.flows.search import Searcher
from retrieval.v1 import search_pb2, search_pb2_grpc

_BATCH_AT_ONCE = 32  # enough to fill the model's batches; more would keep other callers out


class SearchServicer(search_pb2_grpc.SearchServiceServicer):
    """Answers queries."""

    def __init__(self, searcher: Searcher) -> None:
        self._searcher = searcher

    async def Search(self, request: search_pb2.SearchRequest, context: Context) -> search_pb2.SearchResponse:  # noqa: N802
        """Return everything above the threshold."""
        response = await self._search(request.catalog, request.query, messages.limit_from(request), context.peer())
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
        allowed, n_bytes = reply_limit(context), 0

        async def search(query: search_pb2.Query) -> search_pb2.BatchResult:
            nonlocal n_bytes
            async with slots:
                check_reply(n_bytes, allowed)  # a reply that cannot be sent is not computed to its end
                try:
                    result = search_pb2.BatchResult(
                        response=await self._search(request.catalog, query, limit, context.peer())
                    )
                except Exception as error:  # noqa: BLE001  # a defect in one query does not affect the others
                    result = _failed(error)
                n_bytes += result.ByteSize()
                return result

        tasks = [asyncio.ensure_future(search(query)) for query in request.queries]
        try:
            return search_pb2.BatchSearchResponse(results=await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def _search(
        self, catalog: str, query: search_pb2.Query, limit: int, caller: str
    ) -> search_pb2.SearchResponse:
        result = await self._searcher.search(catalog, messages.query_from(query), limit=limit, caller=caller)
        return messages.search_response(result)


def _failed(error: Exception) -> search_pb2.BatchResult:
    if isinstance(error, RetrievalError):
        code, message = status_of(error), str(error)
    else:
        code, message = grpc.StatusCode.INTERNAL, log_unknown("BatchSearch", error)
    failed = search_pb2.QueryError(code=code.value[0], message=message)
    if isinstance(error, Overloaded):
        failed.retry_after.FromMilliseconds(round(1000 * error.retry_after_s))
    return search_pb2.BatchResult(error=failed)
