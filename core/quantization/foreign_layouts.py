"""Foreign layouts: quantized weights as torchao and bitsandbytes write them, and ComfyUI's of 4 bits, told as one.

A header is rewritten so that what looks at tensors by name, type and shape sees one layout for each weight format, and
what a file says of its layers in one place. The bytes of the tensors stay where and what they are.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..files.json_file import parse_json
from ..files.safetensors_file import FileHeader, TensorEntry
from .codebook import INT4, NF4, W4A8
from .stored_formats import DECLARATION, DECLARATION_BYTES, QUANTIZATION_TEXT

ZERO_POINT_BYTES = 1 << 20  # of a layer; one for each output channel

# torchao's names (`flatten_tensor_state_dict`), and its classes whose numbers are values times scales.
TORCHAO = re.compile(r"(?P<layer>.+)\._weight_(?P<own>\w+)")
TORCHAO_NAMES = {"qdata": "weight", "scale": "weight_scale"}
TORCHAO_FORMATS = {"Float8Tensor": "float8_e4m3fn_rowwise", "Int8Tensor": "int8_tensorwise"}
# bitsandbytes' names behind that of the weight, and those they have here.
NF4_STATE = "quant_state.bitsandbytes__nf4"
NF4_NAMES = {
    "absmax": "weight_absmax",
    "quant_map": "weight_quant_map",
    "nested_absmax": "weight_nested_absmax",
    "nested_quant_map": "weight_nested_quant_map",
}
# Of ComfyUI's W4A8; its INT4 has a scale with the name of INT8's, whose type its values have too.
W4A8_GROUPS = "weight_s_rel"


def canonical(header: FileHeader) -> FileHeader:
    """Return the header of a safetensors file with the tensors of such layers in the layout that is read here."""
    entries, declared = dict(header.entries), dict[str, dict[str, Any]]()
    reader = _Reader(header)
    _torchao(reader, entries, declared)
    _nf4(reader, entries, declared)
    _comfy(reader, entries, declared)
    for name, entry in entries.items():
        if entry.dtype == "F8_E8M0" and name.endswith(".weight_scale"):
            entries[name] = replace(entry, dtype="U8")  # the exponent is the byte, whatever its type is called
    if not declared:
        return replace(header, entries=entries)
    text = json.dumps({"layers": reader.declared_in_text() | declared})
    return replace(header, entries=entries, metadata={**header.metadata, QUANTIZATION_TEXT: text})


class _Reader:
    """Small tensors of a file, and what its header says beside them."""

    def __init__(self, header: FileHeader) -> None:
        self._header = header

    def read(self, entry: TensorEntry, most: int = DECLARATION_BYTES) -> bytes:
        """Return a tensor's bytes; none of one that is larger than what is looked for."""
        if entry.end - entry.start > most:
            return b""
        # Opened here: of the thousands of files that a list looks at, next to none has such a tensor.
        with self._header.path.open("rb") as file:
            file.seek(entry.start)
            return file.read(entry.end - entry.start)

    def table(self, text: str | bytes) -> dict[str, Any]:
        """Return a table that is written in JSON; an empty one for anything else."""
        try:
            found = parse_json(text if isinstance(text, str) else text.decode("utf-8").rstrip("\0"))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def said(self, key: str) -> dict[str, Any]:
        """Return the table under a key of the header's texts."""
        return self.table(str(self._header.metadata.get(key, "")))

    def declared_in_text(self) -> dict[str, Any]:
        """Return the layers that the header's text declares, as they are there."""
        layers = self.said(QUANTIZATION_TEXT).get("layers")
        layers = self.table(layers) if isinstance(layers, str) else layers
        return dict(layers) if isinstance(layers, dict) else {}


def _torchao(reader: _Reader, entries: dict[str, TensorEntry], declared: dict[str, dict[str, Any]]) -> None:
    found: dict[str, dict[str, str]] = {}
    for name in entries:
        match = TORCHAO.fullmatch(name)
        if match is not None:
            found.setdefault(match["layer"], {})[match["own"]] = name
    for layer, names in found.items():
        if "qdata" not in names:
            continue
        kind = str(reader.said(f"{layer}.weight").get("_type", "tensor"))
        zeros = names.pop("zero_point", None)
        has_offset = zeros is not None and any(reader.read(entries[zeros], ZERO_POINT_BYTES) or b"?")
        extra = sorted(names.keys() - TORCHAO_NAMES.keys())
        why = f"with {', '.join(extra)}" if extra else "with zero points that are not 0" if has_offset else ""
        why = why or ("beside a weight of the same name" if f"{layer}.weight" in entries else "")
        if why or kind not in TORCHAO_FORMATS:
            declared[layer] = {"format": f"torchao {kind} {why}".rstrip()}
        else:
            declared[layer] = {"format": TORCHAO_FORMATS[kind]}
        if zeros is not None:
            del entries[zeros]
        for own, name in names.items():
            entries[f"{layer}.{TORCHAO_NAMES.get(own, own)}"] = entries.pop(name)


