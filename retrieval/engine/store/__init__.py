"""The store of all artefacts. `Store` has a part for each kind: bundles, operating points, snapshots, audits."""

from retrieval.engine.store.store import REPORT, Store, check_catalog_name

__all__ = ["REPORT", "Store", "check_catalog_name"]
