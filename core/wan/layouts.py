"""Layouts of Wan2.1: its VACE transformers and its VAE, under diffusers' names and under those of Wan-Video/Wan2.1.

The classes are WanVACETransformer3DModel and AutoencoderKLWan of diffusers. Original names: VaceWanModel in
wan/modules/model.py and vace_model.py, WanVAE_ in wan/modules/vae.py. ComfyUI's files have them too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

from ..checkpoints.layouts.base import (
    Config,
    Layout,
    Names,
    Place,
    Shapes,
    ShapeTable,
    Tensors,
    below,
    by_prefix,
    check_latents,
    conv,
    count,
    linear,
    norm,
    same,
)
from ..errors import PiyingError

HEAD_DIM = 128  # of every Wan2.1 model

OUTSIDE = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
    "patch_embedding": "patch_embedding",
    "vace_patch_embedding": "vace_patch_embedding",
}
ATTENTION = {
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "o": "to_out.0",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
}
# The norms are numbered by place in the original, by order of use in diffusers.
INSIDE = {
    "modulation": "scale_shift_table",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "before_proj": "proj_in",
    "after_proj": "proj_out",
    **{f"self_attn.{old}": f"attn1.{new}" for old, new in ATTENTION.items()},
    **{f"cross_attn.{old}": f"attn2.{new}" for old, new in ATTENTION.items()},
}
BLOCK = re.compile(r"((?:vace_)?blocks\.\d+\.)(.+)")


def place(name: str, shapes: Shapes) -> Place | None:
    """Place a tensor of the original layout."""
    del shapes
    block = BLOCK.fullmatch(name)
    return by_prefix(name, OUTSIDE) if block is None else by_prefix(block[2], INSIDE, block[1])


def config(shapes: Shapes) -> Config:
    """Return the configuration of a Wan2.1-VACE transformer.

    Raises:
        PiyingError: the VACE part is missing, or it is a model for other inputs.
    """
    if "vace_patch_embedding.weight" not in shapes:
        raise PiyingError(
            "this is a Wan2.1 transformer without the VACE part. Choose a VACE model, or this file together with a "
            "VACE module."
        )
    if "patch_embedding.weight" not in shapes or not count(shapes, "blocks."):
        raise PiyingError(
            "this is the VACE module alone. Choose it together with the Wan2.1 text-to-video model of its size."
        )
    layers, control = count(shapes, "blocks."), count(shapes, "vace_blocks.")
    return {
        **_main_sizes(shapes),
        # No tensor says which: in both published models they are spread evenly from the first block on.
        "vace_layers": [index * (layers // control) for index in range(control)],
        "vace_in_channels": shapes["vace_patch_embedding.weight"][1],
    }


def _sizes(shapes: Shapes, patch_embedding: str, block: str) -> Config:
    """Return what the shapes of a patch embedding and of a block tell."""
    width, _, *patch = shapes[f"{patch_embedding}.weight"]
    if width % HEAD_DIM:
        raise PiyingError(f"its width of {width} is no multiple of {HEAD_DIM}: it needs a config.json beside it.")
    return {
        "_class_name": "WanVACETransformer3DModel",
        "patch_size": patch,
        "num_attention_heads": width // HEAD_DIM,
        "attention_head_dim": HEAD_DIM,
        "ffn_dim": shapes[f"{block}.ffn.net.0.proj.weight"][0],
        "cross_attn_norm": f"{block}.norm2.weight" in shapes,
    }


def _main_sizes(shapes: Shapes) -> Config:
    """Return what the shapes of the text-to-video model tell."""
    sizes = _sizes(shapes, "patch_embedding", "blocks.0")
    return {
        **sizes,
        "in_channels": shapes["patch_embedding.weight"][1],
        "out_channels": shapes["proj_out.weight"][0] // math.prod(sizes["patch_size"]),
        "text_dim": shapes["condition_embedder.text_embedder.linear_1.weight"][1],
        "freq_dim": shapes["condition_embedder.time_embedder.linear_1.weight"][1],
        "num_layers": count(shapes, "blocks."),
    }


# The options of WanVACETransformer3DModel that shapes depend on.
OPTIONS: Config = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 13824,
    "num_layers": 40,
    "cross_attn_norm": True,
    "vace_layers": [0, 5, 10, 15, 20, 25, 30, 35],
    "vace_in_channels": 96,
}


def tensors(config: Config) -> Tensors:
    """Describe WanVACETransformer3DModel.

    Raises:
        ValueError: it is one for pictures, or its values make none.
    """
    odd = next((name for name in ("image_dim", "added_kv_proj_dim") if config.get(name) is not None), None)
    if odd is not None:
        raise ValueError(f"{odd} is {config[odd]}, and models for pictures are not read")
    known = OPTIONS | config
    vace_layers, layers = known["vace_layers"], known["num_layers"]
    if 0 not in vace_layers or max(vace_layers) >= layers or len(set(vace_layers)) < len(vace_layers):
        raise ValueError(f"vace_layers {vace_layers} lack 0, name a layer twice or exceed its {layers} layers")
    width, patch = known["num_attention_heads"] * known["attention_head_dim"], tuple(known["patch_size"])
    if len(patch) != 3:
        raise ValueError(f"patch_size {list(patch)} has not three sides")
    block = _block(width, known["ffn_dim"], known["cross_attn_norm"])
    vace_block = block | linear("proj_out", width, width)
    channels = known["in_channels"]
    found = conv("patch_embedding", width, channels, *patch)
    found |= conv("vace_patch_embedding", width, known["vace_in_channels"], *patch)
    for layer, inputs in (("time_embedder", known["freq_dim"]), ("text_embedder", known["text_dim"])):
        found |= linear(f"condition_embedder.{layer}.linear_1", width, inputs)
        found |= linear(f"condition_embedder.{layer}.linear_2", width, width)
    found |= linear("condition_embedder.time_proj", 6 * width, width)
    for number in range(layers):
        found |= below(f"blocks.{number}", block)
    for number in range(len(vace_layers)):
        found |= below(f"vace_blocks.{number}", vace_block)
    found |= linear("vace_blocks.0.proj_in", width, width)
    found |= linear("proj_out", (known["out_channels"] or channels) * math.prod(patch), width)
    return Tensors({**found, "scale_shift_table": (1, 2, width)}, ignored=("norm_added_q",))


def _block(width: int, inner: int, has_norm: bool) -> ShapeTable:
    """Return the tensors of a block."""
    found: ShapeTable = {"scale_shift_table": (1, 6, width), **(norm("norm2", width) if has_norm else {})}
    for attention in ("attn1", "attn2"):
        for layer in ("to_q", "to_k", "to_v", "to_out.0"):
            found |= linear(f"{attention}.{layer}", width, width)
        found |= norm(f"{attention}.norm_q", width, bias=False) | norm(f"{attention}.norm_k", width, bias=False)
    return found | linear("ffn.net.0.proj", inner, width) | linear("ffn.net.2", width, inner)


TITLE = "Wan2.1 transformer"
IMAGE_TO_VIDEO = "Wan2.1 image-to-video transformer"
TEXT_TO_VIDEO = "Wan2.1 text-to-video transformer"
VACE_MODULE = "Wan2.1 VACE module"
VACE = "Wan2.1-VACE transformer"


def _has_vace(names: Names) -> bool:
    return "vace_patch_embedding.weight" in names


def _has_main_blocks(names: Names) -> bool:
    return "patch_embedding.weight" in names


def _has_pictures(names: Names) -> bool:
    """Return whether the blocks have keys for a picture's embedding, in the original or in diffusers' names."""
    return any(".cross_attn.k_img." in name or ".attn2.add_k_proj." in name for name in names)


# In the order they are tried: the first that holds gives the title.
VARIANTS = {
    VACE: lambda names: _has_vace(names) and _has_main_blocks(names),
    VACE_MODULE: _has_vace,
    IMAGE_TO_VIDEO: _has_pictures,
    TEXT_TO_VIDEO: lambda names: True,
}


def _needs(names: Names, together: Mapping[str, int]) -> list[str]:
    if not _has_vace(names):
        return ["a VACE module of the same size"]
    if not _has_main_blocks(names):
        return ["the Wan2.1 text-to-video model of the same size"]
    encoder = [] if together.get("text_encoder") else ["the UMT5-XXL text encoder"]
    return [*encoder, *([] if together.get("vae") else ["the Wan2.1 VAE"])]


def part(shapes: Shapes) -> Tensors | None:
    """Return the tensors of a VACE module alone, or of the text-to-video model that one goes on; None for others."""
    is_module = _has_vace(shapes)
    if (is_module and _has_main_blocks(shapes)) or (not is_module and _has_pictures(shapes)):
        return None
    if is_module:
        control = count(shapes, "vace_blocks.")
        sizes = _sizes(shapes, "vace_patch_embedding", "vace_blocks.0")
        sizes |= {"num_layers": control, "vace_layers": list(range(control))}
        sizes["vace_in_channels"] = shapes["vace_patch_embedding.weight"][1]
    else:
        sizes = {**_main_sizes(shapes), "vace_layers": [0]}
    whole = tensors(sizes)
    needed = {name: shape for name, shape in whole.needed.items() if name.startswith("vace_") is is_module}
    return replace(whole, needed=needed)


WAN_DIFFUSERS = Layout(
    kind="transformer",
    style="diffusers",
    title=TITLE,
    marks=(r"(vace_)?blocks\.0\.attn1\.to_q\.weight", r"(vace_)?blocks\.0\.ffn\.net\.0\.proj\.weight"),
    place=same,
    config=config,
    variants=VARIANTS,
    needs=_needs,
    part=part,
    class_name="WanVACETransformer3DModel",
)
WAN_ORIGINAL = replace(
    WAN_DIFFUSERS,
    style="original",
    gguf="wan",
    marks=(r"(vace_)?blocks\.0\.self_attn\.q\.weight", r"(vace_)?blocks\.0\.ffn\.0\.weight"),
    place=place,
    layers=(*OUTSIDE, *(f"{blocks}.{{}}.{layer}" for blocks in ("blocks", "vace_blocks") for layer in INSIDE)),
)

# The original numbers the layers of a block by place, activations and dropout included.
VAE_RESIDUAL = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
    "resample": "resample",
    "time_conv": "time_conv",
}
VAE_OUTSIDE = {
    "conv1": "quant_conv",
    "conv2": "post_quant_conv",
    **{
        f"{half}.{old}": f"{half}.{new}"
        for half in ("encoder", "decoder")
        for old, new in {
            "conv1": "conv_in",
            "middle.1": "mid_block.attentions.0",
            "head.0": "norm_out",
            "head.2": "conv_out",
        }.items()
    },
}
VAE_BLOCK = re.compile(r"(encoder|decoder)\.(downsamples|upsamples|middle)\.(\d+)\.(.+)")
VAE_UPSAMPLER = re.compile(r"decoder\.upsamples\.(\d+)\.resample\.1\.weight")


def vae_place(name: str, shapes: Shapes) -> Place | None:
    """Place a tensor of the VAE's original layout."""
    block = VAE_BLOCK.fullmatch(name)
    # Between the two residual blocks in the middle lies the attention, which has names of its own.
    attention = block is not None and (block[2], block[3]) == ("middle", "1")
    if block is None or attention:
        return by_prefix(name, VAE_OUTSIDE)
    half, group, index, own = block.groups()
    return by_prefix(own, VAE_RESIDUAL, f"{half}.{_vae_block(group, int(index), shapes)}.")


