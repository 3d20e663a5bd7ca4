"""Compiled code is kept for the next process, and what is kept is never trusted: it is compiled again if damaged."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval import compiled
from retrieval.compiled import _CodeFiles

ROWS = np.arange(10.0)


def total(rows: Any) -> float:
    """A loop."""
    found = 0.0
    for i in range(rows.shape[0]):
        found += rows[i]
    return found


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where compiled code is kept in these tests."""
    monkeypatch.setattr(compiled, "_kept_in", tmp_path / "kept")
    return tmp_path / "kept"


def compile_and_run(rows: np.ndarray = ROWS) -> str:
    """Run the loop as a new process does; returns whether its code was `kept` or had to be `compiled`."""
    loop: Any = compiled.compiled(total)
    assert loop(rows) == rows.sum()
    hits, misses = (sum(count.values()) for count in (loop.stats.cache_hits, loop.stats.cache_misses))
    assert hits + misses == 1
    return "kept" if hits else "compiled"


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_code_is_kept_for_each_signature(folder: Path) -> None:
    """Arrays of another type need other code."""
    assert [compile_and_run(), compile_and_run()] == ["compiled", "kept"]
    single = ROWS.astype(np.float32)
    assert [compile_and_run(single), compile_and_run(single), compile_and_run()] == ["compiled", "kept", "kept"]
    assert len(files(folder)) == 2


def flip(place: float) -> Callable[[bytes], bytes]:
    """Change one byte at a share of the length."""

    def change(content: bytes) -> bytes:
        number = int(place * (len(content) - 1))
        return content[:number] + bytes([content[number] ^ 1]) + content[number + 1 :]

    return change


@pytest.mark.parametrize(
    "damage",
    [lambda content: b"", lambda content: content[:100], lambda content: content[:-1], *map(flip, (0, 0.01, 0.5, 1))],
    ids=["empty", "cut", "one byte short", "checksum", "start", "middle", "end"],
)
def test_damaged_code_is_compiled_again(damage: Callable[[bytes], bytes], folder: Path) -> None:
    """It is never run, and the file is whole afterwards."""
    compile_and_run()
    (path,) = files(folder)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert [compile_and_run(), compile_and_run()] == ["compiled", "kept"]


def test_code_of_another_signature_is_not_run(folder: Path) -> None:
    """A file under the wrong name, with the right checksum."""
    compile_and_run()
    (first,) = files(folder)
    compile_and_run(ROWS.astype(np.float32))
    (second,) = set(files(folder)) - {first}
    second.write_bytes(first.read_bytes())
    assert compile_and_run(ROWS.astype(np.float32)) == "compiled"


def test_nothing_is_kept_where_nothing_can_be_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, or a file in place of the folder: the loop runs all the same."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(_CodeFiles, "_open_for_write", full)
        assert [compile_and_run(), compile_and_run()] == ["compiled", "compiled"]
    assert files(folder) == []
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(compiled, "_kept_in", tmp_path / "file")
    loop: Any = compiled.compiled(total)
    assert loop(ROWS) == ROWS.sum()


PROCESS = """
import sys
from pathlib import Path
import numpy as np
from retrieval.compiled import keep_code_in
keep_code_in(Path(sys.argv[1]))
from retrieval.engine.index.exact.hits import read_keys
keys = np.arange(int(sys.argv[2]))
keys.flags.writeable = sys.argv[3] == "writable"
rows, scores = read_keys(keys)
assert len(rows) == len(keys)
print(sum(read_keys.stats.cache_hits.values()))
"""


@pytest.mark.slow
def test_processes_that_start_together_share_what_they_compile(folder: Path) -> None:
    """None fails or gets the code of another signature; the next processes compile nothing."""

    def start(number: int) -> subprocess.Popen[str]:
        arguments = [str(folder), str(number), ("writable", "read-only")[number % 2]]
        return subprocess.Popen([sys.executable, "-c", PROCESS, *arguments], stdout=subprocess.PIPE, text=True)

    for _ in range(2):
        processes = [start(number) for number in range(4)]
        hits = [process.communicate(timeout=120)[0].strip() for process in processes]
        assert [process.returncode for process in processes] == [0] * 4
    assert hits == ["1"] * 4
