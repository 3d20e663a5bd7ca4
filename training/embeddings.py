"""Embeddings of a finished run in a file, so that figures can be computed again without embedding again.

Decides the content of the file. `evaluation` and `experiment` measure the embeddings. For each part NAME, the file has
NAME.embeddings [n, d] float32, and its labels and ids as NAME.labels and NAME.ids, one text after the other in UTF-8
[bytes] uint8, with NAME.labels_ends and NAME.ids_ends [n] int64, where each ends: an array of texts would take as much
for each as for the longest. Older files have such arrays; they can be read.
"""

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.contract.manifest import read_source
from retrieval.errors import CorruptArtifact, InvalidInput
from training.writing import write_whole


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """Embedded images. embeddings: [n, d] float32, unit rows; labels, ids: [n] texts."""

    embeddings: NDArray[np.float32]
    labels: NDArray[np.object_]
    ids: NDArray[np.object_]


def embed_parts(
    run: Path,
    parts: Mapping[str, str],
    out: Path,
    *,
    device: str,
    progress: Callable[[int, int], None],
    passing_over: Callable[[Sequence[str]], None] = lambda sentences: None,
) -> dict[str, int]:
    """Write the embeddings of every part (name -> manifest) into `out`, an .npz file; return the number of each.

    passing_over: gets what each manifest passed over, see `retrieval/contract/manifest.py`. Uses the production
    preprocessing. The file is written completely or not at all. Raises InvalidInput if its folder is missing or `out`
    is a folder, FailedPrecondition if the run is not finished, TooManyFailures if too many images cannot be read,
    OutOfSpace if there is no room for it.
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
    items = {}
    for name, source in parts.items():
        manifest = read_source(source)
        passing_over(manifest.passed_over)
        items[name] = manifest.items
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
        arrays[f"{name}.embeddings"] = found.embeddings
        arrays |= _packed(f"{name}.labels", found.labels) | _packed(f"{name}.ids", [item.id for item in found.items])
    n_bytes = sum(array.nbytes for array in arrays.values())
    # The stubs mistake the keywords for options of savez.
    write_whole(out, lambda file: np.savez(file, **arrays), n_bytes=n_bytes)  # type: ignore[arg-type]
    return {name: len(arrays[f"{name}.embeddings"]) for name in parts}


def read_embeddings(path: Path) -> dict[str, Embedded]:
    """Read the parts in a file that `embed_parts` wrote. Raises CorruptArtifact if it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = sorted({key.rpartition(".")[0] for key in arrays.files})
            return {
                name: Embedded(
                    arrays[f"{name}.embeddings"], _unpacked(f"{name}.labels", arrays), _unpacked(f"{name}.ids", arrays)
                )
                for name in names
            }
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CorruptArtifact(f"{path} cannot be read ({error}): delete it, it will be created again") from error


def _packed(name: str, texts: Sequence[str]) -> dict[str, NDArray[np.generic]]:
    encoded = [text.encode() for text in texts]
    ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
    return {name: np.frombuffer(b"".join(encoded), dtype=np.uint8), f"{name}_ends": ends}


def _unpacked(name: str, arrays: Mapping[str, NDArray[np.generic]]) -> NDArray[np.object_]:
    """Return the texts of an array and of another with their ends, or of an older array of texts."""
    if f"{name}_ends" not in arrays:
        return arrays[name].astype(np.object_)
    content, ends = arrays[name].tobytes(), arrays[f"{name}_ends"].tolist()
    starts = [0, *ends][: len(ends)]
    texts = [content[start:end].decode() for start, end in zip(starts, ends, strict=True)]
    return np.array(texts, dtype=np.object_)


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
