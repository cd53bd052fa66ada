"""Embedded metadata: the workflow in the files that ComfyUI saves. The format is detected by content, not by name."""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from ..errors import PiyingError, explain_os_errors
from . import ffmpeg

# The largest workflows have a few MB; the limit keeps a crafted file from exhausting memory.
MAX_TEXT = 64 << 20

_PNG = b"\x89PNG\r\n\x1a\n"
_MATROSKA = b"\x1a\x45\xdf\xa3"
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_ASCII_TAG = 2


def read_workflow(path: Path) -> dict[str, str]:
    """Return the texts embedded in a PNG, WEBP, MP4, MOV, WEBM or MKV file, by key.

    At least one of `prompt` (the API graph) and `workflow` (the canvas), both JSON, is among them. Where a container
    has neither as a tag of its own, they are read from its comment.
    Raises PiyingError when there is neither, and when the file is missing, damaged or of another kind.
    """
    doing = f"Cannot read {path}"
    with explain_os_errors(doing), path.open("rb") as file:
        head = file.read(12)
        try:
            if head.startswith(_PNG):
                texts = dict(_png_texts(file))
            elif is_webp(head):
                texts = dict(_webp_texts(file))
            elif head.startswith(_MATROSKA) or is_mp4(head):
                # By ffmpeg: tags may be at either end of these containers.
                dump = ["-map_metadata", "0", "-fflags", "+bitexact", "-f", "ffmetadata", "pipe:1"]
                texts = _with_comment(from_ffmetadata(ffmpeg.output([*ffmpeg.source(path), *dump], doing, MAX_TEXT)))
            else:
                raise PiyingError(
                    f"{path} {'is no PNG, WEBP, MP4, MOV, WEBM or MKV file' if head else 'is empty'}. Give one that "
                    "ComfyUI saved, or a workflow's .json."
                )
        except (struct.error, zlib.error) as error:
            raise PiyingError(f"{path} is damaged or cut short. Copy or download it again.") from error
    if not texts.keys() & {"prompt", "workflow"}:
        raise PiyingError(
            f"{path} carries no workflow: it was saved without one, re-encoded since, or cut short. Use "
            "the original file, or the workflow's .json."
        )
    return texts


def is_webp(head: bytes) -> bool:
    """Return whether a file that begins with these 12 bytes is WebP, a still one or an animation."""
    return head.startswith(b"RIFF") and head.endswith(b"WEBP")


def is_mp4(head: bytes) -> bool:
    """Return whether a file that begins with these 12 bytes is MP4 or MOV."""
    return head[4:8] in _MP4_BOXES


def json_ascii(text: str) -> str:
    """Return a JSON text with all non-ASCII characters as JSON escapes."""
    return re.sub(r"[^\x00-\x7f]", lambda character: json.dumps(character[0])[1:-1], text)


def checked(metadata: Mapping[str, str]) -> Mapping[str, str]:
    """Return `metadata` as it is. Raises PiyingError for a key or a text that the file formats cannot hold."""
    for key, text in metadata.items():
        if not re.fullmatch(r"[!-~]([ -~]{0,77}[!-~])?", key) or "\0" in text or text.endswith("\\"):
            raise PiyingError(
                f"The metadata {key!r} cannot be stored in a file. Give keys of 1 to 79 printable ASCII "
                "characters, and JSON texts."
            )
    return metadata


def to_ffmetadata(metadata: Mapping[str, str]) -> bytes:
    """Return ffmpeg's metadata file of `metadata`; command lines are too short for workflows.

    Raises PiyingError for a key or a text that no file format can hold.
    """
    lines = (f"{_escaped(key)}={_escaped(text)}\n" for key, text in checked(metadata).items())
    return (";FFMETADATA1\n" + "".join(lines)).encode()


def from_ffmetadata(data: bytes) -> dict[str, str]:
    """Return the file-wide entries of ffmpeg's metadata file."""
    _, _, text = data.decode("utf-8", "replace").partition("\n")
    entries = {}
    for line in re.finditer(r"(?P<key>(?:[^=\\\n]|\\.)*)(?:=(?P<text>(?:[^\\\n]|\\.)*))?\n", text, re.DOTALL):
        if line["text"] is None and line["key"].startswith("["):
            break  # [STREAM] and [CHAPTER] have entries of their own.
        if line["text"] is not None:
            entries[_unescaped(line["key"])] = _unescaped(line["text"])
    # Matroska stores every key in capitals.
    return {key.lower() if key in ("PROMPT", "WORKFLOW", "COMMENT") else key: text for key, text in entries.items()}


def _with_comment(texts: dict[str, str]) -> dict[str, str]:
    """Return the entries of a container with the graphs in its comment, where VideoHelperSuite's savers put them."""
    if texts.keys() & {"prompt", "workflow"} or not texts.get("comment", "").lstrip().startswith("{"):
        return texts
    try:
        comment = json.loads(texts["comment"])
    except (ValueError, RecursionError):
        return texts  # a comment of anybody's
    # Versions differ in whether a graph is an object of the comment, or the text of one.
    graphs = {key: comment[key] for key in ("prompt", "workflow") if comment.get(key)}
    return texts | {key: graph if isinstance(graph, str) else json.dumps(graph) for key, graph in graphs.items()}


def _escaped(text: str) -> str:
    # A lone surrogate has no UTF-8; as "\ud83d" it is a valid JSON escape.
    text = text.encode("utf-8", "backslashreplace").decode()
    # Not in ffmpeg's manual: a bare carriage return ends the value too, and a backslash at the very end, even
    # escaped, takes in the next line, which is why `checked` refuses it.
    return re.sub(r"([=;#\\\n\r])", r"\\\1", text)


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def _png_texts(file: BinaryIO) -> Iterator[tuple[str, str]]:
    file.seek(len(_PNG))
    kind = b""
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", file.read(8))
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            key, _, value = _exactly(file, length).partition(b"\0")
            packed = kind == b"zTXt"
            if kind == b"zTXt":
                value = value[1:]  # after the compression method, a byte that is always 0
            elif kind == b"iTXt":
                packed = value[:1] == b"\1"
                value = value[2:].split(b"\0", 2)[-1]  # after the language tag and the translated key
            if packed:
                # With a limit: a few MB can decompress to a few GB.
                unpacker = zlib.decompressobj()
                value = unpacker.decompress(value, MAX_TEXT)
                if unpacker.unconsumed_tail:
                    raise zlib.error
            yield key.decode("latin-1"), _decoded(value)
            length = 0
        file.seek(length + 4, 1)


def _webp_texts(file: BinaryIO) -> Iterator[tuple[str, str]]:
    file.seek(12)
    while head := file.read(8):
        kind, length = struct.unpack("<4sI", head)
        if kind == b"EXIF":
            yield from _exif_texts(_exactly(file, length).removeprefix(b"Exif\0\0"))
        else:
            file.seek(length, 1)
        file.seek(length % 2, 1)


def _exactly(file: BinaryIO, length: int) -> bytes:
    if length > MAX_TEXT or len(data := file.read(length)) < length:
        raise struct.error
    return data


def _exif_texts(data: bytes) -> Iterator[tuple[str, str]]:
    # ComfyUI writes "prompt:{…}" and "workflow:{…}" into the tags of the camera's make and model.
    order = ">" if data.startswith(b"MM") else "<"
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    for index in range(count):
        _tag, kind, size, place = struct.unpack_from(f"{order}HHII", data, start + 2 + 12 * index)
        key, colon, text = _decoded(data[place : place + size].rstrip(b"\0")).partition(":")
        if kind == _ASCII_TAG and colon:
            yield key, text


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")
