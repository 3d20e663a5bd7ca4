"""Training decodes within the memory that images of a process may take, as serving does."""

from __future__ import annotations

import threading
from pathlib import Path

from retrieval.contract.limits import DEFAULT_LIMITS
from retrieval.contract.manifest import Item
from retrieval.contract.memory import image_memory
from tests.pictures import encoded, noise
from tests.training.data.conftest import PREPROCESSING
from training.data.decoding import read_item
from training.data.duplicates import find_duplicates


def test_training_waits_for_memory(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(noise(64)))
    item = Item(id="a", uri=str(tmp_path / "a.png"), label="x", attributes={})
    done = [threading.Event(), threading.Event()]

    def read() -> None:
        read_item(item, PREPROCESSING)
        done[0].set()

    def compare() -> None:
        find_duplicates({"train": [item]}, progress=lambda *_: None)
        done[1].set()

    threads = [threading.Thread(target=read), threading.Thread(target=compare)]
    with image_memory(DEFAULT_LIMITS.small_bytes, DEFAULT_LIMITS, is_small=True):
        for thread in threads:
            thread.start()
        assert not any(event.wait(0.3) for event in done)
    for thread in threads:
        thread.join(20)
    assert all(event.is_set() for event in done)
