"""The header of one file of any format we read. Needs no torch, but for PyTorch's own files."""

from __future__ import annotations

from pathlib import Path

from ..errors import PiyingError
from .gguf_header import MAGIC, read_gguf_header
from .header import Header, damaged, read_safetensors_header

ZIP = b"PK\x03\x04"


def file_format(path: Path) -> str:
    """Return "safetensors", "gguf", "pth" or "" by the file's first bytes; its name says nothing.

    Raises:
        PiyingError: there is no such file, or it cannot be opened.
    """
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise PiyingError(f"{path}: cannot be opened ({error.strerror}).") from error
    if start[:4] == MAGIC:
        return "gguf"
    if start[:4] == ZIP:
        return "pth"
    return "safetensors" if start[8:9] == b"{" or len(start) < 9 else ""


def read_header(path: Path) -> Header:
    """Return the header of a file of any format, without its weights; that of a PyTorch file needs torch.

    Raises:
        PiyingError: it is damaged or no file of weights.
    """
    kind = file_format(path)
    if kind == "gguf":
        return read_gguf_header(path)
    if kind == "pth":
        from .pth import read_pth

        return read_pth(path)[0]
    if kind == "safetensors":
        return read_safetensors_header(path)
    raise damaged(path, "it is neither a safetensors, a GGUF nor a PyTorch file")