def _vae_block(group: str, index: int, shapes: Shapes) -> str:
    """Return the name of a residual block or resampler; upsamples are numbered through all levels."""
    if group == "middle":
        return f"mid_block.resnets.{index // 2}"
    if group == "downsamples":
        return f"down_blocks.{index}"
    # No name says how many blocks a level has: the first upsampler stands right behind those of the first level.
    resnets = min((int(found[1]) for name in shapes if (found := VAE_UPSAMPLER.fullmatch(name))), default=1 << 30)
    level, inside = divmod(index, resnets + 1)
    return f"up_blocks.{level}.upsamplers.0" if inside == resnets else f"up_blocks.{level}.resnets.{inside}"


def vae_config(shapes: Shapes) -> Config:
    """Return the configuration of the Wan2.1 VAE.

    Raises:
        PiyingError: it has another number of latent channels: their mean and spread are in no file.
    """
    channels = shapes["post_quant_conv.weight"][0]
    if channels != 16:
        what = "the VAE of Wan2.2" if channels == 48 else f"a VAE of {channels} latent channels"
        raise PiyingError(f"this is {what}; Wan2.1-VACE needs the VAE of Wan2.1, which has 16 latent channels.")
    base = shapes["encoder.conv_in.weight"][0]
    steps = sorted(
        int(name.split(".")[2])
        for name in shapes
        if re.fullmatch(r"encoder\.down_blocks\.\d+\.resample\.1\.weight", name)
    )
    resnets = steps[0]
    widths = [shapes[f"encoder.down_blocks.{step - 1}.conv2.weight"][0] for step in steps]
    widths.append(shapes["encoder.mid_block.resnets.0.conv1.weight"][0])
    return {
        "_class_name": "AutoencoderKLWan",
        "base_dim": base,
        "z_dim": channels,
        "dim_mult": [width // base for width in widths],
        "num_res_blocks": resnets,
        "attn_scales": [],
        "temperal_downsample": [f"encoder.down_blocks.{step}.time_conv.weight" in shapes for step in steps],
    }


# The options of AutoencoderKLWan that shapes depend on.
VAE_OPTIONS: Config = {
    "base_dim": 96,
    "decoder_base_dim": None,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "in_channels": 3,
    "out_channels": 3,
    "latents_mean": (0.0,) * 16,  # others by default, as many of them
    "latents_std": (1.0,) * 16,
}


def vae_tensors(config: Config) -> Tensors:
    """Describe AutoencoderKLWan.

    Raises:
        ValueError: it is that of Wan2.2, whose blocks have shortcuts, or its values make none.
    """
    if config.get("is_residual") or config.get("patch_size") is not None:
        raise ValueError("it is that of Wan2.2; Wan2.1-VACE needs the VAE of Wan2.1")
    if config.get("attn_scales"):
        raise ValueError(f"attn_scales are {config['attn_scales']}; the VAE of Wan2.1 has none")
    known = VAE_OPTIONS | config
    latent, multiples, resnets = known["z_dim"], list(known["dim_mult"]), known["num_res_blocks"]
    in_time = list(known["temperal_downsample"])
    if known["latents_mean"] is None or known["latents_std"] is None:
        raise ValueError("latents_mean or latents_std is null")
    check_latents(latent, known["latents_mean"], known["latents_std"])
    found = conv("quant_conv", 2 * latent, 2 * latent, 1, 1, 1) | conv("post_quant_conv", latent, latent, 1, 1, 1)

    widths = [known["base_dim"] * multiple for multiple in (1, *multiples)]
    found |= conv("encoder.conv_in", widths[0], known["in_channels"], 3, 3, 3)
    place = 0
    for level, (inputs, outputs) in enumerate(pairwise(widths)):
        for number in range(resnets):
            found |= below(f"encoder.down_blocks.{place}", _resnet(outputs if number else inputs, outputs))
            place += 1
        if level < len(multiples) - 1:
            found |= conv(f"encoder.down_blocks.{place}.resample.1", outputs, outputs, 3, 3)
            found |= (
                conv(f"encoder.down_blocks.{place}.time_conv", outputs, outputs, 3, 1, 1) if in_time[level] else {}
            )
            place += 1
    found |= below("encoder", _middle_and_end(widths[-1], widths[-1], 2 * latent))

    base = known["base_dim"] if known["decoder_base_dim"] is None else known["decoder_base_dim"]
    widths = [base * multiple for multiple in (multiples[-1], *multiples[::-1])]
    found |= conv("decoder.conv_in", widths[0], latent, 3, 3, 3)
    for level, (inputs, outputs) in enumerate(pairwise(widths)):
        block, inputs = f"decoder.up_blocks.{level}", inputs // 2 if level else inputs
        for number in range(resnets + 1):
            found |= below(f"{block}.resnets.{number}", _resnet(outputs if number else inputs, outputs))
        if level < len(multiples) - 1:
            found |= conv(f"{block}.upsamplers.0.resample.1", outputs // 2, outputs, 3, 3)
            later = in_time[::-1][level]
            found |= conv(f"{block}.upsamplers.0.time_conv", 2 * outputs, outputs, 3, 1, 1) if later else {}
    return Tensors(found | below("decoder", _middle_and_end(widths[0], widths[-1], known["out_channels"])))


def _resnet(inputs: int, outputs: int) -> ShapeTable:
    found: ShapeTable = {"norm1.gamma": (inputs, 1, 1, 1), "norm2.gamma": (outputs, 1, 1, 1)}
    found |= conv("conv1", outputs, inputs, 3, 3, 3) | conv("conv2", outputs, outputs, 3, 3, 3)
    return found | (conv("conv_shortcut", outputs, inputs, 1, 1, 1) if inputs != outputs else {})


def _middle_and_end(middle: int, width: int, outputs: int) -> ShapeTable:
    """Return the tensors of a half's middle block and of its last layers."""
    found = below("mid_block.resnets.0", _resnet(middle, middle)) | below(
        "mid_block.resnets.1", _resnet(middle, middle)
    )
    found["mid_block.attentions.0.norm.gamma"] = (middle, 1, 1)
    found |= conv("mid_block.attentions.0.to_qkv", 3 * middle, middle, 1, 1)
    found |= conv("mid_block.attentions.0.proj", middle, middle, 1, 1)
    return {**found, "norm_out.gamma": (width, 1, 1, 1), **conv("conv_out", outputs, width, 3, 3, 3)}


VAE_TITLE = "Wan2.1 VAE"
WAN_VAE_DIFFUSERS = Layout(
    kind="vae",
    style="diffusers",
    title=VAE_TITLE,
    marks=("encoder.conv_in.weight", "encoder.mid_block.attentions.0.to_qkv.weight", "quant_conv.weight"),
    place=same,
    config=vae_config,
    class_name="AutoencoderKLWan",
)
WAN_VAE_ORIGINAL = replace(
    WAN_VAE_DIFFUSERS,
    style="original",
    marks=("encoder.conv1.weight", "encoder.middle.1.to_qkv.weight", "conv1.weight"),
    place=vae_place,
)
