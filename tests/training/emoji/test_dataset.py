"""The demonstration's data: classes split, pictures rendered once, manifests that production reads."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval.contract.manifest import read_manifest
from retrieval.errors import InvalidInput, NotEnoughEvidence
from training.emoji import EmojiRecipe, dataset, prepare_emoji, render_drawings, split_drawings
from training.emoji.drawings import Drawing, IconSet

RECIPE = EmojiRecipe(size=16, min_makers=3, validation_classes=2, calibration_classes=3, new_classes=4, query_makers=1)
MAKERS = ("first", "second", "third")


def svg(colour: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><rect width="4" height="8" fill="{colour}"/></svg>'
    )


def drawings(n_classes: int) -> list[Drawing]:
    return [Drawing(label=f"emoji-{n}", maker=maker, svg=svg("#f00")) for n in range(n_classes) for maker in MAKERS]


def labels(rows: list[Drawing]) -> set[str]:
    return {row.label for row in rows}


def test_splits_share_no_class_and_lose_none() -> None:
    splits = split_drawings(drawings(15), RECIPE)
    parts = [labels(splits[name]) for name in ("train", "validation", "calibration", "audit")]
    assert [len(part) for part in parts] == [6, 2, 3, 4]
    assert len(set().union(*parts)) == 15


def test_catalog_and_queries_divide_the_images_of_each_new_class() -> None:
    splits = split_drawings(drawings(15), RECIPE)
    assert sorted(splits["catalog"] + splits["queries"], key=repr) == sorted(splits["audit"], key=repr)
    assert len(splits["queries"]) == 4
    assert labels(splits["queries"]) == labels(splits["catalog"]) == labels(splits["audit"])


def test_the_seed_decides_the_split() -> None:
    assert split_drawings(drawings(15), RECIPE) == split_drawings(drawings(15), RECIPE)
    other = EmojiRecipe(
        min_makers=3, validation_classes=2, calibration_classes=3, new_classes=4, query_makers=1, seed=1
    )
    assert split_drawings(drawings(15), RECIPE)["train"] != split_drawings(drawings(15), other)["train"]


def test_impossible_splits_are_refused() -> None:
    with pytest.raises(NotEnoughEvidence, match="9 emoji leave no class for training"):
        split_drawings(drawings(9), RECIPE)
    with pytest.raises(InvalidInput, match="query_makers < min_makers"):
        split_drawings(drawings(15), EmojiRecipe(min_makers=2, query_makers=2))


@pytest.mark.slow
def test_rendering_fills_gaps_only(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    wanted = drawings(2)
    render_drawings(wanted, tmp_path, size=16, processes=1, progress=lambda *call: calls.append(call))
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert len(files) == 6
    with Image.open(files[0]) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (16, 16, 3)
    assert pixels[8, 3].tolist() == [255, 0, 0]
    assert pixels[8, 12].tolist() == [255, 255, 255]

    written = files[1].stat().st_mtime_ns
    files[0].unlink()
    render_drawings(wanted, tmp_path, size=16, processes=1, progress=lambda *call: calls.append(call))
    assert files[0].is_file()
    assert files[1].stat().st_mtime_ns == written
    assert calls[0] == (0, 6)
    assert calls[-2:] == [(5, 6), (6, 6)]


def test_manifests_are_those_that_production_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"emoji-{n}" for n in range(15)]
    sets = {
        maker: IconSet(maker=maker, svgs={n: svg(f"#{i:x}{j:x}0") for j, n in enumerate(names)}, aliases={})
        for i, maker in enumerate(MAKERS)
    }
    monkeypatch.setattr(dataset, "fetch_packages", lambda directory: dict.fromkeys(MAKERS, directory))
    monkeypatch.setattr(dataset, "read_icon_set", lambda maker, archive: sets[maker])
    summary = prepare_emoji(tmp_path / "data", recipe=RECIPE, processes=1)
    assert summary.n_images == {
        "audit": 12, "calibration": 9, "validation": 6, "train": 18, "catalog": 8, "queries": 4
    }  # fmt: skip
    items = read_manifest(str(tmp_path / "data" / "queries.csv"))
    assert len(items) == 4
    for item in items:
        path = Path(item.uri.removeprefix("file://"))
        assert item.id == f"{item.label}/{item.attributes['maker']}"
        assert (path.parent.name, path.stem, path.is_file()) == (item.label, item.attributes["maker"], True)
