"""Writers of one layer in each form that people have weights in, from the descriptions of the forms alone."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

import torch

from . import writers

FP8 = torch.float8_e4m3fn
GROUP = 64  # of inputs that are rotated together


@dataclass
class Packed:
    """One layer: its tensors by the last parts of their names, and the weight that they stand for."""

    parts: dict[str, torch.Tensor]
    weight: torch.Tensor
    said: dict[str, object] = field(default_factory=dict)  # what ComfyUI's declaration of the layer holds
    torchao: str = ""  # the name of torchao's class


def hadamard(size):
    """The regular Hadamard matrix, from its definition: products of the signs of 4 × 4."""
    four = torch.tensor([[1.0, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]])
    found = torch.ones(1, 1)
    while len(found) < size:
        found = torch.kron(found, four)
    return found / len(found) ** 0.5


def rotated(weight):
    return (weight.view(len(weight), -1, GROUP) @ hadamard(GROUP)).reshape(weight.shape)


def scaled(weight, dtype, largest):
    """Values of a type and the scale of each row."""
    scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / largest
    values = weight / scale
    return (values.round() if dtype == torch.int8 else values).to(dtype), scale


def nearest(numbers, levels):
    """The places of the nearest of rising levels."""
    return torch.bucketize(numbers.contiguous(), (levels[1:] + levels[:-1]) / 2)


def pairs(codes, first_high=False):
    first, second = codes[:, ::2].to(torch.uint8), codes[:, 1::2].to(torch.uint8)
    return first << 4 | second if first_high else second << 4 | first


def fp8_plain(weight):
    values = weight.to(FP8)
    return Packed({"weight": values}, values.float())


def fp8_old(weight):
    values, scale = (weight / (weight.abs().max() / 448)).to(FP8), weight.abs().max() / 448
    parts = {"weight": values, "scale_weight": scale, "scale_input": torch.ones(())}
    return Packed(parts, values.float() * scale)


def fp8(weight):
    made = fp8_old(weight)
    parts = {"weight": made.parts["weight"], "weight_scale": made.parts["scale_weight"]}
    return Packed(parts, made.weight, {"format": "float8_e4m3fn"})


def fp8_rows(weight):
    values, scale = scaled(weight, FP8, 448)
    said = {"format": "float8_e4m3fn_rowwise"}
    return Packed({"weight": values, "weight_scale": scale}, values.float() * scale, said)


def int8(weight):
    values, scale = scaled(weight, torch.int8, 127)
    return Packed({"weight": values, "weight_scale": scale}, values * scale, {"format": "int8_tensorwise"})


def int8_convrot(weight):
    made = int8(rotated(weight))
    return Packed(made.parts, rotated(made.weight), made.said | {"convrot": True, "convrot_groupsize": GROUP})


def mxfp8(weight):
    parts, restored = writers.mxfp8(weight)
    return Packed(parts, restored, {"format": "mxfp8"})


def mxfp8_typed(weight):
    """The scales as PyTorch's own type for them."""
    made = mxfp8(weight)
    made.parts["weight_scale"] = made.parts["weight_scale"].view(torch.float8_e8m0fnu)
    return made


def nvfp4(weight):
    parts, restored = writers.nvfp4(weight)
    return Packed(parts, restored, {"format": "nvfp4"})


def int4_convrot(weight):
    values, scale = scaled(rotated(weight), torch.int8, 7)
    parts = {"weight": pairs(values & 15).view(torch.int8), "weight_scale": scale.flatten()}
    return Packed(parts, rotated(values * scale), {"format": "convrot_w4a4", "convrot_groupsize": GROUP})


def w4a8(weight, levels=None, nested=False):
    """Levels times scales of 16 weights, rounded to 8 bits, times the row's scale."""
    table = torch.arange(-8.0, 8.0) if levels is None else levels
    turned = rotated(weight)
    channel = turned.abs().amax(dim=1) / 127
    blocks = (turned / channel[:, None]).view(len(weight), -1, 16)
    scale = (blocks.abs().amax(dim=-1) / table.abs().max()).to(FP8)
    codes = nearest(blocks / scale.float()[..., None].clamp(min=1e-9), table)
    grid = (table[codes] * scale.float()[..., None]).round().clamp(-127, 127).view(weight.shape)
    parts = {"weight": pairs(codes.view(weight.shape)).view(torch.int8), "weight_s_rel": scale}
    parts |= {"weight_s_channel": channel} | ({} if levels is None else {"weight_codebook": levels})
    sizes = {"group_size": 16, "convrot_groupsize": GROUP}
    said = {"format": "asym_w4a8_int8", **({"params": sizes} if nested else sizes)}
    return Packed(parts, rotated(grid * channel[:, None]), said)


