"""Commands on model bundles: export, evaluate."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from training.cli.terminal import AsJson, bars, print_result, read_reporting


def export(  # noqa: PLR0913  # the options of a command are its parameters
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="New folder for the bundle.")],
    precision: Annotated[
        Literal["fp32", "fp16", "int8"],
        typer.Option(
            help="Number format of the backbone. fp16 halves the file, but CPUs without its instructions run it slower "
            "than fp32. int8 is a third of the file, faster on CPUs, and changes more decisions."
        ),
    ] = "fp32",
    images: Annotated[
        str | None,
        typer.Option(
            help="Labelled images, folder or table, of classes that were not used for training, for instance those of "
            "`train --validation`. The shift of similarity is measured on them. Needed for fp16 and int8."
        ),
    ] = None,
    calibration_images: Annotated[
        str | None,
        typer.Option(help="Images, folder or table, that set the ranges of int8; usually the training images."),
    ] = None,
    far: Annotated[
        float | None,
        typer.Option(min=1e-6, max=0.5, help="False accept rate of the threshold. [that of the run's evaluation]"),
    ] = None,
    max_flips: Annotated[
        float, typer.Option(min=0, max=1, help="Largest share of the accepted pairs whose decision may change.")
    ] = 0.1,
    licence: Annotated[str, typer.Option(help="Licence of the model, for its card.")] = "not stated",
    as_json: AsJson = False,
) -> None:
    """Export a finished run to ONNX, check it against the production encoder, write the model bundle and its card.

    With --images it also measures how far similarities near the threshold move and which decisions flip. If more than
    --max-flips flip, nothing is written.
    """
    from training.export import ExportOptions, ExportProgress, export_run, shift_of

    passed_over: list[str] = []
    measured = read_reporting(images, passed_over) if images else None
    calibrating = read_reporting(calibration_images, passed_over) if calibration_images else None
    with bars() as shown:
        options = ExportOptions(
            precision=precision,
            images=measured,
            calibration_images=calibrating,
            far_target=far,
            max_flips=max_flips,
            licence=licence,
        )
        reported = ExportProgress(calibrating=shown.watch("calibrating"), measuring=shown.watch("measuring"))
        bundle = export_run(run, out, options, progress=reported)
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
        "passed_over": passed_over,
    }
    text = f"bundle {bundle.digest} in {out}: {bundle.dimension} dimensions, {precision}, ONNX opset {bundle.opset}"
    print_result(result, text if shift is None else f"{text}\n{shift}", as_json)


def evaluate(
    bundle: Annotated[Path, typer.Option(help="Folder of the model bundle.")],
    data: Annotated[str, typer.Option(help="Labelled images: folder or table.")],
    far: Annotated[float, typer.Option(min=1e-6, max=0.5, help="False accept rate at which TAR is measured.")] = 1e-2,
    family: Annotated[
        str,
        typer.Option(help="Column that names families of classes, such as the maker, which are then split as a whole."),
    ] = "",
    report: Annotated[Path | None, typer.Option(help="Folder for tables and plots.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure an exported model with the production encoder. Each image of DATA is a query against all others.

    Measures ranking, TAR at several FARs, OPIS, and the rates on half of the classes at a threshold of the other half.
    """
    from retrieval.contract.bundle import open_bundle
    from retrieval.contract.manifest import families_of
    from retrieval.engine.encoder import Encoder
    from training.evaluation import embed_images
    from training.evaluation import evaluate as evaluate_embeddings
    from training.evaluation.report import to_markdown, write_report

    encoder = Encoder.open(open_bundle(bundle))
    passed_over: list[str] = []
    items = read_reporting(data, passed_over)
    families_of(items, data, family)  # refused before the images are embedded
    with bars() as shown:
        found = embed_images(
            items,
            encoder.embed,
            encoder.bundle.preprocessing,
            max_unreadable=0.01,
            progress=shown.watch("embedding"),
        )
    labels = found.labels
    evaluation = evaluate_embeddings(
        found.embeddings,
        labels,
        far_target=far,
        families=families_of(found.items, data, family),
        n_unreadable=len(found.unreadable),
    )
    written = write_report(evaluation, found.embeddings, labels, report) if report else []
    lines = [to_markdown(evaluation), *(f"wrote {path}" for path in written)]
    print_result({**evaluation.to_json(), "passed_over": passed_over}, "\n".join(lines), as_json)
