"""CUB-200-2011: classes.txt `class_id name`, images.txt `image_id path`, image_class_labels.txt `image_id class_id`.

Source: Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", 2011. As is usual in metric learning (Song et al., CVPR
2016), classes 1 to 100 are trained on and the others new; the split by image in train_test_split.txt is not used.
"""

from retrieval.contract.manifest import Item
from retrieval.errors import InvalidManifest
from training.data.layouts.tree import Layout, Tree

_CLASSES, _IMAGES, _LABELS = "classes.txt", "images.txt", "image_class_labels.txt"
_LAST_KNOWN = 100

MARKERS = ((_CLASSES, _IMAGES, _LABELS),)


def read(tree: Tree) -> Layout:
    """The data set; the label is the name of the class."""
    names = {line.number(0): line.values[1] for line in tree.lines(_CLASSES, n_values=2)}
    class_of = {}
    for line in tree.lines(_LABELS, n_values=2):
        if line.number(1) not in names:
            raise InvalidManifest(f"{line.place}: class {line.number(1)} is not in {_CLASSES}")
        class_of[line.number(0)] = line.number(1)
    known: list[Item] = []
    new: list[Item] = []
    for line in tree.lines(_IMAGES, n_values=2):
        if (number := class_of.get(line.number(0))) is None:
            raise InvalidManifest(f"{line.place}: image {line.number(0)} has no class in {_LABELS}")
        item = tree.item(f"images/{line.values[1]}", names[number], line.place)
        (known if number <= _LAST_KNOWN else new).append(item)
    return Layout(known=known, new=new)
