"""The scheduler refuses to run for nothing."""

from __future__ import annotations

import pytest

from retrieval.edge.jobs.schedule import run_beat
from retrieval.edge.settings import load_settings
from retrieval.errors import InvalidSettings
from tests.edge.jobs.conftest import CATALOG


@pytest.mark.parametrize("missing", ["audit_every_h", "audit_catalog", "audit_manifest"])
def test_a_scheduler_without_a_schedule_does_not_start(missing: str) -> None:
    """All three settings are needed."""
    given: dict[str, object] = {"audit_every_h": 1.0, "audit_catalog": CATALOG, "audit_manifest": "images"}
    del given[missing]
    with pytest.raises(InvalidSettings, match="RETRIEVAL_AUDIT_EVERY_H"):
        run_beat(load_settings(**given))
