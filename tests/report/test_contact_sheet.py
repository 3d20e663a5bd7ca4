"""The contact sheet: what is right, wrong and missing is seen in its pixels."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from retrieval.errors import InvalidInput
from retrieval.report.contact_sheet import RIGHT, SCALE, UNKNOWN, WRONG, SheetMatch, SheetRow, draw_contact_sheet
from tests.pictures import BLUE, encoded, plain, transparent_png

CELL = 96


def _match(correct: bool | None = True, *, label: str = "cup", image: bytes | None = None) -> SheetMatch:
    return SheetMatch(image=image or encoded(plain(BLUE)), score=0.8, probability=0.9, label=label, correct=correct)


def _row(*matches: SheetMatch, n_total: int | None = None, truncated: bool = False, label: str = "cup") -> SheetRow:
    total = len(matches) if n_total is None else n_total
    return SheetRow(query=encoded(plain(BLUE)), query_label=label, matches=matches, n_total=total, truncated=truncated)


def _pixels(*rows: SheetRow, n_columns: int = 8) -> NDArray[np.uint8]:
    data = draw_contact_sheet(rows, title="Matches", subtitle="all", n_columns=n_columns, cell_px=CELL)
    image = Image.open(io.BytesIO(data))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


def _frames(pixels: NDArray[np.uint8], colour: tuple[int, int, int]) -> list[tuple[int, int]]:
    """Left and bottom of every frame of a colour: where an unbroken edge as long as a cell ends at the bottom."""
    side = CELL * SCALE
    found = (pixels == colour).all(axis=2)
    edge = np.cumsum(np.pad(found, ((0, 0), (1, 0))), axis=1)
    whole = (edge[:, side:] - edge[:, :-side]) == side  # [y, x]: the next `side` pixels all have the colour
    bottom = whole[:-1] & ~whole[1:]
    above = np.zeros_like(bottom)
    above[side:] = whole[1 : len(whole) - side]  # the same edge one cell higher: the top of the frame
    return [(int(x), int(y)) for y, x in np.argwhere(bottom & above)]


def _inside(pixels: NDArray[np.uint8], frame: tuple[int, int]) -> NDArray[np.uint8]:
    """The right half of what a frame holds, clear of its mark."""
    left, bottom = frame
    side, edge = CELL * SCALE, 6 * SCALE
    return pixels[bottom - side + edge : bottom - edge, left + side // 2 : left + side - edge]


def test_right_wrong_and_unknown_are_framed() -> None:
    """Green, red and grey frames, in the order of the matches."""
    pixels = _pixels(_row(_match(True), _match(False), _match(None)))
    frames = [_frames(pixels, colour) for colour in (RIGHT, WRONG, UNKNOWN)]
    assert [len(found) for found in frames] == [1, 1, 1]
    lefts = [found[0][0] for found in frames]
    assert lefts == sorted(lefts)


def test_marks_differ_without_colour() -> None:
    """Check mark, cross and dash are different shapes: the sheet can be read without seeing colours."""
    pixels = _pixels(_row(_match(True), _match(False), _match(None)))
    marks = []
    for colour in (RIGHT, WRONG, UNKNOWN):
        left, bottom = _frames(pixels, colour)[0]
        top = bottom - CELL * SCALE + 1
        corner = pixels[top : top + 18 * SCALE, left : left + 18 * SCALE]
        marks.append(~(corner == colour).all(axis=2))
    assert all(mark.sum() > 20 for mark in marks)
    assert not any(np.array_equal(marks[a], marks[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_size_is_that_of_rows_and_columns() -> None:
    """One more row or column adds the same everywhere; a sheet is never wider than its columns ask for."""
    six, seven = _pixels(_row(*[_match()] * 6)), _pixels(_row(*[_match()] * 7))
    assert seven.shape[1] - six.shape[1] == (CELL + 12) * SCALE
    heights = [_pixels(*[_row(_match())] * n).shape[0] for n in (0, 1, 2)]
    assert heights[2] - heights[1] == heights[1] - heights[0] > CELL * SCALE
    assert _pixels(_row(*[_match()] * 30), n_columns=6).shape[1] == six.shape[1]


def test_more_matches_than_columns_are_counted() -> None:
    """Only n_columns are drawn; "+ n more" stands in the free space at the right, and only then."""
    rows = [_row(*[_match()] * 6), _row(*[_match()] * 9), _row(*[_match()] * 6, n_total=40, truncated=True)]
    sheets = [_pixels(row, n_columns=6) for row in rows]
    margin_ink = [int((sheet[-160 * SCALE :, -90 * SCALE :] < 128).all(axis=2).sum()) for sheet in sheets]
    assert all(len(_frames(sheet, RIGHT)) == 6 for sheet in sheets)
    assert margin_ink[0] == 0
    assert margin_ink[1] > 0
    assert margin_ink[2] > margin_ink[1]


def test_no_match_is_written_out() -> None:
    """A query without any match has a line of text where its matches would be, and no frame."""
    pixels = _pixels(_row())
    assert not any(_frames(pixels, colour) for colour in (RIGHT, WRONG, UNKNOWN))
    beside_query = pixels[-120 * SCALE : -60 * SCALE, 150 * SCALE :]
    assert (beside_query < 128).all(axis=2).sum() > 100


def test_no_rows_give_the_head_alone() -> None:
    """An empty list of queries is not an error."""
    pixels = _pixels()
    assert pixels.shape[0] < CELL * SCALE * 2
    assert (pixels < 128).all(axis=2).any()


def test_long_labels_stay_in_their_cell() -> None:
    """Labels are cut with an ellipsis; between two cells stays white."""
    long = "a label that is far longer than any cell is wide " * 5
    pixels = _pixels(_row(_match(label=long), _match(label=long), label=long))
    (first, bottom), (second, _) = _frames(pixels, RIGHT)
    for gap in (pixels[bottom:, first - 12 * SCALE : first], pixels[bottom:, first + CELL * SCALE : second]):
        below = gap[2 * SCALE : 34 * SCALE]
        assert (below == 255).all()


def test_labels_of_any_text_are_drawn() -> None:
    """Line breaks, unknown scripts and nothing at all: no error, no second line."""
    plain_height = _pixels(_row(_match())).shape[0]
    assert (
        _pixels(_row(_match(label="a\n\tb"), _match(label="猫 🐈"), _match(label=""), label="")).shape[0]
        == plain_height
    )


def test_transparency_lies_over_white() -> None:
    """A transparent pixel is shown white, as the model sees it."""
    pixels = _pixels(_row(_match(image=transparent_png())))
    assert (_inside(pixels, _frames(pixels, RIGHT)[0]) > 250).mean() > 0.9


def test_images_are_shown_whole_and_undistorted() -> None:
    """A wide image keeps its shape: bands of white above and below it."""
    pixels = _pixels(_row(_match(image=encoded(plain(BLUE, (64, 16))))))
    blue = (_inside(pixels, _frames(pixels, RIGHT)[0]) == BLUE).all(axis=2).any(axis=1)
    assert 0.15 < blue.mean() < 0.35


@pytest.mark.parametrize("data", [None, b"", b"not an image"])
def test_an_unreadable_image_is_a_grey_tile(data: bytes | None) -> None:
    """What cannot be shown is said in its place; frame, mark and figures stay."""
    match = SheetMatch(image=data, score=0.8, probability=0.9, label="cup", correct=False)
    pixels = _pixels(_row(match))
    inside = _inside(pixels, _frames(pixels, WRONG)[0])
    assert (inside == (242, 244, 246)).all(axis=2).mean() > 0.7
    assert not (inside == (242, 244, 246)).all()


@pytest.mark.parametrize("size", [{"n_columns": 0}, {"cell_px": 40}])
def test_impossible_sizes_are_refused(size: dict[str, int]) -> None:
    """A sheet without a column, or with cells too narrow for their text, is refused."""
    with pytest.raises(InvalidInput, match="expected n_columns"):
        draw_contact_sheet([], title="", subtitle="", **size)


def test_the_count_of_right_matches_stands_under_the_query() -> None:
    """With it, the row differs from one without only below the query's picture."""
    row = _row(_match(True), _match(False))
    counted, plain_row = _pixels(replace(row, verdict="1 of 2 right")), _pixels(row)
    different = np.argwhere((counted != plain_row).any(axis=2))
    assert len(different) > 50
    assert different[:, 1].max() < (20 + CELL) * SCALE
    assert different[:, 0].min() > (90 + CELL) * SCALE


def test_the_caption_has_the_score() -> None:
    """Another score is another caption under the match."""
    low = _pixels(_row(replace(_match(), score=-0.138)))
    assert (low != _pixels(_row(_match()))).any()
