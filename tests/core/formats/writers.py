"""Writers of the FP8 and packed formats that people have."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

FP8 = torch.float8_e4m3fn
PREFIX = "model.diffusion_model."


def save(tensors, path, metadata=None):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    return path


def is_layer(name, tensor):
    """Whether ComfyUI's converters would quantise a weight: Linear layers inside the blocks."""
    return name.endswith(".weight") and tensor.ndim == 2 and "block" in name and "norm" not in name


def scaled(tensors, blocks=1):
    """Return {layer: (fp8 values, float32 scale [out, blocks, 1])}; 0 blocks: one scale for the layer."""
    found = {}
    for name, tensor in tensors.items():
        if not is_layer(name, tensor):
            continue
        if blocks == 0:
            scale = tensor.abs().max() / 448
            values = tensor / scale
        else:
            grouped = tensor.reshape(tensor.shape[0], blocks, -1)
            scale = grouped.abs().amax(dim=2, keepdim=True) / 448
            values = (grouped / scale).reshape(tensor.shape)
        found[name.removesuffix(".weight")] = (values.to(FP8), scale)
    return found


def dequantised(tensors, blocks=1):
    """Return the tensors with the layers' weights as their FP8 form means them."""
    restored = dict(tensors)
    for layer, (values, scale) in scaled(tensors, blocks).items():
        grouped = values.float().reshape(values.shape[0], max(blocks, 1), -1)
        restored[f"{layer}.weight"] = (grouped * scale).reshape(values.shape)
    return restored


def plain_fp8(tensors):
    """Kijai's: the layers' weights cast as they are, the rest in fp16."""
    return {name: tensor.to(FP8) if is_layer(name, tensor) else tensor.half() for name, tensor in tensors.items()}


def comfy_old(tensors, prefix="", blocks=0):
    """ComfyUI until late 2025: `scale_weight` beside each layer, an empty marker `scaled_fp8`."""
    found = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    for layer, (values, scale) in scaled(tensors, blocks).items():
        found[f"{prefix}{layer}.weight"] = values
        found[f"{prefix}{layer}.scale_weight"] = scale
        found[f"{prefix}{layer}.scale_input"] = torch.ones(())
    return found | {f"{prefix}scaled_fp8": torch.empty(2, dtype=FP8)}


def comfy_new(tensors, prefix="", marker=True, form="float8_e4m3fn"):
    """ComfyUI since: `weight_scale`, and a line of JSON as bytes in `comfy_quant`."""
    found = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    text = torch.frombuffer(bytearray(json.dumps({"format": form}).encode()), dtype=torch.uint8)
    for layer, (values, scale) in scaled(tensors, 0).items():
        found[f"{prefix}{layer}.weight"] = values
        found[f"{prefix}{layer}.weight_scale"] = scale
        if marker:
            found[f"{prefix}{layer}.comfy_quant"] = text.clone()
    return found


def comfy_metadata(tensors, form="float8_e4m3fn"):
    """The text that stands in a header in place of `comfy_quant`."""
    layers = {layer: {"format": form} for layer in scaled(tensors, 0)}
    return {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}


def deepseek(tensors, side=128):
    """FP8 releases of Qwen: `weight_scale_inv`, one scale for each square of 128 × 128."""
    found = dict(tensors)
    restored = dict(tensors)
    for name, tensor in tensors.items():
        if "proj.weight" not in name:
            continue
        rows, columns = tensor.shape
        grown = torch.zeros(-(-rows // side) * side, columns)
        grown[:rows] = tensor
        squares = grown.reshape(-1, side, columns // side, side)
        scale = squares.abs().amax(dim=(1, 3), keepdim=True) / 448
        values = (squares / scale).reshape(grown.shape)[:rows].to(FP8)
        found[name] = values
        found[name.removesuffix("weight") + "weight_scale_inv"] = scale[:, 0, :, 0]
        wide = scale.expand(-1, side, -1, side).reshape(grown.shape)[:rows]
        restored[name] = values.float() * wide
    return found, restored


def gguf(tensors, path, kind, original_shapes=True):
    """Write a GGUF file as city96's converter does: layers packed, the rest in fp32, 5-D tensors folded."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    writer = GGUFWriter(path, arch="wan")
    restored = {}
    for name, tensor in tensors.items():
        packed = GGMLQuantizationType[kind] if is_layer(name, tensor) else GGMLQuantizationType.F32
        values = tensor.float().numpy()
        if tensor.ndim > 4 and original_shapes:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(tensor.shape))
            values = values.reshape(tensor.shape[0], -1)
        data = quants.quantize(values, packed)
        writer.add_tensor(name, data, raw_dtype=packed)
        restored[name] = torch.from_numpy(quants.dequantize(data, packed)).reshape(tensor.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return restored


E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def cublas_tiles(scale):
    """Return scales [rows, blocks] of one byte each where cuBLAS's manual places them, zeros in between."""
    rows, blocks = scale.shape
    down, across = -(-rows // 128), -(-blocks // 4)
    row, block = torch.arange(rows)[:, None], torch.arange(blocks)[None]
    place = ((row // 128) * across + block // 4) * 512 + row % 32 * 16 + row % 128 // 32 * 4 + block % 4
    found = torch.zeros(down * across * 512, dtype=torch.uint8)
    found[place.flatten()] = scale.contiguous().view(torch.uint8).flatten()
    return found.view(down * 128, across * 4)


def nvfp4(weight):
    """Return a weight's tensors by the last parts of their names in ComfyUI's files, and what they stand for."""
    blocks = weight.float().view(len(weight), -1, 16)
    layer = blocks.abs().max() / (448 * 6)
    scale = (blocks.abs().amax(dim=-1) / 6 / layer).to(FP8)
    total = (layer * scale.float())[..., None]
    codes = ((blocks / total.clamp(min=1e-30))[..., None] - E2M1).abs().argmin(dim=-1)
    restored = (E2M1[codes] * total).view(weight.shape)
    codes = codes.view(weight.shape).to(torch.uint8)
    packed = codes[:, ::2] << 4 | codes[:, 1::2]
    scales = {"weight_scale": cublas_tiles(scale).view(FP8), "weight_scale_2": layer}
    return {"weight": packed, **scales}, restored


def mxfp8(weight):
    """Return the same in MXFP8."""
    blocks = weight.float().view(len(weight), -1, 32)
    exponent = torch.ceil(torch.log2(blocks.abs().amax(dim=-1).clamp(min=1e-30) / 448)).clamp(-126, 127)
    values = (blocks / torch.exp2(exponent)[..., None]).to(FP8)
    restored = (values.float() * torch.exp2(exponent)[..., None]).view(weight.shape)
    return {
        "weight": values.view(weight.shape),
        "weight_scale": cublas_tiles((exponent + 127).to(torch.uint8)),
    }, restored


def block_scaled(tensors, form, in_text=False):
    """Return tensors with layers as ComfyUI writes them in a form, those they stand for, and the header's text."""
    found, restored, layers = dict(tensors), dict(tensors), {}
    for name, tensor in tensors.items():
        if is_layer(name, tensor):
            layer = name.removesuffix(".weight")
            parts, restored[name] = {"nvfp4": nvfp4, "mxfp8": mxfp8}[form](tensor)
            found |= {f"{layer}.{own}": part for own, part in parts.items()}
            layers[layer] = {"format": form}
            if not in_text:
                said = json.dumps(layers[layer]).encode()
                found[f"{layer}.comfy_quant"] = torch.tensor(list(said), dtype=torch.uint8)
    return found, restored, {"_quantization_metadata": json.dumps({"layers": layers})} if in_text else None
