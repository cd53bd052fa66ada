"""Stored formats: in which number types a file holds its weights, from its header, and which cannot be read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..errors import PiyingError, clipped
from ..files.dtypes import safetensors_names, short_name
from ..files.gguf_blocks import PLAIN, UNPACKERS
from ..files.json_file import parse_json
from ..files.safetensors_file import FileHeader, TensorEntry, check_types
from ..files.stored_tensor import StoredTensor
from .registry import FORMATS, recognised_format, scale_names

QUANTIZATION_TEXT = "_quantization_metadata"
DECLARATION = "comfy_quant"
DECLARATION_BYTES = 4096  # a layer's description is a line of JSON

# Tensors that describe the weight of a layer beside its scales, by the last part of their names.
DESCRIPTIONS = ("scale_input", "input_scale", DECLARATION, "scaled_fp8")
# Formats that are not read, by the last part of the names of tensors that only they have.
FOREIGN_ENDINGS = {
    "smooth_factor": "SVDQuant (Nunchaku)",
    "smooth": "SVDQuant (Nunchaku)",
    "wscales": "SVDQuant (Nunchaku)",
    "qweight": "GPTQ or AWQ",
    "absmax": "bitsandbytes 4-bit",
    "SCB": "bitsandbytes int8",
}


def describes(name: str) -> bool:
    """Return whether a tensor only describes another one."""
    own = name.rpartition(".")[2]
    return own in DESCRIPTIONS or own in scale_names()


def join_scales(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the weights alone, each joined with the tensors beside it that describe it, such as its scale."""
    types = {name: safetensors_names()[stored.dtype] for name, stored in tensors.items()}
    beside: dict[str, dict[str, StoredTensor]] = {}
    for name, stored in tensors.items():
        if describes(name):
            layer, _, own = name.rpartition(".")
            beside.setdefault(f"{layer}.weight", {})[own] = stored
    found = {name: stored for name, stored in tensors.items() if not describes(name)}
    for name, described_by in beside.items():
        if name in found:
            # Weights of a plain type may have a scale too.
            formats = [one for one in FORMATS.values() if described_by.keys() & set(one.scales)]
            chosen = recognised_format(name, types) or next(iter(formats), None)
            found[name] = (
                chosen.joined(found[name], described_by, _declaration(described_by)) if chosen else found[name]
            )
    return found


