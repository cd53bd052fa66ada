"""Quantized files: a file of weights written anew with its Linear layers in a weight format, a tensor at a time.

The tensors keep their names, so that whatever reads the original, such as ComfyUI, finds its layers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from os.path import commonprefix
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from ..atomic_write import atomic_write
from ..errors import PiyingError, clipped, explain_os_errors
from ..files.dtypes import all_finite, safetensors_names
from ..files.gguf_blocks import PLAIN
from ..files.gguf_file import written_gguf_header
from ..files.open import header_tensors, read_header
from ..files.safetensors_file import FileHeader, TensorEntry, written_header
from ..files.stored_tensor import PIECE, StoredTensor
from ..lora.names import lora_names
from ..quantization.base import ROWS_TOGETHER, WeightFormat
from ..quantization.policy import CAST, WEIGHT, held_types
from ..quantization.registry import FORMATS, recognised_format
from ..quantization.stored_formats import DECLARATION, QUANTIZATION_TEXT, check_readable, describes, precision_of
from .components import FileComponent, check_file, file_components
from .fitness import class_entries, places
from .inspect import inspect
from .layers import rules_of
from .layouts.base import LeftOut, Split, Whole

if TYPE_CHECKING:
    import torch

    from ..quantization.base import Packed

GB = 1e9  # as makers of disks and hubs count
# Stands for any: which layers may be in fewer bits depends on none.
CASTABLE = next(name for name, one in FORMATS.items() if one.can_cast)
UNUSED = "not used by the model"
MOVED = "its values are moved while loading"
SETTINGS: dict[str, str | int] = {"general.quantization_version": 2}
# llama.cpp's numbers of MOSTLY_Q8_0, Q6_K, Q5_K_S, Q4_K_S and Q4_0.
FILE_TYPES = {"q8_0": 7, "q6_k": 18, "q5_k": 16, "q4_k": 14, "q4_0": 2}

TARGETS: dict[str, WeightFormat] = {target: one for one in FORMATS.values() for target in one.targets}


class Layer(NamedTuple):
    """One layer that was quantized.

    Attributes:
        name: of its weight in the file.
        error: the norm of what is lost over that of the weight.
    """

    name: str
    error: float


@dataclass(frozen=True)
class Quantized:
    """What was written.

    Attributes:
        to: a key of `TARGETS`.
        bytes_before, bytes: of the original and of the written file.
        layers: in the order of the file.
        kept: {why: names of the tensors that are as they were for that reason}.
        needs: why the file is not read alone; "" where it is.
    """

    file: str
    out: str
    to: str
    bytes_before: int
    bytes: int
    layers: tuple[Layer, ...]
    kept: dict[str, tuple[str, ...]]
    needs: str


def quantize_file(
    path: Path,
    to: str,
    out: Path | None = None,
    *,
    check: Callable[[], None] = lambda: None,
    on_layer: Callable[[Layer], None] = lambda layer: None,
) -> Quantized:
    """Write a file of weights with its Linear layers inside blocks in a format, whole or not at all.

    Memory holds one tensor at a time, as it is in the file and as it is written.

    Args:
        path: a safetensors or PyTorch file, or a folder of shards.
        to: a key of `TARGETS`.
        out: the file to write; None for one beside the original, with the format in its name.
        check: called between tensors; raises to stop.
        on_layer: called with each layer that is written.

    Raises:
        PiyingError: the original is not read here, quantized already, or has no such layers; the file is there
            already, or cannot be written.
    """
    chosen = TARGETS[to]
    ending = ".gguf" if chosen.name == "gguf" else ".safetensors"
    out = out or path.parent / f"{path.name if path.is_dir() else path.stem}-{to}{ending}"
    if out.suffix.lower() != ending:
        raise PiyingError(f"--out {out}: a file in {to} ends in {ending}. Choose such a name.")
    if out.exists():
        raise PiyingError(f"{out} is there already. Choose another name with --out, or delete it.")
    header = read_header(path)
    parts = [part for part in file_components(header.entries) if part.layout is not None]
    _check_source(header, parts)
    why = _why_kept(header, parts, chosen, to)
    if not any(not reason for reason in why.values()):
        reasons = ", ".join(sorted(set(why.values())))
        raise PiyingError(f"{path}: has no layers to quantize ({reasons}). Choose a file with a transformer.")
    tensors = {name: one for file in header.files for name, one in header_tensors(file).items() if name in why}
    planned, first = _planned(header, tensors, why, parts=parts, to=to)
    size = max(entry.end for entry in planned.values())
    with explain_os_errors(f"Cannot write {out}"):
        free = shutil.disk_usage(out.parent).free
        if free < size:
            raise PiyingError(f"{out}: takes {size / GB:.2f} GB, and {free / GB:.2f} GB of the disk are free.")
        with atomic_write(out) as unfinished:
            with unfinished.open("wb") as file, _naming(path):
                file.write(first)
                file.truncate(size)
                layers = tuple(_written(file, planned, tensors, why, to=to, check=check, on_layer=on_layer))
            check()
    kept: dict[str, list[str]] = {}
    for name, reason in why.items():
        if reason:
            kept.setdefault(reason, []).append(name)
    before = sum(file.path.stat().st_size for file in header.files)
    return Quantized(
        file=path.as_posix(),
        out=out.as_posix(),
        to=to,
        bytes_before=before,
        bytes=size,
        layers=layers,
        kept={reason: tuple(names) for reason, names in kept.items()},
        needs=inspect(out).reason,
    )


def _check_source(header: FileHeader, parts: list[FileComponent]) -> None:
    """Accept a file that can be read and has no weights in a format.

    Raises:
        PiyingError: it is another one.
    """
    check_readable(header)
    if lora_names(header.entries.keys()):
        raise PiyingError(f"{header.path}: is a LoRA, which is added to weights as it is. Choose a model's file.")
    types = {name: entry.dtype for name, entry in header.entries.items()}
    if header.format == "gguf" or any(describes(name) or recognised_format(name, types) for name in types):
        raise PiyingError(
            f"{header.path}: is stored as {precision_of(header)} already, and would lose more. "
            "Choose the file in bf16, fp16 or fp32 that it was made from."
        )
    try:
        check_file(header, parts)
    except PiyingError as error:
        raise error if str(header.path) in str(error) else PiyingError(f"{header.path}: {error}") from error


def _why_kept(header: FileHeader, parts: list[FileComponent], chosen: WeightFormat, to: str) -> dict[str, str]:
    """Return why each tensor of a file stays as it is, "" for those that are quantized.

    Joined projections are several layers of the class, all of which have to be cast.
    """
    why = dict.fromkeys(header.entries, UNUSED)
    for part in parts:
        assert part.layout is not None
        own = {name: header.entries[full] for name, full in part.names.items()}
        tensors = class_entries(part.layout, own)
        rules = rules_of(part.layout, tensors)
        held = held_types(tensors, rules, compute="bf16", storage=CASTABLE)
        for name, place in places(part.layout, {name: entry.shape for name, entry in own.items()}):
            full, shape = part.names[name], own[name].shape
            if isinstance(place, LeftOut):
                continue
            names = place.names if isinstance(place, Split) else (place.name,)
            kept = next((held[one].why for one in names if held[one].why != CAST), "")
            is_whole = isinstance(place, (Whole, Split)) and len(shape) == 2 and name.endswith(WEIGHT)
            why[full] = kept or ("" if is_whole else MOVED) or chosen.why_dense(shape, to)
    return why


def _planned(
    header: FileHeader,
    tensors: Mapping[str, StoredTensor],
    why: Mapping[str, str],
    *,
    parts: list[FileComponent],
    to: str,
) -> tuple[dict[str, TensorEntry], bytes]:
    """Return the places of all tensors of the file to write, and its first bytes."""
    import torch

    chosen = TARGETS[to]
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, stored in tensors.items():
        if why[name]:
            found[name] = safetensors_names()[stored.dtype], stored.shape
        elif chosen.name == "gguf":
            found[name] = to.upper(), stored.shape
        else:
            packed = chosen.for_file(torch.empty(stored.shape, device="meta"), to)
            for own, tensor in chosen.file_tensors(packed).items():
                found[name.removesuffix("weight") + own] = safetensors_names()[tensor.dtype], tuple(tensor.shape)
            found[name.removesuffix("weight") + DECLARATION] = "U8", (len(_declaration(chosen, packed)),)
    if chosen.name != "gguf":
        if chosen.marker:
            quantized = [part for part in parts if any(not why[full] for full in part.names.values())]
            found |= {_marker(part, chosen.marker): (chosen.number_types[0], (0,)) for part in quantized}
        texts = {key: str(value) for key, value in header.metadata.items() if key != QUANTIZATION_TEXT}
        first, entries = written_header(found, texts)
        return entries, first
    odd = next((name for name, (dtype, _) in found.items() if dtype not in (*PLAIN, to.upper())), None)
    if odd is not None:
        raise PiyingError(
            f"{header.path}: {clipped(odd)} is stored as {found[odd][0]}, which GGUF files have no room for. "
            "Quantize it to fp8 or int8."
        )
    architecture = next((part.layout.gguf for part in parts if part.layout and part.layout.gguf), "")
    named: dict[str, str | int] = {"general.architecture": architecture} if architecture else {}
    first, entries = written_gguf_header(found, named | SETTINGS | {"general.file_type": FILE_TYPES[to]})
    return entries, first


def _marker(part: FileComponent, marker: str) -> str:
    """Return the name of the tensor that says of a component that it has scaled layers."""
    shared = commonprefix(list(part.names.values()))  # noqa: RUF071 - of characters, in names that are no paths
    # Of a text encoder ComfyUI looks behind the name of its class, which `prefix` is without.
    inside = f"{part.prefix}transformer."
    return (inside if shared.startswith(inside) else part.prefix) + marker


def _declaration(chosen: WeightFormat, packed: Packed) -> bytes:
    return json.dumps(chosen.declaration(packed)).encode()


def _written(
    file: BinaryIO,
    planned: Mapping[str, TensorEntry],
    tensors: Mapping[str, StoredTensor],
    why: Mapping[str, str],
    *,
    to: str,
    check: Callable[[], None],
    on_layer: Callable[[Layer], None],
) -> Iterator[Layer]:
    """Write all tensors to their places, and yield the layers that are quantized.

    Raises:
        PiyingError: a tensor has values that are no numbers, or too large ones for the format.
    """
    import torch

    chosen = TARGETS[to]
    for name, stored in tensors.items():
        check()
        if why[name]:
            file.seek(planned[name].start)
            for piece in stored.pieces():
                _check_finite(name, piece)
                file.write(piece.contiguous().view(torch.uint8).numpy().data)
            continue
        weight = stored.read()
        for rows in weight.split(_rows(weight)):
            _check_finite(name, rows)
        packed = chosen.for_file(weight, to)
        for numbers in chosen.numbers(packed):
            _check_finite(name, numbers)
        layer = Layer(name, _error(weight, packed, chosen))
        stored.release()
        for own, tensor in chosen.file_tensors(packed).items():
            file.seek(planned[name.removesuffix("weight") + own].start)
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        declaration = planned.get(name.removesuffix("weight") + DECLARATION)
        if declaration is not None:
            file.seek(declaration.start)
            file.write(_declaration(chosen, packed))
        on_layer(layer)
        yield layer


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except PiyingError as error:
        raise PiyingError(f"{path}: {error}") from error


def _check_finite(name: str, numbers: torch.Tensor) -> None:
    """Accept numbers of a tensor.

    Raises:
        PiyingError: some are infinite or none.
    """
    if not all_finite(numbers):
        raise PiyingError(
            f"{clipped(name)} holds values that are no numbers (NaN or infinity), or too large ones. "
            "The file is damaged; fetch it again."
        )


def _rows(weight: torch.Tensor) -> int:
    return max(1, PIECE // max(1, weight.shape[1]))


def _error(weight: torch.Tensor, packed: Packed, chosen: WeightFormat) -> float:
    """Return the norm of what is lost over that of a weight; 0 for one of zeros."""
    import torch

    lost = whole = 0.0
    step = -(-_rows(weight) // ROWS_TOGETHER) * ROWS_TOGETHER
    for start in range(0, weight.shape[0], step):
        part = slice(start, start + step)
        rows, own = weight[part].float(), chosen.rows(packed, part)
        lost += float((chosen.dense(chosen.layer(own, None, None)) - rows).square().sum(dtype=torch.float64))
        whole += float(rows.square().sum(dtype=torch.float64))
    return (lost / whole) ** 0.5 if whole else 0.0


def as_json(found: Quantized) -> dict[str, Any]:
    """Return it as a table fit for JSON."""
    return {**asdict(found), "layers": [layer._asdict() for layer in found.layers]}


def as_line(layer: Layer) -> str:
    """Return what is lost of one layer, as a line for people."""
    return f"  {layer.error:8.3%}  {layer.name}"


def as_text(found: Quantized) -> str:
    """Return the summary as lines for people."""
    errors = sorted((layer.error, layer.name) for layer in found.layers)
    median, (worst, name) = errors[len(errors) // 2][0], errors[-1]
    kept = sorted(((len(names), reason) for reason, names in found.kept.items()), reverse=True)
    lines = {
        "quantized": f"{len(errors)} layers to {found.to}, relative error {median:.3%} in the median, "
        f"{worst:.3%} at most ({name})",
        "as it was": ", ".join(f"{count} tensors {reason}" for count, reason in kept) or "nothing",
        "size": f"{found.bytes_before / GB:.2f} GB before, {found.bytes / GB:.2f} GB now",
    } | ({"needs": found.needs} if found.needs else {})
    return "\n".join([found.out, *(f"  {label:9} {text}" for label, text in lines.items())])
