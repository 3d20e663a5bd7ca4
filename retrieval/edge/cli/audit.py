"""`retrieval audit`: measure the active threshold on new labelled images. `retrieval audits`: the finished ones."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retrieval.edge.cli.options import (
    Address,
    Catalog,
    Family,
    Json,
    Manifest,
    Wait,
    absolute,
    check_early,
    connected,
    report_passed_over,
)
from retrieval.edge.cli.replies import as_dict, followed, moment, name_of, print_job
from retrieval.terminal import VERDICT_FAILED, out, print_json, print_table, progress_bar

if TYPE_CHECKING:
    from retrieval.v1.audits_pb2 import Audit


Report = Annotated[Path | None, typer.Option(help="Copy report.html and report.json into this folder.")]


def audit(  # noqa: PLR0913  # the options of a command are its parameters
    catalog: Catalog,
    manifest: Manifest,
    group_by: Annotated[list[str] | None, typer.Option(help="A column that names groups; may be repeated.")] = None,
    family: Family = "",
    report: Report = None,
    wait: Wait = True,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Measure the active threshold on new labelled images. The exit code is 1 if the verdict is "failed"."""
    from retrieval.v1 import audits_pb2

    check_early(manifest, labels_for="an audit", group_by=group_by or [], family=family)
    request = audits_pb2.StartAuditRequest(
        catalog=catalog, manifest_uri=absolute(manifest), group_by=group_by or [], family=family
    )
    with connected(address) as client:
        job = client.call(client.audits.StartAudit, request)
        if not wait:
            print_job(job, as_json)
            return
        with progress_bar(f"auditing {catalog}") as progress:
            job = client.wait(job, followed(progress))
        found = client.call(client.audits.GetAudit, audits_pb2.GetAuditRequest(catalog=catalog, audit_id=job.result_id))
    report_passed_over(job.passed_over)
    _show(found, report, as_json)
    if found.verdict != audits_pb2.VERDICT_PASSED:
        raise typer.Exit(VERDICT_FAILED)


def list_audits(catalog: Catalog, address: Address = None, as_json: Json = False) -> None:
    """List the finished audits of a catalogue, newest first."""
    from retrieval.v1 import audits_pb2

    with connected(address) as client:
        reply = client.call(client.audits.ListAudits, audits_pb2.ListAuditsRequest(catalog=catalog))
    if as_json:
        print_json([as_dict(found) for found in reply.audits])
        return
    rows = [
        (a.id, name_of(a, "verdict"), f"{a.far:.4g}", f"{a.tar:.3f}", a.n_classes, a.n_images,
         a.operating_point_id[:8], moment(a.created_at))
        if not a.problem
        else (a.id, "damaged", "", "", "", "", a.problem, "")
        for a in reply.audits
    ]  # fmt: skip
    columns = ("id", "verdict", "FAR", "TAR", "classes", "images", "point", "created")
    print_table(f"Audits of {catalog}", columns, rows)


def show_audit(
    catalog: Catalog,
    audit: Annotated[str, typer.Argument(help="Id of an audit, or its start; the newest one by default.")] = "",
    report: Report = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Show a finished audit. Unlike `retrieval audit`, it ends with 0 also if the verdict is "failed"."""
    from retrieval.errors import UnknownJob
    from retrieval.v1 import audits_pb2

    with connected(address) as client:
        if not audit:
            listed = client.call(client.audits.ListAudits, audits_pb2.ListAuditsRequest(catalog=catalog))
            if not listed.audits:
                raise UnknownJob(f"catalogue {catalog!r} has no finished audit: run one with `retrieval audit`")
            audit = listed.audits[0].id  # damaged ones are last
        found = client.call(client.audits.GetAudit, audits_pb2.GetAuditRequest(catalog=catalog, audit_id=audit))
    _show(found, report, as_json)


def _show(found: "Audit", report: Path | None, as_json: bool) -> None:
    """Copy the report if a folder is named, and print the audit."""
    if report is not None:
        _copy_report(found, report)
    page = str(report / "report.html") if report is not None else found.report_html_uri
    print_json(as_dict(found)) if as_json else _print_audit(found, page)


def _copy_report(found: "Audit", folder: Path) -> None:
    """Copy the report of an audit from the store into a folder."""
    from retrieval.contract.files import failing_as, read_file
    from retrieval.errors import Unavailable

    folder.mkdir(parents=True, exist_ok=True)
    for uri in (found.report_html_uri, found.report_json_uri):
        with failing_as(Unavailable, f"{uri} cannot be read"):
            (folder / uri.rsplit("/", 1)[-1]).write_bytes(read_file(uri))


def _print_audit(found: "Audit", page: str) -> None:
    from retrieval.v1 import audits_pb2

    verdict = "PASSED" if found.verdict == audits_pb2.VERDICT_PASSED else "FAILED"
    rows = [("ok" if finding.passed else "FAILED", finding.limit, finding.explanation) for finding in found.findings]
    print_table(f"Audit of {found.catalog}: {verdict}", ("", "limit", "found"), rows)
    families = f", {found.n_families} families (column {found.family})" if found.family else ""
    out.print(
        f"R@1 {found.recall_at_1:.3f}, OPIS {found.opis:.3g} (noise floor {found.opis_floor:.3g}), "
        f"{found.n_classes} classes, {found.n_images} images{families}\nreport: {page}",
        markup=False,
    )
