"""Layouts of Wan's VAEs, that of Wan2.1 and that of Wan2.2-TI2V, under diffusers' names and under their authors'.

The class is AutoencoderKLWan of diffusers. Original names: WanVAE_ in wan/modules/vae.py of Wan-Video/Wan2.1 and in
wan/modules/vae2_2.py of Wan-Video/Wan2.2. ComfyUI's files have them too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

from ..checkpoints.layouts.base import (
    Config,
    Layout,
    Place,
    Shapes,
    ShapeTable,
    Tensors,
    TensorTable,
    below,
    by_prefix,
    check_latents,
    conv,
    count,
    same,
)
from ..errors import PiyingError
from .latents import CHANNELS, TI2V_CHANNELS, TI2V_STRIDE

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
# Levels of Wan2.2's are blocks of their own, which hold the residual blocks and the resampler.
LEVEL = re.compile(r"(encoder|decoder)\.(down|up)samples\.(\d+)\.(?:down|up)samples\.(\d+)\.(.+)")
# Of Wan2.2-TI2V's latents, a number for each channel (wan/modules/vae2_2.py, Wan2_2_VAE).
MEAN_48 = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)  # fmt: skip
STD_48 = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)  # fmt: skip
# What no shape tells of the VAE with so many latent channels.
KNOWN_LATENTS: Mapping[int, Config] = {
    CHANNELS: {},
    TI2V_CHANNELS: {
        "latents_mean": list(MEAN_48),
        "latents_std": list(STD_48),
        "patch_size": 2,
        "scale_factor_spatial": TI2V_STRIDE,
        "is_residual": True,
    },
}


def vae_place(name: str, shapes: Shapes) -> Place | None:
    """Place a tensor of the VAE's original layout."""
    level = LEVEL.fullmatch(name)
    if level is not None:
        half, way, number, index, own = level.groups()
        inside = f"{half}.{way}_blocks.{number}"
        if own.startswith(("resample.", "time_conv.")):
            return by_prefix(own, VAE_RESIDUAL, f"{inside}.{way}sampler.")
        return by_prefix(own, VAE_RESIDUAL, f"{inside}.resnets.{index}.")
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
    """Return the configuration of a Wan VAE.

    Raises:
        PiyingError: it has another number of latent channels: their mean and spread are in no file.
    """
    channels = shapes["post_quant_conv.weight"][0]
    if channels not in KNOWN_LATENTS:
        raise PiyingError(
            f"this is a VAE of {channels} latent channels. That of Wan2.1 has 16, and that of Wan2.2-TI2V 48."
        )
    found = {
        "_class_name": "AutoencoderKLWan",
        "base_dim": shapes["encoder.conv_in.weight"][0],
        "decoder_base_dim": shapes["decoder.norm_out.gamma"][0],
        "z_dim": channels,
        "attn_scales": [],
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        **KNOWN_LATENTS[channels],
    }
    return found | (_levels_of_blocks(shapes) if channels == TI2V_CHANNELS else _levels(shapes))


