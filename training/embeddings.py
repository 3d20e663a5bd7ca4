"""What a finished run makes of images, in a file: figures can be made again without embedding again.

Decides what the file holds; leaves what the embeddings are worth to `evaluation` and `experiment`.
"""

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.contract.manifest import read_manifest
from retrieval.errors import CorruptArtifact, InvalidInput
from training.writing import write_whole


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """embeddings: [n, d] float32, unit rows; labels, ids: [n] str."""

    embeddings: NDArray[np.float32]
    labels: NDArray[np.str_]
    ids: NDArray[np.str_]


def embed_parts(
    run: Path, parts: Mapping[str, str], out: Path, *, device: str, progress: Callable[[int, int], None]
) -> dict[str, int]:
    """Write the embeddings of every part (name -> folder or manifest) into `out`, an .npz file; the images of each.

    Through the production preprocessing. The file appears whole or not at all. Raises InvalidInput where its folder is
    missing or `out` is one, FailedPrecondition where the run is not finished, TooManyFailures where too many images
    cannot be read, OutOfSpace where there is no room for it.
    """
    if out.is_dir() or not out.parent.is_dir():
        raise InvalidInput(f"expected a file in a folder that exists, found {out}: name another, or make the folder")
    from training.evaluation import embed_images
    from training.loop import embedding_function, load_finished, select_device

    target = select_device(device)
    finished = load_finished(run)
    embed = embedding_function(finished.embedder.to(target))
    items = {name: read_manifest(source) for name, source in parts.items()}
    total, before = sum(map(len, items.values())), 0
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, members in items.items():
        found = embed_images(
            members,
            embed,
            finished.preprocessing,
            max_unreadable=finished.config.data.max_unreadable,
            progress=lambda done, _, before=before: progress(before + done, total),  # type: ignore[misc]
        )
        before += len(members)
        arrays |= {
            f"{name}.embeddings": found.embeddings,
            f"{name}.labels": np.array(found.labels),
            f"{name}.ids": np.array([item.id for item in found.items]),
        }
    n_bytes = sum(array.nbytes for array in arrays.values())
    # The stubs take the keywords for its options.
    write_whole(out, lambda file: np.savez(file, **arrays), n_bytes=n_bytes)  # type: ignore[arg-type]
    return {name: len(arrays[f"{name}.ids"]) for name in parts}


def read_embeddings(path: Path) -> dict[str, Embedded]:
    """The parts in a file that `embed_parts` wrote. Raises CorruptArtifact where it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = sorted({key.rpartition(".")[0] for key in arrays.files})
            return {name: Embedded(*(arrays[f"{name}.{field}"] for field in Embedded.__slots__)) for name in names}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CorruptArtifact(f"{path} cannot be read ({error}): delete it, it will be made again") from error


def parse_parts(arguments: list[str]) -> dict[str, str]:
    """NAME=SOURCE, each, as a mapping. Raises InvalidInput where one has another form or a name comes twice.

    >>> parse_parts(["new=my/new.csv"])
    {'new': 'my/new.csv'}
    """
    pairs = [argument.partition("=") for argument in arguments]
    parts = {name: source for name, _, source in pairs}
    if len(parts) < len(pairs) or not all(name.isidentifier() and source for name, _, source in pairs):
        raise InvalidInput(f"expected NAME=FOLDER or NAME=MANIFEST, each name once, found {', '.join(arguments)}")
    return parts
