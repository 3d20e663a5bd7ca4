"""A file of an index that lost bytes, or of which one byte is another, is refused: no wrong answer, and no crash."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.engine.index.open import build_index, load_index
from retrieval.engine.index.spec import IndexSpec
from retrieval.errors import CorruptArtifact
from tests.engine.index.exact.galleries import KINDS

TEXTS = [
    "Exact", "Exact,fp16", "Flat", "IVF4,nprobe=1", "IVF4,SQfp16,nprobe=4", "IVF4,RaBitQ,nprobe=2", "HNSW6,ef=12",
]  # fmt: skip
N, D = 4200, 10
PREFIX = 24  # bytes before the header: magic, its length, checksum


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of each kind; Exact has lists, an offset column, and a header that is not full."""
    folder = tmp_path_factory.mktemp("files")
    vectors = KINDS["offset"](N, D - 2, np.random.default_rng(0))
    vectors[:, -1] = vectors[:, -1].clip(-1, 1)
    for text in TEXTS:
        build_index(vectors, IndexSpec.parse(text)).save(folder / text)
    return folder


def opened(path: Path, text: str) -> None:
    load_index(path, IndexSpec.parse(text), dimension=D, n_items=N)


@pytest.mark.parametrize("text", TEXTS)
def test_the_whole_file_opens(files: Path, text: str) -> None:
    opened(files / text, text)


@pytest.mark.parametrize("text", TEXTS)
def test_a_flipped_bit_of_the_first_bytes_is_refused(files: Path, text: str) -> None:
    """The length of the header moves all arrays, so that it must be checked before they are used."""
    damaged = files / f"{text} damaged"
    shutil.copy(files / text, damaged)
    content = (files / text).read_bytes()[:PREFIX]
    with damaged.open("r+b", buffering=0) as file:
        for bit in range(8 * PREFIX):
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            file.seek(0)
            file.write(changed)
            with pytest.raises(CorruptArtifact, match=r"cannot be read|is damaged"):
                opened(damaged, text)


@given(text=st.sampled_from(TEXTS), share=st.floats(0, 1), flip=st.integers(1, 255), data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_byte_that_changes_anywhere_is_refused(
    files: Path, text: str, share: float, flip: int, data: st.DataObject
) -> None:
    """Padding too: what the checksum covers has no gap."""
    content = bytearray((files / text).read_bytes())
    content[data.draw(st.integers(0, 2000)) if share < 0.3 else int(share * (len(content) - 1))] ^= flip
    damaged = files / "changed"
    damaged.write_bytes(content)
    with pytest.raises(CorruptArtifact, match=r"cannot be read|is damaged"):
        opened(damaged, text)


@given(text=st.sampled_from(TEXTS), share=st.floats(0, 1, exclude_max=True), more=st.binary(max_size=80))
@settings(max_examples=80, deadline=None)
def test_a_file_of_another_length_is_refused(files: Path, text: str, share: float, more: bytes) -> None:
    """It lost its end, or others wrote after it, or both."""
    content = (files / text).read_bytes()
    for changed in (content[: int(share * len(content))] + more, content + more + b"\0"):
        (files / "cut").write_bytes(changed)
        with pytest.raises(CorruptArtifact, match=r"cannot be read|is damaged"):
            opened(files / "cut", text)


@pytest.mark.parametrize(("text", "other"), [("Exact", "Exact,fp16"), ("Exact,fp16", "Exact"), ("Flat", "Exact")])
def test_a_file_of_another_kind_is_refused(files: Path, text: str, other: str) -> None:
    """Scores of vectors in float16 are others than those of the vectors."""
    with pytest.raises(CorruptArtifact, match=r"expected Exact.*, found Exact|cannot be read"):
        opened(files / text, other)
