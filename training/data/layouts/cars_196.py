"""Reads Cars-196 in its three forms: one cars_annos.mat, the later devkit, or a folder per class with names.csv.

    cars_annos.mat            `annotations` (relative_im_path, class) and `class_names`; images in car_ims/
    devkit/cars_meta.mat, devkit/cars_train_annos.mat, cars_test_annos_withlabels.mat   (fname, class); images in
                              cars_train/ and cars_test/
    names.csv, anno_train.csv, anno_test.csv   `file,x1,y1,x2,y2,class`; images in car_data/car_data/train|test/NAME/

Source: Krause et al., "3D Object Representations for Fine-Grained Categorization", 3dRR 2013. As is usual in metric
learning (Song et al., CVPR 2016), classes 1 to 98 are for training and the others are new; the split by image is not
used.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.contract.manifest import Item
from retrieval.errors import InvalidManifest
from training.data.layouts.tree import Layout, Reference, Tree

_ALL = "cars_annos.mat"
_META, _TRAIN = "devkit/cars_meta.mat", "devkit/cars_train_annos.mat"
_TEST = (
    "cars_test_annos_withlabels.mat",
    "devkit/cars_test_annos_withlabels.mat",
)  # it was published separately from the devkit
_NAMES, _TRAIN_LINES, _TEST_LINES = "names.csv", "anno_train.csv", "anno_test.csv"
_FOLDERS = "car_data/car_data"
_LAST_KNOWN = 98

MARKERS = ((_ALL,), *((_META, _TRAIN, test) for test in _TEST), (_NAMES, _TRAIN_LINES, _TEST_LINES))

_Entry = tuple[Reference, str, int]  # where it was read, path of the image from the root, number of the class


def read(tree: Tree) -> Layout:
    """Read Cars-196; the label is the name of the class."""
    if tree.has(_ALL):
        names = _names(tree, _ALL)
        entries = _from_mat(tree, _ALL, path="relative_im_path", folder="")
    elif tree.has(_META, _TRAIN):
        names = _names(tree, _META)
        test = next((name for name in _TEST if tree.has(name)), _TEST[0])
        entries = _from_mat(tree, _TRAIN, path="fname", folder="cars_train/")
        entries += _from_mat(tree, test, path="fname", folder="cars_test/")
    else:
        names = [line.values[0] for line in tree.lines(_NAMES, n_values=1)]
        entries = [*_from_lines(tree, _TRAIN_LINES, "train", names), *_from_lines(tree, _TEST_LINES, "test", names)]
    known: list[Item] = []
    new: list[Item] = []
    for place, path, number in entries:
        item = tree.item(path, _name(names, number, place), place)
        (known if number <= _LAST_KNOWN else new).append(item)
    return Layout(known=known, new=new)


def _names(tree: Tree, name: str) -> list[str]:
    return [str(value) for value in _variable(tree, name, "class_names")]


def _from_mat(tree: Tree, name: str, *, path: str, folder: str) -> list[_Entry]:
    annotations = _variable(tree, name, "annotations")
    if missing := {path, "class"}.difference(annotations.dtype.names or ()):
        raise InvalidManifest(f"{tree.root}/{name}: annotations have no field {', '.join(sorted(missing))}")
    return [
        (Reference(path=f"{tree.root}/{name}", line=row), f"{folder}{entry[path]}", int(entry["class"]))
        for row, entry in enumerate(annotations, start=1)
    ]


def _variable(tree: Tree, file: str, name: str) -> NDArray[Any]:
    variables = tree.mat(file)
    if name not in variables:
        raise InvalidManifest(f"{tree.root}/{file}: expected the variable {name}, found none")
    return np.atleast_1d(variables[name])


def _from_lines(tree: Tree, file: str, part: str, names: list[str]) -> Iterator[_Entry]:
    for line in tree.lines(file, n_values=6, separator=","):
        number = line.number(5)
        # the name of a folder cannot contain a slash
        folder = _name(names, number, line.place).replace("/", "-")
        yield line.place, f"{_FOLDERS}/{part}/{folder}/{line.values[0]}", number


def _name(names: list[str], number: int, place: Reference) -> str:
    if not 1 <= number <= len(names):
        raise InvalidManifest(f"{place}: expected a class from 1 to {len(names)}, found {number}")
    return names[number - 1]
