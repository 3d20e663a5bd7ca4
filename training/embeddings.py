"""Embeddings of a finished run in a file, so that figures can be computed again without embedding again.

Decides the content of the file. `evaluation` and `experiment` measure the embeddings.
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
    """Embedded images. embeddings: [n, d] float32, unit rows; labels, ids: [n] str."""

    embeddings: NDArray[np.float32]
    labels: NDArray[np.str_]
    ids: NDArray[np.str_]


def embed_parts(
    run: Path, parts: Mapping[str, str], out: Path, *, device: str, progress: Callable[[int, int], None]
) -> dict[str, int]:
    """Write the embeddings of every part (name -> manifest) into `out`, an .npz file; return the number of each.

    Uses the production preprocessing. The file is written completely or not at all. Raises InvalidInput if its folder
    is missing or `out` is a folder, FailedPrecondition if the run is not finished, TooManyFailures if too many images
    cannot be read, OutOfSpace if there is no room for it.
    """
    if out.is_dir() or not out.parent.is_dir():
        raise InvalidInput(
            f"expected a file in an existing folder, found {out}: name another file, or create the folder"
        )
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
    # The stubs mistake the keywords for options of savez.
    write_whole(out, lambda file: np.savez(file, **arrays), n_bytes=n_bytes)  # type: ignore[arg-type]
    return {name: len(arrays[f"{name}.ids"]) for name in parts}


def read_embeddings(path: Path) -> dict[str, Embedded]:
    """Read the parts in a file that `embed_parts` wrote. Raises CorruptArtifact if it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = sorted({key.rpartition(".")[0] for key in arrays.files})
            return {name: Embedded(*(arrays[f"{name}.{field}"] for field in Embedded.__slots__)) for name in names}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CorruptArtifact(f"{path} cannot be read ({error}): delete it, it will be created again") from error


def parse_parts(arguments: list[str]) -> dict[str, str]:
    """Parse arguments NAME=SOURCE to a mapping. Raises InvalidInput if one has another form or a name occurs twice.

    >>> parse_parts(["new=my/new.csv"])
    {'new': 'my/new.csv'}
    """
    pairs = [argument.partition("=") for argument in arguments]
    parts = {name: source for name, _, source in pairs}
    if len(parts) < len(pairs) or not all(name.isidentifier() and source for name, _, source in pairs):
        raise InvalidInput(f"expected NAME=FOLDER or NAME=TABLE, each name once, found {', '.join(arguments)}")
    return parts
