"""The files of a published data set: reads text line by line and checks that images exist.

Errors name the file and line. The layouts interpret the lines.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from retrieval.contract.files import Place, failing_as
from retrieval.contract.manifest import Item
from retrieval.errors import InvalidManifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The images of a data set. new: those of its test classes, None if it prescribes no split by class.

    passed_over: see `retrieval/contract/manifest.py`.
    """

    known: Sequence[Item]
    new: Sequence[Item] | None
    passed_over: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The file and line of a value, for messages."""

    path: str
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass(frozen=True, slots=True)
class Tree:
    """A folder on any file system that fsspec supports, with the names of all files in it that are not hidden."""

    root: str
    _folder: Place
    _files: frozenset[str] = field(repr=False)

    @classmethod
    def open(cls, root: str) -> "Tree":
        """Open the folder at a path or URL. Raises InvalidManifest if there is none."""
        with failing_as(InvalidManifest, f"{root} cannot be opened"):
            folder = Place.of(root)
            if not folder.is_folder():
                raise InvalidManifest(f"{root}: expected the folder of a data set, found none")
            return cls(root, folder, frozenset(folder.walk().files))

    def has(self, *names: str) -> bool:
        """Return whether all of these files exist; names are paths from the root."""
        return self._files.issuperset(names)

    def lines(self, name: str, *, n_values: int, header: int = 0, separator: str | None = None) -> Iterator["Line"]:
        """Split the lines of a text file, after its header, into `n_values` parts; skip empty lines.

        The last part may contain separators (white space by default). Raises InvalidManifest if a line has fewer parts,
        and if the file is missing or no UTF-8 text.
        """
        try:
            text = self.read(name).decode()
        except UnicodeDecodeError as error:
            raise InvalidManifest(f"{self.root}/{name}: expected UTF-8 text, {error}") from error
        for number, line in enumerate(text.splitlines(), start=1):
            if number <= header or not line.strip():
                continue
            place = Reference(path=f"{self.root}/{name}", line=number)
            values = [value.strip() for value in line.strip().split(separator, n_values - 1)]
            if len(values) != n_values or not all(values):
                raise InvalidManifest(f"{place}: expected {n_values} values, found {line.strip()[:100]!r}")
            yield Line(place, tuple(values))

    def read(self, name: str) -> bytes:
        """Read the bytes of a file. Raises InvalidManifest if it is missing."""
        if not self.has(name):
            raise InvalidManifest(f"{self.root}: expected the file {name}, found none")
        with failing_as(InvalidManifest, f"{self.root}/{name} cannot be read"):
            return self._folder.inside(name).read_file()

    def mat(self, name: str) -> dict[str, Any]:
        """Read the variables of a MATLAB file, structs as records. Raises InvalidManifest if it cannot be read."""
        import scipy.io  # slow to import, and only one data set needs it

        try:
            # the stubs do not know that it takes open files
            variables = scipy.io.loadmat(io.BytesIO(self.read(name)), squeeze_me=True)  # type: ignore[arg-type]
        except (ValueError, TypeError, NotImplementedError, OSError, scipy.io.matlab.MatReadError) as error:
            raise InvalidManifest(f"{self.root}/{name}: expected a MATLAB file, {error}") from error
        return variables

    def item(self, path: str, label: str, place: Reference, **attributes: str) -> Item:
        """Make an item of the image at `path` from the root; the path is its id. Raises InvalidManifest if missing."""
        if path not in self._files:
            raise InvalidManifest(f"{place}: names the image {path}, which is not in {self.root}")
        return Item(id=path, uri=self._folder.inside(path).url, label=label, attributes=attributes)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a text file, split into values."""

    place: Reference
    values: tuple[str, ...]

    def number(self, position: int) -> int:
        """Return the value at `position` as a positive number. Raises InvalidManifest if it is none."""
        value = self.values[position]
        if not value.isdecimal() or int(value) < 1:
            raise InvalidManifest(f"{self.place}: expected a number from 1 on, found {value!r}")
        return int(value)
