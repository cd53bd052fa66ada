"""Folder scans: which files, and which folders that hold a marker, lie below a folder, in a fixed order.

Hidden folders, links that lead back to a folder above and what cannot be read are left out; nothing is opened.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path


def find_folders(root: Path, depth: int, markers: Collection[str]) -> Iterator[Path]:
    """Yield the folders that hold a file named in `markers`, not looking inside them for more.

    Args:
        depth: levels of subfolders to enter; 0 looks at `root` alone.
    """
    for path, is_folder in _scan(str(root), depth, frozenset(markers), ()):
        if is_folder:
            yield Path(path)


def find_files(root: Path, depth: int, endings: tuple[str, ...], markers: Collection[str] = ()) -> Iterator[Path]:
    """Yield the regular files with one of these endings, but those of the folders that `find_folders` finds.

    Args:
        depth: levels of subfolders to enter.
        endings: in lower case; a file's may be in any.
    """
    for path, is_folder in _scan(str(root), depth, frozenset(markers), ()):
        if not is_folder and path.lower().endswith(endings):
            yield Path(path)


def _scan(folder: str, depth: int, markers: frozenset[str], above: tuple[str, ...]) -> Iterator[tuple[str, bool]]:
    """Yield (path, is a folder) of files and marked folders, sorted by name, a subfolder's in its place."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return  # not there, or not ours to read
    if any(entry.name in markers and _is_file(entry) for entry in found):
        yield folder, True
        return
    for entry in found:
        if _is_file(entry):
            yield entry.path, False
        elif depth and not entry.name.startswith(".") and _is_folder(entry):
            yield from _scan(entry.path, depth - 1, markers, (*above, real))


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link in a circle, or into a folder that is not ours to read
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
