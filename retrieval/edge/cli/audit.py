"""`retrieval audit`: measure the active threshold on new labelled images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retrieval.edge.cli.options import Address, Catalog, Json, Manifest, Wait, absolute, connected, report_passed_over
from retrieval.edge.cli.replies import as_dict, followed, print_job
from retrieval.terminal import VERDICT_FAILED, out, print_json, print_table, progress_bar

if TYPE_CHECKING:
    from retrieval.v1.audits_pb2 import Audit


def audit(
    catalog: Catalog,
    manifest: Manifest,
    group_by: Annotated[list[str] | None, typer.Option(help="A column that names groups; may be repeated.")] = None,
    report: Annotated[Path | None, typer.Option(help="Copy report.html and report.json into this folder.")] = None,
    wait: Wait = True,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Measure the active threshold on new labelled images. The exit code is 1 if the verdict is "failed"."""
    from retrieval.v1 import audits_pb2

    request = audits_pb2.StartAuditRequest(catalog=catalog, manifest_uri=absolute(manifest), group_by=group_by or [])
    with connected(address) as client:
        job = client.call(client.audits.StartAudit, request)
        if not wait:
            print_job(job, as_json)
            return
        with progress_bar(f"auditing {catalog}") as progress:
            job = client.wait(job, followed(progress))
        found = client.call(client.audits.GetAudit, audits_pb2.GetAuditRequest(catalog=catalog, audit_id=job.result_id))
    if report is not None:
        _copy_report(found, report)
    report_passed_over(job.passed_over)
    print_json({**as_dict(found), "passed_over": list(job.passed_over)}) if as_json else _print_audit(found)
    if found.verdict != audits_pb2.VERDICT_PASSED:
        raise typer.Exit(VERDICT_FAILED)


def _copy_report(found: "Audit", folder: Path) -> None:
    """Copy the report of an audit from the store into a folder."""
    from retrieval.contract.files import failing_as, read_file
    from retrieval.errors import Unavailable

    folder.mkdir(parents=True, exist_ok=True)
    for uri in (found.report_html_uri, found.report_json_uri):
        with failing_as(Unavailable, f"{uri} cannot be read"):
            (folder / uri.rsplit("/", 1)[-1]).write_bytes(read_file(uri))


def _print_audit(found: "Audit") -> None:
    from retrieval.v1 import audits_pb2

    verdict = "PASSED" if found.verdict == audits_pb2.VERDICT_PASSED else "FAILED"
    rows = [("ok" if finding.passed else "FAILED", finding.limit, finding.explanation) for finding in found.findings]
    print_table(f"Audit of {found.catalog}: {verdict}", ("", "limit", "found"), rows)
    out.print(
        f"R@1 {found.recall_at_1:.3f}, OPIS {found.opis:.3g} (noise floor {found.opis_floor:.3g}), "
        f"{found.n_classes} classes, {found.n_images} images\nreport: {found.report_html_uri}",
        markup=False,
    )