def _levels(shapes: Shapes) -> Config:
    """Return the levels of an encoder whose blocks are all in one list: behind each level stands its resampler."""
    steps = sorted(
        int(name.split(".")[2])
        for name in shapes
        if re.fullmatch(r"encoder\.down_blocks\.\d+\.resample\.1\.weight", name)
    )
    base = shapes["encoder.conv_in.weight"][0]
    widths = [shapes[f"encoder.down_blocks.{step - 1}.conv2.weight"][0] for step in steps]
    widths.append(shapes["encoder.mid_block.resnets.0.conv1.weight"][0])
    return {
        "dim_mult": [width // base for width in widths],
        "num_res_blocks": steps[0],
        "temperal_downsample": [f"encoder.down_blocks.{step}.time_conv.weight" in shapes for step in steps],
    }


def _levels_of_blocks(shapes: Shapes) -> Config:
    """Return the levels of an encoder each of which is a block."""
    base, levels = shapes["encoder.conv_in.weight"][0], count(shapes, "encoder.down_blocks.")
    blocks = [f"encoder.down_blocks.{level}" for level in range(levels)]
    return {
        "dim_mult": [shapes[f"{block}.resnets.0.conv1.weight"][0] // base for block in blocks],
        "num_res_blocks": count(shapes, f"{blocks[0]}.resnets."),
        "temperal_downsample": [f"{block}.downsampler.time_conv.weight" in shapes for block in blocks[:-1]],
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
    "is_residual": False,
    "latents_mean": (0.0,) * 16,  # others by default, as many of them
    "latents_std": (1.0,) * 16,
}


def vae_tensors(config: Config) -> Tensors:
    """Describe AutoencoderKLWan.

    Raises:
        ValueError: its values make none.
    """
    if config.get("attn_scales"):
        raise ValueError(f"attn_scales are {config['attn_scales']}; the VAEs of Wan have none")
    known = VAE_OPTIONS | config
    latent, multiples = known["z_dim"], list(known["dim_mult"])
    if known["latents_mean"] is None or known["latents_std"] is None:
        raise ValueError("latents_mean or latents_std is null")
    check_latents(latent, known["latents_mean"], known["latents_std"])
    found = conv("quant_conv", 2 * latent, 2 * latent, 1, 1, 1) | conv("post_quant_conv", latent, latent, 1, 1, 1)

    widths = [known["base_dim"] * multiple for multiple in (1, *multiples)]
    found |= conv("encoder.conv_in", widths[0], known["in_channels"], 3, 3, 3)
    encoder, decoder = (_down_blocks, _up_blocks) if known["is_residual"] else (_down_list, _up_list)
    found |= below("encoder", encoder(widths, known["num_res_blocks"], list(known["temperal_downsample"])))
    found |= below("encoder", _middle_and_end(widths[-1], widths[-1], 2 * latent))

    base = known["base_dim"] if known["decoder_base_dim"] is None else known["decoder_base_dim"]
    widths = [base * multiple for multiple in (multiples[-1], *multiples[::-1])]
    found |= conv("decoder.conv_in", widths[0], latent, 3, 3, 3)
    found |= below("decoder", decoder(widths, known["num_res_blocks"], list(known["temperal_downsample"])[::-1]))
    return Tensors(found | below("decoder", _middle_and_end(widths[0], widths[-1], known["out_channels"])))


def _down_list(widths: list[int], resnets: int, in_time: list[bool]) -> ShapeTable:
    """Return the encoder's blocks of Wan2.1's, all in one list."""
    found: ShapeTable = {}
    place, last = 0, len(widths) - 2
    for level, (inputs, outputs) in enumerate(pairwise(widths)):
        for number in range(resnets):
            found |= below(f"down_blocks.{place}", _resnet(outputs if number else inputs, outputs))
            place += 1
        if level < last:
            found |= below(f"down_blocks.{place}", _downsampler(outputs, in_time[level]))
            place += 1
    return found


def _down_blocks(widths: list[int], resnets: int, in_time: list[bool]) -> ShapeTable:
    """Return the encoder's blocks of Wan2.2's, one for each level."""
    found: ShapeTable = {}
    for level, (inputs, outputs) in enumerate(pairwise(widths)):
        for number in range(resnets):
            found |= below(f"down_blocks.{level}.resnets.{number}", _resnet(outputs if number else inputs, outputs))
        if level < len(widths) - 2:
            found |= below(f"down_blocks.{level}.downsampler", _downsampler(outputs, in_time[level]))
    return found


def _downsampler(width: int, in_time: bool) -> ShapeTable:
    return conv("resample.1", width, width, 3, 3) | (conv("time_conv", width, width, 3, 1, 1) if in_time else {})


def _up_list(widths: list[int], resnets: int, in_time: list[bool]) -> ShapeTable:
    """Return the decoder's blocks of Wan2.1's, whose upsamplers halve the width."""
    found: ShapeTable = {}
    for level, (inputs, outputs) in enumerate(pairwise(widths)):
        block, inputs = f"up_blocks.{level}", inputs // 2 if level else inputs
        for number in range(resnets + 1):
            found |= below(f"{block}.resnets.{number}", _resnet(outputs if number else inputs, outputs))
        if level < len(widths) - 2:
            found |= below(f"{block}.upsamplers.0", _upsampler(outputs, outputs // 2, in_time[level]))
    return found


def _up_blocks(widths: list[int], resnets: int, in_time: list[bool]) -> ShapeTable:
    """Return the decoder's blocks of Wan2.2's."""
    found: ShapeTable = {}
    for level, (inputs, outputs) in enumerate(pairwise(widths)):
        for number in range(resnets + 1):
            found |= below(f"up_blocks.{level}.resnets.{number}", _resnet(outputs if number else inputs, outputs))
        if level < len(widths) - 2:
            found |= below(f"up_blocks.{level}.upsampler", _upsampler(outputs, outputs, in_time[level]))
    return found


def _upsampler(inputs: int, outputs: int, in_time: bool) -> ShapeTable:
    in_frames = conv("time_conv", 2 * inputs, inputs, 3, 1, 1) if in_time else {}
    return conv("resample.1", outputs, inputs, 3, 3) | in_frames


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


VAE_TITLE, VAE_TITLE_48, LIGHT_VAE_TITLE = "Wan2.1 VAE", "Wan2.2 VAE", "LightVAE (pruned Wan2.1 VAE)"
LIGHT_WIDTH = 24  # of LightX2V's LightVAE: a quarter of the channels of Wan2.1's VAE, in every layer


def _has_48_channels(entries: TensorTable) -> bool:
    entry = next((entries[name] for name in ("post_quant_conv.weight", "conv2.weight") if name in entries), None)
    return entry is not None and entry.shape[:1] == (TI2V_CHANNELS,)


def _is_pruned(entries: TensorTable) -> bool:
    names = ("encoder.conv_in.weight", "encoder.conv1.weight")
    entry = next((entries[name] for name in names if name in entries), None)
    return entry is not None and entry.shape[:1] == (LIGHT_WIDTH,) and not _has_48_channels(entries)


WAN_VAE_DIFFUSERS = Layout(
    kind="vae",
    style="diffusers",
    title=VAE_TITLE,
    marks=("encoder.conv_in.weight", "encoder.mid_block.attentions.0.to_qkv.weight", "quant_conv.weight"),
    place=same,
    config=vae_config,
    class_name="AutoencoderKLWan",
    variants={VAE_TITLE_48: _has_48_channels, LIGHT_VAE_TITLE: _is_pruned},
)
WAN_VAE_ORIGINAL = replace(
    WAN_VAE_DIFFUSERS,
    style="original",
    marks=("encoder.conv1.weight", "encoder.middle.1.to_qkv.weight", "conv1.weight"),
    place=vae_place,
)
