"""Stanford Online Products: Ebay_train.txt and Ebay_test.txt, with lines `image_id class_id super_class_id path`.

Source: Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR 2016. Its test classes are
new.
"""

from retrieval.contract.manifest import Item
from retrieval.errors import InvalidManifest
from training.data.layouts.tree import Layout, Tree

_TRAIN, _TEST = "Ebay_train.txt", "Ebay_test.txt"
_HEADER = ("image_id", "class_id", "super_class_id", "path")

MARKERS = ((_TRAIN, _TEST),)


def read(tree: Tree) -> Layout:
    """The data set; the label is the class_id, the attribute super_class the super_class_id."""
    return Layout(known=_read(tree, _TRAIN), new=_read(tree, _TEST))


def _read(tree: Tree, name: str) -> list[Item]:
    lines = tree.lines(name, n_values=4)
    header = next(lines, None)
    if header is None or header.values != _HEADER:
        raise InvalidManifest(f"{tree.root}/{name}:1: expected the header {' '.join(_HEADER)!r}")
    items = []
    for line in lines:
        class_id, super_class_id = line.number(1), line.number(2)
        items.append(tree.item(line.values[3], str(class_id), line.place, super_class=str(super_class_id)))
    return items
