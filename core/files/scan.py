"""Folder scans: the files, and the folders that are models, below a folder of models, in a fixed order.

Nothing is opened. Hidden folders and what cannot be read are left out; what looks like a model and is none (a broken
link, a pipe, a link back to a folder above) is named once.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

log = logging.getLogger("piying")

MAX_ENTRIES = 1_000_000  # looked at in one scan
MAX_LINKED = 100_000  # below one link to a folder: it may lead to a whole system
MOUNT_POINT = 0xA0000003  # IO_REPARSE_TAG_MOUNT_POINT, the tag of a junction

Kind = Literal["file", "folder", "link", "model", "odd"]
# Given a folder that holds a marker: the names in it that belong to the model it is, or None where it is no model.
OwnedNames = Callable[[Path], frozenset[str] | None]

SHOWN = 3  # of what is passed over in one folder; more are counted
MAX_LINES = 10  # for what is passed over in one look at a folder of models

_named: set[tuple[str, str]] = set()
_waiting: ContextVar[list[tuple[str, str]] | None] = ContextVar("waiting", default=None)


def name_left_out(path: str | Path, reason: str) -> None:
    """Log, once in a process, that something in a models folder is passed over, and why."""
    _name(path, f"is left out: {reason.removesuffix('.')}.")


def name_in_part(path: str | Path, reason: str) -> None:
    """Log, once in a process, that not all of a folder is listed, and why."""
    _name(path, f"is listed in part: {reason}.")


def _name(path: str | Path, sentence: str) -> None:
    if (str(path), sentence) in _named:
        return
    _named.add((str(path), sentence))
    waiting = _waiting.get()
    if waiting is None:
        log.warning("%s %s", path, sentence)
    else:
        waiting.append((str(path), sentence))


@contextmanager
def named_together() -> Iterator[None]:
    """Log what is passed over inside in a few lines, those of one folder in one where they are many."""
    waiting: list[tuple[str, str]] = []
    token = _waiting.set(waiting)
    try:
        yield
    finally:
        _waiting.reset(token)
        for folder, inside in _grouped(waiting).items():
            if len(inside) <= SHOWN:
                for path, sentence in inside:
                    log.warning("%s %s", path, sentence)
                continue
            first = ", ".join(os.path.relpath(path, folder) for path, _ in inside[:SHOWN])
            log.warning(
                "%s: %d files and folders in it are left out or listed in part: %s, … The first %s",
                folder,
                len(inside),
                first,
                inside[0][1],
            )


def _grouped(named: Sequence[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """Return what is named by its folder; where these are many, by one that holds several of them."""
    folders = [os.path.dirname(path) for path, _ in named]  # noqa: PTH120 - texts, as they are logged
    while len(set(folders)) > MAX_LINES:
        deepest = max(folder.count(os.sep) for folder in folders)
        folders = [
            os.path.dirname(folder) if folder.count(os.sep) == deepest else folder  # noqa: PTH120
            for folder in folders
        ]
    found: dict[str, list[tuple[str, str]]] = {}
    for folder, one in zip(folders, named, strict=True):
        found.setdefault(folder, []).append(one)
    return found


class Entry(NamedTuple):
    """A file, a folder, a link to one, a folder that is a model, or something that cannot be used, with the reason.

    Attributes:
        real: its path without links.
    """

    path: str
    kind: Kind
    real: str = ""
    reason: str = ""
    is_file_like: bool = True


def find_folders(root: Path, depth: int, markers: Collection[str], owned: OwnedNames | None = None) -> Iterator[Path]:
    """Yield the folders that hold a file named in `markers` and are models; see `scan`."""
    return (Path(entry.path) for entry in models_among(scan(root, depth, markers, owned=owned), markers))


def find_files(
    root: Path,
    depth: int,
    endings: tuple[str, ...],
    markers: Collection[str] = (),
    *,
    owned: OwnedNames | None = None,
) -> Iterator[Path]:
    """Yield the regular files with one of these endings, but those of models; see `scan` and `files_among`."""
    return (Path(entry.path) for entry in files_among(scan(root, depth, markers, owned=owned), endings))


def models_among(entries: Iterable[Entry], markers: Collection[str]) -> Iterator[Entry]:
    """Yield the folders that are models, and name the folders and markers that cannot be read."""
    for entry in entries:
        if entry.kind == "model":
            yield entry
        elif entry.kind == "odd" and (not entry.is_file_like or Path(entry.path).name in markers):
            name_left_out(entry.path, entry.reason)


def files_among(entries: Iterable[Entry], endings: tuple[str, ...]) -> Iterator[Entry]:
    """Yield the regular files with one of these endings, and name what has one and is none, or cannot be listed.

    Args:
        endings: in lower case; a file's may be in any.
    """
    for entry in entries:
        if entry.kind == "file" and entry.path.lower().endswith(endings):
            yield entry
        elif entry.kind == "odd" and (not entry.is_file_like or entry.path.lower().endswith(endings)):
            name_left_out(entry.path, entry.reason)


def scan(
    root: Path,
    depth: int,
    markers: Collection[str] = (),
    *,
    owned: OwnedNames | None = None,
    without: Collection[str] = (),
) -> list[Entry]:
    """Return what lies below a folder: sorted by name, a subfolder's entries in its place.

    Args:
        depth: levels of subfolders to enter; 0 looks at `root` alone.
        markers: names of files.
        owned: says what belongs to the model and is not looked into; None takes every folder with a marker as a
            model, and all in it as its own.
        without: names of subfolders of `root` that are not entered.
    """
    return list(_Scan(root, frozenset(markers), owned, frozenset(without)).entries(depth))


class _Folder(NamedTuple):
    """A folder that is still to be listed.

    Attributes:
        real: its path without links.
        depth: levels of subfolders to enter.
        above: the real paths of the folders it was reached through.
    """

    path: str
    real: str
    depth: int
    above: frozenset[str]


class _Scan:
    """One walk below a folder.

    Folders are listed breadth-first, each once however many links lead to it: first those that are reached without
    links, then what lies below each link, which is left out whole where it is too much. What is beside a link to a
    whole disk, or beside links to each other, is found in any case.
    """

    def __init__(self, root: Path, markers: frozenset[str], owned: OwnedNames | None, without: frozenset[str]) -> None:
        self._root, self._markers, self._owned, self._without = str(root), markers, owned, without
        self._left = MAX_ENTRIES
        self._listed: dict[str, list[Entry]] = {}  # by path
        self._seen: set[str] = set()  # real paths

    def entries(self, depth: int) -> Iterator[Entry]:
        """Yield what lies below the folder."""
        real = os.path.realpath(self._root)
        # A link to a folder that holds this one leads round in a circle too.
        above = frozenset(str(parent) for parent in Path(real).parents)
        links: list[_Folder] = []
        self._list_below(_Folder(self._root, real, depth, above), links)
        for link in links:
            if link.real not in self._seen and not self._list_below(link):
                reason = f"it is a link to more than {MAX_LINKED} files and folders; link to the models among them"
                self._listed[link.path] = [Entry(link.path, "odd", link.real, reason, is_file_like=False)]
        pending = [iter(self._listed[self._root])]
        while pending:
            entry = next(pending[-1], None)
            if entry is None:
                pending.pop()
            elif entry.kind in ("folder", "link"):
                pending.append(iter(self._listed.get(entry.path, ())))
            else:
                yield entry

    def _list_below(self, top: _Folder, links: list[_Folder] | None = None) -> bool:
        """List a folder and what lies below it.

        Args:
            links: gets the links to folders, and too much is cut; None follows links, and too much is not listed.

        Returns:
            Whether it is listed.
        """
        left = most = self._left if links is not None else min(self._left, MAX_LINKED)
        seen, listed, waiting = {top.real}, {}, deque([top])
        while waiting:
            folder = waiting.popleft()
            # One folder is not to use up what the others need.
            room = left if links is None else (left + 1) // 2
            if not room and links is not None:
                name_in_part(top.path, f"there are more than {MAX_ENTRIES} files and folders in it")
                break
            count, listed[folder.path] = self._inside(folder, room)
            above = folder.above | {folder.real}
            left -= min(count, room)
            if count > room and links is None:
                self._left -= most - left
                return False
            if count > room:
                name_in_part(folder.path, f"there are more than {room} files and folders in it")
            for entry in listed[folder.path]:
                if entry.kind not in ("folder", "link"):
                    continue
                below = _Folder(entry.path, entry.real, folder.depth - 1, above)
                if entry.kind == "link" and links is not None:
                    links.append(below)
                elif entry.real not in self._seen and entry.real not in seen:
                    seen.add(entry.real)
                    waiting.append(below)
        self._left -= most - left
        self._seen |= seen
        self._listed |= listed
        return True

    def _inside(self, folder: _Folder, room: int) -> tuple[int, list[Entry]]:
        """Return how many entries a folder has, counted up to one more than `room`, and those that are looked at."""
        entries: list[Entry] = []
        try:
            with os.scandir(folder.path) as inside:
                found = sorted(islice(inside, room + 1), key=lambda entry: entry.name)
            owned = self._owned_names(folder.path, found)
        except OSError as error:  # names may be listed in a folder whose files are not ours to read
            if os.path.lexists(folder.path):  # a folder of a category need not be there
                reason = f"it cannot be read ({error.strerror})"
                entries.append(Entry(folder.path, "odd", folder.real, reason, is_file_like=False))
            return 0, entries
        if owned is not None:
            entries.append(Entry(folder.path, "model", folder.real))
        passed = (owned or frozenset()) | (self._without if folder.path == self._root else frozenset())
        for entry in found[:room]:
            if entry.name not in passed:
                entries += _entry(entry, folder)
        return len(found), entries

    def _owned_names(self, folder: str, found: list[os.DirEntry[str]]) -> frozenset[str] | None:
        if not any(entry.name in self._markers and _kind(entry) == "file" for entry in found):
            return None
        return frozenset(entry.name for entry in found) if self._owned is None else self._owned(Path(folder))


def _entry(entry: os.DirEntry[str], folder: _Folder) -> Iterator[Entry]:
    kind, is_link = _kind(entry), _is_link(entry)
    if kind == "folder" and (not folder.depth or entry.name.startswith(".")):
        return
    real = os.path.realpath(entry.path) if is_link else _joined(folder.real, entry.name)
    if kind == "file":
        yield Entry(entry.path, "file", real)
    elif kind != "folder":
        yield Entry(entry.path, "odd", real, kind)
    elif real == folder.real or real in folder.above:
        yield Entry(entry.path, "odd", real, "it is a link to a folder that holds it", is_file_like=False)
    else:
        yield Entry(entry.path, "link" if is_link else "folder", real)


def _joined(folder: str, name: str) -> str:
    return f"{folder.removesuffix(os.sep)}{os.sep}{name}"  # a tenth of what a Path costs, for each of 100,000 files


def _is_link(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a symbolic link, or what Windows has for links to folders: a junction."""
    if entry.is_symlink() or os.name != "nt":
        return entry.is_symlink()
    return getattr(entry.stat(follow_symlinks=False), "st_reparse_tag", 0) == MOUNT_POINT


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
