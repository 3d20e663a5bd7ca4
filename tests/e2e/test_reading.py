"""Whole jobs on the tables, folders and images that users have: what is read is right, or it is reported."""

from __future__ import annotations

import json
import shutil
import subprocess
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from retrieval.contract.bundle import Bundle
from tests import hostile
from tests.photos import shot, write_shots
from tests.pictures import encoded
from tests.processes import COMMAND, Deployment
from tests.web import Web, serving

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

TRAINING = COMMAND.with_name("training")


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle) -> Deployment:
    """A store with an active threshold; no process runs."""
    folder = tmp_path_factory.mktemp("reading")
    deployment = Deployment.in_folder(folder, worker_processes="1")
    data = write_shots(folder / "calibration", places=range(1000, 1040), n_shots=5)
    deployment.run("calibrate", "--bundle", str(tiny_bundle.directory), "--data", str(data), "--activate")
    return deployment


def grey(place: int, number: int = 0) -> np.ndarray:
    return np.asarray(shot(place, number).convert("L"))


def messy_folder(folder: Path) -> dict[str, str]:
    """Ten classes of one picture each, every one in another form, among what other programs leave."""
    deep = grey(3).astype(np.uint16) * 257
    broken = hostile.png_with(hostile.chunk(b"eXIf", b"no exif") + hostile.chunk(b"pHYs", b""), shot(4, 0))
    files = {
        "float 0 to 1/a.tif": encoded(Image.fromarray(grey(0).astype(np.float32) / 255), "TIFF"),
        "float 0 to 255/b.TIFF": encoded(Image.fromarray(grey(1).astype(np.float32)), "TIFF"),
        "12 bits/c.tif": encoded(Image.fromarray(grey(2).astype(np.int32) * 16), "TIFF"),
        "16 bits/-d 1.png": encoded(Image.fromarray(deep)),
        "metadata/e#1.png": broken,
        "no suffix/f%20f": encoded(shot(5, 0), "JPEG"),
        "jfif/g::h.jfif": encoded(shot(6, 0), "JPEG"),
        "cmyk/i?.JPG": encoded(shot(7, 0).convert("CMYK"), "JPEG", quality=95),
        unicodedata.normalize("NFD", "tür 🚪/ü\nü.png"): encoded(shot(8, 0)),
        "webp/x.webp": encoded(shot(9, 0), "WEBP", quality=95),
        ".ipynb_checkpoints/x.png": encoded(shot(9, 1)),
        "webp/@eaDir/x.png": encoded(shot(9, 2)),
        "webp/._x.webp": b"\x00\x05\x16\x07",
        "webp/x.mov": b"a film",
    }
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / "again").symlink_to("webp")
    (folder / "webp" / "loop.png").symlink_to("loop.png")
    return {name: name.split("/")[0] for place, name in enumerate(files) if place < 10}


def test_a_folder_of_every_kind_is_indexed_found_and_audited(deployment: Deployment) -> None:
    """Each picture is found by an ordinary PNG of another shot of it, under its own name; the rest is reported."""
    folder = deployment.folder / "messy"
    expected = messy_folder(folder)
    job = deployment.run_json("reindex", "messy", str(folder), "--embedded", "--max-failed-share", "0.2")
    passed_over = [
        "3 passed over (hidden, or left by another program): .ipynb_checkpoints, webp/._x.webp, webp/@eaDir",
        "1 passed over (links to folders that are read under another name): again",
        "1 passed over (no images): webp/x.mov",
    ]
    assert job["passed_over"] == passed_over
    assert (job["snapshot"]["n_items"], list(job["snapshot"]["failures"])) == (10, ["webp/loop.png"])
    queries = deployment.folder / "queries"
    queries.mkdir()
    for place, label in enumerate(expected.values()):
        (queries / label).mkdir()
        image = shot(place, 0)
        (image.convert("L") if place < 4 else image).save(queries / label / f"{place}.png")
    (queries / "note.txt").write_text("no image")
    with deployment.running("worker"), deployment.running("serve"):
        found = deployment.run_json("search", "--catalog", "messy", "--manifest", str(queries), "--limit", "3")
        labels = {query["label"]: query["matches"][0]["label"] for query in found["queries"]}
        assert labels == {label: label for label in expected.values()}
        scores = [query["matches"][0]["score"] for query in found["queries"]]
        assert min(scores) > 0.98  # the same pixels, but for the loss of JPEG
        write_shots(deployment.folder / "audit", places=range(2000, 2040), n_shots=5)
        (deployment.folder / "audit" / "note.txt").write_text("no image")
        folders = by_class(deployment.folder / "audit", deployment.folder / "audited")
        done = deployment.run("audit", "messy", str(folders), "--json", accept=(0, 1))
        assert json.loads(done.stdout)["passed_over"] == ["1 passed over (no images): note.txt"]
        assert "1 passed over (no images): note.txt" in done.stderr


def by_class(shots: Path, folder: Path) -> Path:
    """The shots in a folder for each place, with the other files of their folder but the table."""
    for path in shots.iterdir():
        if path.suffix == ".jpg":
            (folder / path.stem.split("-")[0]).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / path.stem.split("-")[0] / path.name)
    shutil.copy(shots / "note.txt", folder)
    return folder


