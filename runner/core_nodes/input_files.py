"""Files that a workflow names: those inside the input, output and temp folders, and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...core.errors import PiyingError, explain_os_errors
from ...core.host.base import FolderKind
from ...core.host.current import get_host

_KINDS: tuple[FolderKind, ...] = ("input", "output", "temp")


def input_file(name: str, what: str = "image") -> Path:
    """Return the path of a file named as ComfyUI does: "a.png", "sub/a.png", "a.png [output]", "a.png [temp]".

    Raises PiyingError for what is not a regular file inside that folder, links followed.
    """
    if not isinstance(name, str):
        raise PiyingError(f"{what} is {name!r}. Give the name of a file in the input folder.")
    kind = next((kind for kind in _KINDS if name.endswith(f" [{kind}]")), None)
    bare = name.removesuffix(f" [{kind}]").replace("\\", "/")
    folder = get_host().folder(kind or "input")
    try:
        root = folder.resolve()
        path = (root / bare).resolve()
        found = path.is_relative_to(root) and path.is_file()
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, or a circle of links
        found = False
    if not found:
        raise PiyingError(
            f"{what} {name!r} is not a file in the {kind or 'input'} folder {folder.absolute()}. Put it there, or "
            f"use --{'output' if kind == 'output' else 'input'}."
        )
    return path


def file_problem(name: str | None, what: str = "image") -> bool | str:
    """Return what VALIDATE_INPUTS answers for a file name: True, or the sentence; a linked name is not known yet."""
    try:
        if name is not None:
            input_file(name, what)
    except PiyingError as error:
        return str(error)
    return True


def file_version(name: str) -> Any:
    """Return what tells one version of a file from the next."""
    status = input_file(name).stat()
    return status.st_mtime_ns, status.st_size


def input_names(content: str | None = None) -> list[str]:
    """Return the names of the files in the input folder, of one kind of content ("image", "video") or of all."""
    folder = get_host().folder("input")
    with explain_os_errors(f"Cannot look into {folder}"):
        names = sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    return [name for name in names if content is None or _content(name) == content]


def _content(name: str) -> str | None:
    import mimetypes

    # Not in every Python's and system's table.
    if name.endswith(".webp"):
        return "image"
    kind, _ = mimetypes.guess_type(name, strict=False)
    return kind.split("/")[0] if kind else None
