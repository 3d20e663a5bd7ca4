"""The runs of an experiment: each a process of its own in a folder of its own, so that none ends the others.

Decides what is left to do and does it; leaves what runs there are to `trials.py`, what they are worth to `figures.py`.
"""

import ctypes
import fcntl
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from retrieval.errors import FailedPrecondition
from training.experiment.trials import (
    CONFIG,
    EMBEDDED_PARTS,
    EMBEDDINGS,
    LOCK,
    LOG,
    MADE_OF,
    RUN,
    TRAINED,
    Trial,
    read_json,
    write_json,
)
from training.writing import make_folder

PROGRAM = (sys.executable, "-m", "training")
_ONE_THREAD = ("OMP_NUM_THREADS=1", "MKL_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1")
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_MAX_REASON = 600  # characters; the log has all


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What could not be done for an arm and seed, and why; log: where its processes wrote, if any ran."""

    arm: str
    seed: int
    what: str
    reason: str
    log: str | None

    def __str__(self) -> str:
        where = f" ({self.log})" if self.log else ""
        return f"{self.arm}, seed {self.seed}: {self.what} failed: {self.reason}{where}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunNews:
    """One step of a run, for people. what: "training", "embedding", "done" or "failed"; done, total: runs ended."""

    arm: str
    seed: int
    what: str
    done: int
    total: int


@contextmanager
def only_user(out: Path) -> Iterator[None]:
    """Make `out`, and keep other experiments out of it.

    Raises FailedPrecondition where one is at work there, InvalidInput where it cannot be a folder.
    """
    make_folder(out)
    with (out / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FailedPrecondition(
                f"another experiment is at work in {out}: wait for it, or name another folder"
            ) from error
        yield


def run_trials(
    trials: Sequence[Trial],
    *,
    n_processes: int,
    device: str,
    observe: Callable[[RunNews], None],
    program: Sequence[str] = PROGRAM,
) -> list[Failure]:
    """Do what is left of the trials, `n_processes` at a time; what could not be done. Finished ones are skipped.

    More than one process at a time get one thread each. program: understands `train` and `embed` as this package does.
    On an interrupt the processes are ended; what they did up to their last checkpoint is kept. observe: called from
    several threads, by one at a time.
    """
    crew = _Crew(len(trials), n_processes, device, observe, program)
    with ThreadPoolExecutor(n_processes) as pool:
        futures = [pool.submit(crew.work, trial) for trial in trials]
        try:
            found = [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            crew.stop()
            raise
    return [failure for failure in found if failure]


class _Crew:
    """The processes at work. Thread rule: every field that changes is read and written under the lock."""

    def __init__(
        self, total: int, n_processes: int, device: str, observe: Callable[[RunNews], None], program: Sequence[str]
    ) -> None:
        self._total, self._device, self._observe = total, device, observe
        threads = _ONE_THREAD if n_processes > 1 else ()
        self._program = ("env", "COLUMNS=1000", *threads, *program)  # wide, so that messages keep their lines
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._stopped = False
        self._done = 0

    def work(self, trial: Trial) -> Failure | None:
        trial.folder.mkdir(parents=True, exist_ok=True)
        failure = self._train(trial) or self._embed(trial)
        self._tell(trial, "failed" if failure else "done")
        return failure

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._processes:
                process.terminate()

    def _train(self, trial: Trial) -> Failure | None:
        run, trained = trial.folder / RUN, trial.folder / TRAINED
        if trained.is_file():
            return None
        self._tell(trial, "training")
        write_json(trial.folder / MADE_OF, trial.made_of)
        write_json(trial.folder / CONFIG, trial.made_of["config"])
        resumed = any(run.glob("*checkpoint*"))
        started = time.monotonic()
        failure = self._call(
            trial,
            "training",
            *("train", "--data", trial.data.train, "--validation", trial.data.validation, "--out", str(run)),
            *("--config", str(trial.folder / CONFIG), "--device", self._device, "--resume"),
        )
        if failure is None:
            # How long the part before the interruption took is not known.
            write_json(trained, {"seconds": None if resumed else time.monotonic() - started})
        return failure

    def _embed(self, trial: Trial) -> Failure | None:
        out = trial.folder / EMBEDDINGS
        if out.is_file() and read_json(trial.folder / MADE_OF) == trial.made_of:
            return None
        self._tell(trial, "embedding")
        out.unlink(missing_ok=True)  # before it is said what it will be made of: else the old one would pass for it
        write_json(trial.folder / MADE_OF, trial.made_of)
        parts = [argument for part in EMBEDDED_PARTS for argument in ("--data", f"{part}={getattr(trial.data, part)}")]
        return self._call(
            trial, "embedding", "embed", str(trial.folder / RUN), "--out", str(out), "--device", self._device, *parts
        )

    def _call(self, trial: Trial, what: str, *arguments: str) -> Failure | None:
        log = trial.folder / LOG
        with log.open("ab") as file:
            file.write(f"$ training {' '.join(arguments)}\n".encode())
            file.flush()
            with self._lock:
                if self._stopped:
                    return Failure(arm=trial.arm.name, seed=trial.seed, what=what, reason="stopped", log=None)
                process = subprocess.Popen(
                    [*self._program, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,  # an interrupt reaches the experiment, which ends them in order
                    preexec_fn=_die_with_parent,  # noqa: PLW1509  # calls one C function
                )
                self._processes.add(process)
            code = process.wait()
            with self._lock:
                self._processes.remove(process)
        if code == 0:
            return None
        return Failure(arm=trial.arm.name, seed=trial.seed, what=what, reason=_reason(log, code), log=str(log))

    def _tell(self, trial: Trial, what: str) -> None:
        with self._lock:
            self._done += what in ("done", "failed")
            self._observe(RunNews(arm=trial.arm.name, seed=trial.seed, what=what, done=self._done, total=self._total))


def _reason(log: Path, code: int) -> str:
    """The error that the process ended with, or how it was ended."""
    if code < 0:
        return f"ended by signal {signal.Signals(-code).name}"
    text = log.read_text(errors="replace").rpartition("$ training ")[2]
    *_, last = text.rpartition("error: ") if "error: " in text else text.rpartition("\n\n")
    return " ".join(last.split())[-_MAX_REASON:] or f"exit code {code}"


def _die_with_parent() -> None:
    if hasattr(_LIBC, "prctl"):
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
