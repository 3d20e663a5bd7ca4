"""The steps of jobs over a real Valkey and a real store; the test delivers the messages itself."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from structlog.testing import capture_logs

from retrieval.contract.class_terms import PulledItems, pull_items
from retrieval.contract.operating_point import OperatingPoint
from retrieval.contract.score import Score
from retrieval.edge.jobs.messages import job_message
from retrieval.edge.jobs.queue import AUDIT, BUILD, EMBED, PLAN, make_app, submit
from retrieval.edge.jobs.records import Job, JobState
from retrieval.edge.jobs.tasks import Tasks
from retrieval.edge.settings import load_settings
from retrieval.engine.store import Store
from retrieval.flows.audit import AuditRequest
from retrieval.flows.reindex import ReindexRequest
from tests.edge.jobs.conftest import CATALOG, N_CLASSES, N_IMAGES, Message, deliver, waiting, work_off
from tests.pictures import class_picture, encoded, write_class_folders
from tests.stores import activate, with_labels, without_labels


@pytest.fixture(scope="module")
def labelled_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 new classes of 4 pictures, with a column of groups; read only."""
    folder = tmp_path_factory.mktemp("audit")
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "uri", "label", "camera"])
        for number in range(3000, 3030):
            for variant in range(4):
                name = f"{number}-{variant}.png"
                (folder / name).write_bytes(encoded(class_picture(number, variant, spread=70)))
                writer.writerow([name, name, f"class {number}", variant % 2])
    return folder / "manifest.csv"


def staged(store: Store, job: Job) -> list[str]:
    return store.objects.names(f"staging/{job.id}")


def test_a_reindex_goes_from_message_to_live_snapshot(
    tasks: Tasks, reindexing: Job, client: redis.Redis, calibrated: Store
) -> None:
    """One plan, one task per shard, one build; afterwards the snapshot is live and no working file is left."""
    assert work_off(tasks, client) == [PLAN, EMBED, EMBED, BUILD]
    job = tasks.jobs.get(reindexing.id)
    assert (job.state, job.n_done, job.n_total) == (JobState.SUCCEEDED, 2, 2)
    assert job.result_id == calibrated.current(CATALOG)
    assert calibrated.snapshot_manifest(CATALOG, calibrated.current(CATALOG)).n_items == N_CLASSES * N_IMAGES
    assert staged(calibrated, job) == []
    assert tasks.jobs.running() == []


