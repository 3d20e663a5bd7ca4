"""Finished audits in the store."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from retrieval.contract.documents import read_object
from retrieval.engine.store.objects import Objects, checked_name
from retrieval.errors import UnknownJob

REPORT = "report.json"


class Audits:
    """The part of the store that holds audits."""

    objects: Objects

    def put_audit(self, catalog: str, audit_id: str, files: Mapping[str, bytes]) -> None:
        """Store the files of an audit, the report last."""
        for name, data in sorted(files.items(), key=lambda file: file[0] == REPORT):
            self.objects.put(f"{_audit_prefix(catalog, audit_id)}/{name}", data)

    def audit(self, catalog: str, audit_id: str) -> dict[str, Any]:
        """Return the report of an audit as plain JSON. Raises UnknownJob, CorruptArtifact."""
        data = self.objects.get(f"{_audit_prefix(catalog, audit_id)}/{REPORT}")
        if data is None:
            raise UnknownJob(f"catalogue {catalog!r} has no audit {audit_id}")
        return read_object(data, f"audit {audit_id}: its report")

    def audits(self, catalog: str) -> list[str]:
        """Return the ids of the finished audits of a catalogue."""
        names = self.objects.artefacts(_audits_prefix(catalog))
        return [name for name in names if self.objects.exists(f"{_audit_prefix(catalog, name)}/{REPORT}")]

    def audit_written(self, catalog: str, audit_id: str) -> datetime:
        """Return when an audit was finished."""
        return self.objects.modified(f"{_audit_prefix(catalog, audit_id)}/{REPORT}")

    def delete_audit(self, catalog: str, audit_id: str) -> None:
        """Remove an audit, its report first: a kill leaves no audit that lacks files."""
        self.objects.delete(f"{_audit_prefix(catalog, audit_id)}/{REPORT}")
        self.objects.delete(_audit_prefix(catalog, audit_id))

    def audit_uri(self, catalog: str, audit_id: str, name: str) -> str:
        """Return the URL of a file of an audit."""
        return f"{self.objects.url}/{_audit_prefix(catalog, audit_id)}/{name}"


def _audits_prefix(catalog: str) -> str:
    return f"catalogs/{checked_name(catalog, 'catalogue')}/audits"


def _audit_prefix(catalog: str, audit_id: str) -> str:
    return f"{_audits_prefix(catalog)}/{checked_name(audit_id, 'audit')}"
