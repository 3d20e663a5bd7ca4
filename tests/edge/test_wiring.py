"""Parts built from the settings: the limits of the settings reach them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

import pytest

from retrieval.edge import wiring
from retrieval.edge.settings import load_settings
from retrieval.edge.wiring import check_device, index_device, make_searcher, offline_parts
from retrieval.engine.matches import SearchResult
from retrieval.errors import DeviceUnavailable, Overloaded
from tests import pictures
from tests.edge.conftest import CATALOG, Running
from tests.photos import shot


def test_too_many_queries_are_refused_before_they_are_decoded(running: Running) -> None:
    """The limit on waiting queries also counts those whose image is still to be decoded."""
    settings = running.settings.model_copy(update={"max_waiting": 3, "threads": 1})
    searcher = make_searcher(settings)
    searcher.refresh()
    image = pictures.encoded(shot(3, 0))

    async def bursts() -> list[list[SearchResult | BaseException]]:
        return [
            await asyncio.gather(*(searcher.search(CATALOG, image) for _ in range(10)), return_exceptions=True)
            for _ in range(2)  # the count goes down again
        ]

    for answers in asyncio.run(bursts()):
        assert sum(isinstance(answer, SearchResult) for answer in answers) == 3
        assert sum(isinstance(answer, Overloaded) for answer in answers) == 7


CPU_ONLY, WITH_CUDA = ["CPUExecutionProvider"], ["CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.mark.parametrize(
    ("device", "n_gpus", "providers", "expected"),
    [
        ("cpu", 2, WITH_CUDA, "cpu"),
        ("cuda", 1, WITH_CUDA, "cuda"),
        ("auto", 1, WITH_CUDA, "cuda"),
        ("auto", 0, WITH_CUDA, "cpu"),  # the extra `gpu` on a machine without one
        ("auto", 1, CPU_ONLY, "cpu"),
    ],
)
def test_the_index_is_built_and_searched_where_the_models_run(
    device: Literal["cpu", "cuda", "auto"],
    n_gpus: int,
    providers: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wiring, "n_gpus", lambda: n_gpus)
    monkeypatch.setattr(wiring, "providers_of", lambda asked: CPU_ONLY if asked == "cpu" else providers)
    settings = load_settings(device=device, state_dir=tmp_path)
    check_device(settings)
    assert index_device(settings) == expected
    assert offline_parts(settings).index_device == expected
    assert make_searcher(settings)._opener.device == expected


def test_a_gpu_that_is_missing_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the extra `cpu`, and with the extra `gpu` on a machine without one; each names the setting."""
    settings = load_settings(device="cuda", state_dir=tmp_path)
    monkeypatch.setattr(wiring, "n_gpus", lambda: 0)
    with pytest.raises(DeviceUnavailable, match=r"no CUDA provider: install the `gpu` extra .* RETRIEVAL_DEVICE=cpu"):
        check_device(settings)
    monkeypatch.setattr(wiring, "providers_of", lambda device: WITH_CUDA)
    with pytest.raises(DeviceUnavailable, match="RETRIEVAL_DEVICE=cuda was requested, but this machine shows no GPU"):
        check_device(settings)
