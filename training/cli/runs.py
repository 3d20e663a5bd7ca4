"""Commands that train, and that use a finished run: train, embed, experiment."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from retrieval.terminal import COULD_NOT_RUN, INTERRUPTED, err, print_error
from training.cli.terminal import AsJson, bars, print_result, read_reporting, report_passed_over


def train(  # noqa: PLR0913  # the options of a command are its parameters
    data: Annotated[str, typer.Option(help="Training images: folder or table.")],
    validation: Annotated[str, typer.Option(help="Images of other classes, to measure the result: folder or table.")],
    out: Annotated[Path, typer.Option(help="New folder for the run: configuration, checkpoint, evaluation.")],
    config: Annotated[str, typer.Option(help="A configuration in training/configs, or a .toml file.")] = "default",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the checkpoint in OUT, if there is one.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    seed: Annotated[int | None, typer.Option(min=0, help="Replace the seed of the configuration.")] = None,
    allow_shared_classes: Annotated[
        bool, typer.Option("--allow-shared-classes", help="Allow validation classes that are also used for training.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train an embedder and measure it on classes that it has not seen.

    The progress bar shows the loss, the shares of positive and of negative pairs of the batch that are still on the
    wrong side of their margin (active), images per second, and R@1 and OPIS of the last evaluation. TensorBoard shows
    them as curves: tensorboard --logdir OUT/tensorboard.

    Several devices share each batch: torchrun --nproc-per-node 2 -m training train ..., or accelerate launch
    --num_processes 2 -m training train ... (with --cpu for processes on the CPU).

    Ctrl-C finishes the step, writes a checkpoint and ends with exit code 130, in every process. The same command with
    --resume continues from it; the weights are bit-identical to those of an uninterrupted run. If stderr is no
    terminal, each work prints a line for every tenth of it.
    """
    from training.config import load_config
    from training.data import require_disjoint
    from training.loop import Observers, is_main_process, leave_processes, train_embedder

    started = time.perf_counter()
    settings = load_config(config)
    if seed is not None:
        settings = replace(settings, seed=seed)
    passed_over: list[str] = []
    items, held_out = read_reporting(data, passed_over), read_reporting(validation, passed_over)
    if not allow_shared_classes:
        require_disjoint({f"--data {data}": items, f"--validation {validation}": held_out})
    with _interruptible(f"--resume continues from the last checkpoint in {out}"), bars() as shown:
        observers = Observers(
            read=shown.watch("reading images"),
            head=shown.watch("features"),
            evaluated=shown.watch("evaluating"),
            step=shown.step,
            message=err.print,
        )
        evaluation = train_embedder(settings, items, held_out, out, device=device, resume=resume, observers=observers)
    seconds = time.perf_counter() - started
    result = {"run": str(out), "seconds": seconds, "held_out": evaluation.to_json(), "passed_over": passed_over}
    if is_main_process():
        print_result(result, f"{evaluation}\nrun: {out} ({seconds:.0f} s)", as_json)
    leave_processes()


def embed(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    data: Annotated[list[str], typer.Option(help="NAME=FOLDER or NAME=TABLE; may be given several times.")],
    out: Annotated[Path, typer.Option(help="File to write, .npz.")],
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Embed images with a finished run: embeddings, labels and ids of each NAME in one .npz file."""
    from training.embeddings import embed_parts, parse_parts

    passed_over: list[str] = []
    with bars() as shown:
        n_images = embed_parts(
            run,
            parse_parts(data),
            out,
            device=device,
            progress=shown.watch("embedding"),
            passing_over=passed_over.extend,
        )
    report_passed_over(passed_over)
    lines = [f"{name}: {n:,} images" for name, n in n_images.items()]
    result = {"file": str(out), "n_images": n_images, "passed_over": passed_over}
    print_result(result, "\n".join([*lines, f"file: {out}"]), as_json)


def experiment(  # the options of a command are its parameters
    file: Annotated[str, typer.Argument(help="An experiment in training/configs/experiments, or a .toml file.")],
    out: Annotated[Path, typer.Option(help="Folder for runs, tables and plots. Finished runs in it are kept.")],
    data: Annotated[Path, typer.Option(help="Folder at which relative paths in the file start.")] = Path(),
    jobs: Annotated[
        int, typer.Option(min=1, help="Number of runs at the same time; with 2 or more, each has one thread.")
    ] = 1,
    seeds: Annotated[list[int] | None, typer.Option(min=0, help="Replace the seeds of the file.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Train every arm with every seed and an equal budget, measure all in the same way and compare them.

    Finished runs are skipped and interrupted ones continue. A run that fails does not end the others (exit code 3).
    Ctrl-C ends the command with exit code 130. Writes table.md, table.csv, runs.csv, table.json and plots into OUT.
    """
    from training.experiment import load_experiment, run_experiment, to_json

    plan = load_experiment(file, root=data)
    if seeds:
        plan = plan.with_seeds(tuple(dict.fromkeys(seeds)))
    with _interruptible(f"the same command continues from the last checkpoints in {out}"), bars() as shown:
        result = run_experiment(
            plan, out, n_processes=jobs, device=device, observe=shown.run, measured=shown.watch("measuring")
        )
    report_passed_over(result.passed_over)
    print_result(to_json(result), f"{result}\nin {out}", as_json)
    if result.failures:
        for failure in result.failures:
            print_error(failure)
        raise typer.Exit(COULD_NOT_RUN)


@contextmanager
def _interruptible(hint: str) -> Iterator[None]:
    """End the command with exit code 130 and a hint if it is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        from training.loop import is_main_process

        if is_main_process():  # one of several processes speaks
            err.print(f"interrupted: {hint}", markup=False)
        raise typer.Exit(INTERRUPTED) from None
