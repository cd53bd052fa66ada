"""In which number types a file holds its weights, from its header, and which of them cannot be read."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping

from ..errors import PiyingError
from ..files.dtypes import short_name
from ..files.safetensors_file import FileHeader, TensorEntry

READABLE = "bf16, fp16, fp32, fp8 (plain or scaled), GGUF"
LAYER_FORMATS = {"float8_e4m3fn", "float8_e5m2", "float8_e4m3fn_rowwise", "float8_e4m3fn_blockwise"}
QUANTIZATION_TEXT = "_quantization_metadata"
MARKER_BYTES = 4096  # a layer's description is a line of JSON

# Tensors that describe the weight of a layer, by the last part of their names.
SCALES = ("scale_weight", "weight_scale", "weight_scale_inv")
DESCRIPTIONS = (*SCALES, "scale_input", "input_scale", "comfy_quant", "scaled_fp8")
FOREIGN_ENDINGS = {
    "weight_scale_2": "nvfp4",
    "qweight": "GPTQ or AWQ",
    "absmax": "bitsandbytes",
    "SCB": "bitsandbytes int8",
}


def describes(name: str) -> bool:
    """Return whether a tensor only describes another one."""
    return name.rpartition(".")[2] in DESCRIPTIONS


def types_of(entries: Mapping[str, TensorEntry]) -> dict[str, int]:
    """Return the bytes held in each type, most first, without the descriptions."""
    found: Counter[str] = Counter()
    for name, entry in entries.items():
        if not describes(name):
            found[short_name(entry.dtype)] += entry.end - entry.start
    return dict(found.most_common())


def precision_of(header: FileHeader) -> str:
    """Return one word or two for how the weights are stored, such as "bf16" or "fp8 scaled"."""
    if header.format == "gguf":
        return "GGUF " + next((name for name in types_of(header.entries) if name not in ("fp32", "fp16")), "F16")
    types = types_of(header.entries)
    main = next(iter(types), "nothing")
    fp8 = next((name for name in types if name.startswith("fp8")), None)
    if fp8 is None:
        return main
    return f"{fp8} scaled" if any(name.endswith(SCALES) for name in header.entries) else fp8


def check_readable(header: FileHeader) -> None:
    """Accept a file all of whose weights are in types that are read here.

    Raises:
        PiyingError: some are not; the format is named.
    """
    foreign = _foreign(header)
    if foreign:
        raise PiyingError(
            f"{header.path}: stored as {foreign[:60]}, which this pack cannot read. Readable: {READABLE}."
        )


def _foreign(header: FileHeader) -> str | None:
    for name in layer_formats(header).values():
        if name not in LAYER_FORMATS:
            return name
    for name, entry in header.entries.items():
        ending = name.rpartition(".")[2]
        if ending in FOREIGN_ENDINGS:
            return FOREIGN_ENDINGS[ending]
        if ending in SCALES and entry.dtype == "F8_E8M0":
            return "mxfp8"
        if entry.dtype in ("I8", "U8") and ending == "weight" and len(entry.shape) > 1:
            return "int8" if entry.dtype == "I8" else "packed 4-bit weights"
    return None


def layer_formats(header: FileHeader) -> dict[str, str]:
    """Return the format that a file declares for its layers: {layer: "float8_e4m3fn"}.

    ComfyUI writes it into the header's text or into a small tensor beside each layer.
    """
    found = _declared_in_text(header.metadata.get(QUANTIZATION_TEXT, ""))
    for name, entry in header.entries.items():
        if re.search(r"(^|\.)comfy_quant$", name) and entry.end - entry.start <= MARKER_BYTES:
            found[name.removesuffix("comfy_quant").rstrip(".")] = _format_in(_read(header, entry))
    return found


def _declared_in_text(text: str) -> dict[str, str]:
    table = _json(text)
    layers = table.get("layers") if isinstance(table, dict) else None
    if isinstance(layers, str):
        layers = _json(layers)
    if not isinstance(layers, dict):
        return {}
    return {layer: _format_in(value) for layer, value in layers.items()}


def _format_in(value: object) -> str:
    """Return the format named by a text or a table {"format": …}, written in JSON or not."""
    if isinstance(value, bytes):
        value = _json(value.decode("utf-8", "replace").rstrip("\0"))
    name = value.get("format") if isinstance(value, dict) else value
    return name if isinstance(name, str) else "an undeclared format"


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _read(header: FileHeader, entry: TensorEntry) -> bytes:
    with header.path.open("rb") as file:
        file.seek(entry.start)
        return file.read(entry.end - entry.start)
