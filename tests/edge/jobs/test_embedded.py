"""The embedded Valkey: shared by its users, started again after a kill, gone with the last user."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
import redis

from retrieval.edge.jobs.embedded import embedded_valkey, is_running, socket_path
from retrieval.edge.jobs.records import Jobs

USER = """
import sys
from pathlib import Path
from retrieval.edge.jobs.embedded import embedded_valkey
with embedded_valkey(Path(sys.argv[1])):
    print("in use", flush=True)
    sys.stdin.readline()
"""


@contextlib.contextmanager
def user_of(state_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that uses the Valkey until its input gets a line."""
    command = [sys.executable, "-c", USER, str(state_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in use\n"
        yield process
        process.kill()


def servers_of(state_dir: Path) -> list[psutil.Process]:
    """Valkey servers of a state folder, without their keepers."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        command = " ".join(process.info["cmdline"] or ())
        if str(socket_path(state_dir)) in command and "keeper.py" not in command:
            found.append(process)
    return found


def eventually(holds: Callable[[], bool], within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_replaced(state_dir: Path, old: psutil.Process) -> bool:
    found = servers_of(state_dir)
    return len(found) == 1 and found != [old] and is_running(state_dir)


def test_users_that_start_together_share_one_server(tmp_path: Path) -> None:
    """Two servers would write to one file."""
    together = threading.Barrier(5)

    def use() -> None:
        with embedded_valkey(tmp_path):
            together.wait(30)
            together.wait(30)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    together.wait(30)
    assert is_running(tmp_path)
    assert len(servers_of(tmp_path)) == 1
    together.wait(30)
    for thread in threads:
        thread.join()
    assert servers_of(tmp_path) == []


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(120)
@pytest.mark.parametrize("ending", ["in order", "killed"])
def test_the_server_lives_as_long_as_one_of_its_users(tmp_path: Path, ending: str) -> None:
    """The user that started it ends: the other one goes on with the same server. After the last one nothing is left."""
    with user_of(tmp_path) as first:
        with user_of(tmp_path) as second:
            servers = servers_of(tmp_path)
            assert len(servers) == 1
            jobs = Jobs(f"unix://{socket_path(tmp_path)}")
            jobs.start("reindex", "shoes", {})
            if ending == "killed":
                first.kill()
            else:
                assert first.stdin is not None
                first.stdin.write("\n")
                first.stdin.flush()
            first.wait(30)
            time.sleep(1)
            assert servers_of(tmp_path) == servers
            assert [job.catalog for job in jobs.running()] == ["shoes"]
            assert second.stdin is not None
            if ending == "killed":
                second.kill()
            else:
                second.stdin.write("\n")
                second.stdin.flush()
            second.wait(30)
            eventually(lambda: servers_of(tmp_path) == [])
        assert not is_running(tmp_path)


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(120)
def test_a_killed_server_is_started_again_by_a_user(tmp_path: Path) -> None:
    """Whichever of server and keeper is killed, there is one server again within seconds, with the jobs of before."""
    with embedded_valkey(tmp_path):
        jobs = Jobs(f"unix://{socket_path(tmp_path)}")
        jobs.start("reindex", "shoes", {})
        time.sleep(1.1)  # the file is synced every second
        for victim in ("server", "keeper", "server"):
            (server,) = servers_of(tmp_path)
            process = server if victim == "server" else server.parent()
            assert process is not None
            process.kill()
            eventually(partial(is_replaced, tmp_path, server))
            assert [job.catalog for job in jobs.running()] == ["shoes"]
    assert servers_of(tmp_path) == []


@pytest.mark.slow
def test_a_child_whose_parent_ended_before_it_could_ask_ends_too() -> None:
    """Between the fork and the request to the kernel the parent may be killed; nobody would end the child."""
    program = "import sys, time; from retrieval.edge.jobs.keeper import die_with_parent\n{}\nprint('lives', flush=True)"
    for parent, expected in (("os.getppid()", (0, "lives\n")), ("os.getppid() + 1", (-signal.SIGTERM, ""))):
        code = program.format(f"import os; die_with_parent({parent})")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == expected


@pytest.mark.slow
def test_an_acknowledged_job_survives_a_kill_at_once(tmp_path: Path) -> None:
    """The server writes a change to its file before it answers, so a kill in the next moment loses nothing."""
    with embedded_valkey(tmp_path):
        jobs = Jobs(f"unix://{socket_path(tmp_path)}")
        for number in range(5):
            job = jobs.start("reindex", f"catalog{number}", {})
            with redis.Redis(unix_socket_path=str(socket_path(tmp_path))) as client:
                os.kill(client.info()["process_id"], signal.SIGKILL)
            deadline = time.monotonic() + 30
            while not is_running(tmp_path):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert jobs.get(job.id) == job
        assert len(jobs.running()) == 5


FORKING = """
import os, sys, time
from pathlib import Path
from retrieval.edge.jobs import embedded

folder = Path(sys.argv[1])
children = []
def fork():
    if (child := os.fork()) == 0:
        time.sleep(60)
        os._exit(0)
    children.append(child)

with embedded._locked(folder):
    fork()
try_lock = embedded._try_lock
def forking(descriptor, kind):
    taken = try_lock(descriptor, kind)
    fork()
    return taken
embedded._try_lock = forking
embedded._is_locked(folder / "running")
embedded._try_lock = try_lock
print([name for name in ("lock", "running") if embedded._is_locked(folder / name)], flush=True)
for child in children:
    os.kill(child, 9)
    os.waitpid(child, 0)
"""


@pytest.mark.slow
def test_a_process_that_is_forked_meanwhile_holds_no_lock(tmp_path: Path) -> None:
    """A worker forks its processes while a thread looks after the Valkey: they would keep what it locked for ever."""
    command = [sys.executable, "-c", FORKING, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_the_server_is_spawned_and_not_forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork on a thread waits for ever if a worker forks a process of its pool at the same time."""

    def forked(*_: object) -> None:
        raise AssertionError("Popen forked")

    monkeypatch.setattr(subprocess, "_fork_exec", forked)
    with embedded_valkey(tmp_path):
        assert is_running(tmp_path)
