"""Published data sets, from tiny trees of the same layout; each broken file is named with its line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from pytorch_metric_learning import datasets

from retrieval.contract.manifest import Item
from retrieval.errors import EmptyCatalog, InvalidInput, InvalidManifest
from tests.pictures import write_class_folders
from training.data import read_layout

CARS = ["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012", *(f"Car {n}" for n in range(3, 197))]


def tree(folder: Path, files: Mapping[str, str], images: list[str]) -> str:
    for name in images:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return str(folder)


def labels(items: Any) -> dict[str, str]:
    return {item.id: item.label for item in items}


def local_path(item: Item) -> str:
    return item.uri.removeprefix("file://")


def products(folder: Path, **changed: str) -> str:
    header = "image_id class_id super_class_id path\n"
    files = {
        "Ebay_train.txt": header
        + "1 1 1 bicycle_final/1_0.JPG\n2 1 1 bicycle_final/1_1.JPG\n3 2 2 mug_final/2_0.JPG\n",
        "Ebay_test.txt": f"{header}4 3 1 bicycle_final/3_0.JPG\n5 3 1 bicycle_final/3_1.JPG\n",
        "Ebay_info.txt": header,
    }
    images = ["bicycle_final/1_0.JPG", "bicycle_final/1_1.JPG", "mug_final/2_0.JPG"]
    images += ["bicycle_final/3_0.JPG", "bicycle_final/3_1.JPG"]
    return tree(folder, files | {f"{name}.txt": text for name, text in changed.items()}, images)


def birds(folder: Path, **changed: str) -> str:
    files = {
        "classes.txt": "1 001.Albatross\n100 100.Pelican\n101 101.Vireo\n",
        "images.txt": "1 001.Albatross/a.jpg\n2 101.Vireo/b.jpg\n3 100.Pelican/c.jpg\n",
        "image_class_labels.txt": "1 1\n2 101\n3 100\n",
        "train_test_split.txt": "1 1\n2 1\n3 0\n",
    }
    files |= {f"{name}.txt": text for name, text in changed.items()}
    return tree(folder, files, [f"images/{p}" for p in ("001.Albatross/a.jpg", "101.Vireo/b.jpg", "100.Pelican/c.jpg")])


def annotations(**columns: list[Any]) -> np.ndarray[Any, Any]:
    """A struct array as MATLAB keeps it: every field an object."""
    rows = np.empty((1, len(columns["class"])), dtype=[(name, "O") for name in columns])
    for name, values in columns.items():
        rows[name][0] = values
    return rows


def names() -> np.ndarray[Any, Any]:
    cells = np.empty((1, len(CARS)), dtype="O")
    cells[0] = CARS
    return cells


def cars_in_one_file(folder: Path, classes: tuple[int, ...] = (2, 98, 99)) -> str:
    paths = [f"car_ims/00000{n}.jpg" for n in range(1, len(classes) + 1)]
    tree(folder, {}, paths)
    rows = annotations(relative_im_path=paths, bbox_x1=[1] * len(paths), **{"class": list(classes)}, test=[0, 1, 0])
    scipy.io.savemat(folder / "cars_annos.mat", {"annotations": rows, "class_names": names()})
    return str(folder)


def cars_in_devkit(folder: Path) -> str:
    tree(folder, {"devkit/README.txt": ""}, ["cars_train/00001.jpg", "cars_train/00002.jpg", "cars_test/00001.jpg"])
    train = annotations(bbox_x1=[1, 1], **{"class": [2, 99]}, fname=["00001.jpg", "00002.jpg"])
    test = annotations(bbox_x1=[1], **{"class": [98]}, fname=["00001.jpg"])
    scipy.io.savemat(folder / "devkit/cars_meta.mat", {"class_names": names()})
    scipy.io.savemat(folder / "devkit/cars_train_annos.mat", {"annotations": train})
    scipy.io.savemat(folder / "cars_test_annos_withlabels.mat", {"annotations": test})
    return str(folder)


def cars_in_folders(folder: Path, **changed: str) -> str:
    files = {
        "names.csv": "\n".join(CARS) + "\n",
        "anno_train.csv": "00001.jpg,39,116,569,375,2\n00002.jpg,36,116,868,587,99\n",
        "anno_test.csv": "00003.jpg,30,52,246,147,98\n",
    }
    root = "car_data/car_data"
    images = [f"{root}/train/Ram C-V Cargo Van Minivan 2012/00001.jpg", f"{root}/train/Car 99/00002.jpg"]
    images.append(f"{root}/test/Car 98/00003.jpg")
    return tree(folder, files | {f"{name}.csv": text for name, text in changed.items()}, images)


PLANTS = ["train_val2018/Plantae/7477/a.jpg", "train_val2018/Plantae/7477/b.jpg", "train_val2018/Aves/2715/c.jpg"]


def species_lists(folder: Path, **changed: str) -> str:
    files = {
        "Inat_dataset_splits/Inaturalist_train_set1.txt": "\n".join(PLANTS[:2]),
        "Inat_dataset_splits/Inaturalist_test_set1.txt": PLANTS[2] + "\n",
    }
    files |= {f"Inat_dataset_splits/Inaturalist_{name}_set1.txt": text for name, text in changed.items()}
    return tree(folder, files, PLANTS)


def species_annotations(folder: Path, **changed: str) -> str:
    def part(numbers: list[int]) -> str:
        return json.dumps(
            {
                "images": [{"id": n, "file_name": PLANTS[n], "width": 1} for n in numbers],
                "annotations": [{"id": n, "image_id": n, "category_id": [7477, 7477, 2715][n]} for n in numbers],
            }
        )

    files = {"train2018.json": part([0, 2]), "val2018.json": part([1])}
    return tree(folder, files | {f"{name}.json": text for name, text in changed.items()}, PLANTS)


def clothes(folder: Path, images: str = "", **changed: str) -> str:
    paths = [
        f"img/WOMEN/Dresses/id_{item}/{name}.jpg" for item, name in (("1", "a"), ("1", "b"), ("2", "c"), ("2", "d"))
    ]
    status = ["train", "train", "query", "gallery"]
    rows = [f"{path}  id_0000000{path.split('id_')[1][0]}  {s}" for path, s in zip(paths, status, strict=True)]
    files = {"Eval/list_eval_partition.txt": "\n".join(["4", "image_name item_id evaluation_status", *rows])}
    files |= {f"Eval/{name}.txt": text for name, text in changed.items()}
    return tree(folder, files, [images + path for path in paths])


def test_stanford_online_products(tmp_path: Path) -> None:
    found = read_layout(products(tmp_path / "Stanford_Online_Products"))
    assert labels(found.known) == {"bicycle_final/1_0.JPG": "1", "bicycle_final/1_1.JPG": "1", "mug_final/2_0.JPG": "2"}
    assert found.new is not None
    assert labels(found.new) == {"bicycle_final/3_0.JPG": "3", "bicycle_final/3_1.JPG": "3"}
    assert found.known[2].attributes == {"super_class": "2"}
    for part, items in (("train", found.known), ("test", found.new)):
        peer = datasets.StanfordOnlineProducts(str(tmp_path), split=part)
        assert peer.paths == [local_path(item) for item in items]
        assert [str(label) for label in peer.labels] == [item.label for item in items]


def test_cub_200_2011(tmp_path: Path) -> None:
    """The first hundred classes are trained on, whatever the split by image says."""
    found = read_layout(birds(tmp_path / "CUB_200_2011"))
    assert labels(found.known) == {
        "images/001.Albatross/a.jpg": "001.Albatross",
        "images/100.Pelican/c.jpg": "100.Pelican",
    }
    assert found.new is not None
    assert labels(found.new) == {"images/101.Vireo/b.jpg": "101.Vireo"}
    for part, items in (("train", found.known), ("test", found.new)):
        assert datasets.CUB(str(tmp_path), split=part).paths == [local_path(item) for item in items]


@pytest.mark.parametrize(
    ("make", "known", "new"),
    [
        (cars_in_one_file, ["car_ims/000001.jpg", "car_ims/000002.jpg"], "car_ims/000003.jpg"),
        (cars_in_devkit, ["cars_train/00001.jpg", "cars_test/00001.jpg"], "cars_train/00002.jpg"),
        (
            cars_in_folders,
            [
                "car_data/car_data/train/Ram C-V Cargo Van Minivan 2012/00001.jpg",
                "car_data/car_data/test/Car 98/00003.jpg",
            ],
            "car_data/car_data/train/Car 99/00002.jpg",
        ),
    ],
)
def test_cars_196(tmp_path: Path, make: Any, known: list[str], new: str) -> None:
    """Each of its three forms gives the same classes; the first 98 are trained on."""
    found = read_layout(make(tmp_path))
    assert labels(found.known) == dict(zip(known, ["Ram C/V Cargo Van Minivan 2012", "Car 98"], strict=True))
    assert found.new is not None
    assert labels(found.new) == {new: "Car 99"}


def test_cars_196_in_folders_as_the_library_reads_it(tmp_path: Path) -> None:
    found = read_layout(cars_in_folders(tmp_path), "cars")
    assert found.new is not None
    for part, items in (("train", found.known), ("test", found.new)):
        assert datasets.Cars196(str(tmp_path), split=part).paths == [local_path(item) for item in items]


def test_inaturalist_2018(tmp_path: Path) -> None:
    """Lists of images prescribe new classes; the annotations alone do not."""
    found = read_layout(species_lists(tmp_path / "lists"))
    assert labels(found.known) == dict.fromkeys(PLANTS[:2], "Plantae/7477")
    assert found.new is not None
    assert labels(found.new) == {PLANTS[2]: "Aves/2715"}
    alone = read_layout(species_annotations(tmp_path / "alone"))
    assert labels(alone.known) == labels([*found.known, *found.new])
    assert alone.new is None
    species_annotations(tmp_path / "lists")
    peer = datasets.INaturalist2018(str(tmp_path / "lists"), split="test")
    assert peer.paths == [local_path(item) for item in found.new]


@pytest.mark.parametrize("images", ["", "Img/"])
def test_in_shop(tmp_path: Path, images: str) -> None:
    """Queries and gallery are new classes and can be told apart."""
    found = read_layout(clothes(tmp_path, images))
    folder = f"{images}img/WOMEN/Dresses"
    assert labels(found.known) == dict.fromkeys([f"{folder}/id_1/a.jpg", f"{folder}/id_1/b.jpg"], "id_00000001")
    assert found.new is not None
    assert {item.id: item.attributes["evaluation_status"] for item in found.new} == {
        f"{folder}/id_2/c.jpg": "query",
        f"{folder}/id_2/d.jpg": "gallery",
    }


def test_folders_and_manifests_are_plain(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "pictures", n_classes=2, n_images=2)
    (tmp_path / "all.csv").write_text("id,uri,label\na,pictures/class_000/0.png,x\n")
    assert len(read_layout(str(folder)).known) == 4
    plain = read_layout(str(tmp_path / "all.csv"))
    assert labels(plain.known) == {"a": "x"}
    assert plain.new is None


HEADER = "image_id class_id super_class_id path\n"


@pytest.mark.parametrize(
    ("make", "changed", "expected"),
    [
        (products, {"Ebay_train": "1 1 1 bicycle_final/1_0.JPG\n"}, r"Ebay_train\.txt:1: expected the header"),
        (products, {"Ebay_train": ""}, r"Ebay_train\.txt:1: expected the header"),
        (products, {"Ebay_test": HEADER + "4 3 1\n"}, r"Ebay_test\.txt:2: expected 4 values, found '4 3 1'"),
        (products, {"Ebay_test": HEADER + "\n4 x 1 a.jpg\n"}, r"Ebay_test\.txt:3: expected a number .* found 'x'"),
        (products, {"Ebay_test": HEADER + "4 3 1 a.jpg\n"}, r"Ebay_test\.txt:2: names the image a\.jpg, which is not"),
        (
            products,
            {"Ebay_test": HEADER + "4 1 1 mug_final/2_0.JPG\n"},
            "training images and its test images must not share a class, 1 .*'1'",
        ),
        (birds, {"image_class_labels": "1 1\n2 7\n"}, r"image_class_labels\.txt:2: class 7 is not in classes\.txt"),
        (birds, {"image_class_labels": "1 1\n"}, r"images\.txt:2: image 2 has no class"),
        (birds, {"images": "1 001.Albatross/z.jpg\n"}, r"images\.txt:1: names the image images/001\.Albatross/z\.jpg"),
        (
            cars_in_folders,
            {"anno_test": "00003.jpg,1,1,1,1,197\n"},
            r"anno_test\.csv:1: expected a class from 1 to 196",
        ),
        (cars_in_folders, {"anno_test": "00003.jpg,1,1\n"}, r"anno_test\.csv:1: expected 6 values"),
        (species_lists, {"test": "2715/c.jpg\n"}, r"Inaturalist_test_set1\.txt:1: expected train_val2018/"),
        (species_annotations, {"val2018": "{\n,"}, r"val2018\.json:2: expected JSON"),
        (species_annotations, {"val2018": "[]"}, r"val2018\.json: expected images with id and file_name"),
        (
            species_annotations,
            {"val2018": '{"images": [], "annotations": [{"image_id": 9}]}'},
            r"val2018\.json annotations:1: image 9 is not among the images",
        ),
        (
            clothes,
            {"list_eval_partition": "img/a.jpg id_1 train\n"},
            r"partition\.txt:2: expected the number of images",
        ),
        (
            clothes,
            {"list_eval_partition": "1\nimage_name item_id evaluation_status\nimg/a.jpg id_1 val\n"},
            r"list_eval_partition\.txt:3: expected train, query or gallery, found 'val'",
        ),
        (
            clothes,
            {"list_eval_partition": "9\nimage_name item_id evaluation_status\n"},
            r"list_eval_partition\.txt:1: declares 9 images, 0 follow",
        ),
    ],
)
def test_broken_files_are_named_with_their_line(tmp_path: Path, make: Any, changed: Any, expected: str) -> None:
    with pytest.raises(InvalidInput, match=expected):
        read_layout(make(tmp_path, **changed))


def test_broken_matlab_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidManifest, match=r"cars_annos\.mat:3: expected a class from 1 to 196, found 197"):
        read_layout(cars_in_one_file(tmp_path / "class", (1, 2, 197)))
    for content in (b"", b"no MATLAB at all" * 20):
        (tmp_path / "cars_annos.mat").write_bytes(content)
        with pytest.raises(InvalidManifest, match=r"cars_annos\.mat: expected a MATLAB file"):
            read_layout(str(tmp_path))
    scipy.io.savemat(tmp_path / "cars_annos.mat", {"class_names": names()})
    with pytest.raises(InvalidManifest, match="expected the variable annotations"):
        read_layout(str(tmp_path))
    scipy.io.savemat(
        tmp_path / "cars_annos.mat", {"class_names": names(), "annotations": annotations(**{"class": [1]})}
    )
    with pytest.raises(InvalidManifest, match="annotations have no field relative_im_path"):
        read_layout(str(tmp_path))


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    folder = str(write_class_folders(tmp_path / "pictures", n_classes=1, n_images=1))
    with pytest.raises(InvalidManifest, match=r"folder of sop with Ebay_train\.txt and Ebay_test\.txt"):
        read_layout(folder, "sop")
    with pytest.raises(InvalidInput, match="found 'cubs'; did you mean cub"):
        read_layout(folder, "cubs")
    with pytest.raises(InvalidManifest, match="expected the folder of a data set"):
        read_layout(str(tmp_path / "nowhere"))
    with pytest.raises(EmptyCatalog, match="none of one kind"):
        read_layout(products(tmp_path / "sop", Ebay_test=HEADER))