def weight_entries(entries: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Return the weights alone, in the types and shapes that they stand for; see `WeightFormat.meaning`."""
    types = {name: entry.dtype for name, entry in entries.items()}
    found = {}
    for name, entry in entries.items():
        if not describes(name):
            chosen = recognised_format(name, types)
            dtype, shape = (entry.dtype, entry.shape) if chosen is None else chosen.meaning(entry.dtype, entry.shape)
            found[name] = TensorEntry(dtype, shape, entry.start, entry.end)
    return found


def types_of(entries: Mapping[str, TensorEntry]) -> dict[str, int]:
    """Return the bytes held in each type, most first, without the descriptions."""
    found: Counter[str] = Counter()
    for entry in weight_entries(entries).values():
        found[short_name(entry.dtype)] += entry.end - entry.start
    return dict(found.most_common())


def precision_of(header: FileHeader) -> str:
    """Return one word or two for how the weights are stored, such as "bf16" or "fp8 scaled"."""
    if header.format == "gguf":
        plain = {short_name(name): name for name in PLAIN}
        held = types_of(header.entries)
        # Norms and biases are plain in files whose layers are packed.
        most = next((name for name in held if name not in plain), next(iter(held), "nothing"))
        return f"GGUF {plain.get(most, most)}"
    entries, types = header.entries, _number_types(header)
    for stored in FORMATS.values():
        packed = {name: entry for name, entry in entries.items() if stored.recognises(name, types)}
        main = next(iter(types_of(packed)), None)
        if main is not None and stored.declared_only:
            return stored.name
        if main is not None:
            return f"{main} scaled" if any(name.endswith(stored.scales) for name in entries) else main
    return next(iter(types_of(entries)), "nothing")


def _number_types(header: FileHeader) -> dict[str, str]:
    return {name: entry.dtype for name, entry in header.entries.items()}


def check_readable(header: FileHeader) -> None:
    """Accept a file all of whose weights are in types that are read here.

    Raises:
        PiyingError: some are not; the format is named.
    """
    declared = layer_declarations(header)
    foreign = _foreign(header, declared)
    if foreign:
        packed = ", ".join(stored.readable for stored in FORMATS.values())
        raise PiyingError(
            f"{header.path}: stored as {clipped(foreign, 160)}, which this pack cannot read. "
            f"Readable: bf16, fp16, fp32, {packed}. Fetch the model in one of them: `python install.py --list` names "
            "some, and makers of quantized files mostly have its GGUF or FP8 beside them."
        )
    for one in header.files:
        if one.format == "safetensors":
            check_types(one)
    try:
        _check_declarations(header.entries, declared)
        _check_scales(header.entries)
    except PiyingError as error:
        raise PiyingError(f"{header.path}: {error}") from error


def _check_declarations(entries: Mapping[str, TensorEntry], declared: Mapping[str, dict[str, Any]]) -> None:
    """Accept weights that are stored in the type that their file declares, with the scale that belongs to it.

    Raises:
        PiyingError: one is not: it would be read without its scale or its rotation.
    """
    types = {name: entry.dtype for name, entry in entries.items()}
    for layer, said in declared.items():
        weight = entries.get(f"{layer}.weight")
        if weight is None:
            continue
        chosen = next(one for one in FORMATS.values() if said["format"] in one.declarations)
        wanted = chosen.declarations[said["format"]]
        lacking = not any(f"{layer}.{name}" in entries for name in chosen.scales)
        lacking = lacking or recognised_format(f"{layer}.weight", types) is not chosen
        if weight.dtype != wanted or lacking:
            stored = "without a scale" if weight.dtype == wanted else f"as {short_name(weight.dtype)}"
            raise PiyingError(
                f"{clipped(layer)}.weight is declared as {said['format']} and stored {stored}. "
                "The file is damaged, or was converted by a tool that does not know the format; fetch it again."
            )


def _check_scales(entries: Mapping[str, TensorEntry]) -> None:
    """Accept tensors that are scaled by ones of a shape that goes with theirs.

    Raises:
        PiyingError: one is not.
    """
    scales, types = scale_names(), {name: entry.dtype for name, entry in entries.items()}
    for name, entry in entries.items():
        layer, _, own = name.rpartition(".")
        weight = entries.get(f"{layer}.weight") if own in scales else None
        if weight is None:
            continue
        chosen = recognised_format(f"{layer}.weight", types)
        chosen = chosen or next(one for one in FORMATS.values() if own in one.scales)
        if own in chosen.scales and not chosen.takes_scale(own, weight.shape, entry.shape):
            raise PiyingError(
                f"{clipped(name)}: a scale of shape {list(entry.shape)} fits no weight of {list(weight.shape)}. "
                "The file is damaged; fetch it again."
            )


def _foreign(header: FileHeader, declarations: Mapping[str, dict[str, Any]]) -> str | None:
    declared = {name: stored for stored in FORMATS.values() for name in stored.declarations}
    for layer, said in declarations.items():
        weight = header.entries.get(f"{layer}.weight")
        if said["format"] not in declared:
            return str(said["format"])
        why = "" if weight is None else declared[said["format"]].why_unreadable(said, weight.shape)
        if why:
            return f"{said['format']} {why}"
    types, scales = _number_types(header), set(scale_names())
    if header.format == "gguf":
        return next((f"GGUF {dtype}" for dtype in types.values() if dtype not in (*PLAIN, *UNPACKERS)), None)
    endings = {name.rpartition(".")[2] for name in header.entries}
    foreign = next((title for ending, title in FOREIGN_ENDINGS.items() if ending in endings - scales), None)
    if foreign is not None:
        return foreign
    for name, entry in header.entries.items():
        ending = name.rpartition(".")[2]
        found = recognised_format(name, types) if ending == "weight" else None
        is_declared = name.removesuffix(".weight") in declarations
        if found is not None and found.declared_only and not is_declared:
            return f"{found.name} without ComfyUI's comfy_quant, so that the order of its scales is not known"
        packed = entry.dtype in ("I8", "U8") and ending == "weight" and len(entry.shape) > 1
        if packed and found is None and not is_declared:
            return "int8" if entry.dtype == "I8" else "packed 4-bit weights"
    return None


def layer_declarations(header: FileHeader) -> dict[str, dict[str, Any]]:
    """Return what a file declares of its layers: {layer: {"format": "float8_e4m3fn", …}}.

    ComfyUI writes it into the header's text or into a small tensor beside each layer.
    """
    found: dict[str, dict[str, Any]] = {}
    for one in header.files:
        found |= declared_in_text(str(one.metadata.get(QUANTIZATION_TEXT, "")))
    for one in header.files:
        for name, entry in one.entries.items():
            if re.search(r"(^|\.)comfy_quant$", name):
                said = _read(one, entry) if entry.end - entry.start <= DECLARATION_BYTES else None
                found[name.removesuffix(DECLARATION).rstrip(".")] = _declared(said)
    return found


def declared_in_text(text: str) -> dict[str, dict[str, Any]]:
    """Return what the text of a header declares of its layers, see `layer_declarations`."""
    table = _json(text)
    layers = table.get("layers") if isinstance(table, dict) else None
    if isinstance(layers, str):
        layers = _json(layers)
    return {layer: _declared(value) for layer, value in layers.items()} if isinstance(layers, dict) else {}


def _declaration(beside: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """Return what the tensors beside a weight declare of it, by the last parts of their names; empty for nothing."""
    import torch

    stored = beside.get(DECLARATION)
    if stored is None:
        return {}
    return _declared(bytes(stored.read().flatten().view(torch.uint8).tolist()))


def _declared(value: object) -> dict[str, Any]:
    """Return a text, or a table {"format": …} written in JSON or not, as a table."""
    if isinstance(value, bytes):
        value = _json(value.decode("utf-8", "replace").rstrip("\0"))
    table = value if isinstance(value, dict) else {"format": value}
    return table if isinstance(table.get("format"), str) else {**table, "format": "an undeclared format"}


def _json(text: str) -> object:
    try:
        return parse_json(text)
    except ValueError:
        return None


def _read(header: FileHeader, entry: TensorEntry) -> bytes:
    with header.path.open("rb") as file:
        file.seek(entry.start)
        return file.read(entry.end - entry.start)