def _nf4(reader: _Reader, entries: dict[str, TensorEntry], declared: dict[str, dict[str, Any]]) -> None:
    for name in [name for name in entries if name.endswith(f".weight.{NF4_STATE}")]:
        whole = name.removesuffix(f".{NF4_STATE}")
        layer, weight = whole.removesuffix(".weight"), entries.get(whole)
        state = reader.table(reader.read(entries.pop(name)))
        beside = {own: entries.pop(f"{whole}.{own}") for own in NF4_NAMES if f"{whole}.{own}" in entries}
        if weight is None:
            continue
        why = _why_no_nf4(weight, beside, state)
        declared[layer] = {**state, "format": f"bitsandbytes nf4 {why}" if why else NF4}
        if not why:
            rows, columns = state["shape"]
            entries[whole] = replace(weight, shape=(rows, columns // 2))
            entries |= {f"{layer}.{NF4_NAMES[own]}": entry for own, entry in beside.items()}


def _why_no_nf4(weight: TensorEntry, beside: Mapping[str, TensorEntry], state: Mapping[str, Any]) -> str:
    """Return why a weight cannot be read by what is said of it, to follow the format's name; "" where it can."""
    shape, block = state.get("shape"), state.get("blocksize")
    sizes = [*(shape if isinstance(shape, list) else []), block]
    if len(sizes) != 3 or not all(type(size) is int and size > 0 for size in sizes):
        return "without the shape and the blocks of its weights"
    rows, columns, block = sizes
    if columns % block:
        return f"in blocks of {block} that run over rows of {columns} inputs"
    is_nested = "nested_absmax" in beside
    counts = {"absmax": rows * columns // block, "quant_map": 16}
    if is_nested:
        nested = state.get("nested_blocksize")
        offset = state.get("nested_offset")
        if type(nested) is not int or nested <= 0 or not isinstance(offset, float) or not math.isfinite(offset):
            return "without what its scales' scales are"
        counts |= {"nested_absmax": -(-counts["absmax"] // nested), "nested_quant_map": 256}
    types = {"absmax": "U8" if is_nested else "F32"}
    right = beside.keys() == counts.keys() and weight.dtype == "U8" and weight.count * 2 == rows * columns
    right = right and all(
        one.count == counts[own] and one.dtype == types.get(own, "F32") for own, one in beside.items()
    )
    return "" if right else "with values or scales of another number or type than it says"


def _comfy(reader: _Reader, entries: dict[str, TensorEntry], declared: dict[str, dict[str, Any]]) -> None:
    in_text = reader.declared_in_text()
    for name in [name for name, entry in entries.items() if entry.dtype == "I8" and name.endswith(".weight")]:
        layer, entry = name.removesuffix(".weight"), entries[name]
        scale, marker = entries.get(f"{name}_scale"), entries.get(f"{layer}.{DECLARATION}")
        if scale is None and f"{layer}.{W4A8_GROUPS}" not in entries:
            continue
        said = in_text.get(layer) if marker is None else reader.table(reader.read(marker))
        said = said if isinstance(said, dict) else {"format": said}
        if said.get("format") not in (INT4, W4A8):
            continue
        params = said.get("params")
        said |= params if isinstance(params, dict) else {}
        if said["format"] == W4A8:
            said["format"] += _why_no_w4a8(layer, entries, said)
        declared[layer] = said
        entries[name] = replace(entry, dtype="U8")
        entries.pop(f"{layer}.{DECLARATION}", None)
        if said["format"] == INT4 and scale is not None:
            entries[f"{layer}.weight_row_scale"] = entries.pop(f"{name}_scale")


def _why_no_w4a8(layer: str, entries: Mapping[str, TensorEntry], said: Mapping[str, Any]) -> str:
    """Return what keeps a layer from being read, to follow the name of its format; "" for nothing."""
    if f"{layer}.weight_correction" in entries:
        return " with a correction"
    weight, groups, size = (
        entries[f"{layer}.weight"],
        entries.get(f"{layer}.{W4A8_GROUPS}"),
        said.get("group_size", 16),
    )
    if groups is None or type(size) is not int or len(weight.shape) != 2 or len(groups.shape) != 2:
        return ""
    columns = groups.shape[1] * size
    return " in 6 bits" if weight.shape[1] * 4 == columns * 3 else ""
