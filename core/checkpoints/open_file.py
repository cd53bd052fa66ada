"""One file of any format we read → its tensors."""

from __future__ import annotations

from pathlib import Path

from .any_header import file_format, read_header
from .precision import check_readable
from .tensors import Stored, mapped


def open_tensors(path: Path) -> dict[str, Stored]:
    """Return the tensors of a file by name; none is read yet.

    Raises:
        PiyingError: it is damaged, or holds weights in a format that is not read here.
    """
    if file_format(path) == "pth":
        from .pth import read_pth

        header, tensors = read_pth(path)
        check_readable(header)
        return tensors
    header = read_header(path)
    check_readable(header)
    if header.format == "gguf":
        from .gguf import gguf_tensors

        return gguf_tensors(header)
    return mapped(header)
