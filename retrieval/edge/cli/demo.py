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

from retrieval.edge.cli.options import Json
from retrieval.errors import FailedPrecondition, Unavailable
from retrieval.terminal import err, out, print_json, print_table

if TYPE_CHECKING:
    from retrieval.edge.settings import Settings

CATALOG = "emoji"
_FAR = 0.01
_START_S = 60.0
_STOP_S = 20.0
_NEXT_STEPS = """
Continue with your own images: a folder with one sub-folder per class, or a table with the columns id, uri, label:
  training split MY_IMAGES --out my
  training train --config emoji --data my/train.csv --validation my/validation.csv --out run
  training export run --out bundle
  retrieval calibrate --bundle bundle --data my/calibration.csv --cohort my/train.csv --far 0.01 --activate
  retrieval reindex my_catalog my/new.csv --embedded
  retrieval serve                                             # in a second terminal; then, in the first one:
  retrieval search --catalog my_catalog --image PICTURE.jpg
`--config emoji` trains small images for a few minutes. The README explains each step.
"""


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
    point = json.loads(_calibrate(line, seed))
    report, searched = _serve(line)
    result = _result(line, point, report, searched)
    print_json(result) if as_json else _print_result(result)


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


def _calibrate(demo: Demo, seed: int) -> str:
    return demo.run(
        "calibrate",
        f"choose one threshold for a pooled FAR of {_FAR:g}, on classes that were not used for training",
        *("retrieval", "calibrate", "--bundle", str(demo.folder / "bundle")),
        *("--data", f"{demo.data}/calibration.csv", "--cohort", f"{demo.data}/train.csv"),
        *("--far", str(_FAR), "--seed", str(seed), "--activate", "--json"),
    )


def _serve(demo: Demo) -> tuple[dict[str, Any], dict[str, Any]]:
    """Index, search and audit with a worker and a server; return the report of the audit and the answers."""
    with (
        demo.background(
            "worker", "start an embedded Valkey, and processes that do jobs", "retrieval", "worker"
        ) as worker,
        demo.background("serve", "start the gRPC server", "retrieval", "serve") as server,
    ):
        _await_queue(demo, worker)
        _await_server(demo, server)
        why = "embed and index the catalogue of new classes"
        demo.run("reindex", why, "retrieval", "reindex", CATALOG, f"{demo.data}/catalog.csv", "--json")
        searched = demo.run(
            "search",
            "search with every query image over gRPC; the contact sheet shows the first ones",
            *("retrieval", "search", "--catalog", CATALOG, "--manifest", f"{demo.data}/queries.csv"),
            *("--sheet", str(demo.folder / "contact_sheet.png"), "--json"),
        )
        demo.run(
            "audit",
            "check that the threshold keeps the promises of calibration on the new classes",
            *("retrieval", "audit", CATALOG, f"{demo.data}/audit.csv", "--group-by", "maker"),
            *("--report", str(demo.folder / "report"), "--json"),
            accept=(0, 1),
        )
    report: dict[str, Any] = json.loads((demo.folder / "report" / "report.json").read_text())
    return report, json.loads(searched)


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


def _result(demo: Demo, point: dict[str, Any], report: dict[str, Any], searched: dict[str, Any]) -> dict[str, Any]:
    interval = point["choice"]["threshold_interval"]
    return {
        "r_at_1": report["recall_at_1"],
        "opis": report["opis"]["value"],
        "opis_floor": report["opis"]["floor"],
        "opis_debiased": report["opis"]["debiased"],
        "opis_axis": report["opis"]["axis"],
        "score": report["score_kind"],
        "threshold": report["threshold"],
        "threshold_interval": [interval["low"], interval["high"]],
        "far_target": report["far_target"],
        "far_new": report["far"],
        "far_promised": [report["far_promised"]["low"], report["far_promised"]["high"]],
        "tar_new": report["tar"],
        "n_new_classes": report["n_classes"],
        "n_new_images": report["n_images"],
        "queries": searched["summary"],
        "verdict": report["verdict"],
        "contact_sheet": str(demo.folder / "contact_sheet.png"),
        "report": str(demo.folder / "report" / "report.html"),
        "seconds": {**demo.seconds, "total": round(sum(demo.seconds.values()), 1)},
    }


def _print_result(result: dict[str, Any]) -> None:
    low, high = result["threshold_interval"]
    promised_low, promised_high = result["far_promised"]
    queries = result["queries"]
    far = (
        f"{result['far_new']:.4f}, target {result['far_target']:g}, promised {promised_low:.4f} to {promised_high:.4f}"
    )
    first_right = f"{queries['first_match_right'] or 0:.1%}"
    rows = [
        ("R@1", f"{result['r_at_1']:.3f}, {result['n_new_images']} images of {result['n_new_classes']} new classes"),
        ("threshold", f"{result['threshold']:.4f} (95 %: {low:.4f} to {high:.4f}) on the {result['score']} score"),
        ("FAR, new classes", far),
        ("TAR, new classes", f"{result['tar_new']:.3f}"),
        ("OPIS", f"{result['opis']:.3g}, noise floor {result['opis_floor']:.3g}, {result['opis_axis']} axis"),
        ("queries", f"{queries['n_queries']}, first match right {first_right}, {queries['n_without_match']} no match"),
        ("verdict", result["verdict"]),
        ("contact sheet", result["contact_sheet"]),
        ("report", result["report"]),
        ("seconds", ", ".join(f"{step} {value:g}" for step, value in result["seconds"].items())),
    ]
    print_table("Results of the demonstration", ("", ""), rows)
    out.print(_NEXT_STEPS, markup=False, highlight=False)


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
