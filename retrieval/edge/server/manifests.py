"""Looks at the manifest of a job before the server accepts the job, for a limited time."""

import asyncio
import contextlib
import threading
from functools import partial

import structlog

from retrieval.contract.sources import check_source
from retrieval.edge.settings import Settings
from retrieval.engine.manifests import check_manifest
from retrieval.errors import Unavailable
from retrieval.flows.audit import AuditRequest
from retrieval.flows.reindex import ReindexRequest

log = structlog.get_logger()

_LOOK_S = 5.0  # after this time the job is accepted, and finds out itself
_MOST_LOOKS = 4  # at the same time; further jobs are accepted unseen


class ManifestCheck:
    """Refuses jobs whose manifest can only fail. Used from one event loop."""

    def __init__(self, settings: Settings, look_s: float = _LOOK_S) -> None:
        self._roots = settings.job_limits.roots
        self._look_s = look_s
        self._n_looks = 0

    async def check(self, request: ReindexRequest | AuditRequest, *, labels_for: str = "") -> None:
        """Raise what `check_manifest` finds, unless the manifest is slow or cannot be read now.

        labels_for: what a reindex needs labels for; empty if it needs none. Raises SourceNotAllowed for a manifest that
        jobs may not read.
        """
        uri = request.manifest_uri
        if self._n_looks >= _MOST_LOOKS:
            log.info("manifest_not_checked", manifest=uri, reason="other manifests are being looked at")
            return
        if isinstance(request, AuditRequest):
            look = partial(
                check_manifest,
                uri,
                labels_for="an audit",
                group_by=request.group_by,
                family=request.family,
                roots=self._roots,
            )
        else:
            look = partial(check_manifest, uri, labels_for=labels_for, index=request.index_spec, roots=self._roots)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._n_looks += 1
        done.add_done_callback(self._end_look)
        # a daemon, unlike a thread of a pool: a source that hangs must not keep the server from ending
        threading.Thread(target=self._look, args=(uri, look, done), name="manifest", daemon=True).start()
        try:
            await asyncio.wait_for(asyncio.shield(done), self._look_s)
        except TimeoutError:
            log.info("manifest_not_checked", manifest=uri, reason=f"no answer within {self._look_s:g} s")
        except Unavailable as error:
            log.info("manifest_not_checked", manifest=uri, reason=str(error))

    def _look(self, uri: str, look: "partial[None]", done: "asyncio.Future[None]") -> None:
        """Run on a thread; hand the outcome to the event loop, which may have ended."""
        error: BaseException | None = None
        try:
            check_source(uri, self._roots)
            look()
        except Exception as found:  # noqa: BLE001  # raised where it is awaited
            error = found
        with contextlib.suppress(RuntimeError):
            done.get_loop().call_soon_threadsafe(_settle, done, error)

    def _end_look(self, done: "asyncio.Future[None]") -> None:
        self._n_looks -= 1
        done.exception()  # it may have come too late for anybody to see it


def _settle(done: "asyncio.Future[None]", error: BaseException | None) -> None:
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
