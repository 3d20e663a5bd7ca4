"""A contact sheet: queries with all their matches, marked as right or wrong.

Only draws the picture. The caller decides which matches are shown and whether they are right.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from PIL import Image, ImageDraw, ImageFont, ImageOps

from retrieval.contract.preprocessing import decode
from retrieval.errors import InvalidInput, RetrievalError

_Colour: TypeAlias = tuple[int, int, int]
_Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

RIGHT, WRONG, UNKNOWN = (0, 135, 90), (200, 55, 20), (140, 146, 154)
_PAPER, _INK, _QUIET, _LINE, _EMPTY = (255, 255, 255), (28, 33, 40), (96, 104, 114), (226, 229, 233), (242, 244, 246)

# Everything below is in logical pixels; the file has SCALE times as many, for screens of high density.
SCALE = 2
_MARGIN, _GAP, _FRAME, _BADGE = 20, 12, 3, 18
_HEAD, _TEXT, _MORE = 90, 38, 72
_MIN_COLUMNS = 4  # room for the head and for "no match above the threshold"
_MIN_CELL_PX = 80  # narrower, the figures under a match no longer fit


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetMatch:
    """One match: `image` as file bytes, None if it cannot be read; `correct` is None if it is unknown."""

    image: bytes | None
    similarity: float
    probability: float
    label: str
    correct: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetRow:
    """One query with its matches, best first; `n_total` counts all matches, `truncated`: the reply left some out."""

    query: bytes
    query_label: str
    matches: tuple[SheetMatch, ...]
    n_total: int
    truncated: bool


def draw_contact_sheet(
    rows: Sequence[SheetRow], *, title: str, subtitle: str, n_columns: int = 8, cell_px: int = 96
) -> bytes:
    """Draw a PNG with one line per query: the query, at most `n_columns` matches, then the number of further ones.

    cell_px: side of a picture in logical pixels, at least 80; the file has twice as many. No rows give the head alone.
    An image that cannot be decoded becomes a grey tile with the text "no image".

    Raises:
        InvalidInput: n_columns below 1 or cell_px below 80.
    """
    if n_columns < 1 or cell_px < _MIN_CELL_PX:
        raise InvalidInput(
            f"expected n_columns of at least 1 and cell_px of at least {_MIN_CELL_PX}, found {n_columns} and {cell_px}"
        )
    n_shown = min(n_columns, max((len(row.matches) for row in rows), default=0))
    pitch = cell_px + _GAP
    width = 2 * _MARGIN + _GAP + pitch * (1 + max(n_shown, _MIN_COLUMNS)) + _MORE
    row_height = cell_px + _TEXT + _GAP
    sheet = _Sheet(width, _HEAD + len(rows) * row_height + _MARGIN)
    sheet.head(title, subtitle)
    for number, row in enumerate(rows):
        _draw_row(sheet, row, _HEAD + number * row_height, n_shown, cell_px)
    return sheet.png()


class _Sheet:
    """A white canvas addressed in logical pixels. One per drawing; not shared between threads."""

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self._image = Image.new("RGB", (width * SCALE, height * SCALE), _PAPER)
        self._draw = ImageDraw.Draw(self._image)
        self._fonts: dict[int, _Font] = {}

    def head(self, title: str, subtitle: str) -> None:
        """Draw the title, the subtitle and the meaning of the marks."""
        room = self.width - 2 * _MARGIN
        self.text(_MARGIN, 14, title, 20, _INK, room)
        self.text(_MARGIN, 42, subtitle, 12, _QUIET, room)
        x = _MARGIN
        for correct, meaning in ((True, "same label"), (False, "another label"), (None, "label unknown")):
            self.badge(x, 65, correct, 13)
            x += 18 + self.text(x + 18, 65, meaning, 11, _QUIET, room) + 14

    def text(self, x: int, y: int, text: str, size: int, colour: _Colour, room: int, *, centred: bool = False) -> int:
        """Write one line, cut with an ellipsis at `room`; return its width."""
        font = self._font(size)
        line = _fit(" ".join(text.split()), font, room * SCALE)
        length = font.getlength(line)
        left = x * SCALE + ((room * SCALE - length) / 2 if centred else 0)
        self._draw.text((left, y * SCALE), line, fill=colour, font=font)
        return round(length / SCALE)

    def picture(self, x: int, y: int, side: int, data: bytes | None, frame: _Colour) -> None:
        """Draw an image into a framed square, whole and undistorted."""
        outer = (x * SCALE, y * SCALE, (x + side) * SCALE - 1, (y + side) * SCALE - 1)
        self._draw.rectangle(outer, fill=_PAPER, outline=frame, width=_FRAME * SCALE)
        inside = side - 2 * _FRAME - 2
        image = _decoded(data)
        if image is None:
            at = (x + _FRAME + 1) * SCALE, (y + _FRAME + 1) * SCALE
            self._draw.rectangle((*at, at[0] + inside * SCALE - 1, at[1] + inside * SCALE - 1), fill=_EMPTY)
            self.text(x + 8, y + side // 2 - 7, "no image", 11, _QUIET, side - 16, centred=True)
            return
        fitted = ImageOps.contain(image, (inside * SCALE, inside * SCALE), Image.Resampling.LANCZOS)
        left = x * SCALE + (side * SCALE - fitted.width) // 2
        top = y * SCALE + (side * SCALE - fitted.height) // 2
        self._image.paste(fitted, (left, top))

    def badge(self, x: int, y: int, correct: bool | None, side: int = _BADGE) -> None:
        """Draw a filled square with a check mark, a cross or a dash."""
        left, top, end = x * SCALE, y * SCALE, side * SCALE - 1
        self._draw.rounded_rectangle((left, top, left + end, top + end), 3 * SCALE, fill=frame_colour(correct))
        strokes = {
            True: [[(0.24, 0.54), (0.43, 0.72), (0.77, 0.30)]],
            False: [[(0.28, 0.28), (0.72, 0.72)], [(0.72, 0.28), (0.28, 0.72)]],
            None: [[(0.26, 0.5), (0.74, 0.5)]],
        }[correct]
        for stroke in strokes:
            points = [(left + fx * end, top + fy * end) for fx, fy in stroke]
            self._draw.line(points, fill=_PAPER, width=round(side * SCALE / 8), joint="curve")

    def rule(self, x: int, y: int, length: int, *, vertical: bool = False) -> None:
        """Draw a thin line."""
        end = (x, y + length) if vertical else (x + length, y)
        self._draw.line((x * SCALE, y * SCALE, end[0] * SCALE, end[1] * SCALE), fill=_LINE, width=SCALE)

    def png(self) -> bytes:
        """Return the canvas as a PNG file."""
        buffer = io.BytesIO()
        self._image.save(buffer, "PNG", dpi=(72 * SCALE, 72 * SCALE))
        return buffer.getvalue()

    def _font(self, size: int) -> _Font:
        if size not in self._fonts:
            self._fonts[size] = ImageFont.load_default(size * SCALE)
        return self._fonts[size]


def frame_colour(correct: bool | None) -> _Colour:
    """Return the colour of a right, a wrong or an undecided match."""
    return UNKNOWN if correct is None else RIGHT if correct else WRONG


def _draw_row(sheet: _Sheet, row: SheetRow, top: int, n_shown: int, cell_px: int) -> None:
    sheet.rule(_MARGIN, top, sheet.width - 2 * _MARGIN)
    top += _GAP
    sheet.picture(_MARGIN, top, cell_px, row.query, _LINE)
    sheet.text(_MARGIN, top + cell_px + 5, row.query_label, 11, _INK, cell_px)
    sheet.text(_MARGIN, top + cell_px + 20, "query", 11, _QUIET, cell_px)
    sheet.rule(_MARGIN + cell_px + _GAP, top, cell_px, vertical=True)
    x = _MARGIN + cell_px + 2 * _GAP
    if not row.matches:
        room = sheet.width - x - _MARGIN
        sheet.text(x + 4, top + cell_px // 2 - 8, "no match above the threshold", 14, _QUIET, room)
    for match in row.matches[:n_shown]:
        _draw_match(sheet, match, x, top, cell_px)
        x += cell_px + _GAP
    n_more = row.n_total - min(n_shown, len(row.matches))
    if n_more > 0:
        sheet.text(x, top + cell_px // 2 - 14, f"+ {n_more:,} more", 13, _INK, _MORE)
        if row.truncated:
            sheet.text(x, top + cell_px // 2 + 4, "list was cut", 10, _QUIET, _MORE)


def _draw_match(sheet: _Sheet, match: SheetMatch, x: int, top: int, cell_px: int) -> None:
    sheet.picture(x, top, cell_px, match.image, frame_colour(match.correct))
    sheet.badge(x, top, match.correct)
    sheet.text(x, top + cell_px + 5, match.label or "no label", 11, _INK if match.label else _QUIET, cell_px)
    figures = f"{match.similarity:.3f} · p {match.probability:.2f}"
    sheet.text(x, top + cell_px + 20, figures, 11, _QUIET, cell_px)


def _decoded(data: bytes | None) -> Image.Image | None:
    if data is None:
        return None
    try:
        return decode(data)
    except RetrievalError:
        return None


def _fit(text: str, font: _Font, room: float) -> str:
    """Return the longest start of `text` that fits, with an ellipsis if something is cut."""
    if font.getlength(text) <= room:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(text[:middle].rstrip() + "…") <= room:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + "…"
