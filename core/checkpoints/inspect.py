"""Inspection: what a file of weights is, from its header alone: its components, for people and for model lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..catalog.experts import noise_of, partner_name
from ..errors import PiyingError
from ..families.base import LORA_COMPONENT, SECOND_EXPERT
from ..families.registry import family_named
from ..files.folder import CONFIG, CONFIG_BYTES, INDEX, component_files
from ..files.json_file import read_json
from ..files.open import read_header
from ..files.safetensors_file import FileHeader, TensorEntry
from ..lora.file import Verdict, check_numbers, judge
from ..lora.names import lora_names
from ..quantization.stored_formats import check_readable, precision_of, types_of, weight_entries
from .components import FileComponent, check_file, describe, file_components
from .gguf_tokenizer import check_words
from .layouts.base import TOKENIZER_TENSOR, holds_tokenizer

GB = 1e9  # as makers of disks and hubs count


@dataclass(frozen=True)
class ComponentInfo:
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

    @classmethod
    def of(cls, part: FileComponent, entries: dict[str, TensorEntry], has_tokenizer: bool) -> ComponentInfo:
        """Return what the entries of a file's header tell of one of its components."""
        assert part.layout is not None
        own = weight_entries({name: entries[full] for name, full in part.names.items()})
        weights = [entry for name, entry in own.items() if name != TOKENIZER_TENSOR]
        # Most layers of a transformer map its width to itself.
        squares = Counter(one.shape[0] for one in weights if len(one.shape) == 2 and one.shape[0] == one.shape[1])
        return cls(
            kind=part.kind,
            family=part.layout.family,
            title=part.title(entries),
            style=part.layout.style,
            parameters=sum(one.count for one in weights),
            width=squares.most_common(1)[0][0] if squares else 0,
            has_tokenizer=has_tokenizer or TOKENIZER_TENSOR in part.names,
        )


@dataclass(frozen=True)
class FileInfo:
    """What a file is.

    Attributes:
        what: in words: "a Wan2.1-VACE transformer".
        format: "safetensors", "gguf" or "pth".
        bytes: of the whole file, or of all files of a folder.
        tensors: how many there are.
        precision: how the weights are stored: "bf16", "fp8 scaled", "GGUF Q4_K".
        types: {type: bytes}, most first.
        parts: the components that are known.
        readable: whether they can be loaded.
        reason: why not, or "".
        needs: what has to lie beside it.
        is_lora: whether it changes a model and is none itself.
        left_out: what of a LoRA is not applied, and why; "" where all is.
    """

    file: str
    what: str
    format: str
    bytes: int
    tensors: int
    precision: str
    types: dict[str, int]
    parts: tuple[ComponentInfo, ...]
    readable: bool
    reason: str
    needs: tuple[str, ...]
    is_lora: bool = False
    left_out: str = ""


def components_in(path: Path) -> list[Path]:
    """Return the folders of weights in the folder of a whole model, as diffusers writes it; else the path itself.

    Raises:
        PiyingError: it has none.
    """
    if not (path / INDEX).is_file():
        return [path]
    named = read_json(path / INDEX, limit=CONFIG_BYTES)
    found = [path / name for name in named if Path(name).name == name and (path / name / CONFIG).is_file()]
    if not found:
        raise PiyingError(
            f"{path}: is the folder of a whole model, and none of its components is in it. Fetch it again."
        )
    return found


def inspect(path: Path, contents: bool = False) -> FileInfo:
    """Return what a file is, or what all files of a folder are; only headers are read, however large they are.

    Args:
        contents: look at the numbers of a LoRA and the words of a tokenizer too, as the check before a run does.

    Raises:
        PiyingError: it is damaged, or no file of weights.
    """
    header = read_header(path)
    lora: Verdict[TensorEntry] | None = judge(header.entries) if lora_names(header.entries.keys()) else None
    parts = () if lora else tuple(part for part in file_components(header.entries) if part.layout is not None)
    together = Counter(part.kind for part in parts)
    has_tokenizer = holds_tokenizer(header.metadata)
    what = lora.shape.title if lora else describe(header.entries)
    reason = _why_unreadable(header, parts, lora, contents)
    return FileInfo(
        file=path.as_posix(),
        what=what,
        format=header.format,
        bytes=sum(file.stat().st_size for file in (component_files(path) if path.is_dir() else [path])),
        tensors=len(header.entries),
        precision=precision_of(header),
        types=types_of(header.entries),
        parts=tuple(ComponentInfo.of(part, header.entries, has_tokenizer) for part in parts),
        readable=not reason,
        reason=reason,
        needs=()
        if reason
        else (*_other_expert(path, parts), *(n for part in parts for n in _needs(part, together, has_tokenizer))),
        is_lora=lora is not None,
        left_out=lora.left_out if lora and not reason else "",
    )


def _why_unreadable(
    header: FileHeader, parts: Sequence[FileComponent], lora: Verdict[TensorEntry] | None, contents: bool
) -> str:
    """Return why a file cannot be loaded, in the words with which loading would refuse it; else ""."""
    try:
        check_readable(header)
        if lora is not None:
            if not lora.reason and contents:
                check_numbers(header.path)
            return lora.reason
        check_file(header, parts)
        if contents and header.format == "gguf" and holds_tokenizer(header.metadata) and not header.path.is_dir():
            check_words(header.path)
    except PiyingError as error:
        return str(error).removeprefix(f"{header.path}: ").removeprefix(f"{header.path.parent}: ")
    return ""


def _needs(part: FileComponent, together: Mapping[str, int], has_tokenizer: bool) -> list[str]:
    names = {**part.names, TOKENIZER_TENSOR: ""} if has_tokenizer else part.names
    return [] if part.layout is None else part.layout.needs(names, together)


def _other_expert(path: Path, parts: Sequence[FileComponent]) -> list[str]:
    """Return what is said of the partner of a file that is one of two experts by its name."""
    named = f"{path.parent.name}/{path.name}"
    families = {part.layout.family for part in parts if part.layout is not None and part.kind == LORA_COMPONENT}
    specs = [spec for family in families if family for spec in family_named(family).components]
    if not noise_of(named) or not any(spec.name == SECOND_EXPERT for spec in specs):
        return []
    other = partner_name(path.name) if noise_of(path.name) else partner_name(named)
    return [f"the other one of two experts, {other}"]


def as_json(found: FileInfo) -> dict[str, Any]:
    """Return it as a table fit for JSON."""
    return asdict(found)


def as_text(found: FileInfo) -> str:
    """Return it as lines for people."""
    stored = ", ".join(f"{name} {size / GB:.2f} GB" for name, size in found.types.items())
    sizes = ", ".join(f"{part.parameters / GB:.2f}B, {part.style} names" for part in found.parts)
    lines = {
        "is": f"{found.what} ({sizes})" if sizes else found.what,
        "format": f"{found.format}, {found.bytes / GB:.2f} GB, {found.tensors} tensors",
        "weights": f"{found.precision} ({stored})",
        "read": "yes" if found.readable else f"no: {found.reason}",
        "needs": ", ".join(found.needs) or "nothing beside it",
    } | ({"left out": found.left_out} if found.left_out else {})
    return "\n".join([found.file, *(f"  {name:8} {text}" for name, text in lines.items())])
