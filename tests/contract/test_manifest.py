"""Manifests: a folder, CSV, Parquet or JSON lines say the same; what is unusable is refused by name."""

from __future__ import annotations

import csv
import io
import json
import os
import unicodedata
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.contract.manifest import Item, check_labels, read_manifest, read_source
from retrieval.errors import EmptyCatalog, InvalidManifest
from tests.pictures import encoded, noise

ROWS = [
    {"id": "007", "uri": "a/1.png", "label": "cup", "maker": "north"},
    {"id": "8", "uri": "b/2.png", "label": "", "maker": "süd, west"},
    {"id": "x y", "uri": "c 3.png", "label": 'a "big"\ncup', "maker": ""},
]

# Any text a spreadsheet may hold; a lone carriage return is read back as a line feed by CSV, so it is left out.
CELLS = st.text(st.characters(exclude_characters="\r\x00", exclude_categories=["Cs"]), max_size=20)


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    """The rows as a table in the format that the suffix names."""
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def expected_items(folder: Path, rows: list[dict[str, str]]) -> list[Item]:
    return [
        Item(
            id=row["id"],
            uri=f"file://{folder}/{row['uri']}",
            label=row["label"],
            attributes={name: value for name, value in row.items() if name not in ("id", "uri", "label")},
        )
        for row in rows
    ]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_tables(tmp_path: Path, suffix: str) -> None:
    """Ids stay text, quotes, commas and line breaks survive, other columns become attributes, order is kept."""
    path = write(tmp_path / f"items{suffix}", ROWS)
    assert read_manifest(str(path)) == expected_items(tmp_path, ROWS)
    assert read_manifest(f"file://{path}") == expected_items(tmp_path, ROWS)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
@given(values=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5))
def test_any_text_survives(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, values: list[tuple[str, str]]
) -> None:
    rows = [{"id": f"{i}", "uri": f"{i}.png", "label": label, "a": a} for i, (label, a) in enumerate(values)]
    path = write(tmp_path_factory.getbasetemp() / f"any{suffix}", rows)
    assert read_manifest(str(path)) == expected_items(path.parent, rows)


