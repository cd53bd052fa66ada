"""Files of weights of any format: recognised by their first bytes, their headers and their tensors."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

from ..errors import PiyingError, file_error
from ..quantization.stored_formats import DECLARATION, QUANTIZATION_TEXT, check_readable, declared_in_text
from .folder import component_files
from .gguf_file import MAGIC, gguf_tensors, read_gguf_header
from .pth_file import PthHeader, pth_tensors, read_pth_header
from .safetensors_file import FileHeader, damaged, mapped, open_regular, read_safetensors_header
from .stored_tensor import StoredTensor, TextTensor

ZIP = b"PK\x03\x04"


def file_format(path: Path) -> str:
    """Return "safetensors", "gguf", "pth" or "" by the file's first bytes; its name says nothing.

    Raises:
        PiyingError: there is no such file, or it cannot be opened.
    """
    with open_regular(path) as file:
        start = file.read(16)
    if start[:4] == MAGIC:
        return "gguf"
    if start[:4] == ZIP:
        return "pth"
    return "safetensors" if start[8:9] == b"{" or len(start) < 9 else ""


def read_header(path: Path) -> FileHeader:
    """Return the header of a file of any format, or of all files of a folder, without weights; none needs torch.

    Raises:
        PiyingError: it is damaged or no file of weights.
    """
    if path.is_dir():
        headers = tuple(read_header(file) for file in component_files(path))
        entries = {name: entry for header in headers for name, entry in header.entries.items()}
        return replace(headers[0], path=path, entries=entries, shards=headers)
    try:
        return _header(path)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise file_error(f"Cannot read {path}", error.errno, "") from error
        raise PiyingError(f"{path}: cannot be read ({error.strerror}). Choose another file.") from error


def _header(path: Path) -> FileHeader:
    kind = file_format(path)
    if kind == "gguf":
        return read_gguf_header(path)
    if kind == "pth":
        return read_pth_header(path)
    if kind == "safetensors":
        from ..quantization.foreign_layouts import canonical

        return canonical(read_safetensors_header(path))
    raise damaged(path, "it is neither a safetensors, a GGUF nor a PyTorch file")


def open_tensors(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a file by name; none is read yet.

    Raises:
        PiyingError: it is damaged, or holds weights in a format that is not read here.
    """
    header = read_header(path)
    check_readable(header)
    return header_tensors(header)


def header_tensors(header: FileHeader) -> dict[str, StoredTensor]:
    """Return the tensors of a file by name, none of them read.

    Args:
        header: of one file, that `check_readable` accepts: alone, or with those of the other shards.
    """
    if isinstance(header, PthHeader):
        return pth_tensors(header)
    if header.format == "gguf":
        return gguf_tensors(header)
    tensors = mapped(header)
    for layer, said in declared_in_text(str(header.metadata.get(QUANTIZATION_TEXT, ""))).items():
        if f"{layer}.weight" in tensors:  # as ComfyUI does, so that what reads one form reads both
            tensors.setdefault(f"{layer}.{DECLARATION}", TextTensor(json.dumps(said)))
    return tensors
