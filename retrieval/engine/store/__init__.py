"""The store of all artefacts: one part each for bundles, operating points, snapshots and audits."""

from retrieval.engine.store.audits import REPORT
from retrieval.engine.store.snapshots import check_catalog_name
from retrieval.engine.store.store import Store

__all__ = ["REPORT", "Store", "check_catalog_name"]