def test_a_flaky_web_server_costs_one_image(deployment: Deployment) -> None:
    """One connection that is always cut in the middle is one named failure; busy answers are asked again."""
    pictures = {f"/data/{place}.png": encoded(shot(place, 0)) for place in range(30)}
    table = "id,uri,label\n" + "".join(f"{place},{place}.png,place {place}\n" for place in range(30))
    web = Web({**pictures, "/data/t.csv": table.encode()}, cut=frozenset({"/data/7.png"}))
    web.busy = {"/data/3.png": (2, 503), "/data/4.png": (1, 429), "/data/t.csv": (1, 500)}
    dead = dict.fromkeys(("http_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "grpc_proxy"), "http://127.0.0.1:9")
    behind = Deployment(deployment.folder, deployment.address, deployment.environment | dead)
    with serving(web):
        web.cut |= {"/data/8.png"}  # one image may fail in any case, two of thirty are too many
        refused = behind.run("reindex", "web", f"{web.url}/data/t.csv", "--embedded", accept=(3,))
        assert "7.png cannot be read" in refused.stderr
        assert web.asked["/data/3.png"] == 3
        web.cut -= {"/data/8.png"}
        job = behind.run_json("reindex", "web", f"{web.url}/data/t.csv?sig=a.b", "--embedded")
        assert (job["snapshot"]["n_items"], job["snapshot"]["n_failed"]) == (29, 1)
        assert "cannot be read" in job["snapshot"]["failures"]["7"]


def broken_tables(folder: Path, manifest: Path) -> dict[str, str]:
    """Tables that must be refused, with what the message names."""
    rows = manifest.read_text().splitlines()
    quoted = [*rows[:50], rows[50].replace("place", '"place'), *rows[51:80], rows[80] + '"', *rows[81:]]
    tables = {"quote": quoted, "never": quoted[:80], "header": ["id,uri,Label,camera", *rows[1:]]}
    for name, lines in tables.items():
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    values = [row.split(",") for row in rows[1:]]
    binary = {"id": [v[0] for v in values], "uri": [v[1] for v in values], "label": [b"\xff\xfe" for _ in values]}
    pyarrow.parquet.write_table(pa.table(binary), folder / "binary.parquet")
    twice = [json.dumps({"id": v[0], "uri": v[1], "label": v[2]})[:-1] + ', "label": "x"}' for v in values]
    (folder / "twice.jsonl").write_text("\n".join(twice))
    return {
        "quote.csv": "row 50 (line 51)",
        "never.csv": "row 50 (line 51)",
        "header.csv": "'Label'",
        "binary.parquet": "column label should be text",
        "twice.jsonl": "'label' occurs more than once",
    }


@pytest.mark.parametrize("command", ["reindex", "calibrate", "train", "split"])
def test_a_table_that_cannot_be_read_rightly_is_refused(
    deployment: Deployment, tiny_bundle: Bundle, tmp_path: Path, command: str
) -> None:
    """By every command, with the place of the fault, and nothing is written."""
    manifest = write_shots(tmp_path / "shots", places=range(30), n_shots=4)
    tables = broken_tables(tmp_path / "shots", manifest)
    slow = command in ("reindex", "train")
    for name, message in list(tables.items())[: 1 if slow else None]:
        table = str(tmp_path / "shots" / name)
        out = str(tmp_path / "out")
        arguments = {
            "reindex": (COMMAND, "reindex", "refused", table, "--embedded"),
            "calibrate": (COMMAND, "calibrate", "--bundle", str(tiny_bundle.directory), "--data", table),
            "train": (TRAINING, "train", "--data", str(manifest), "--validation", table, "--out", out),
            "split": (TRAINING, "split", table, "--out", out),
        }[command]
        done = subprocess.run(arguments, env=deployment.environment, capture_output=True, text=True, check=False)
        assert done.returncode in (2, 3), (name, done.stdout)
        assert message in " ".join(done.stderr.split()), name
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()


def test_a_parquet_table_of_every_type_is_read_by_every_command(
    deployment: Deployment, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """A label of 100,000 letters, a dictionary of bytes, times beyond Python's: exit code 0, and the right classes."""
    manifest = write_shots(tmp_path / "shots", places=range(40), n_shots=4)
    values = [row.split(",") for row in manifest.read_text().splitlines()[1:]]
    long = "place " + "x" * 100_000
    labels = [(long if label == "place 0" else label).encode() for _, _, label, _ in values]
    table = pa.table(
        {
            "id": pa.array([row[0].encode() for row in values], pa.binary_view()),
            "uri": [row[1] for row in values],
            "label": pa.array(labels).dictionary_encode(),
            "seen": pa.array([2**62] * len(values), pa.timestamp("ns", "Europe/Berlin")),
            "far": pa.array([2**62] * len(values), pa.timestamp("us")),
            "tags": [["a", None]] * len(values),
            "thumbnail": [b"\xff"] * len(values),
        }
    )
    path = str(tmp_path / "shots" / "t.parquet")
    pyarrow.parquet.write_table(table, path)
    passed_over = ["column thumbnail left out: its values are no text"]
    job = deployment.run_json("reindex", "typed", path, "--embedded")
    assert (job["snapshot"]["n_items"], job["passed_over"]) == (160, passed_over)
    found = deployment.run_json("calibrate", "--bundle", str(tiny_bundle.directory), "--data", path, "--far", "0.05")
    assert found["passed_over"] == passed_over
    done = subprocess.run(
        [TRAINING, "split", path, "--out", str(tmp_path / "my"), "--json"],
        env=deployment.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    summary = json.loads(done.stdout)
    assert (sum(summary["n_classes"].values()), summary["passed_over"]) == (40, passed_over)
