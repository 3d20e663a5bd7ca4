"""Published data sets whose lists are text tables: Stanford Online Products, CUB-200-2011, In-Shop Clothes Retrieval.

sop      Ebay_train.txt, Ebay_test.txt: `image_id class_id super_class_id path`, after a header
cub      classes.txt `class_id name`, images.txt `image_id path`, image_class_labels.txt `image_id class_id`
inshop   Eval/list_eval_partition.txt: the number of images, a header, `image_name item_id evaluation_status`
"""

from retrieval.contract.manifest import Item
from retrieval.errors import InvalidManifest
from training.data.layouts.tree import Layout, Tree

_SOP_TRAIN, _SOP_TEST = "Ebay_train.txt", "Ebay_test.txt"
_SOP_HEADER = ("image_id", "class_id", "super_class_id", "path")
SOP_MARKERS = ((_SOP_TRAIN, _SOP_TEST),)

_CUB_CLASSES, _CUB_IMAGES, _CUB_LABELS = "classes.txt", "images.txt", "image_class_labels.txt"
_CUB_LAST_KNOWN = 100
CUB_MARKERS = ((_CUB_CLASSES, _CUB_IMAGES, _CUB_LABELS),)

_INSHOP_LISTS = ("Eval/list_eval_partition.txt", "list_eval_partition.txt")
_INSHOP_HEADER = ["image_name", "item_id", "evaluation_status"]
_INSHOP_KNOWN, _INSHOP_NEW = "train", ("query", "gallery")
_INSHOP_IMAGE_FOLDERS = ("", "Img/")  # the image archives are unpacked next to Eval or in Img
INSHOP_MARKERS = tuple((name,) for name in _INSHOP_LISTS)


def read_sop(tree: Tree) -> Layout:
    """Read Stanford Online Products; the label is the class_id, the attribute super_class the super_class_id.

    Its test classes are new. Source: Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding",
    CVPR 2016.
    """
    return Layout(known=_read_sop_list(tree, _SOP_TRAIN), new=_read_sop_list(tree, _SOP_TEST))


def read_cub(tree: Tree) -> Layout:
    """Read CUB-200-2011; the label is the name of the class.

    As is usual in metric learning (Song et al., CVPR 2016), classes 1 to 100 are for training and the others are new;
    the split by image in train_test_split.txt is not used. Source: Wah et al., "The Caltech-UCSD Birds-200-2011
    Dataset", 2011.
    """
    names = {line.number(0): line.values[1] for line in tree.lines(_CUB_CLASSES, n_values=2)}
    class_of = {}
    for line in tree.lines(_CUB_LABELS, n_values=2):
        if line.number(1) not in names:
            raise InvalidManifest(f"{line.place}: class {line.number(1)} is not in {_CUB_CLASSES}")
        class_of[line.number(0)] = line.number(1)
    known: list[Item] = []
    new: list[Item] = []
    for line in tree.lines(_CUB_IMAGES, n_values=2):
        if (number := class_of.get(line.number(0))) is None:
            raise InvalidManifest(f"{line.place}: image {line.number(0)} has no class in {_CUB_LABELS}")
        item = tree.item(f"images/{line.values[1]}", names[number], line.place)
        (known if number <= _CUB_LAST_KNOWN else new).append(item)
    return Layout(known=known, new=new)


def read_inshop(tree: Tree) -> Layout:
    """Read In-Shop Clothes Retrieval; the label is the item_id.

    Query and gallery images show the same items. These items are new, and the attribute evaluation_status names the
    part of each image. Source: Liu et al., "DeepFashion: Powering Robust Clothes Recognition and Retrieval with Rich
    Annotations", CVPR 2016.
    """
    name = next((name for name in _INSHOP_LISTS if tree.has(name)), _INSHOP_LISTS[0])
    _check_inshop_head(tree, name)
    known: list[Item] = []
    new: list[Item] = []
    n_lines = 0
    for line in tree.lines(name, n_values=3, header=2):
        path, item_id, status = line.values
        if status not in (_INSHOP_KNOWN, *_INSHOP_NEW):
            raise InvalidManifest(
                f"{line.place}: expected {_INSHOP_KNOWN}, {' or '.join(_INSHOP_NEW)}, found {status!r}"
            )
        path = next((folder + path for folder in _INSHOP_IMAGE_FOLDERS if tree.has(folder + path)), path)
        item = tree.item(path, item_id, line.place, evaluation_status=status)
        (known if status == _INSHOP_KNOWN else new).append(item)
        n_lines += 1
    declared = next(tree.lines(name, n_values=1)).number(0)
    if n_lines != declared:
        raise InvalidManifest(f"{tree.root}/{name}:1: declares {declared} images, {n_lines} follow")
    return Layout(known=known, new=new)


def _read_sop_list(tree: Tree, name: str) -> list[Item]:
    lines = tree.lines(name, n_values=4)
    header = next(lines, None)
    if header is None or header.values != _SOP_HEADER:
        raise InvalidManifest(f"{tree.root}/{name}:1: expected the header {' '.join(_SOP_HEADER)!r}")
    items = []
    for line in lines:
        class_id, super_class_id = line.number(1), line.number(2)
        items.append(tree.item(line.values[3], str(class_id), line.place, super_class=str(super_class_id)))
    return items


def _check_inshop_head(tree: Tree, name: str) -> None:
    head = list(tree.lines(name, n_values=1))[:2]
    if len(head) < 2 or head[1].values[0].split() != _INSHOP_HEADER:
        raise InvalidManifest(
            f"{tree.root}/{name}:2: expected the number of images, then the header {' '.join(_INSHOP_HEADER)!r}"
        )
