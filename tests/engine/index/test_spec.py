"""The declaration of an index: parsed values equal the text, and meaningless texts are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.engine.index.spec import IndexSpec
from retrieval.errors import InvalidInput


@given(lists=st.integers(1, 9_999_999), data=st.data())
def test_specs_round_trip(lists: int, data: st.DataObject) -> None:
    probes = data.draw(st.integers(1, lists))
    spec = IndexSpec.parse(f"IVF{lists},nprobe={probes}")
    assert (spec.n_lists, spec.n_probes, spec.is_exact) == (lists, probes, probes == lists)
    assert IndexSpec.parse(str(spec)) == spec


def test_the_flat_spec() -> None:
    spec = IndexSpec.parse("Flat")
    assert (str(spec), spec.is_exact, spec == IndexSpec()) == ("Flat", True, True)


@pytest.mark.parametrize(
    "text",
    ["", "flat", "Flat ", "IVF8", "IVF8,nprobe=0", "IVF0,nprobe=0", "IVF8,nprobe=9", "IVF-1,nprobe=1", "HNSW32"],
)
def test_unknown_specs(text: str) -> None:
    with pytest.raises(InvalidInput, match="index: "):
        IndexSpec.parse(text)
