"""Jobs in a real Valkey: one at a time for a catalogue, found again, surviving a restart."""

from __future__ import annotations

import contextlib
import shutil
import traceback
from pathlib import Path
from typing import Any

import pytest
import redis

from retrieval.edge.jobs import records
from retrieval.edge.jobs.embedded import embedded_valkey, is_running, socket_path
from retrieval.edge.jobs.queue import PLAN, make_app, send
from retrieval.edge.jobs.records import Jobs, JobState
from retrieval.edge.settings import load_settings
from retrieval.errors import FailedPrecondition, InvalidSettings, JobsUnavailable, UnknownJob

REQUEST = {"catalog": "shoes", "manifest_uri": "images"}


def test_same_request_finds_the_running_job(jobs: Jobs) -> None:
    """A job started twice runs once; the other call gets its id."""
    first = jobs.start("reindex", "twice", REQUEST)
    assert jobs.start("reindex", "twice", dict(reversed(REQUEST.items()))) == first
    assert [job.id for job in jobs.running() if job.catalog == "twice"] == [first.id]


def test_another_request_for_a_busy_catalogue_is_refused(jobs: Jobs) -> None:
    """Two different reindexes of one catalogue do not run together; an audit may run at the same time."""
    first = jobs.start("reindex", "busy", REQUEST)
    with pytest.raises(FailedPrecondition, match=first.id):
        jobs.start("reindex", "busy", {**REQUEST, "manifest_uri": "others"})
    assert jobs.start("audit", "busy", REQUEST).id != first.id


@pytest.mark.parametrize("ending", ["succeed", "fail"])
def test_finished_job_frees_its_catalogue_and_stays_as_it_is(jobs: Jobs, ending: str) -> None:
    """The first ending counts, also when a task is delivered again."""
    first = jobs.start("reindex", ending, REQUEST)
    getattr(jobs, ending)(first.id, "what came of it")
    done = jobs.get(first.id)
    assert done.state.is_final
    assert done.finished_at
    assert (done.result_id or done.error) == "what came of it"
    jobs.fail(first.id, "too late")
    jobs.mark_running(first.id, n_total=9)
    assert jobs.get(first.id) == done
    assert jobs.start("reindex", ending, REQUEST).id != first.id


def test_progress_counts_each_shard_once(jobs: Jobs) -> None:
    """A shard that is delivered twice is one shard done; the count stays after the end."""
    job = jobs.start("reindex", "progress", REQUEST)
    assert job.state is JobState.QUEUED
    jobs.mark_running(job.id, n_total=3)
    for number in (0, 1, 1, 0):
        jobs.mark_done(job.id, number)
    seen = jobs.get(job.id)
    assert (seen.state, seen.n_done, seen.n_total) == (JobState.RUNNING, 2, 3)
    jobs.mark_done(job.id, 2)
    jobs.succeed(job.id, "snapshot")
    assert jobs.get(job.id).n_done == 3


def test_unknown_job_is_not_found(jobs: Jobs) -> None:
    """An id that nobody gave out is NOT_FOUND."""
    with pytest.raises(UnknownJob, match="nothing"):
        jobs.get("nothing")  # type: ignore[arg-type]  # any text may come over the wire


def test_jobs_survive_a_restart(tmp_path: Path) -> None:
    """What was acknowledged is there after the embedded Valkey was stopped and started again."""
    with embedded_valkey(tmp_path):
        started = Jobs(f"unix://{socket_path(tmp_path)}").start("reindex", "kept", REQUEST)
    assert not is_running(tmp_path)
    with embedded_valkey(tmp_path):
        assert Jobs(f"unix://{socket_path(tmp_path)}").get(started.id) == started
    shutil.rmtree(tmp_path / "valkey")


def test_no_queue_says_what_to_start(tmp_path: Path) -> None:
    """Without a Redis the message names the two ways to have one."""
    with pytest.raises(JobsUnavailable, match=r"retrieval worker.*RETRIEVAL_REDIS_URL"):
        Jobs(f"unix://{socket_path(tmp_path)}").running()


@pytest.mark.parametrize("kept", ["record", "nothing"])
def test_lock_that_a_kill_left_behind_blocks_nobody(jobs: Jobs, state_dir: Path, kept: str) -> None:
    """A catalogue whose last job is finished or lost is free, even if its lock names that job."""
    old = jobs.start("reindex", f"left-{kept}", REQUEST)
    client = redis.Redis(unix_socket_path=str(socket_path(state_dir)))
    running, place = "retrieval:running", f"reindex:left-{kept}"
    if kept == "record":
        jobs.succeed(old.id, "snapshot")
        client.hset(running, place, old.id)
    else:
        client.delete(f"retrieval:job:{old.id}")
    assert old.id not in [job.id for job in jobs.running()]
    new = jobs.start("reindex", f"left-{kept}", {**REQUEST, "manifest_uri": "others"})
    assert new.id != old.id
    assert client.hget(running, place) == new.id.encode()
    client.close()


def test_state_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    """A file where the folder should be is an error of the family."""
    (tmp_path / "file").touch()
    with pytest.raises(JobsUnavailable, match="cannot keep its data"), embedded_valkey(tmp_path / "file"):
        pass


