"""Makes the data of the demonstration: renders the emoji, splits their classes, writes a manifest for each purpose.

`drawings.py` fetches and joins the drawings. Classes, not images, are split, so that classes in the catalogue were not
used for training.
"""

import csv
import io
import json
import signal
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from retrieval.errors import InvalidInput, NotEnoughEvidence, Unavailable
from training.emoji.drawings import VERSIONS, Drawing, fetch_packages, join_drawings, read_icon_set

SUMMARY = "emoji.json"
PACKAGES = "packages"
_RENDER_CHUNK = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class EmojiRecipe:
    """The options of the data set. Classes that the three fixed splits leave are for training.

    size: side in pixels; min_makers: an emoji drawn by fewer makers is left out; query_makers: makers per new class
    whose drawings are queries and not in the catalogue.
    """

    size: int = 96
    min_makers: int = 6
    validation_classes: int = 120
    calibration_classes: int = 200
    new_classes: int = 220
    query_makers: int = 2
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EmojiSummary:
    """The written manifests: numbers of images and classes, by the name of the manifest."""

    directory: str
    recipe: EmojiRecipe
    versions: Mapping[str, str]
    n_images: Mapping[str, int]
    n_classes: Mapping[str, int]


def prepare_emoji(
    directory: Path,
    *,
    recipe: EmojiRecipe,
    processes: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EmojiSummary:
    """Fill `directory` with rendered emoji and their manifests.

    Existing files are kept; every file is written completely or not at all. `progress` gets the numbers of rendered and
    of all images. Raises Unavailable without npm, network or resvg-py, NotEnoughEvidence if there are too few classes.
    """
    archives = fetch_packages(directory / PACKAGES)
    drawings = join_drawings(
        [read_icon_set(maker, archive) for maker, archive in archives.items()], min_makers=recipe.min_makers
    )
    manifests = split_drawings(drawings, recipe)
    render_drawings(drawings, directory, size=recipe.size, processes=processes, progress=progress)
    for name, rows in manifests.items():
        _write_atomically(directory / f"{name}.csv", _manifest(rows, recipe.size))
    summary = EmojiSummary(
        directory=str(directory),
        recipe=recipe,
        versions=VERSIONS,
        n_images={name: len(rows) for name, rows in manifests.items()},
        n_classes={name: len({drawing.label for drawing in rows}) for name, rows in manifests.items()},
    )
    _write_atomically(directory / SUMMARY, json.dumps(asdict(summary), indent=1).encode())
    return summary


def split_drawings(drawings: Sequence[Drawing], recipe: EmojiRecipe) -> dict[str, list[Drawing]]:
    """Split drawings into manifests: four parts that share no class, and the last, audit, again as catalog and queries.

    Raises NotEnoughEvidence if no class is left for training, InvalidInput if a catalogue would be empty.
    """
    if not 1 <= recipe.query_makers < recipe.min_makers:
        raise InvalidInput(
            f"expected 1 <= query_makers < min_makers, found {recipe.query_makers} and {recipe.min_makers}: "
            "each new class needs a picture in the catalogue and one as a query"
        )
    classes: defaultdict[str, list[Drawing]] = defaultdict(list)
    for drawing in drawings:
        classes[drawing.label].append(drawing)
    rng = np.random.default_rng(recipe.seed)
    labels = [str(label) for label in rng.permutation(sorted(classes))]
    splits: dict[str, list[Drawing]] = {}
    for name, count in (
        ("audit", recipe.new_classes),
        ("calibration", recipe.calibration_classes),
        ("validation", recipe.validation_classes),
    ):
        splits[name] = [drawing for label in sorted(labels[:count]) for drawing in classes[label]]
        labels = labels[count:]
    if not labels:
        raise NotEnoughEvidence(f"{len(classes)} emoji leave no class for training: use smaller splits or fewer makers")
    splits["train"] = [drawing for label in sorted(labels) for drawing in classes[label]]
    splits["catalog"], splits["queries"] = _hold_out(splits["audit"], recipe.query_makers, rng)
    return splits


def _hold_out(
    drawings: Sequence[Drawing], per_class: int, rng: np.random.Generator
) -> tuple[list[Drawing], list[Drawing]]:
    by_label: defaultdict[str, list[Drawing]] = defaultdict(list)
    for drawing in drawings:
        by_label[drawing.label].append(drawing)
    kept: list[Drawing] = []
    held_out: list[Drawing] = []
    for members in by_label.values():
        chosen = set(rng.choice(len(members), size=per_class, replace=False).tolist())
        for position, drawing in enumerate(members):
            (held_out if position in chosen else kept).append(drawing)
    return kept, held_out


def render_drawings(
    drawings: Sequence[Drawing], directory: Path, *, size: int, processes: int = 2, progress: Callable[[int, int], None]
) -> None:
    """Render the drawings that are missing in `directory` as PNG files, on white.

    size: side in pixels. Raises Unavailable if resvg-py is missing.
    """
    try:
        import resvg_py  # noqa: F401 - fails here if it is missing, not in a worker process
    except ImportError as error:
        raise Unavailable("rendering the emoji needs resvg-py: pip install 'resvg-py>=0.5,<0.6'") from error
    targets = [directory / _image_path(drawing, size) for drawing in drawings]
    wanted = [
        (drawing.svg, str(path), size) for drawing, path in zip(drawings, targets, strict=True) if not path.exists()
    ]
    for folder in {Path(path).parent for _, path, _ in wanted}:
        folder.mkdir(parents=True, exist_ok=True)
    done = len(drawings) - len(wanted)
    progress(done, len(drawings))
    if not wanted:
        return
    # Not forked: the caller may run threads (a progress bar does).
    with ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=_leave_interrupt_to_parent
    ) as pool:
        try:
            for _ in pool.map(_render, wanted, chunksize=_RENDER_CHUNK):
                done += 1
                progress(done, len(drawings))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _leave_interrupt_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _render(job: tuple[str, str, int]) -> None:
    import resvg_py

    svg, path, size = job
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="#ffffff", skip_system_fonts=True)
    _write_atomically(Path(path), bytes(png))


def _image_path(drawing: Drawing, size: int) -> str:
    """Return the path from the data set: one folder per class, which can also be used without a manifest."""
    return f"images-{size}px/{drawing.label}/{drawing.maker}.png"


def _manifest(drawings: Sequence[Drawing], size: int) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id", "uri", "label", "maker"))
    for drawing in drawings:
        writer.writerow((f"{drawing.label}/{drawing.maker}", _image_path(drawing, size), drawing.label, drawing.maker))
    return text.getvalue().encode()


def _write_atomically(path: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(content)
            file.close()
            Path(file.name).chmod(0o644)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
