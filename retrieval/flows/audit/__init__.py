"""Audits: measure the active threshold on new labelled images and compare it with the promises of calibration."""

from retrieval.flows.audit.measuring import AuditLimits, AuditRequest, measure, run_audit
from retrieval.flows.audit.report import AuditReport, audits, finished_audit

__all__ = ["AuditLimits", "AuditReport", "AuditRequest", "audits", "finished_audit", "measure", "run_audit"]
