"""Commands that train, and look at what training made: train, embed, experiment."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from training.cli.terminal import COULD_NOT_RUN, INTERRUPTED, AsJson, Bars, messages, print_result, progress_bars


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
    allow_shared_classes: Annotated[
        bool, typer.Option("--allow-shared-classes", help="Validate on classes that are trained on, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train an embedder and measure it on classes that it has not seen.

    While training it shows the loss, the shares of positive and of negative pairs of the batch that are still on the
    wrong side of their margin (active), images per second, and R@1 and OPIS of the last evaluation. TensorBoard shows
    the same as curves: tensorboard --logdir OUT/tensorboard.

    Several devices share each batch: torchrun --nproc-per-node 2 -m training train ..., or accelerate launch
    --num_processes 2 -m training train ... (with --cpu for processes on the CPU).

    Interrupted, it ends with exit code 130; the same command with --resume goes on from the last checkpoint, to the
    same weights as if nothing had happened.
    """
    try:
        _train(
            data,
            validation,
            out,
            config=config,
            resume=resume,
            device=device,
            seed=seed,
            allow_shared_classes=allow_shared_classes,
            as_json=as_json,
        )
    except KeyboardInterrupt:
        messages.print(f"interrupted: the same command with --resume goes on from the last checkpoint in {out}")
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
    allow_shared_classes: bool,
    as_json: bool,
) -> None:
    from retrieval.contract.manifest import read_manifest
    from training.config import load_config
    from training.data import require_disjoint
    from training.loop import Observers, is_main_process, leave_processes, train_embedder

    started = time.perf_counter()
    settings = load_config(config)
    if seed is not None:
        settings = replace(settings, seed=seed)
    items, held_out = read_manifest(data), read_manifest(validation)
    if not allow_shared_classes:
        require_disjoint({f"--data {data}": items, f"--validation {validation}": held_out})
    with progress_bars() as progress:
        bars = Bars(progress)
        observers = Observers(
            read=bars.watch("reading images"),
            head=bars.watch("features"),
            evaluated=bars.watch("evaluating"),
            step=bars.step,
            message=messages.print,
        )
        evaluation = train_embedder(settings, items, held_out, out, device=device, resume=resume, observers=observers)
    seconds = time.perf_counter() - started
    result = {"run": str(out), "seconds": seconds, "held_out": evaluation.to_json()}
    if is_main_process():
        print_result(result, f"{evaluation}\nrun: {out} ({seconds:.0f} s)", as_json)
    leave_processes()


def embed(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    data: Annotated[list[str], typer.Option(help="NAME=FOLDER or NAME=MANIFEST; may be given several times.")],
    out: Annotated[Path, typer.Option(help="File to write, .npz.")],
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Embed images with a finished run: NAME.embeddings, NAME.labels and NAME.ids in one .npz file."""
    from training.embeddings import embed_parts, parse_parts

    with progress_bars() as progress:
        n_images = embed_parts(run, parse_parts(data), out, device=device, progress=Bars(progress).watch("embedding"))
    lines = [f"{name}: {n:,} images" for name, n in n_images.items()]
    print_result({"file": str(out), "n_images": n_images}, "\n".join([*lines, f"file: {out}"]), as_json)


def experiment(
    file: Annotated[str, typer.Argument(help="An experiment in training/configs/experiments, or a .toml file.")],
    out: Annotated[
        Path, typer.Option(help="Folder for runs, tables and plots, not a file; finished runs in it are kept.")
    ],
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
    with progress_bars() as progress:
        bars = Bars(progress)
        try:
            result = run_experiment(
                plan, out, n_processes=jobs, device=device, observe=bars.run, measured=bars.watch("measuring")
            )
        except KeyboardInterrupt:
            messages.print(f"interrupted: the same command goes on from the last checkpoints in {out}")
            raise typer.Exit(INTERRUPTED) from None
    print_result(to_json(result), f"{result}\nin {out}", as_json)
    if result.failures:
        for failure in result.failures:
            messages.print(f"error: {failure}", style="bold red", markup=False)
        raise typer.Exit(COULD_NOT_RUN)
