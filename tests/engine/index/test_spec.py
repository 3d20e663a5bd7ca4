"""The declaration of an index: parsed values equal the text, and meaningless texts are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.engine.index.spec import IndexSpec
from retrieval.errors import InvalidInput


@given(lists=st.integers(1, 9_999_999), data=st.data())
def test_lists_round_trip(lists: int, data: st.DataObject) -> None:
    probes = data.draw(st.integers(1, lists))
    codes = data.draw(st.sampled_from(["", "SQfp16", "RaBitQ", "PQ16"]))
    text = f"IVF{lists},{codes},nprobe={probes}" if codes else f"IVF{lists},nprobe={probes}"
    spec = IndexSpec.parse(text)
    assert (spec.kind, spec.n_lists, spec.n_probes, spec.codes) == ("IVF", lists, probes, codes)
    assert spec.is_exact == (probes == lists and codes in ("", "SQfp16"))
    assert spec.n_code_bytes == (16 if codes == "PQ16" else 0)
    assert str(spec) == text
    assert IndexSpec.parse(str(spec)) == spec


def test_exact_is_the_default() -> None:
    spec = IndexSpec.parse("Exact")
    assert (str(spec), spec.is_exact, spec == IndexSpec()) == ("Exact", True, True)


def test_flat_is_complete_too() -> None:
    spec = IndexSpec.parse("Flat")
    assert (str(spec), spec.is_exact, spec == IndexSpec()) == ("Flat", True, False)


def test_a_graph() -> None:
    spec = IndexSpec.parse("HNSW32,ef=128")
    assert (spec.kind, spec.n_links, spec.n_candidates, spec.is_exact) == ("HNSW", 32, 128, False)
    assert (str(spec), spec.least_items) == ("HNSW32,ef=128", 0)


def test_a_graph_that_a_gpu_builds() -> None:
    spec = IndexSpec.parse("CAGRA64,ef=128")
    assert (spec.kind, spec.n_links, spec.n_candidates, spec.is_exact) == ("CAGRA", 64, 128, False)
    assert (str(spec), spec.least_items) == ("CAGRA64,ef=128", 65)
    with pytest.raises(InvalidInput, match="CAGRA64,ef=128: expected more items than links of a vector, found 64"):
        spec.check_items(64)
    for text in ("CAGRA63,ef=128", "CAGRA2,ef=8", "CAGRA514,ef=8"):
        with pytest.raises(InvalidInput, match="expected an even degree from 4 to 512"):
            IndexSpec.parse(text)


def test_milvus() -> None:
    """What the address leaves out is written into the spec."""
    spec = IndexSpec.parse("milvus:http://host:19530?name=shop")
    assert (spec.kind, spec.is_exact) == ("milvus", True)
    assert str(spec) == "milvus:http://host:19530?name=shop&index=FLAT"
    assert IndexSpec.parse(str(spec)) == spec
    assert not IndexSpec.parse("milvus:http://host:19530?index=HNSW&M=16&efConstruction=100&ef=64").is_exact


@pytest.mark.parametrize(
    ("text", "n_items", "message"),
    [
        ("IVF4,nprobe=1", 155, r"at least 156 items \(39 per list\), found 155: use Exact or at most 3 lists"),
        ("IVF4,nprobe=1", 30, "found 30: use Exact$"),
        ("IVF4,PQ8,nprobe=1", 9983, r"at least 9984 items \(PQ learns 256 centres\), found 9983: use Exact$"),
        ("IVF999,PQ8,nprobe=1", 9999, r"at least 38961 items \(39 per list\), found 9999: use Exact$"),
    ],
)
def test_too_few_items(text: str, n_items: int, message: str) -> None:
    spec = IndexSpec.parse(text)
    spec.check_items(spec.least_items)
    with pytest.raises(InvalidInput, match=message):
        spec.check_items(n_items)


@pytest.mark.parametrize(
    "text",
    [
        *("", "flat", "exact", "Flat ", "Exact,", "Flat\n", "IVF8", "IVF8,nprobe=0", "IVF0,nprobe=0", "IVF8,nprobe=9"),
        *("IVF-1,nprobe=1", "IVF8,SQ8,nprobe=1", "IVF8,PQ,nprobe=1", "IVF8,PQ0,nprobe=1", "IVF8,,nprobe=1"),
        *("HNSW32", "HNSW1,ef=8", "HNSW257,ef=8", "HNSW8,ef=0", "HNSW8", "milvus:", "milvus", "milvus:a b"),
    ],
)
def test_unknown_specs(text: str) -> None:
    with pytest.raises(InvalidInput, match="index"):
        IndexSpec.parse(text)
