"""Files of weights of any format: recognised by their first bytes, their headers and their tensors."""

from __future__ import annotations

from pathlib import Path

from ..errors import PiyingError
from ..quantization.stored_formats import check_readable
from .gguf_file import MAGIC, read_gguf_header
from .safetensors_file import FileHeader, damaged, mapped, read_safetensors_header
from .stored_tensor import StoredTensor

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


def read_header(path: Path) -> FileHeader:
    """Return the header of a file of any format, without its weights; that of a PyTorch file needs torch.

    Raises:
        PiyingError: it is damaged or no file of weights.
    """
    kind = file_format(path)
    if kind == "gguf":
        return read_gguf_header(path)
    if kind == "pth":
        from .pth_file import read_pth

        return read_pth(path)[0]
    if kind == "safetensors":
        return read_safetensors_header(path)
    raise damaged(path, "it is neither a safetensors, a GGUF nor a PyTorch file")


def open_tensors(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a file by name; none is read yet.

    Raises:
        PiyingError: it is damaged, or holds weights in a format that is not read here.
    """
    if file_format(path) == "pth":
        from .pth_file import read_pth

        header, tensors = read_pth(path)
        check_readable(header)
        return tensors
    header = read_header(path)
    check_readable(header)
    if header.format == "gguf":
        from .gguf_file import gguf_tensors

        return gguf_tensors(header)
    return mapped(header)
