"""Folder scans: the files, and the folders that are models, below a folder of models, in a fixed order.

Nothing is opened. Hidden folders and what cannot be read are left out; what looks like a model and is none (a broken
link, a pipe, a link back to a folder above) is named once.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

log = logging.getLogger("piying")

MAX_ENTRIES = 100_000  # looked at in one scan: a link may lead to a whole disk

Kind = Literal["file", "folder", "model", "odd"]
# Given a folder that holds a marker: the names in it that belong to the model it is, or None where it is no model.
OwnedNames = Callable[[Path], Collection[str] | None]

_named: set[tuple[str, str]] = set()


def name_left_out(path: str | Path, reason: str) -> None:
    """Log, once in a process, that something in a models folder is passed over, and why."""
    if (str(path), reason) not in _named:
        _named.add((str(path), reason))
        log.warning("%s is left out: %s.", path, reason.removesuffix("."))


def find_folders(root: Path, depth: int, markers: Collection[str], owned: OwnedNames | None = None) -> Iterator[Path]:
    """Yield the folders that hold a file named in `markers` and are models.

    Args:
        depth: levels of subfolders to enter; 0 looks at `root` alone.
        markers: names of files.
        owned: says what belongs to the model and is not looked into; None takes every marked folder as a model, and
            all in it as its own.
    """
    for entry in _Scan(frozenset(markers), owned).entries(root, depth):
        if entry.kind == "model":
            yield Path(entry.path)
        elif entry.kind == "odd" and (Path(entry.path).name in markers or not entry.is_file_like):
            name_left_out(entry.path, entry.reason)


def find_files(
    root: Path,
    depth: int,
    endings: tuple[str, ...],
    markers: Collection[str] = (),
    *,
    owned: OwnedNames | None = None,
) -> Iterator[Path]:
    """Yield the regular files with one of these endings, but those of the models that `find_folders` finds.

    Args:
        depth: levels of subfolders to enter.
        endings: in lower case; a file's may be in any.
        markers, owned: see `find_folders`.
    """
    for entry in _Scan(frozenset(markers), owned).entries(root, depth):
        if not entry.path.lower().endswith(endings):
            continue
        if entry.kind == "file":
            yield Path(entry.path)
        elif entry.kind == "odd":
            name_left_out(entry.path, entry.reason)


@dataclass(frozen=True)
class _Entry:
    """A file, a folder, a folder that is a model, or something that cannot be used, with the reason."""

    path: str
    kind: Kind
    reason: str = ""
    is_file_like: bool = True


@dataclass(frozen=True)
class _Folder:
    """A folder that is still to be listed.

    Attributes:
        real: its path without links.
        depth: levels of subfolders to enter.
        above: the real paths of the folders it was reached through.
        top: the subfolder of the scan's root that it lies in; "" for the root itself.
    """

    path: str
    real: str
    depth: int
    above: frozenset[str]
    top: str


class _Scan:
    """One walk below a folder, sorted by name, a subfolder's entries in its place.

    Folders are listed breadth-first, each once however many links lead to it: what is beside a link to a whole disk,
    or beside links to each other, is found before the limit is reached.
    """

    def __init__(self, markers: frozenset[str], owned: OwnedNames | None) -> None:
        self._markers, self._owned, self._left = markers, owned, MAX_ENTRIES
        self._waiting: deque[_Folder] = deque()
        self._seen: set[str] = set()

    def entries(self, root: Path, depth: int) -> Iterator[_Entry]:
        """Yield what lies below a folder."""
        real = os.path.realpath(root)
        # A link to a folder that holds this one leads round in a circle too.
        above = frozenset(str(parent) for parent in Path(real).parents)
        self._waiting.append(_Folder(str(root), real, depth, above, ""))
        self._seen.add(real)
        listed: dict[str, list[_Entry]] = {}
        while self._waiting:
            folder = self._waiting.popleft()
            listed[folder.path] = list(self._inside(folder))
        pending = [iter(listed[str(root)])]
        while pending:
            entry = next(pending[-1], None)
            if entry is None:
                pending.pop()
            elif entry.kind == "folder":
                pending.append(iter(listed[entry.path]))
            else:
                yield entry

    def _inside(self, folder: _Folder) -> Iterator[_Entry]:
        try:
            with os.scandir(folder.path) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
            if len(found) > self._left:
                reason = f"there are more than {MAX_ENTRIES} files and folders around it"
                yield _Entry(folder.top or folder.path, "odd", reason, is_file_like=False)
                return
            self._left -= len(found)
            owned = self._owned_names(folder.path, found)
        except OSError as error:  # names may be listed in a folder whose files are not ours to read
            if os.path.lexists(folder.path):  # a folder of a category need not be there
                yield _Entry(folder.path, "odd", f"it cannot be read ({error.strerror})", is_file_like=False)
            return
        if owned is not None:
            yield _Entry(folder.path, "model")
        for entry in found:
            if owned is None or entry.name not in owned:
                yield from self._entry(entry, folder)

    def _owned_names(self, folder: str, found: list[os.DirEntry[str]]) -> Collection[str] | None:
        if not any(entry.name in self._markers and _kind(entry) == "file" for entry in found):
            return None
        return {entry.name for entry in found} if self._owned is None else self._owned(Path(folder))

    def _entry(self, entry: os.DirEntry[str], folder: _Folder) -> Iterator[_Entry]:
        kind = _kind(entry)
        if kind == "file":
            yield _Entry(entry.path, "file")
        elif kind != "folder":
            yield _Entry(entry.path, "odd", kind)
        elif folder.depth and not entry.name.startswith("."):
            own, above = os.path.realpath(entry.path), folder.above | {folder.real}
            if own in above:
                yield _Entry(entry.path, "odd", "it is a link to a folder that holds it", is_file_like=False)
            elif own not in self._seen:
                self._seen.add(own)
                self._waiting.append(_Folder(entry.path, own, folder.depth - 1, above, folder.top or entry.path))
                yield _Entry(entry.path, "folder")


def _kind(entry: os.DirEntry[str]) -> str:
    """Return "file", "folder", or the reason why it is neither."""
    try:
        if entry.is_file():
            return "file"
        if entry.is_dir():
            return "folder"
        return "it is a link to nothing" if entry.is_symlink() else "it is no regular file"
    except OSError as error:  # a link in a circle, or into a folder that is not ours to read
        return f"it cannot be followed ({error.strerror})"