def test_url_that_is_none_is_said() -> None:
    """A mistyped setting is named."""
    with pytest.raises(InvalidSettings, match="RETRIEVAL_REDIS_URL"):
        Jobs("localhost:6379")


def test_ids_are_found_by_their_start(jobs: Jobs) -> None:
    """Ids alone, without the other keys of a job; a pattern finds nothing."""
    job = jobs.start("reindex", "starts", REQUEST)
    jobs.mark_done(job.id, 0)
    assert jobs.ids_starting(job.id[:8]) == [job.id]
    assert jobs.ids_starting("*") == jobs.ids_starting("") == []


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3cret@t/x@host:6379/0",
        "redis://:1234/s3cret@host:6379/0",  # read by clients as port 1234
        "redis://:p#s3cret@host:6379/0",
        "redis://:12?s3cret@host:6379/0",
        "redis://:s3cret[@host:6379/0",
        "redis://:s3cret%zz:@host:99999/0",
        "redis://:s3cret@host:6379/abc",
        "redis://:s3cret@host:6379/0?bogus=1",
        "amqp://user:s3cret@host/",
        "s3cret",
    ],
)
def test_an_unusable_url_never_shows_its_password(url: str) -> None:
    """Nobody knows where the password of such a URL ends, so nothing of it is quoted, in the causes neither."""
    for use in (Jobs, lambda url: make_app(load_settings(redis_url=url))):
        with pytest.raises(InvalidSettings, match=r"RETRIEVAL_REDIS_URL: expected redis://") as caught:
            use(url)
        assert "s3cret" not in "".join(traceback.format_exception(caught.value, limit=0))


@pytest.mark.parametrize("password", ["p@ss", "pa:ss", "p%ss", "p%40s%3As%25"])
def test_a_password_with_special_characters_is_used(password: str) -> None:
    """Where every client reads it alike, it need not be encoded."""
    Jobs(f"redis://:{password}@127.0.0.1:1/0")
    make_app(load_settings(redis_url=f"redis://user:{password}@127.0.0.1:1/0"))


def test_a_url_that_the_server_refuses_is_a_setting(state_dir: Path) -> None:
    """A number that the server does not have, for instance; a server that is away may start later."""
    with pytest.raises(InvalidSettings, match="RETRIEVAL_REDIS_URL: the server refuses it: DB index is out of range"):
        Jobs(f"unix://{socket_path(state_dir)}?db=12345").check()
    Jobs("redis://127.0.0.1:1/0").check()


def _cut_after(n_sent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a process send so many requests to Redis and no more, as if it were killed then."""
    send, sent = redis.connection.AbstractConnection.send_packed_command, []

    def sending(connection: Any, *arguments: Any, **options: Any) -> Any:
        sent.append(1)
        if len(sent) > n_sent:
            raise redis.ConnectionError("it was killed here")
        return send(connection, *arguments, **options)

    monkeypatch.setattr(redis.connection.AbstractConnection, "send_packed_command", sending)


@pytest.mark.parametrize("n_sent", range(1, 8))
def test_a_kill_at_any_moment_leaves_a_job_that_runs_or_none(
    jobs: Jobs, client: redis.Redis, state_dir: Path, n_sent: int
) -> None:
    """A job that is listed as unfinished is one that workers resume; one that has ended holds no catalogue."""
    doomed = Jobs(f"unix://{socket_path(state_dir)}")
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(JobsUnavailable):
        _cut_after(n_sent, patch)
        doomed.succeed(doomed.start("reindex", "cut", REQUEST).id, "snapshot")
    unfinished = [job for job in jobs.newest(10) if not job.state.is_final]
    assert unfinished == jobs.running()
    for job in jobs.newest(10):
        lives_for_ever = client.ttl(f"retrieval:job:{job.id}") == -1
        assert lives_for_ever != job.state.is_final
    assert client.hvals("retrieval:running") == [job.id.encode() for job in unfinished]


def test_the_oldest_records_are_dropped(jobs: Jobs, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that have expired, and finished ones if there are too many; a job that runs stays."""
    monkeypatch.setattr(records, "_KEEP_FINISHED", 5)
    running = jobs.start("reindex", "old", REQUEST)
    made = [jobs.start("reindex", f"catalog{number}", REQUEST) for number in range(6)]
    for job in made:
        jobs.succeed(job.id, "snapshot")
    client.delete(f"retrieval:job:{made[0].id}")  # it expired
    last = jobs.start("reindex", "last", REQUEST)
    assert [job.id for job in jobs.newest(100)] == [last.id, *(job.id for job in reversed(made[2:])), running.id]
    assert jobs.ids_starting(made[1].id) == []
    with pytest.raises(UnknownJob, match="not more than"):
        jobs.get(made[1].id)


def test_a_queue_that_is_full_is_named(jobs: Jobs, client: redis.Redis, state_dir: Path) -> None:
    """It answers, and refuses to store: that is not "it cannot be reached"."""
    app = make_app(load_settings(state_dir=state_dir))
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(JobsUnavailable, match=r"refuses to work.*command not allowed when used memory"):
            jobs.start("reindex", "full", REQUEST)
        with pytest.raises(JobsUnavailable, match=r"refuses to work.*command not allowed when used memory"):
            send(app, PLAN, "job")
    finally:
        client.config_set("maxmemory", 0)