def test_a_job_warns_of_labels_that_may_be_wrong(
    tasks: Tasks,
    reindexing: Job,
    client: redis.Redis,
    calibrated: Store,
    cosine_point: OperatingPoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The job succeeds, and names the first items that are far from the others of their class."""

    def with_far(*arguments: Any, **named: Any) -> PulledItems:
        pulled = pull_items(*arguments, **named)
        return dataclasses.replace(pulled, far=np.arange(len(pulled.far)) == 2)

    monkeypatch.setattr("retrieval.contract.score.pull_items", with_far)
    activate(calibrated, *with_labels(cosine_point, Score()))
    work_off(tasks, client)
    job = tasks.jobs.get(reindexing.id)
    assert job.state == JobState.SUCCEEDED
    assert job.warnings == (
        "1 item is far from the others with the same label, so the label may be wrong: class_000/2.png",
    )
    assert job_message(job).warnings == list(job.warnings)


def test_a_job_without_labels_for_its_score_fails_before_it_embeds(
    tasks: Tasks, client: redis.Redis, calibrated: Store, cosine_point: OperatingPoint, images: Path
) -> None:
    activate(calibrated, *with_labels(cosine_point, Score()))
    request = ReindexRequest(catalog=CATALOG, manifest_uri=str(without_labels(images)))
    submitted = submit(tasks.app, tasks.jobs, "reindex", request)
    assert work_off(tasks, client) == [PLAN]
    job = tasks.jobs.get(submitted.id)
    assert job.state == JobState.FAILED
    assert "expected items with labels, found none" in job.error


def test_old_snapshots_are_pruned_after_each_publish(
    calibrated: Store, state_dir: Path, client: redis.Redis, tmp_path: Path
) -> None:
    """As many as the settings say stay, with their embeddings."""
    tasks = Tasks(load_settings(state_dir=state_dir, store_url=calibrated.url, threads=1, keep_snapshots=2))
    made = []
    for number in range(4):
        folder = write_class_folders(tmp_path / f"images{number}", n_classes=2 + number, n_images=1)
        request = ReindexRequest(catalog=CATALOG, manifest_uri=str(folder))
        job = submit(tasks.app, tasks.jobs, "reindex", request)
        work_off(tasks, client)
        made.append(tasks.jobs.get(job.id).result_id)
    tasks.parts.embedder.pool.shutdown()
    assert sorted(calibrated.snapshot_ids(CATALOG)) == sorted(made[2:])
    assert len(calibrated.embedding_keys(calibrated.only_bundle())) == 2


def test_plan_sends_a_task_for_each_shard(tasks: Tasks, reindexing: Job, client: redis.Redis) -> None:
    """The number of shards is known from then on."""
    waiting(client)
    deliver(tasks, Message(PLAN, (reindexing.id,)))
    assert waiting(client) == [Message(EMBED, (reindexing.id, 0)), Message(EMBED, (reindexing.id, 1))]
    job = tasks.jobs.get(reindexing.id)
    assert (job.state, job.n_done, job.n_total) == (JobState.RUNNING, 0, 2)


def test_only_the_last_shard_starts_the_build(tasks: Tasks, reindexing: Job, client: redis.Redis) -> None:
    """The shards may end in any order."""
    deliver(tasks, *waiting(client))
    first, second = waiting(client)
    deliver(tasks, second)
    assert waiting(client) == []
    assert tasks.jobs.get(reindexing.id).n_done == 1
    deliver(tasks, first)
    assert waiting(client) == [Message(BUILD, (reindexing.id,))]


def test_a_plan_delivered_again_sends_only_what_is_missing(tasks: Tasks, reindexing: Job, client: redis.Redis) -> None:
    """A worker that died after the first shard costs that job nothing but time."""
    (planning,) = waiting(client)
    deliver(tasks, planning)
    deliver(tasks, waiting(client)[0])
    deliver(tasks, planning)
    assert waiting(client) == [Message(EMBED, (reindexing.id, 1))]
    deliver(tasks, Message(EMBED, (reindexing.id, 1)))
    waiting(client)  # the build is lost
    deliver(tasks, planning)
    assert waiting(client) == [Message(BUILD, (reindexing.id,))]


def test_every_message_delivered_twice_gives_one_snapshot(
    tasks: Tasks, reindexing: Job, client: redis.Redis, calibrated: Store
) -> None:
    """A broker may deliver again what was done; the job counts each shard once."""
    work_off(tasks, client, times=2)
    job = tasks.jobs.get(reindexing.id)
    assert (job.state, job.n_done, job.n_total) == (JobState.SUCCEEDED, 2, 2)
    assert [manifest.id for manifest in calibrated.snapshots(CATALOG).readable] == [job.result_id]
    assert staged(calibrated, job) == []


def test_a_late_delivery_does_not_touch_a_job_that_has_ended(
    tasks: Tasks, reindexing: Job, client: redis.Redis, calibrated: Store
) -> None:
    """It removes the working files that a killed worker left, and nothing else."""
    work_off(tasks, client)
    done = tasks.jobs.get(reindexing.id)
    calibrated.objects.put(f"staging/{done.id}/left-over", b"x")
    for message in (Message(PLAN, (done.id,)), Message(EMBED, (done.id, 1)), Message(BUILD, (done.id,))):
        deliver(tasks, message)
    assert tasks.jobs.get(done.id) == done
    assert waiting(client) == []
    assert staged(calibrated, done) == []


def test_a_build_that_fails_leaves_the_old_snapshot_live(
    tasks: Tasks, reindexing: Job, client: redis.Redis, calibrated: Store, tmp_path: Path
) -> None:
    """Too many unreadable images: the job says so, and the working files are gone."""
    work_off(tasks, client)
    old = calibrated.current(CATALOG)
    (tmp_path / "broken" / "class").mkdir(parents=True)
    for number in range(5):
        (tmp_path / "broken" / "class" / f"{number}.png").write_bytes(b"no picture")
    request = ReindexRequest(catalog=CATALOG, manifest_uri=str(tmp_path / "broken"))
    job = submit(tasks.app, tasks.jobs, "reindex", request)
    assert work_off(tasks, client) == [PLAN, EMBED, BUILD]
    assert tasks.jobs.get(job.id).state is JobState.FAILED
    assert "5 of 5" in tasks.jobs.get(job.id).error
    assert calibrated.current(CATALOG) == old
    assert staged(calibrated, job) == []


def test_a_step_before_its_plan_asks_for_the_plan(tasks: Tasks, reindexing: Job, client: redis.Redis) -> None:
    """A step whose plan was lost neither runs for ever nor fails its job: the plan sends it again."""
    for step in (Message(EMBED, (reindexing.id, 0)), Message(BUILD, (reindexing.id,))):
        waiting(client)
        deliver(tasks, step)
        assert waiting(client) == [Message(PLAN, (reindexing.id,))]
    deliver(tasks, Message(PLAN, (reindexing.id,)))
    work_off(tasks, client)
    assert tasks.jobs.get(reindexing.id).state is JobState.SUCCEEDED


@pytest.mark.slow
def test_an_audit_stores_its_report_and_changes_nothing(
    tasks: Tasks,
    reindexing: Job,
    client: redis.Redis,
    calibrated: Store,
    labelled_images: Path,
) -> None:
    """The job names the audit; a verdict that failed is an alarm in the log, not a failed job."""
    work_off(tasks, client)
    before = calibrated.active_id(calibrated.only_bundle()), calibrated.current(CATALOG)
    request = AuditRequest(catalog=CATALOG, manifest_uri=str(labelled_images), group_by=("camera",))
    job = submit(tasks.app, tasks.jobs, "audit", request)
    with capture_logs() as logs:
        assert work_off(tasks, client) == [AUDIT]
    done = tasks.jobs.get(job.id)
    assert (done.state, done.result_id, done.n_done, done.n_total) == (JobState.SUCCEEDED, job.id, 120, 120)
    report = calibrated.audit(CATALOG, job.id)
    (finished,) = [log for log in logs if log["event"] == "audit_finished"]
    assert finished["verdict"] == report["verdict"]
    assert finished["log_level"] == ("info" if report["verdict"] == "passed" else "error")
    assert finished["findings"] == [f["limit"] for f in report["findings"] if not f["passed"]]
    assert (calibrated.active_id(calibrated.only_bundle()), calibrated.current(CATALOG)) == before


@pytest.mark.slow
def test_an_audit_that_fails_its_limits_is_an_alarm(
    calibrated: Store,
    cosine_point: OperatingPoint,
    tasks: Tasks,
    reindexing: Job,
    client: redis.Redis,
    labelled_images: Path,
) -> None:
    """A threshold that accepts nearly everything fails; the job itself succeeds."""
    work_off(tasks, client)
    loose = dataclasses.replace(cosine_point, choice=dataclasses.replace(cosine_point.choice, threshold=-0.99))
    activate(calibrated, loose, Score())
    job = submit(tasks.app, tasks.jobs, "audit", AuditRequest(catalog=CATALOG, manifest_uri=str(labelled_images)))
    with capture_logs() as logs:
        work_off(tasks, client)
    assert tasks.jobs.get(job.id).state is JobState.SUCCEEDED
    (finished,) = [log for log in logs if log["event"] == "audit_finished"]
    assert (finished["verdict"], finished["log_level"]) == ("failed", "error")
    assert finished["findings"]


def test_an_audit_of_unusable_images_fails_its_job(
    tasks: Tasks, reindexing: Job, client: redis.Redis, tmp_path: Path
) -> None:
    """A manifest without labels is the caller's to change."""
    work_off(tasks, client)
    (tmp_path / "manifest.csv").write_text("id,uri\na,a.png\nb,b.png\n")
    job = submit(
        tasks.app, tasks.jobs, "audit", AuditRequest(catalog=CATALOG, manifest_uri=str(tmp_path / "manifest.csv"))
    )
    work_off(tasks, client)
    assert tasks.jobs.get(job.id).state is JobState.FAILED
    assert "label" in tasks.jobs.get(job.id).error


def test_a_scheduled_audit_that_still_runs_is_not_started_again(
    calibrated: Store, state_dir: Path, client: redis.Redis
) -> None:
    """Two ticks give one job with the request that the scheduler sent; the worker has no settings of an audit."""
    scheduler = load_settings(
        audit_every_h=1.0,
        audit_catalog=CATALOG,
        audit_manifest="images",
        audit_group_by="maker, camera",
        audit_family="line",
    )
    (entry,) = make_app(scheduler).conf.beat_schedule.values()
    tasks = Tasks(load_settings(state_dir=state_dir, store_url=calibrated.url))
    for _ in range(2):
        tasks.app.tasks[entry["task"]].apply(args=json.loads(json.dumps(entry["args"])), throw=True)
    (job,) = tasks.jobs.running()
    assert waiting(client) == [Message(AUDIT, (job.id,))] * 2
    groups = ["maker", "camera"]
    assert job.request == {"catalog": CATALOG, "manifest_uri": "images", "group_by": groups, "family": "line"}
    other = {"catalog": CATALOG, "manifest_uri": "others", "group_by": []}
    with capture_logs() as logs:
        tasks.app.tasks[entry["task"]].apply(args=[other], throw=True)
    assert [log["event"] for log in logs] == ["scheduled_audit_skipped"]


def test_a_job_reads_inside_the_roots_only(
    calibrated: Store, state_dir: Path, images: Path, labelled_images: Path, tmp_path: Path, client: redis.Redis
) -> None:
    """Who starts a job over gRPC reads what RETRIEVAL_IMAGE_ROOTS lists; other rows fail, another table is refused."""
    settings = load_settings(
        state_dir=state_dir, store_url=calibrated.url, threads=1, worker_processes=1, image_roots=str(tmp_path)
    )
    tasks = Tasks(settings)
    outside = submit(tasks.app, tasks.jobs, "reindex", ReindexRequest(catalog=CATALOG, manifest_uri=str(images)))
    deliver(tasks, *waiting(client))
    assert "RETRIEVAL_IMAGE_ROOTS" in tasks.jobs.get(outside.id).error
    audit = submit(tasks.app, tasks.jobs, "audit", AuditRequest(catalog=CATALOG, manifest_uri=str(labelled_images)))
    for message in waiting(client):
        deliver(tasks, message)
    assert "RETRIEVAL_IMAGE_ROOTS" in tasks.jobs.get(audit.id).error
    (tmp_path / "table.csv").write_text("id,uri\na,/etc/passwd\nb,/etc/hosts\n")
    request = ReindexRequest(catalog="other", manifest_uri=str(tmp_path / "table.csv"))
    mixed = submit(tasks.app, tasks.jobs, "reindex", request)
    for _ in range(3):
        for message in waiting(client):
            deliver(tasks, message)
    assert tasks.jobs.get(mixed.id).state is JobState.FAILED
    tasks.parts.embedder.pool.shutdown()


def test_what_a_folder_holds_and_is_no_item_is_in_the_job(
    tasks: Tasks, images: Path, tmp_path: Path, client: redis.Redis
) -> None:
    """Nothing disappears without a word."""
    shutil.copytree(images, tmp_path / "images")
    (tmp_path / "images" / ".hidden.png").write_bytes(b"")
    (tmp_path / "images" / "note.txt").write_text("note")
    request = ReindexRequest(catalog=CATALOG, manifest_uri=str(tmp_path / "images"))
    job = submit(tasks.app, tasks.jobs, "reindex", request)
    work_off(tasks, client)
    assert tasks.jobs.get(job.id).state is JobState.SUCCEEDED
    assert tasks.jobs.get(job.id).passed_over == (
        "1 passed over (hidden, or left by another program): .hidden.png",
        "1 passed over (no images): note.txt",
    )
