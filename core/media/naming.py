"""Names of output files: numbered as ComfyUI numbers them, given to finished files only, and never to two of them."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..atomic_write import unfinished_file
from ..errors import PiyingError, clipped, explain_os_errors

LONGEST = 200  # bytes of a folder's name, or of a file's before its number: file systems hold 255
MAX_FOLDERS = 64  # within each other; to make them takes a level of Python's stack each
_FORBIDDEN_CHARACTERS = re.compile(r'[<>:"|?*\x01-\x1f\x7f]')
_WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\.|$)", re.IGNORECASE)


@dataclass
class Output:
    """A file in the making. `path` is a hidden temporary name inside `writing`, the numbered one after it."""

    path: Path


def numbered(folder: Path, prefix: str, suffix: str, *, width: int = 0, height: int = 0) -> Path:
    """Return the next free numbered path, as ComfyUI counts: `<folder>/<prefix>_00001_<suffix>`.

    `prefix` may hold subfolders and %year% %month% %day% %hour% %minute% %second% %width% %height%.
    Characters and names that Windows reserves are made safe with an underscore. Nothing is created.
    Raises PiyingError for a prefix that leads outside `folder`.
    """
    directory, stem = _placed(folder, prefix, width, height)
    with explain_os_errors(f"Cannot look into {directory}"):
        return _path(directory, stem, _highest(directory, stem) + 1, suffix)


@contextmanager
def writing(folder: Path, prefix: str, suffix: str, *, width: int = 0, height: int = 0) -> Iterator[Output]:
    """Yield an empty hidden file to fill; it gets its numbered name when the block succeeds.

    No file is ever overwritten, whatever other processes do. When the block raises, KeyboardInterrupt included,
    nothing is left. Subfolders are created. Raises PiyingError for a prefix that leads outside `folder`, or when the
    folder cannot be written.
    """
    directory, stem = _placed(folder, prefix, width, height)
    doing = f"Cannot save in {directory}"
    with unfinished_file(directory) as unfinished:
        # Fail early: an unwritable folder or a name that is too long is reported now, not after an hour of encoding.
        with explain_os_errors(doing):
            directory.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                _path(directory, stem, 1, suffix).lstat()
            unfinished.touch(exist_ok=False)
        output = Output(unfinished)
        yield output
        with explain_os_errors(doing):
            number = _highest(directory, stem) + 1
            while not _claim(unfinished, target := _path(directory, stem, number, suffix)):
                number += 1
            output.path = target


def _placed(folder: Path, prefix: str, width: int, height: int) -> tuple[Path, str]:
    """Return the folder and the beginning of the name that `prefix` asks for, with its tokens filled in."""
    now = time.localtime()
    clock = {"year": "%Y", "month": "%m", "day": "%d", "hour": "%H", "minute": "%M", "second": "%S"}
    values = {name: time.strftime(form, now) for name, form in clock.items()}
    filled = prefix
    for name, value in {"width": width, "height": height, **values}.items():
        filled = filled.replace(f"%{name}%", str(value))
    # Workflows are passed between systems: both slashes separate folders on each.
    filled = filled.replace("\\", "/")
    parts = [part for part in filled.split("/") if part not in ("", ".")]
    problem = None
    if not parts:
        problem = "is empty"
    elif len(parts) > MAX_FOLDERS:
        problem = f"names {len(parts)} folders within each other"
    elif filled.startswith("/") or re.match("[A-Za-z]:", filled):
        problem = "is an absolute path"
    elif ".." in parts:
        problem = "holds '..', which leads out of a folder"
    elif "\0" in filled or any("\ud800" <= character <= "\udfff" for character in filled):
        problem = "holds a character that no file name can have"
    if problem:
        raise PiyingError(
            f"filename_prefix {prefix!r} {problem}. Give a name, or subfolders and a name, inside the output "
            "folder, such as video/ComfyUI."
        )
    *subfolders, stem = map(_safe, parts)
    long = next((part for part in (*subfolders, stem) if len(os.fsencode(part)) > LONGEST), None)
    if long is not None:
        raise PiyingError(
            f"filename_prefix {clipped(prefix)!r} has a name of {len(os.fsencode(long))} bytes; there is room for "
            f"{LONGEST}. Give a shorter one."
        )
    return folder.joinpath(*subfolders), stem


def is_windows_device(name: str) -> bool:
    """Return whether Windows takes a name of a file for a device, such as `nul.txt`."""
    return _WINDOWS_DEVICE.match(name) is not None


def _safe(part: str) -> str:
    part = _FORBIDDEN_CHARACTERS.sub("_", part).rstrip(". ")
    # A leading dash would be read as an option on a command line.
    return f"_{part}" if not part or part.startswith("-") or is_windows_device(part) else part


def _path(directory: Path, stem: str, number: int, suffix: str) -> Path:
    return directory / f"{stem}_{number:05}_{suffix}"


def _highest(directory: Path, stem: str) -> int:
    # Case-insensitive: names that differ only in case are one file on Windows and macOS.
    start = f"{stem}_".casefold()
    try:
        names = [entry.name.casefold() for entry in directory.iterdir()]
    except FileNotFoundError:
        return 0
    ends = (name[len(start) :] for name in names if name.startswith(start))
    return max((int(found[1]) for end in ends if (found := re.match("([0-9]+)(_|$)", end))), default=0)


def _claim(unfinished: Path, target: Path) -> bool:
    """Give a file its name, unless that is taken; return whether."""
    # A rename would overwrite a file that another process has saved meanwhile; creating a hard link fails atomically.
    try:
        os.link(unfinished, target)
    except FileExistsError:
        return False
    except OSError:
        return _claim_without_links(unfinished, target)
    unfinished.unlink()
    return True


def _claim_without_links(unfinished: Path, target: Path) -> bool:
    # exFAT and many network shares have no hard links: an empty file reserves the name until the rename.
    try:
        target.touch(exist_ok=False)
    except FileExistsError:
        return False
    try:
        unfinished.replace(target)
    except BaseException:  # Ctrl-C too would leave an empty file with a number
        target.unlink(missing_ok=True)
        raise
    return True
