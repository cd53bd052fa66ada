"""The VAE of Wan2.1: AutoencoderKLWan of diffusers, WanVAE_ of Wan2.1 (wan/modules/vae.py)."""

from __future__ import annotations

import re

from ..checkpoints.layouts.base import Config, Layout, Place, Shapes, Whole, by_prefix, same
from ..errors import PiyingError

# The original numbers the layers of a block by place, activations and dropout included.
RESIDUAL = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
    "resample": "resample",
    "time_conv": "time_conv",
}
OUTSIDE = {
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
BLOCK = re.compile(r"(encoder|decoder)\.(downsamples|upsamples|middle)\.(\d+)\.(.+)")
UPSAMPLER = re.compile(r"decoder\.upsamples\.(\d+)\.resample\.1\.weight")


def place(name: str, shapes: Shapes) -> Place | None:
    """Place a tensor of the original layout."""
    block = BLOCK.fullmatch(name)
    # Between the two residual blocks in the middle lies the attention, which has names of its own.
    attention = block is not None and (block[2], block[3]) == ("middle", "1")
    if block is None or attention:
        new = by_prefix(name, OUTSIDE)
        return None if new is None else Whole(new)
    inside = by_prefix(block[4], RESIDUAL)
    if inside is None:
        return None
    return Whole(f"{block[1]}.{_block(block[2], int(block[3]), shapes)}.{inside}")


def _block(group: str, index: int, shapes: Shapes) -> str:
    """Return the name of a residual block or resampler; upsamples are numbered through all levels."""
    if group == "middle":
        return f"mid_block.resnets.{index // 2}"
    if group == "downsamples":
        return f"down_blocks.{index}"
    # No name says how many blocks a level has: the first upsampler stands right behind those of the first level.
    resnets = min((int(found[1]) for name in shapes if (found := UPSAMPLER.fullmatch(name))), default=1 << 30)
    level, inside = divmod(index, resnets + 1)
    return f"up_blocks.{level}.upsamplers.0" if inside == resnets else f"up_blocks.{level}.resnets.{inside}"


def config(shapes: Shapes) -> Config:
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


TITLE = "Wan2.1 VAE"
WAN_VAE_DIFFUSERS = Layout(
    kind="vae",
    style="diffusers",
    title=TITLE,
    marks=("encoder.conv_in.weight", "encoder.mid_block.attentions.0.to_qkv.weight", "quant_conv.weight"),
    place=same,
    config=config,
    class_name="AutoencoderKLWan",
)
WAN_VAE_ORIGINAL = Layout(
    kind="vae",
    style="original",
    title=TITLE,
    marks=("encoder.conv1.weight", "encoder.middle.1.to_qkv.weight", "conv1.weight"),
    place=place,
    config=config,
    class_name="AutoencoderKLWan",
)
