"""Decides which files of a folder are a user's own, and reports what is passed over. Imports nothing slow."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Names of files and folders that programs leave between a user's own, beside all those that begin with a dot.
_SYSTEM_NAMES = frozenset(
    {
        "__macosx",
        "__pycache__",
        "@eadir",
        "@recycle",
        "@recently-snapshot",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
    }
)

HIDDEN = "hidden, or left by another program"
LINKED_AGAIN = "links to folders that are read under another name"
NOT_REGULAR = "pipes, sockets or devices"


@dataclass(frozen=True, slots=True)
class Walk:
    """The files of a folder, sorted, as paths inside it; `passed_over`: those left out, with the reason of each."""

    files: list[str]
    passed_over: list[tuple[str, str]]


def is_hidden(name: str) -> bool:
    """Return True for a file or folder name that a user did not give: hidden, or left by another program."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def walk_local(root: str) -> Walk:
    """List a folder of this machine. Links to folders are followed, each folder once."""
    files: list[str] = []
    passed_over: list[tuple[str, str]] = []
    seen: set[tuple[int, int]] = set()
    real_root = Path(root).resolve()
    folders: list[str] = [""]
    links: list[str] = []
    while folders or links:
        # the real tree first: a folder keeps its own name, and a link to it is the second name
        inside = folders.pop() if folders else links.pop(0)
        folder = Path(root, inside)
        state = folder.stat()
        if (state.st_dev, state.st_ino) in seen or (inside and real_root.is_relative_to(folder.resolve())):
            passed_over.append((inside, LINKED_AGAIN))
            continue
        seen.add((state.st_dev, state.st_ino))
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda found: found.name):
                name = f"{inside}/{entry.name}" if inside else entry.name
                if is_hidden(entry.name):
                    passed_over.append((name, HIDDEN))
                elif _is_folder(entry):
                    (links if entry.is_symlink() else folders).append(name)
                elif entry.is_symlink() or entry.is_file():  # a link to nothing fails by its name when it is read
                    files.append(name)
                else:
                    passed_over.append((name, NOT_REGULAR))
        links.sort()
    return Walk(sorted(files), sorted(passed_over))


def sort_names(names: Sequence[str]) -> Walk:
    """Sort the names of a folder that is not on this machine into files and what is hidden; folders end with /."""
    files: list[str] = []
    hidden: dict[str, None] = {}
    for name in names:
        parts = name.split("/")
        first = next((n for n, part in enumerate(parts, start=1) if is_hidden(part)), 0)
        if first:
            hidden["/".join(parts[:first])] = None
        elif not name.endswith("/"):
            files.append(name)
    return Walk(files, [(name, HIDDEN) for name in hidden])


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
