"""`retrieval demo`: runs the public commands in order, as child processes, and prints each of them."""

import contextlib
import functools
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retrieval.edge.cli.demo_figures import TriedTarget, figures, print_figures
from retrieval.edge.cli.options import Json
from retrieval.errors import FailedPrecondition, Unavailable
from retrieval.terminal import err, print_json

if TYPE_CHECKING:
    from retrieval.edge.settings import Settings

CATALOG = "emoji"
_LOOSE = "far=0.01"
_START_S = 300.0  # the first start compiles the search, which takes a minute on a busy machine
_STOP_S = 20.0


@dataclass(frozen=True, slots=True)
class Demo:
    """The folder of the demonstration, and the time that each step took."""

    folder: Path
    settings: "Settings"
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        """Folder of the rendered images and manifests."""
        return self.folder / "data"

    def run(self, step: str, why: str, *command: str, accept: Sequence[int] = (0,)) -> str:
        """Run one command as a child and return its stdout. Raises FailedPrecondition for an unexpected exit code."""
        from retrieval.edge.settings import child_environment

        self._announce(step, why, command)
        started = time.monotonic()
        done = subprocess.run(
            [_console_command(command[0]), *command[1:]],
            env=child_environment(self.settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        self.seconds[step] = self.seconds.get(step, 0.0) + round(time.monotonic() - started, 1)
        if done.returncode not in accept:
            raise FailedPrecondition(f"`{shlex.join(command)}` ended with exit code {done.returncode}, see above")
        return done.stdout

    @contextlib.contextmanager
    def background(self, step: str, why: str, *command: str) -> Iterator["subprocess.Popen[bytes]"]:
        """Run a command while the block runs. Ctrl-C and a kill of the demonstration end it too."""
        from retrieval.edge.jobs.embedded import die_with_parent
        from retrieval.edge.settings import child_environment

        self._announce(step, why, command)
        log = self.folder / f"{command[1]}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [_console_command(command[0]), *command[1:]],
                env=child_environment(self.settings),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C ends the demonstration, which then ends this in order
                preexec_fn=functools.partial(die_with_parent, os.getpid()),  # noqa: PLW1509  # calls one C function
            )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _announce(self, step: str, why: str, command: Sequence[str]) -> None:
        err.print(f"\n[bold]{step}[/bold]: {why}")
        err.print(f"  $ {shlex.join(command)}", style="cyan", markup=False, highlight=False)


def demo(
    folder: Annotated[Path, typer.Option(help="Folder for data, model, store and reports.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split, the training and the resampling.")] = 0,
    as_json: Json = False,
) -> None:
    """Run all steps on real images with public commands: train, export, calibrate, index, search, audit."""
    from retrieval.edge.settings import load_settings

    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    settings = load_settings(
        state_dir=folder / "state", store_url=str(folder / "store"), address=f"127.0.0.1:{_free_port()}", redis_url=""
    )
    line = Demo(folder, settings)
    err.print("To repeat a command below by hand, first give your shell the settings of the demonstration:")
    for export in exports(settings):
        err.print(f"  {export}", markup=False, highlight=False)
    _train(line, seed)
    trials = _trials(line, seed, one_false_match(line.data / "catalog.csv"))
    with _services(line):
        loose, in_use = [_try(line, trial) for trial in trials]
    seconds = {name: round(value, 1) for name, value in line.seconds.items()}
    result = {**in_use, "loose": loose, "seconds": {**seconds, "total": round(sum(line.seconds.values()), 1)}}
    print_json(result) if as_json else print_figures(result)


def one_false_match(catalog: Path) -> str:
    """Return the target that allows a query one false match on average among all images of the catalogue."""
    from retrieval.contract.manifest import read_source

    return f"false-matches=1@{len(read_source(str(catalog)).items)}"


def _train(demo: Demo, seed: int) -> None:
    data = str(demo.data)
    why = "fetch the same emoji drawn by eight makers, render them, split them by class"
    demo.run("data", why, "training", "emoji", data, "--seed", str(seed))
    demo.run(
        "train",
        "fine-tune EfficientNet-Lite0 on the train classes: softmax over proxies plus the threshold-consistent margin",
        *("training", "train", "--config", "emoji", "--data", f"{data}/train.csv"),
        *("--validation", f"{data}/validation.csv", "--out", str(demo.folder / "run"), "--seed", str(seed), "--resume"),
    )
    if not (demo.folder / "bundle").exists():
        why = "write the model as ONNX with its preprocessing, and check it with the production encoder"
        demo.run("export", why, "training", "export", str(demo.folder / "run"), "--out", str(demo.folder / "bundle"))


def _trials(demo: Demo, seed: int, target: str) -> list[TriedTarget]:
    """Calibrate for the loose target and for the one to use, which comes last and so stays active."""
    folder = demo.folder
    loose = _calibrate(demo, seed, _LOOSE)
    in_use = _calibrate(demo, seed, target, "--activate")
    return [
        TriedTarget(_LOOSE, folder / "contact_sheet_loose.png", folder / "report-loose", loose),
        TriedTarget(target, folder / "contact_sheet.png", folder / "report", in_use),
    ]


def _calibrate(demo: Demo, seed: int, target: str, *options: str) -> dict[str, Any]:
    point: dict[str, Any] = json.loads(
        demo.run(
            "calibrate",
            f"choose one threshold for the target {target}, on classes that were not used for training",
            *("retrieval", "calibrate", "--bundle", str(demo.folder / "bundle")),
            *("--data", f"{demo.data}/calibration.csv", "--cohort", f"{demo.data}/train.csv", "--catalog-labels"),
            *("--target", target, "--seed", str(seed), *options, "--json"),
        )
    )
    return point


@contextlib.contextmanager
def _services(demo: Demo) -> Iterator[None]:
    """Run a worker and a server while the block runs."""
    with (
        demo.background(
            "worker", "start an embedded Valkey, and processes that do jobs", "retrieval", "worker"
        ) as worker,
        demo.background("serve", "start the gRPC server", "retrieval", "serve") as server,
    ):
        _await_queue(demo, worker)
        _await_server(demo, server)
        yield


def _try(demo: Demo, trial: TriedTarget) -> dict[str, Any]:
    """Activate a threshold, index, search and audit with it; return the figures."""
    why = f"use the threshold for the target {trial.target}"
    demo.run("activate", why, "retrieval", "operating-points", "activate", trial.point["id"], "--json")
    why = "embed and index the catalogue of new classes; what is embedded or indexed already is reused"
    indexed = demo.run("reindex", why, "retrieval", "reindex", CATALOG, f"{demo.data}/catalog.csv", "--json")
    searched = demo.run(
        "search",
        "search with every query image over gRPC; the contact sheet shows the first ones",
        *("retrieval", "search", "--catalog", CATALOG, "--manifest", f"{demo.data}/queries.csv"),
        *("--sheet", str(trial.sheet), "--json"),
    )
    demo.run(
        "audit",
        "check that the threshold keeps the promises of calibration on the new classes",
        *("retrieval", "audit", CATALOG, f"{demo.data}/audit.csv", "--group-by", "maker"),
        *("--report", str(trial.report), "--json"),
        accept=(0, 1),
    )
    report = json.loads((trial.report / "report.json").read_text())
    return figures(trial, report, json.loads(searched)["summary"], json.loads(indexed)["snapshot"])


def _await_queue(demo: Demo, worker: "subprocess.Popen[bytes]") -> None:
    """Wait until the Valkey of the worker answers. The server may be ready before it, and refuses jobs until then."""
    from retrieval.edge.jobs.embedded import is_running

    deadline = time.monotonic() + _START_S
    while worker.poll() is None and time.monotonic() < deadline:
        if is_running(demo.settings.state_dir):
            return
        time.sleep(0.2)
    raise Unavailable(f"the worker did not start: see {demo.folder / 'worker.log'}")


def _await_server(demo: Demo, server: "subprocess.Popen[bytes]") -> None:
    from retrieval.client import connect

    deadline = time.monotonic() + _START_S
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(Unavailable), connect(demo.settings.address, connect_s=0) as client:
            client.check_health()
            return
        time.sleep(0.2)
    raise Unavailable(f"the server did not start: see {demo.folder / 'serve.log'}")


def exports(settings: "Settings") -> list[str]:
    """Return the lines that give a shell the settings of the demonstration, for the commands that it shows."""
    values = {
        "RETRIEVAL_STATE_DIR": str(settings.state_dir),
        "RETRIEVAL_STORE_URL": settings.store,
        "RETRIEVAL_ADDRESS": settings.address,
    }
    return [f"export {name}={shlex.quote(value)}" for name, value in values.items()]


def _console_command(name: str) -> str:
    """Return the path of a command next to the running Python, so that no environment must be activated."""
    return str(Path(sys.executable).with_name(name))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
