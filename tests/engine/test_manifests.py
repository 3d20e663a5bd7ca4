"""Looking at a manifest before a job: what can only fail is refused, and little is read."""

from __future__ import annotations

import functools
import http.server
import os
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from retrieval.engine import manifests
from retrieval.engine.manifests import check_manifest
from retrieval.errors import InvalidInput, InvalidManifest, Unavailable

ROWS = 50


def write(folder: Path, suffix: str) -> Path:
    """Write a table of 50 items with the columns id, uri, label and colour."""
    path = folder / f"items{suffix}"
    columns = {
        "id": [f"item {n}" for n in range(ROWS)],
        "uri": [f"{n}.png" for n in range(ROWS)],
        "label": [str(n % 7) for n in range(ROWS)],
        "colour": ["red"] * ROWS,
    }
    if suffix == ".parquet":
        parquet.write_table(pa.table(columns), path)
    elif suffix == ".csv":
        lines = [",".join(columns), *(",".join(row) for row in zip(*columns.values(), strict=True))]
        path.write_text("\n".join(lines))
    else:
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        path.write_text("\n".join(str(row).replace("'", '"') for row in rows))
    return path


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """Serve a folder over HTTP; yield its URL."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
@pytest.mark.parametrize("remote", [False, True])
def test_tables_are_looked_into(tmp_path: Path, web: str, suffix: str, remote: bool) -> None:
    """A group that is no column, a label that is missing and an index with too few items, in files and over HTTP."""
    path = write(tmp_path, suffix)
    source = f"{web}/{path.name}" if remote else str(path)
    check_manifest(source, labels_for="an audit", group_by=["colour"], index="IVF1,nprobe=1")
    with pytest.raises(InvalidManifest, match="expected a column 'maker' to group by, found colour"):
        check_manifest(source, group_by=["colour", "maker"])
    with pytest.raises(InvalidManifest, match="expected a column 'label' to group by"):
        check_manifest(source, group_by=["label"])
    with pytest.raises(InvalidInput, match=r"expected at least 78 items .*, found 50:"):
        check_manifest(source, index="IVF2,nprobe=1")


def test_what_is_missing_is_named(tmp_path: Path, web: str) -> None:
    """A table without labels for an audit, a table without ids, nothing at all, and no table."""
    (tmp_path / "plain.csv").write_text("id,uri\na,a.png\n")
    check_manifest(str(tmp_path / "plain.csv"))
    with pytest.raises(InvalidManifest, match="missing label, found id, uri"):
        check_manifest(str(tmp_path / "plain.csv"), labels_for="an audit")
    (tmp_path / "other.csv").write_text("name,file\na,a.png\n")
    with pytest.raises(InvalidManifest, match="missing id, uri, found name, file"):
        check_manifest(f"{web}/other.csv")
    (tmp_path / "notes.txt").write_text("no table")
    with pytest.raises(InvalidManifest, match=r"expected \.csv, \.parquet or \.jsonl, found \.txt"):
        check_manifest(str(tmp_path / "notes.txt"))
    for gone in (f"{web}/gone.csv", str(tmp_path / "gone.csv"), f"file://{tmp_path}/gone.csv", "/nowhere/gone.csv"):
        with pytest.raises(InvalidManifest, match="found nothing there"):
            check_manifest(gone)
    check_manifest("file:///nowhere/gone.csv")  # the workers may have this folder


def test_a_table_inside_an_archive_is_looked_into(tmp_path: Path) -> None:
    """Its suffix is that of the table, not of the archive."""
    table = write(tmp_path, ".csv")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(table, "parts/items.csv")
    source = f"zip://parts/items.csv::file://{tmp_path}/all.zip"
    check_manifest(source, group_by=["colour"])
    with pytest.raises(InvalidManifest, match="'maker' to group by, found colour"):
        check_manifest(source, group_by=["maker"])


def test_folders_have_no_columns_and_are_counted_no_further_than_needed(tmp_path: Path) -> None:
    """A folder of two classes with 20 images each."""
    for n in range(40):
        (tmp_path / str(n % 2)).mkdir(exist_ok=True)
        (tmp_path / str(n % 2) / f"{n}.png").touch()
    check_manifest(str(tmp_path), labels_for="an audit", index="IVF1,nprobe=1")
    with pytest.raises(InvalidInput, match="found 40: use Exact or at most 1 lists"):
        check_manifest(str(tmp_path), index="IVF2,nprobe=1")
    with pytest.raises(InvalidManifest, match="a folder has no columns"):
        check_manifest(str(tmp_path), group_by=["maker"])


def test_what_cannot_be_read_or_understood_is_left_to_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unavailable for a host that does not answer; nothing for a damaged table, and for one longer than is read."""
    with pytest.raises(Unavailable, match="cannot be read"):
        check_manifest("http://127.0.0.1:9/items.csv")
    for suffix in (".parquet", ".jsonl"):
        damaged = tmp_path / f"damaged{suffix}"
        damaged.write_bytes(os.urandom(100))
        check_manifest(str(damaged), group_by=["maker"], index="IVF9,nprobe=1")
    monkeypatch.setattr(manifests, "_MOST_BYTES", 200)
    long = write(tmp_path, ".csv")
    check_manifest(str(long), index="IVF9,nprobe=1")
    with pytest.raises(InvalidManifest, match="'maker' to group by"):
        check_manifest(str(long), group_by=["maker"])
