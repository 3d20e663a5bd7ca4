"""Runs the trials of an experiment, each in its own processes and folder, so that a failure does not end the others.

Decides which work is left. `trials.py` plans the trials, `figures.py` measures them.
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
class TrialFailure:
    """The work that failed for an arm and seed, and the reason; log: output of its processes, if any ran."""

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
    """The state of a trial. what: "training", "embedding", "done" or "failed"; done, total: numbers of trials."""

    arm: str
    seed: int
    what: str
    done: int
    total: int


@contextmanager
def only_user(out: Path) -> Iterator[None]:
    """Create `out`, and lock it against other experiments.

    Raises FailedPrecondition if another experiment is running there, InvalidInput if it cannot be a folder.
    """
    make_folder(out)
    with (out / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FailedPrecondition(
                f"another experiment is running in {out}: wait for it, or name another folder"
            ) from error
        yield


def run_trials(
    trials: Sequence[Trial],
    *,
    n_processes: int,
    device: str,
    observe: Callable[[RunNews], None],
    program: Sequence[str] = PROGRAM,
) -> list[TrialFailure]:
    """Run the unfinished trials, `n_processes` at a time; return the failures.

    With more than one process at a time, each uses one thread. program: accepts the commands `train` and `embed` of
    this package. On an interrupt the processes are ended; their last checkpoints are kept. observe: called from several
    threads, by one at a time.
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
    """The running processes. Thread rule: every field that changes is read and written under the lock."""

    def __init__(
        self, total: int, n_processes: int, device: str, observe: Callable[[RunNews], None], program: Sequence[str]
    ) -> None:
        self._total, self._device, self._observe = total, device, observe
        threads = _ONE_THREAD if n_processes > 1 else ()
        self._program = ("env", "COLUMNS=1000", *threads, *program)  # wide, so that messages are not wrapped
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._stopped = False
        self._done = 0

    def work(self, trial: Trial) -> TrialFailure | None:
        trial.folder.mkdir(parents=True, exist_ok=True)
        failure = self._train(trial) or self._embed(trial)
        self._report(trial, "failed" if failure else "done")
        return failure

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._processes:
                process.terminate()

    def _train(self, trial: Trial) -> TrialFailure | None:
        run, trained = trial.folder / RUN, trial.folder / TRAINED
        if trained.is_file():
            return None
        self._report(trial, "training")
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
            # The time before the interruption is unknown.
            write_json(trained, {"seconds": None if resumed else time.monotonic() - started})
        return failure

    def _embed(self, trial: Trial) -> TrialFailure | None:
        out = trial.folder / EMBEDDINGS
        if out.is_file() and read_json(trial.folder / MADE_OF) == trial.made_of:
            return None
        self._report(trial, "embedding")
        out.unlink(missing_ok=True)  # before made_of.json changes: otherwise the old file would match it
        write_json(trial.folder / MADE_OF, trial.made_of)
        parts = [argument for part in EMBEDDED_PARTS for argument in ("--data", f"{part}={getattr(trial.data, part)}")]
        return self._call(
            trial, "embedding", "embed", str(trial.folder / RUN), "--out", str(out), "--device", self._device, *parts
        )

    def _call(self, trial: Trial, what: str, *arguments: str) -> TrialFailure | None:
        log = trial.folder / LOG
        with log.open("ab") as file:
            file.write(f"$ training {' '.join(arguments)}\n".encode())
            file.flush()
            with self._lock:
                if self._stopped:
                    return TrialFailure(arm=trial.arm.name, seed=trial.seed, what=what, reason="stopped", log=None)
                process = subprocess.Popen(
                    [*self._program, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,  # an interrupt reaches only the experiment, which ends its processes
                    preexec_fn=_die_with_parent,  # noqa: PLW1509  # calls one C function
                )
                self._processes.add(process)
            code = process.wait()
            with self._lock:
                self._processes.remove(process)
        if code == 0:
            return None
        return TrialFailure(arm=trial.arm.name, seed=trial.seed, what=what, reason=_reason(log, code), log=str(log))

    def _report(self, trial: Trial, what: str) -> None:
        with self._lock:
            self._done += what in ("done", "failed")
            self._observe(RunNews(arm=trial.arm.name, seed=trial.seed, what=what, done=self._done, total=self._total))


def _reason(log: Path, code: int) -> str:
    """Return the error with which the process ended, or the signal that ended it."""
    if code < 0:
        return f"ended by signal {signal.Signals(-code).name}"
    text = log.read_text(errors="replace").rpartition("$ training ")[2]
    *_, last = text.rpartition("error: ") if "error: " in text else text.rpartition("\n\n")
    return " ".join(last.split())[-_MAX_REASON:] or f"exit code {code}"


def _die_with_parent() -> None:
    if hasattr(_LIBC, "prctl"):
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
