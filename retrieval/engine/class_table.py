"""The classes of a snapshot whose score uses the labels of the items, and the summary of these labels.

A search does not read the table of the classes. It is for a change of one class: an item is compared after a pull
towards its class, so only the items of this class get new vectors, and only its row in the table changes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from retrieval.contract.score import GalleryClasses, GalleryVectors
from retrieval.engine.items import ItemTable
from retrieval.engine.snapshot import LabelSummary
from retrieval.errors import CorruptArtifact

_NAMED_FAR = 100  # in the snapshot's manifest, which counts all of them
_LABEL, _SIZE, _MEAN = "label", "n_items", "mean"


def label_summary(gallery: GalleryVectors, labels: Sequence[str], items: ItemTable) -> LabelSummary | None:
    """Return what is recorded about the labels of a gallery; None if the score does not use them."""
    if gallery.classes is None:
        return None
    far = np.flatnonzero(gallery.far)
    return LabelSummary(
        n_classes=len(gallery.classes.names),
        n_unlabelled=sum(not label for label in labels),
        n_far=len(far),
        far_items=tuple(item.id for item in items.take(far[:_NAMED_FAR])),
    )


def save_classes(classes: GalleryClasses, path: Path) -> None:
    """Write classes as Parquet, one row for each: its label, its number of items and their mean."""
    means = pa.FixedSizeListArray.from_arrays(pa.array(classes.means.ravel(), pa.float32()), classes.means.shape[1])
    columns = {_LABEL: pa.array(classes.names, pa.string()), _SIZE: pa.array(classes.sizes, pa.int64()), _MEAN: means}
    pyarrow.parquet.write_table(pa.table(columns), path)


def load_classes(path: Path) -> GalleryClasses:
    """Return the classes in a Parquet file. Raises CorruptArtifact if it is damaged."""
    try:
        table = pyarrow.parquet.read_table(path, columns=[_LABEL, _SIZE, _MEAN])
        means = table.column(_MEAN).combine_chunks()
        return GalleryClasses(
            names=tuple(map(str, table.column(_LABEL).to_pylist())),
            sizes=np.asarray(table.column(_SIZE).to_numpy(), np.int64),
            means=np.asarray(means.flatten().to_numpy(), np.float32).reshape(len(table), -1),
        )
    except (pa.ArrowException, OSError, ValueError, LookupError, AttributeError) as error:
        raise CorruptArtifact(f"classes {path} cannot be read: {error}") from error
