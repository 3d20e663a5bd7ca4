"""Reads iNaturalist-2018: the lists of Inat_dataset_splits, or the original annotations.

    Inaturalist_train_set1.txt, Inaturalist_test_set1.txt   lines `train_val2018/Supercategory/class/name.jpg`
    train2018.json, val2018.json   COCO's format: images (id, file_name), annotations (image_id, category_id)

Source: Van Horn et al., "The iNaturalist Species Classification and Detection Dataset", CVPR 2018; the split by class:
Brown et al., "Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval", ECCV 2020. Its test classes are new.
In the original split, which is by image, both parts hold all classes: without the lists no class counts as new.
"""

import json
from collections.abc import Mapping
from typing import Any

from retrieval.contract.manifest import Item
from retrieval.errors import InvalidManifest
from training.data.layouts.tree import Layout, Reference, Tree

_TRAIN, _TEST = "Inaturalist_train_set1.txt", "Inaturalist_test_set1.txt"
_FOLDERS = ("Inat_dataset_splits/", "")
_ANNOTATIONS = ("train2018.json", "val2018.json")

MARKERS = (*((folder + _TRAIN, folder + _TEST) for folder in _FOLDERS), _ANNOTATIONS)


def read(tree: Tree) -> Layout:
    """Read iNaturalist-2018; the label is Supercategory/class from the path of the image."""
    for folder in _FOLDERS:
        if tree.has(folder + _TRAIN, folder + _TEST):
            return Layout(known=_from_list(tree, folder + _TRAIN), new=_from_list(tree, folder + _TEST))
    return Layout(known=[item for name in _ANNOTATIONS for item in _from_json(tree, name)], new=None)


def _from_list(tree: Tree, name: str) -> list[Item]:
    return [_item(tree, line.values[0], line.place) for line in tree.lines(name, n_values=1)]


def _from_json(tree: Tree, name: str) -> list[Item]:
    try:
        content: Mapping[str, Any] = json.loads(tree.read(name))
        paths = {entry["id"]: str(entry["file_name"]) for entry in content["images"]}
        images = [entry["image_id"] for entry in content["annotations"]]
    except json.JSONDecodeError as error:
        raise InvalidManifest(f"{tree.root}/{name}:{error.lineno}: expected JSON, {error.msg}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidManifest(
            f"{tree.root}/{name}: expected images with id and file_name and annotations with image_id, {error!r}"
        ) from error
    items = []
    for number, image in enumerate(images, start=1):
        place = Reference(path=f"{tree.root}/{name} annotations", line=number)
        if image not in paths:
            raise InvalidManifest(f"{place}: image {image} is not among the images")
        items.append(_item(tree, paths[image], place))
    return items


def _item(tree: Tree, path: str, place: Reference) -> Item:
    folders = path.split("/")
    if len(folders) < 3:
        raise InvalidManifest(f"{place}: expected train_val2018/Supercategory/class/name.jpg, found {path!r}")
    return tree.item(path, "/".join(folders[-3:-1]), place, supercategory=folders[-3])
