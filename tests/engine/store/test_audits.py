"""An audit is there once its report is there."""

from __future__ import annotations

import pytest

from retrieval.engine.store import Store
from retrieval.errors import (
    CorruptArtifact,
    UnknownJob,
)
from tests.engine.store.artefacts import AUDIT


def test_audits(store: Store) -> None:
    assert store.audits("shop") == []
    with pytest.raises(UnknownJob, match="'shop' has no audit a1"):
        store.audit("shop", "a1")
    store.put_audit("shop", "a1", AUDIT)
    assert store.audits("shop") == ["a1"]
    assert store.audit("shop", "a1") == {"verdict": "passed"}
    assert store.audit_uri("shop", "a1", "report.html") == f"{store.url}/catalogs/shop/audits/a1/report.html"
    store.objects.put("catalogs/shop/audits/a1/report.json", b'{"verd')
    with pytest.raises(CorruptArtifact, match="audit a1"):
        store.audit("shop", "a1")
