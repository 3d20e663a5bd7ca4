"""`retrieval calibrate`: choose one threshold for an error target, without a server."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retrieval.edge.cli.options import Family, Json, StateDir, Store, report_passed_over
from retrieval.edge.cli.replies import print_needs_reindex
from retrieval.terminal import err, out, print_json, print_table, progress_bars

if TYPE_CHECKING:
    from retrieval.consistency import Target
    from retrieval.contract.bundle import BundleDigest
    from retrieval.contract.operating_point import ScoreComparison
    from retrieval.engine.store import Store as ArtifactStore
    from retrieval.flows.calibrate import Calibration


def calibrate(  # noqa: PLR0913  # the options of a command are its parameters
    bundle: Annotated[
        str, typer.Option(help="A folder that `training export` wrote, or the id or name of a bundle in the store.")
    ],
    data: Annotated[str, typer.Option(help="Labelled images of classes that were not used for training.")],
    cohort: Annotated[
        str, typer.Option(help="Images of other classes of the same kind; with them, cohort scores are tried too.")
    ] = "",
    k: Annotated[
        int, typer.Option(min=1, help="Number of nearest cohort images over which the cohort score averages.")
    ] = 20,
    far: Annotated[
        float | None, typer.Option(help="Target: pooled false accept rate; the same as --target far=... [0.01]")
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            help="Another target: class-far=0.01 (mean of the FAR over the classes), frr=0.1 (share of the true pairs "
            "that are rejected), precision=0.9@0.01 (if a share of 0.01 of the compared pairs match), f1@0.01 (the "
            "largest F1 at that share), utility (the largest mean over the classes of the utility of OPIS), "
            "false-matches=1@1000000 (expected number for a query in a gallery of a million)."
        ),
    ] = "",
    prevalence: Annotated[
        float, typer.Option(help="Share of matches among compared pairs that match probabilities assume.")
    ] = 0.01,
    confidence: Annotated[float, typer.Option(help="Confidence level of the intervals.")] = 0.95,
    certified_far: Annotated[float, typer.Option(help="Certificate: limit on the FAR of a new class.")] = 0.1,
    certified_delta: Annotated[
        float, typer.Option(help="Certificate: largest probability that a new class exceeds this limit.")
    ] = 0.05,
    certified_mean_far: Annotated[
        float, typer.Option(help="Second certificate: limit on the FAR of a new class on average.")
    ] = 0.05,
    certified_strict: Annotated[
        bool,
        typer.Option(help="Make certificates that hold exactly. Others may fall short by about 1 / classes."),
    ] = True,
    certified_max_images: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="For the certificates, draw at most this many images of each class, with seed 0, so that one large "
            "class does not decide them. [all]",
        ),
    ] = None,
    family: Family = "",
    catalog_labels: Annotated[
        bool,
        typer.Option(
            "--catalog-labels",
            help="The items of the catalogues carry labels: count searches in a labelled gallery, and also try scores "
            "that use the labels. Catalogues without labels then refuse such a score.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resampling.")] = 0,
    activate: Annotated[bool, typer.Option("--activate", help="Also make the new operating point active.")] = False,
    store: Store = None,
    state_dir: StateDir = None,
    as_json: Json = False,
) -> None:
    """Choose one threshold for an error target on labelled images, and measure its uncertainty.

    Also prints the share of true pairs that the threshold rejects. If an operating point of this bundle with the same
    score is active, also prints which decisions on these images change.
    """
    from retrieval.edge.settings import load_settings, use_cores_once

    settings = load_settings(store_url=store, state_dir=state_dir)
    use_cores_once(settings.n_threads)
    from retrieval.edge.jobs.records import now
    from retrieval.edge.wiring import offline_parts
    from retrieval.flows.calibrate import CalibrationRequest, CalibrationTarget, run_calibration

    wanted = CalibrationTarget(
        target=_target(far, target),
        prevalence=prevalence,
        confidence=confidence,
        certified_far=certified_far,
        certified_delta=certified_delta,
        certified_mean_far=certified_mean_far,
        certified_strict=certified_strict,
        certified_max_images=certified_max_images,
    )
    parts = offline_parts(settings, limits=settings.limits_for(data, cohort))
    request = CalibrationRequest(
        bundle=_digest(parts.store, bundle),
        data=data,
        cohort=cohort,
        k=k,
        target=wanted,
        seed=seed,
        activate=activate,
        family=family,
        catalog_labels=catalog_labels,
    )
    with progress_bars() as progress:
        found = run_calibration(
            parts.store,
            request,
            embedder=parts.embedder,
            created_at=now(),
            progress=progress,
        )
    report_passed_over(found.passed_over)
    for failure in found.failures:
        err.print(f"left out {failure.item_id}: {failure.reason}", markup=False)
    print_json(found.to_json()) if as_json else _print_calibration(found)


def _target(far: float | None, target: str) -> "Target":
    """Return the target that the options name. Raises InvalidInput if both do, or if it cannot be parsed."""
    from retrieval.consistency import Target, parse_target
    from retrieval.errors import InvalidInput

    if far is not None and target:
        raise InvalidInput(f"expected --far or --target, found both: --far {far:g} and --target {target}")
    return parse_target(target) if target else Target("far", 0.01 if far is None else far)


def _digest(store: "ArtifactStore", bundle: str) -> "BundleDigest":
    """Return the digest of a bundle: a folder, which is added to the store, or the start of a digest in the store."""
    from retrieval.errors import UnknownBundle

    if Path(bundle).is_dir():
        return store.add_bundle(Path(bundle)).digest
    digests = store.bundles()
    names = [store.bundle_name(digest) for digest in digests]
    if not bundle or not any(known.startswith(bundle) for known in (*digests, *names)):
        known = f"it holds {', '.join(digests)}" if digests else "it holds no bundle yet"
        raise UnknownBundle(
            f"--bundle {bundle!r} is neither a folder nor an id in the store {store.url}: name the folder that "
            f"`training export` wrote, or a bundle of the store ({known})"
        )
    return store.find_bundle(bundle)


def _print_calibration(found: "Calibration") -> None:
    """Print the scores that were compared, the chosen threshold with its evidence, and what it changes."""
    from retrieval.edge.cli.evidence import evidence
    from retrieval.edge.messages import operating_point_message

    point, choice = found.point, found.point.choice
    columns: tuple[str, ...] = ("score", "TAR", "FAR", "R@1", "OPIS (log FAR)", "noise floor", "debiased")
    if point.n_rounds:
        columns += ("FAR of strangers",)
    title = f"{choice.n_classes} calibration classes, {choice.n_images} images; target: {choice.target.describe()}"
    rows = [_score_row(entry, chosen=entry.score_digest == point.score_digest) for entry in point.compared]
    print_table(title, columns, rows)
    out.print(evidence(operating_point_message(point, active=found.active)), markup=False)
    if choice.class_tar is not None:
        out.print(f"TAR, mean over classes {choice.class_tar:.3f}")
    around = next((entry.around_target for entry in point.compared if entry.score_digest == point.score_digest), None)
    if around is not None:
        debiased = "unknown" if around.debiased is None else f"{around.debiased:.2e}"
        out.print(
            f"OPIS around the target (FAR {around.far_low:.2g} to {around.far_high:.2g}): {around.opis:.2e}, noise "
            f"floor {around.floor:.2e}, debiased {debiased}"
        )
    for warning in (*choice.warnings, *found.advice):
        out.print(f"note: {warning}", markup=False)
    before = "compared with the operating point that was active"
    out.print(f"{before}: {found.changes}" if found.changes else f"not {before}: {found.no_changes}")
    state = (
        "active" if found.active else f"stored; to activate it: `retrieval operating-points activate {point.id[:8]}`"
    )
    out.print(f"operating point {point.id} of bundle {point.bundle_digest}: {state}")
    print_needs_reindex(found.needs_reindex, active=found.active)


def _score_row(entry: "ScoreComparison", *, chosen: bool) -> tuple[str, ...]:
    state = " (chosen)" if chosen else " (refused)" if entry.refused else ""
    strangers = () if entry.stranger_far is None else (f"{entry.stranger_far:.2e}",)
    return (
        entry.kind + (f", k {entry.k}" if entry.k else "") + state,
        f"{entry.tar:.3f}",
        f"{entry.far:.2e}",
        f"{entry.recall_at_1:.3f}",
        f"{entry.opis:.2e}",
        f"{entry.opis_floor:.2e}",
        "unknown" if entry.opis_debiased is None else f"{entry.opis_debiased:.2e}",
        *strangers,
    )