def w4a8_levels(weight):
    made = w4a8(weight, torch.linspace(-1, 1, 16) ** 3, nested=True)
    made.parts["weight_s_rel"] = made.parts["weight_s_rel"].view(torch.uint8)
    return made


NF4 = torch.erfinv(torch.linspace(-0.95, 0.95, 16)) / torch.erfinv(torch.tensor(0.95))


def nf4(weight, nested=False):
    """As `QuantState.as_dict(packed=True)` has it: values in one column, what they are in a line of JSON."""
    blocks = weight.reshape(-1, 64)
    absmax = blocks.abs().amax(dim=1)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(weight.shape)}
    parts = {"weight.quant_map": NF4}
    if nested:
        offset, levels = float(absmax.mean()), torch.linspace(-1, 1, 256)
        groups = (absmax - offset).split(256)
        of_groups = torch.stack([group.abs().max() for group in groups])
        wide = of_groups.repeat_interleave(256)[: len(absmax)]
        codes = nearest((absmax - offset) / wide, levels)
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
        parts |= {"weight.absmax": codes.to(torch.uint8), "weight.nested_absmax": of_groups}
        parts["weight.nested_quant_map"] = levels
        absmax = levels[codes] * wide + offset
    else:
        parts["weight.absmax"] = absmax
    codes = nearest(blocks / absmax[:, None], NF4)
    parts["weight"] = pairs(codes, first_high=True).reshape(-1, 1)
    text = json.dumps(state).encode()
    parts["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(text), dtype=torch.uint8)
    return Packed(parts, (NF4[codes] * absmax[:, None]).view(weight.shape))


def nf4_nested(weight):
    return nf4(weight, nested=True)


def torchao_fp8(weight):
    values, scale = scaled(weight, FP8, 448)
    return Packed({"_weight_qdata": values, "_weight_scale": scale}, values.float() * scale, torchao="Float8Tensor")


def torchao_int8(weight):
    values, scale = scaled(weight, torch.int8, 127)
    zeros = torch.zeros(len(weight), 1, dtype=torch.int8)
    parts = {"_weight_qdata": values, "_weight_scale": scale, "_weight_zero_point": zeros}
    return Packed(parts, values * scale, torchao="Int8Tensor")


# The form, and what `--inspect` calls it.
READ = {
    fp8_plain: "fp8",
    fp8_old: "fp8 scaled",
    fp8: "fp8 scaled",
    fp8_rows: "fp8 scaled",
    int8: "I8 scaled",
    int8_convrot: "I8 scaled",
    mxfp8: "mxfp8",
    mxfp8_typed: "mxfp8",
    nvfp4: "nvfp4",
    int4_convrot: "int4",
    w4a8: "w4a8",
    w4a8_levels: "w4a8",
    nf4: "nf4",
    nf4_nested: "nf4",
    torchao_fp8: "fp8 scaled",
    torchao_int8: "I8 scaled",
}


def _without(made, **changes):
    return Packed({**made.parts, **changes}, made.weight, made.said, made.torchao)


def gptq(weight):
    packed = torch.zeros(weight.shape[1] // 8, len(weight), dtype=torch.int32)
    return Packed({"qweight": packed, "qzeros": packed, "scales": weight[:1]}, weight)


def svdquant(weight):
    """Nunchaku's names."""
    parts = {"qweight": torch.zeros(len(weight), weight.shape[1] // 2, dtype=torch.int8), "wscales": weight[:, :2]}
    return Packed(parts | {"smooth_factor": weight[0], "proj_down": weight[:, :4], "proj_up": weight[:, :4]}, weight)


def bitsandbytes_int8(weight):
    values, scale = scaled(weight, torch.int8, 127)
    return Packed({"weight": values, "SCB": scale.flatten() * 127}, weight)


def fp4(weight):
    made = nf4(weight)
    made.parts["weight.quant_state.bitsandbytes__fp4"] = made.parts.pop("weight.quant_state.bitsandbytes__nf4")
    return made


def nf4_across_rows(weight):
    made = nf4(weight)
    state = {"quant_type": "nf4", "blocksize": 4096, "dtype": "float32", "shape": list(weight.shape)}
    text = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    return _without(made, **{"weight.quant_state.bitsandbytes__nf4": text})


def nf4_short(weight):
    """A scale for every second block."""
    made = nf4(weight)
    return _without(made, **{"weight.absmax": made.parts["weight.absmax"][::2].clone()})


def six_bits(weight):
    made = w4a8(weight)
    made.parts["weight"] = torch.zeros(len(weight), weight.shape[1] * 3 // 4, dtype=torch.int8)
    return made


def corrected(weight):
    made = w4a8(weight)
    return _without(made, weight_correction=torch.zeros(weight.shape[1] // 16, len(weight)))


def odd_rotation(weight):
    made = int4_convrot(weight)
    made.said["convrot_groupsize"] = 96
    return made


def torchao_int4(weight):
    parts = {"_weight_qdata": torch.zeros(len(weight), weight.shape[1] // 2, dtype=torch.uint8)}
    return Packed(parts | {"_weight_scale_and_zero": weight[:2]}, weight, torchao="Int4Tensor")


def torchao_smooth(weight):
    return _without(torchao_int8(weight), _weight_act_pre_scale=torch.ones(weight.shape[1]))


def torchao_asymmetric(weight):
    zeros = torch.full((len(weight), 1), 3, dtype=torch.int8)
    return _without(torchao_int8(weight), _weight_zero_point=zeros)


def torchao_twice(weight):
    return _without(torchao_int8(weight), weight=weight)


def undeclared_nvfp4(weight):
    return Packed(nvfp4(weight).parts, weight)


REFUSED = {
    gptq: "GPTQ or AWQ",
    svdquant: "SVDQuant (Nunchaku)",
    bitsandbytes_int8: "bitsandbytes int8",
    fp4: "bitsandbytes 4-bit",
    nf4_across_rows: "bitsandbytes nf4 in blocks of 4096 that run over rows of",
    nf4_short: "bitsandbytes nf4 with values or scales of another number or type than it says",
    six_bits: "asym_w4a8_int8 in 6 bits",
    corrected: "asym_w4a8_int8 with a correction",
    odd_rotation: "convrot_w4a4 rotated in groups of 96 inputs",
    torchao_int4: "torchao Int4Tensor",
    torchao_smooth: "torchao Int8Tensor with act_pre_scale",
    torchao_asymmetric: "torchao Int8Tensor with zero points that are not 0",
    torchao_twice: "torchao Int8Tensor beside a weight of the same name",
    undeclared_nvfp4: "nvfp4 without ComfyUI's comfy_quant",
}


def is_layer(name, tensor, blocks="[01]"):
    """A Linear layer of the first blocks of a model of any family, whose rows are whole blocks of every form."""
    inside = re.search(rf"(blocks?|layers)\.{blocks}\.", name) and tensor.shape[-1] % GROUP == 0
    return name.endswith(".weight") and tensor.ndim == 2 and inside and "norm" not in name and "relative" not in name


def written(tensors, form, *, in_text=False, blocks="[01]"):
    """Return a model's tensors with its layers in a form, the weights that they stand for, and the header's texts."""
    found, restored, texts, layers = {}, {}, {}, {}
    for name, tensor in tensors.items():
        if not is_layer(name, tensor, blocks):
            found[name] = restored[name] = tensor
            texts[name] = json.dumps({"_type": "Tensor"})
            continue
        layer, made = name.removesuffix(".weight"), form(tensor.float())
        found |= {f"{layer}.{own}": part.clone() for own, part in made.parts.items()}
        restored[name] = made.weight
        texts[name] = json.dumps({"_type": made.torchao, "_data": {}, "_tensor_data_names": []})
        if made.said:
            layers[layer] = made.said
            if not in_text:
                text = json.dumps(made.said).encode()
                found[f"{layer}.comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)
    if form is fp8_old:
        found["scaled_fp8"] = torch.empty(2, dtype=FP8)
    if form.__name__.startswith("torchao"):
        return found, restored, texts | {"tensor_names": json.dumps(list(tensors))}
    return found, restored, {"_quantization_metadata": json.dumps({"layers": layers})} if in_text and layers else {}
