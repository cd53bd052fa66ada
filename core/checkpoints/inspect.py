"""What one file of weights is, from its header alone: for people, and for lists of models."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import PiyingError
from .any_header import read_header
from .describe import describe, is_lora, title_of
from .header import Entry, Header
from .parts import Part, find_parts
from .precision import check_readable, describes, precision_of, types_of
from .tokenizer_name import NAME

GB = 1e9  # as makers of disks and hubs count


@dataclass(frozen=True)
class FoundPart:
    """One component inside a file.

    Attributes:
        kind, family, style: see `core.checkpoints.layouts.Layout`.
        parameters: how many there are.
        width: of its most common layers, [width, width].
        has_tokenizer: whether the tokenizer it needs is in the file.
    """

    kind: str
    family: str
    title: str
    style: str
    parameters: int
    width: int
    has_tokenizer: bool = False


@dataclass(frozen=True)
class Inspected:
    """What a file is.

    Attributes:
        what: in words: "a Wan2.1-VACE transformer".
        format: "safetensors", "gguf" or "pth".
        bytes: of the whole file.
        tensors: how many there are.
        precision: how the weights are stored: "bf16", "fp8 scaled", "GGUF Q4_K".
        types: {type: bytes}, most first.
        parts: the components that are known.
        readable: whether they can be loaded.
        reason: why not, or "".
        needs: what has to lie beside it.
        is_lora: whether it changes a model and is none itself.
    """

    file: str
    what: str
    format: str
    bytes: int
    tensors: int
    precision: str
    types: dict[str, int]
    parts: tuple[FoundPart, ...]
    readable: bool
    reason: str
    needs: tuple[str, ...]
    is_lora: bool = False


def inspect(path: Path) -> Inspected:
    """Return what a file is; only its header is read, however large it is.

    Raises:
        PiyingError: it is damaged, or no file of weights.
    """
    header = read_header(path)
    lora = is_lora(header.entries)
    parts = () if lora else tuple(part for part in find_parts(header.entries) if part.layout is not None)
    reason = _unreadable(header) or ("" if parts or lora else f"it is {describe(header.entries)}")
    return Inspected(
        file=path.as_posix(),
        what=describe(header.entries),
        format=header.format,
        bytes=path.stat().st_size,
        tensors=len(header.entries),
        precision=precision_of(header),
        types=types_of(header.entries),
        parts=tuple(_found(part, header.entries) for part in parts),
        readable=not reason,
        reason=reason,
        needs=tuple(need for part in parts for need in _needs(part, parts)),
        is_lora=lora,
    )


def _unreadable(header: Header) -> str:
    try:
        check_readable(header)
    except PiyingError as error:
        return str(error).removeprefix(f"{header.path}: ")
    return ""


def _found(part: Part, entries: dict[str, Entry]) -> FoundPart:
    assert part.layout is not None
    weights = [entries[full] for name, full in part.names.items() if not describes(name) and name != NAME]
    squares = Counter(one.shape[0] for one in weights if len(one.shape) == 2 and one.shape[0] == one.shape[1])
    width = squares.most_common(1)[0][0] if squares else 0
    count = sum(one.count for one in weights)
    return FoundPart(
        part.kind, part.layout.family, title_of(part), part.layout.style, count, width, NAME in part.names
    )


def _needs(part: Part, together: tuple[Part, ...]) -> list[str]:
    """Return what a component cannot run without and the file does not bring."""
    assert part.layout is not None
    names = part.names
    if part.kind == "transformer" and part.layout.family == "wan_vace":
        if "vace_patch_embedding.weight" not in names:
            return ["a VACE module of the same size"]
        if "patch_embedding.weight" not in names:
            return ["the Wan2.1 text-to-video model of the same size"]
        return ["the UMT5-XXL text encoder", "the Wan2.1 VAE"]
    if part.kind == "transformer":
        kinds = Counter(one.kind for one in together)
        encoders = [] if kinds["text_encoder"] > 1 else ["its BERT and mT5 text encoders"]
        return encoders + ([] if kinds["vae"] else ["the Stable Diffusion XL VAE"])
    if part.kind == "vae" or NAME in names:
        return []
    return ["the tokenizer of its BERT" if part.layout.family == "hunyuan_dit" else "its tokenizer"]


def as_json(found: Inspected) -> dict[str, Any]:
    """Return it as a table fit for JSON."""
    return asdict(found)


def as_text(found: Inspected) -> str:
    """Return it as lines for people."""
    stored = ", ".join(f"{name} {size / GB:.2f} GB" for name, size in found.types.items())
    lines = {
        "is": f"{found.what}{_sizes(found)}",
        "format": f"{found.format}, {found.bytes / GB:.2f} GB, {found.tensors} tensors",
        "weights": f"{found.precision} ({stored})",
        "read": "yes" if found.readable else f"no: {found.reason}",
        "needs": ", ".join(found.needs) or "nothing beside it",
    }
    return "\n".join([found.file, *(f"  {name:8} {text}" for name, text in lines.items())])


def _sizes(found: Inspected) -> str:
    """Return the parameters of each part, and whose names its tensors have."""
    if not found.parts:
        return ""
    return " (" + ", ".join(f"{part.parameters / GB:.2f}B, {part.style} names" for part in found.parts) + ")"