def test_a_folder_per_class(tmp_path: Path) -> None:
    """Ids are paths inside the folder, labels the first sub-folder; other files are passed over."""
    for name in ("cup/b.JPG", "cup/deep/a.png", "plate 1/x.webp", "loose.gif", "cup/notes.txt", "README"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    items = read_manifest(str(tmp_path))
    assert [(item.id, item.label) for item in items] == [
        ("cup/b.JPG", "cup"),
        ("cup/deep/a.png", "cup"),
        ("loose.gif", ""),
        ("plate 1/x.webp", "plate 1"),
    ]
    assert [item.uri for item in items] == [f"file://{tmp_path}/{item.id}" for item in items]
    assert read_manifest(f"{tmp_path}/") == items


def test_absolute_and_remote_uris_stay(tmp_path: Path) -> None:
    rows = [{"id": str(i), "uri": uri} for i, uri in enumerate(["/data/1.png", "s3://bucket/2.png", "sub/3.png"])]
    items = read_manifest(str(write(tmp_path / "items.csv", rows)))
    assert [item.uri for item in items] == ["file:///data/1.png", "s3://bucket/2.png", f"file://{tmp_path}/sub/3.png"]
    assert {item.label for item in items} == {""}


def test_a_relative_path_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest named relative to the working directory has absolute uris: a worker elsewhere must find them."""
    write(tmp_path / "items.csv", ROWS)
    monkeypatch.chdir(tmp_path)
    assert read_manifest("items.csv") == expected_items(tmp_path, ROWS)


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    """Spreadsheets write one."""
    path = tmp_path / "items.csv"
    path.write_bytes("﻿id,uri,label\r\n1,a.png,cup\r\n\r\n".encode())
    assert read_manifest(str(path)) == [Item(id="1", uri=f"file://{tmp_path}/a.png", label="cup", attributes={})]


def test_numbers_and_nulls_of_typed_tables_become_text(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(
        pa.table({"id": [1, 2], "uri": ["a", "b"], "label": [None, "x"], "price": [1.5, None]}), tmp_path / "t.parquet"
    )
    (tmp_path / "t.jsonl").write_text('{"id": 1, "uri": "a", "price": 1.5}\n\n{"id": 2, "uri": "b", "label": "x"}\n')
    parquet, jsonl = (read_manifest(str(tmp_path / name)) for name in ("t.parquet", "t.jsonl"))
    assert [(item.id, item.label, item.attributes) for item in parquet] == [
        ("1", "", {"price": "1.5"}),
        ("2", "x", {"price": ""}),
    ]
    assert [(item.id, item.label, item.attributes) for item in jsonl] == [
        ("1", "", {"price": "1.5"}),
        ("2", "x", {}),
    ]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
@pytest.mark.parametrize("column", ["id", "uri"])
def test_a_missing_column_is_named(tmp_path: Path, suffix: str, column: str) -> None:
    rows = [{name: value for name, value in row.items() if name != column} for row in ROWS]
    with pytest.raises(InvalidManifest, match=rf"missing {column}, found .*label"):
        read_manifest(str(write(tmp_path / f"items{suffix}", rows)))


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_duplicate_ids_are_named(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"items{suffix}", [*ROWS, ROWS[0]])
    with pytest.raises(InvalidManifest, match="1 occur more than once, for instance '007'"):
        read_manifest(str(path))


@pytest.mark.parametrize("column", ["id", "uri"])
def test_empty_cells_are_counted_from_one(tmp_path: Path, column: str) -> None:
    with pytest.raises(InvalidManifest, match="row 2 has an empty id or uri"):
        read_manifest(str(write(tmp_path / "items.csv", [ROWS[0], ROWS[1] | {column: ""}])))


def test_a_row_with_too_many_values_is_refused(tmp_path: Path) -> None:
    """An unquoted comma shifts every value after it: such a row is refused, not guessed at."""
    path = tmp_path / "items.csv"
    path.write_text("id,uri,label\n1,a.png,cup\n2,b,c.png,cup\n")
    with pytest.raises(InvalidManifest, match="row 2 has more values than there are columns"):
        read_manifest(str(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("items.csv", b"\xff\xfe\x00 no UTF-8", "cannot be read as .csv"),
        ("items.csv", b"", "missing id, uri, found none"),
        ("items.parquet", b"PAR1 truncated", "cannot be read as .parquet"),
        ("items.parquet", b"", "cannot be read as .parquet"),
        ("items.jsonl", b'{"id": 1, "uri"', "cannot be read as .jsonl"),
        ("items.jsonl", b"[1, 2]\n", "one JSON object per line"),
        ("items.txt", b"id,uri\n", "found .txt"),
        ("items", b"id,uri\n", "found no suffix"),
    ],
)
def test_unreadable_tables(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidManifest, match=message):
        read_manifest(str(tmp_path / name))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_an_empty_table_is_an_empty_catalogue(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"items{suffix}"
    if suffix == ".csv":
        path.write_text("id,uri,label\n")
    else:
        pyarrow.parquet.write_table(pa.table({"id": pa.array([], pa.string()), "uri": pa.array([], pa.string())}), path)
    with pytest.raises(EmptyCatalog, match="expected at least one image"):
        read_manifest(str(path))


def test_a_folder_without_images_is_an_empty_catalogue(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(EmptyCatalog, match="expected at least one image, found none"):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize("name", ["cup/\udcff.png", "\udcff/1.png"])
def test_a_file_name_that_is_no_utf_8_is_refused(tmp_path: Path, name: str) -> None:
    """No digest, no table and no message could hold it; the message shows it escaped."""
    path = tmp_path / name
    path.parent.mkdir()
    path.write_bytes(b"")
    with pytest.raises(InvalidManifest, match=r"item '.*\\udcff.*' has text that is not UTF-8"):
        read_manifest(str(tmp_path))


def test_no_source_is_not_the_present_folder() -> None:
    """An empty variable of a script must not index whatever lies around."""
    with pytest.raises(InvalidManifest, match="expected a path or URL, found nothing"):
        read_manifest("")


@pytest.mark.parametrize("source", ["/no/such/place", "no-such-file.csv", "nowhere://bucket/items.csv"])
def test_no_such_place(source: str) -> None:
    with pytest.raises(InvalidManifest, match=source):
        read_manifest(source)


def test_columns_of_a_csv_keep_their_quotes(tmp_path: Path) -> None:
    """A quoted line break inside a cell does not split the row."""
    buffer = io.StringIO()
    csv.writer(buffer, quoting=csv.QUOTE_ALL).writerows([["id", "uri", "label"], ["1", "a,b.png", "two\nlines"]])
    (tmp_path / "items.csv").write_text(buffer.getvalue())
    (item,) = read_manifest(str(tmp_path / "items.csv"))
    assert (item.uri, item.label) == (f"file://{tmp_path}/a,b.png", "two\nlines")


def test_every_item_needs_a_label_where_labels_are_used() -> None:
    items = [Item(id=name, uri="a", label=label, attributes={}) for name, label in [("1", "x"), ("2", ""), ("3", "")]]
    check_labels(items[:1], "here")
    check_labels([], "here")
    with pytest.raises(InvalidManifest, match="here: every item needs a label here, 2 have none, for instance '2'"):
        check_labels(items, "here")


def test_a_column_of_groups_must_be_there_for_every_item() -> None:
    items = [
        Item(id="1", uri="a", label="x", attributes={"maker": "north"}),
        Item(id="2", uri="b", label="x", attributes={}),
    ]
    check_labels(items, "here")
    with pytest.raises(InvalidManifest, match="here: expected a column 'maker'"):
        check_labels(items, "here", ["maker"])


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ('"3 inch nail', r"row 41 \(line 42\).*quote opened there"),  # to the end of the file
        ('"3 inch nail\n9,9.png,5" disc', r"row 41 \(line 42\).*quote opened there"),
        ('"3 inch nail\n9,9.png,disc"', r"row 41 \(line 42\): the value of 'label' holds whole rows of the table"),
        ('"' + "x" * 200_000, r"row 41 \(line 42\)"),
    ],
)
def test_a_quote_that_is_not_closed_swallows_no_rows(tmp_path: Path, label: str, message: str) -> None:
    """The row where it is opened is named."""
    rows = (
        [f"{i},{i}.png,cup" for i in range(40)] + [f"40,40.png,{label}"] + [f"{i},{i}.png,cup" for i in range(41, 60)]
    )
    (tmp_path / "t.csv").write_text("\n".join(["id,uri,label", *rows]))
    with pytest.raises(InvalidManifest, match=message):
        read_manifest(str(tmp_path / "t.csv"))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_column_that_occurs_twice_is_refused(tmp_path: Path, suffix: str) -> None:
    """One of the two would win without a word."""
    path = tmp_path / f"t{suffix}"
    if suffix == ".csv":
        path.write_text("id,uri,label,label\n1,a.png,cup,plate\n")
    else:
        columns = [pa.array(["1"]), pa.array(["a.png"]), pa.array(["cup"]), pa.array(["plate"])]
        pyarrow.parquet.write_table(pa.table(columns, names=["id", "uri", "label", "label"]), path)
    with pytest.raises(InvalidManifest, match="the column 'label' occurs more than once"):
        read_manifest(str(path))


def test_nan_is_no_label(tmp_path: Path) -> None:
    """As null is; written as text it would be a class of its own."""
    table = pa.table({"id": ["a", "b"], "uri": ["a", "b"], "label": [float("nan"), 2.5], "price": [1.5, float("nan")]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    (tmp_path / "t.jsonl").write_text(
        '{"id": "a", "uri": "a", "label": NaN, "price": 1.5}\n{"id": "b", "uri": "b", "label": 2.5, "price": NaN}\n'
    )
    for name in ("t.parquet", "t.jsonl"):
        items = read_manifest(str(tmp_path / name))
        assert [(item.label, item.attributes) for item in items] == [("", {"price": "1.5"}), ("2.5", {"price": ""})]


def test_binary_text_is_text(tmp_path: Path) -> None:
    """Other programs write text columns without saying so; a dictionary of it is text too."""
    labels = pa.array([b"t\xc3\xbcr", b"cup"]).dictionary_encode()
    table = pa.table({"id": [b"a", b"b"], "uri": [b"a", b"b"], "label": labels, "thumbnail": [b"\xff\xd8", b"\x80"]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    found = read_source(str(tmp_path / "t.parquet"))
    assert [(item.id, item.label, item.attributes) for item in found.items] == [("a", "tür", {}), ("b", "cup", {})]
    assert found.passed_over == ("column thumbnail left out: its values are no text",)


@pytest.mark.parametrize("column", ["id", "uri", "label"])
@pytest.mark.parametrize("value", [b"\xff\xfe", ["a", "b"]])
def test_what_is_no_text_is_refused_where_an_item_needs_text(tmp_path: Path, column: str, value: object) -> None:
    row: dict[str, object] = {"id": "a", "uri": "a", "label": "a", column: value}
    pyarrow.parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "t.parquet")
    with pytest.raises(InvalidManifest, match=f"column {column} should be text, found (binary|list)"):
        read_manifest(str(tmp_path / "t.parquet"))
    if isinstance(value, list):
        (tmp_path / "t.jsonl").write_text(json.dumps(row))
        with pytest.raises(InvalidManifest, match=f"line 1: {column} should be text"):
            read_manifest(str(tmp_path / "t.jsonl"))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (pa.timestamp("ns"), "1970-01-01 00:00:00.000000001"),
        (pa.timestamp("ns", "Europe/Berlin"), "1970-01-01 01:00:00.000000001+0100"),
        (pa.time64("ns"), "00:00:00.000000001"),
        (pa.duration("ns"), "1"),
        (pa.timestamp("s"), "1970-01-01 00:00:01"),
    ],
    ids=str,
)
def test_times_are_attributes(tmp_path: Path, kind: pa.DataType, text: str) -> None:
    """Nanoseconds, which Python's times do not have, stop no table."""
    table = pa.table({"id": ["a"], "uri": ["a"], "when": pa.array([1], kind)})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    assert read_manifest(str(tmp_path / "t.parquet"))[0].attributes == {"when": text}


HIDDEN = (
    ".DS_Store",
    ".git/objects/1.png",
    ".ipynb_checkpoints/a.png",
    "#recycle/a.png",
    "__MACOSX/cup/a.png",
    "cup/._a.png",
    "cup/@eaDir/a.png/thumb.png",
    "cup/Thumbs.db",
)


@pytest.mark.parametrize("kind", ["local", "zip"])
def test_hidden_files_are_no_items(tmp_path: Path, kind: str) -> None:
    """They are reported, also those in an archive."""
    folder = tmp_path / "pictures"
    for name in (*HIDDEN, "cup/a.png", "plate/a.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(noise(8)))
    source = str(folder)
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
            for path in folder.rglob("*"):
                archive.write(path, path.relative_to(folder))
        source = f"zip://::file://{tmp_path}/pictures.zip"
    found = read_source(source)
    assert [(item.id, item.label) for item in found.items] == [("cup/a.png", "cup"), ("plate/a.png", "plate")]
    (sentence,) = found.passed_over
    assert sentence.startswith("8 passed over (hidden, or left by another program): #recycle, .DS_Store, .git, ...")


def test_content_decides_where_the_suffix_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "cup").mkdir()
    for name, format_ in (("1", "PNG"), ("2.jfif", "JPEG"), ("3.img", "WEBP"), ("4.bin", "BMP"), ("5.dat", "TIFF")):
        (tmp_path / "cup" / name).write_bytes(encoded(noise(8), format_))
    (tmp_path / "cup" / "raw.NEF").write_bytes(encoded(noise(8), "TIFF"))
    (tmp_path / "cup" / "BMs.txt").write_text("BM, or bitmap, is a text here and no image: " * 3)
    (tmp_path / "cup" / "empty.heic").write_bytes(b"")
    os.mkfifo(tmp_path / "cup" / "pipe.png")
    found = read_source(str(tmp_path))
    assert [item.id for item in found.items] == ["cup/1", "cup/2.jfif", "cup/3.img", "cup/4.bin", "cup/5.dat"]
    assert found.passed_over == (
        "2 passed over (no images): cup/BMs.txt, cup/empty.heic",
        "1 passed over (pipes, sockets or devices): cup/pipe.png",
        "1 passed over (raw files of a camera): cup/raw.NEF",
    )


def test_linked_folders_are_read_once(tmp_path: Path) -> None:
    """Under their own name if they have one inside; a link to a folder around it ends nothing in a circle."""
    folder = tmp_path / "pictures"
    for name in ("pictures/cup/a.png", "elsewhere/b.png", "elsewhere/deep/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (folder / "plate").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(folder / "cup")
    (folder / "twice").symlink_to(tmp_path / "elsewhere")
    (folder / "cup" / "up").symlink_to(folder)
    (folder / "cup" / "top").symlink_to(tmp_path)
    (folder / "cup" / "file.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    (folder / "cup" / "lost.png").symlink_to(tmp_path / "nowhere.png")
    found = read_source(str(folder))
    assert [item.id for item in found.items] == [
        "cup/a.png",
        "cup/file.png",
        "cup/lost.png",  # a failure that is named when it is read
        "plate/b.png",
        "plate/deep/c.png",
    ]
    assert found.passed_over == (
        "4 passed over (links to folders that are read under another name): again, cup/top, cup/up, ...",
    )


def test_a_folder_with_nothing_but_hidden_files_says_so(tmp_path: Path) -> None:
    (tmp_path / ".a.png").write_bytes(b"")
    with pytest.raises(EmptyCatalog, match=r"found none\. Passed over: 1 passed over \(hidden.*\.a\.png"):
        read_manifest(str(tmp_path))


def test_a_table_in_an_archive_names_images_of_the_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("sub/items.csv", "id,uri\n1,a::b.png\n")
    (item,) = read_manifest(f"zip://sub/items.csv::file://{tmp_path}/a.zip")
    assert item.uri == f"zip://sub/a::b.png::file://{tmp_path}/a.zip"


@pytest.mark.parametrize("name", ["a::b", "my pictures", "bücher", "100%", "50%25 off", "zip::x"])
def test_any_folder_name_can_be_read(tmp_path: Path, name: str) -> None:
    """As a path, as a plain file:// URL and percent-encoded, a name is a name."""
    folder = tmp_path / name
    (folder / "cup").mkdir(parents=True)
    (folder / "cup" / "1.png").write_bytes(b"")
    (folder / "t.csv").write_text("id,uri\n1,cup/1.png\n")
    expected = f"file://{folder}/cup/1.png"
    for source in (str(folder), f"file://{folder}", folder.as_uri()):
        assert [item.uri for item in read_manifest(source)] == [expected]
        assert [item.uri for item in read_manifest(f"{source}/t.csv")] == [expected]


@pytest.mark.parametrize(
    ("lines", "opened"),
    [
        (['4,"4.png,cup,north', '5,5.png",cup,north'], "uri"),
        (['4,4.png,"cup,north', '5,5.png,cup",north'], "label"),  # nothing inside the value is a whole row
        (['"4,4.png,cup,north', '5",5.png,cup,north'], "id"),
        (['4,4.png,cup,"north', "5,5.png,tin,south", '6,6.png,cup,west"'], "maker"),
        (['4,s3://shop/4?v=1,cup,"north', '5,s3://shop/5?v=1,cup,west"'], "maker"),  # no suffix
        (['4,pictures/4,cup,"north', '5,pictures/5,cup,west"'], "maker"),
    ],
)
def test_a_quote_that_closes_in_another_row_is_refused(tmp_path: Path, lines: list[str], opened: str) -> None:
    """In whatever column it opens, and whatever the names of the images look like."""
    rows = [f"{i},{i}.png,cup,north" for i in range(4)]
    (tmp_path / "t.csv").write_text("\n".join(["id,uri,label,maker", *rows, *lines, "9,9.png,cup,north"]))
    with pytest.raises(InvalidManifest, match=rf"row 5 \(line 6\): the value of '{opened}' holds whole rows"):
        read_manifest(str(tmp_path / "t.csv"))


@pytest.mark.parametrize("columns", [["note", "id", "uri"], ["id", "note", "uri"], ["id", "uri", "note"]])
@pytest.mark.parametrize("note", ["big, red\nround, heavy, old", "see a.png\nor b.png", "two\r\nlines", "\n,\n"])
def test_line_breaks_inside_a_value_are_no_rows(tmp_path: Path, columns: list[str], note: str) -> None:
    """In any column: a description may hold commas and names of files."""
    rows = [{"id": f"{i}", "uri": f"{i}.png", "note": note} for i in range(3)]
    path = write(tmp_path / "t.csv", [{name: row[name] for name in columns} for row in rows])
    assert [item.attributes["note"] for item in read_manifest(str(path))] == [note] * 3


@pytest.mark.parametrize(("suffix", "column"), [(".csv", "Label"), (".csv", " label"), (".jsonl", "LABEL ")])
def test_a_column_that_is_nearly_the_label_is_refused(tmp_path: Path, suffix: str, column: str) -> None:
    """It would be an attribute, and no item would have a label."""
    path = write(tmp_path / f"t{suffix}", [{"id": "1", "uri": "a.png", column: "cup"}])
    with pytest.raises(InvalidManifest, match=f"expected the column 'label', found '{column}': rename it"):
        read_manifest(str(path))
    path = write(tmp_path / f"both{suffix}", [{"id": "1", "uri": "a.png", "label": "cup", column: "x"}])
    assert read_manifest(str(path))[0].label == "cup"


def test_a_json_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    """As a column is: one of the two would win without a word."""
    (tmp_path / "t.jsonl").write_text('{"id": 1, "uri": "a.png", "label": "cup", "label": "tin"}\n')
    with pytest.raises(InvalidManifest, match=r"line 1 .*: the name 'label' occurs more than once"):
        read_manifest(str(tmp_path / "t.jsonl"))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (pa.array([b"t\xc3\xbcr"], pa.binary_view()), "tür"),
        (pa.array([b"a\0\0"], pa.binary(3)), "a"),
        (pa.array([[b"a"]]), '["a"]'),
        (pa.array([[b"\xff"]]), None),
        (pa.array([0.1], pa.float32()), "0.1"),
        (pa.array([2**62], pa.timestamp("us")), "<value out of range: 4611686018427387904>"),
        (pa.array([86_400_000 * 4_000_000], pa.date64()), "12921-08-18"),
        (pa.array([2**30], pa.date32()), "<value out of range: 1073741824>"),
        (pa.array([1], pa.timestamp("us", tz="Mars/Olympus")), None),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_a_value_is_what_a_person_sees_in_the_table(tmp_path: Path, values: pa.Array, text: str | None) -> None:
    """No value of an attribute stops the table, and what has no text is left out and reported."""
    table = pa.table({"id": ["1"], "uri": ["a.png"], "label": ["cup"], "x": values})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    found = read_source(str(tmp_path / "t.parquet"))
    assert found.items[0].attributes == ({} if text is None else {"x": text})
    assert found.passed_over == (("column x left out: its values are no text",) if text is None else ())


def test_labels_that_look_alike_are_reported(tmp_path: Path) -> None:
    """They are several classes: a space at the end, or an umlaut composed in another way, which nobody sees."""
    for name in ("tür", unicodedata.normalize("NFD", "tür"), "cup", "cup "):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"")
    found = read_source(str(tmp_path))
    assert len({item.label for item in found.items}) == 4
    assert found.passed_over == (
        "2 labels are written in more than one way and count as several classes: 'cup' and 'cup '",
    )


def test_a_link_to_itself_is_one_failed_item(tmp_path: Path) -> None:
    """As a link to nothing is; the rest of the folder is read."""
    (tmp_path / "cup").mkdir()
    (tmp_path / "cup" / "a.png").write_bytes(encoded(noise(8)))
    (tmp_path / "cup" / "loop.png").symlink_to("loop.png")
    (tmp_path / "cup" / "loop").symlink_to("loop")
    found = read_source(str(tmp_path))
    assert [item.id for item in found.items] == ["cup/a.png", "cup/loop.png"]
    assert found.passed_over == ("1 passed over (without an image's suffix, and unreadable): cup/loop",)
