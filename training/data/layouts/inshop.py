"""In-Shop Clothes Retrieval: Eval/list_eval_partition.txt, lines `image_name item_id evaluation_status`.

The first line is the number of images, the second the header. Source: Liu et al., "DeepFashion: Powering Robust Clothes
Recognition and Retrieval with Rich Annotations", CVPR 2016. Images of query and gallery show the same items: they are
new, and the attribute evaluation_status tells them apart.
"""

from retrieval.contract.manifest import Item
from retrieval.errors import InvalidManifest
from training.data.layouts.tree import Layout, Tree

_PLACES = ("Eval/list_eval_partition.txt", "list_eval_partition.txt")
_HEADER = ["image_name", "item_id", "evaluation_status"]
_KNOWN, _NEW = "train", ("query", "gallery")
_IMAGE_FOLDERS = ("", "Img/")  # the archives of images are kept beside Eval or in Img

MARKERS = tuple((place,) for place in _PLACES)


def read(tree: Tree) -> Layout:
    """The data set; the label is the item_id."""
    name = next((place for place in _PLACES if tree.has(place)), _PLACES[0])
    _check_head(tree, name)
    known: list[Item] = []
    new: list[Item] = []
    n_lines = 0
    for line in tree.lines(name, n_values=3, header=2):
        path, item_id, status = line.values
        if status not in (_KNOWN, *_NEW):
            raise InvalidManifest(f"{line.place}: expected {_KNOWN}, {' or '.join(_NEW)}, found {status!r}")
        path = next((folder + path for folder in _IMAGE_FOLDERS if tree.has(folder + path)), path)
        item = tree.item(path, item_id, line.place, evaluation_status=status)
        (known if status == _KNOWN else new).append(item)
        n_lines += 1
    declared = next(tree.lines(name, n_values=1)).number(0)
    if n_lines != declared:
        raise InvalidManifest(f"{tree.root}/{name}:1: declares {declared} images, {n_lines} follow")
    return Layout(known=known, new=new)


def _check_head(tree: Tree, name: str) -> None:
    head = list(tree.lines(name, n_values=1))[:2]
    if len(head) < 2 or head[1].values[0].split() != _HEADER:
        raise InvalidManifest(
            f"{tree.root}/{name}:2: expected the number of images, then the header {' '.join(_HEADER)!r}"
        )
