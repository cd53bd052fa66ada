"""The image VAE of Stable Diffusion XL: AutoencoderKL of diffusers, or as first published.

Original names: ldm/modules/diffusionmodules/model.py of CompVis/latent-diffusion. ComfyUI's all-in-one
checkpoints have them.
"""

from __future__ import annotations

import re
from dataclasses import replace

from .base import (
    Config,
    Layout,
    Place,
    Shapes,
    ShapeTable,
    Tensors,
    Whole,
    below,
    by_prefix,
    check_latents,
    conv,
    count,
    linear,
    norm,
    same,
)

RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "nin_shortcut": "conv_shortcut",
}
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
OUTSIDE = {
    "quant_conv": "quant_conv",
    "post_quant_conv": "post_quant_conv",
    **{
        f"{half}.{old}": f"{half}.{new}"
        for half in ("encoder", "decoder")
        for old, new in {"conv_in": "conv_in", "norm_out": "conv_norm_out", "conv_out": "conv_out"}.items()
    },
}
MIDDLE = re.compile(r"(encoder|decoder)\.mid\.(block_1|block_2|attn_1)\.(.+)")
LEVEL = re.compile(r"(encoder|decoder)\.(down|up)\.(\d+)\.(?:block\.(\d+)|(?:down|up)sample)\.(.+)")
SDXL_SCALING = 0.13025  # vae/config.json of stabilityai/stable-diffusion-xl-base-1.0
GROUPS = 32


def place(name: str, shapes: Shapes) -> Place | None:
    """Place a tensor of the original layout; its attention is made of 1 × 1 convolutions."""
    if middle := MIDDLE.fullmatch(name):
        half, part, own = middle.groups()
        is_attention = part == "attn_1"
        table, module = (ATTENTION, "attentions.0") if is_attention else (RESNET, f"resnets.{int(part[-1]) - 1}")
        return by_prefix(own, table, f"{half}.mid_block.{module}.", squeeze=is_attention)
    if level := LEVEL.fullmatch(name):
        half, direction, number, resnet, own = level.groups()
        # The original counts the decoder's resolutions from the finest, diffusers in the order they are run.
        levels = count(shapes, f"{half}.{direction}.")
        block = f"{half}.{direction}_blocks.{int(number) if direction == 'down' else levels - 1 - int(number)}"
        if resnet is None:
            return Whole(f"{block}.{direction}samplers.0.{own}")
        return by_prefix(own, RESNET, f"{block}.resnets.{resnet}.")
    return by_prefix(name, OUTSIDE)


def config(shapes: Shapes) -> Config:
    """Return the configuration."""
    return {
        **_levels(shapes),
        "latent_channels": shapes["post_quant_conv.weight"][0],
        "scaling_factor": SDXL_SCALING,
    }


def _levels(shapes: Shapes) -> Config:
    """Return what the shapes of encoder and decoder tell."""
    levels = count(shapes, "encoder.down_blocks.")
    widths = [shapes[f"encoder.down_blocks.{level}.resnets.0.conv2.weight"][0] for level in range(levels)]
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": widths,
        "layers_per_block": count(shapes, "encoder.down_blocks.0.resnets."),
        "norm_num_groups": GROUPS,
    }


# The options of AutoencoderKL that shapes depend on.
OPTIONS: Config = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
PLAIN_BLOCKS = {"DownEncoderBlock2D", "UpDecoderBlock2D"}


def tensors(config: Config) -> Tensors | None:
    """Describe AutoencoderKL; one with attention in its levels is not described."""
    known = OPTIONS | config
    if not PLAIN_BLOCKS.issuperset([*known["down_block_types"], *known["up_block_types"]]):
        return None
    latent, widths, resnets = known["latent_channels"], list(known["block_out_channels"]), known["layers_per_block"]
    odd = next((width for width in widths if width % known["norm_num_groups"]), None)
    if odd is not None or not len(widths) == len(known["down_block_types"]) == len(known["up_block_types"]):
        raise ValueError(
            f"widths {widths} go neither with its blocks nor with norms of {known['norm_num_groups']} groups"
        )
    check_latents(latent, config.get("latents_mean"), config.get("latents_std"))
    has_attention = known["mid_block_add_attention"]
    found = conv("encoder.conv_in", widths[0], known["in_channels"], 3, 3)
    found |= _half("encoder", "down", widths, resnets, outputs=2 * latent, has_attention=has_attention)
    found |= conv("decoder.conv_in", widths[-1], latent, 3, 3)
    backwards, outputs = widths[::-1], known["out_channels"]
    found |= _half("decoder", "up", backwards, resnets + 1, outputs=outputs, has_attention=has_attention)
    found |= conv("quant_conv", 2 * latent, 2 * latent, 1, 1) if known["use_quant_conv"] else {}
    return Tensors(found | (conv("post_quant_conv", latent, latent, 1, 1) if known["use_post_quant_conv"] else {}))


def _half(
    half: str, direction: str, widths: list[int], resnets: int, *, outputs: int, has_attention: bool
) -> ShapeTable:
    """Return the tensors of encoder or decoder behind its first layer; widths are in the order they are run."""
    found: ShapeTable = {}
    for level, (inputs, width) in enumerate(zip((widths[0], *widths), widths, strict=False)):
        block = f"{half}.{direction}_blocks.{level}"
        for number in range(resnets):
            found |= below(f"{block}.resnets.{number}", _resnet(width if number else inputs, width))
        if level < len(widths) - 1:
            found |= conv(f"{block}.{direction}samplers.0.conv", width, width, 3, 3)
    middle = widths[-1] if direction == "down" else widths[0]
    for number in (0, 1):
        found |= below(f"{half}.mid_block.resnets.{number}", _resnet(middle, middle))
    if has_attention:
        found |= norm(f"{half}.mid_block.attentions.0.group_norm", middle)
        for layer in ("to_q", "to_k", "to_v", "to_out.0"):
            found |= linear(f"{half}.mid_block.attentions.0.{layer}", middle, middle)
    return found | norm(f"{half}.conv_norm_out", widths[-1]) | conv(f"{half}.conv_out", outputs, widths[-1], 3, 3)


def _resnet(inputs: int, outputs: int) -> ShapeTable:
    found = norm("norm1", inputs) | conv("conv1", outputs, inputs, 3, 3)
    found |= norm("norm2", outputs) | conv("conv2", outputs, outputs, 3, 3)
    return found | (conv("conv_shortcut", outputs, inputs, 1, 1) if inputs != outputs else {})


TITLE = "Stable Diffusion VAE"
KL_DIFFUSERS = Layout(
    kind="vae",
    style="diffusers",
    title=TITLE,
    marks=("encoder.down_blocks.0.resnets.0.conv1.weight", "decoder.conv_norm_out.weight", "quant_conv.weight"),
    place=same,
    config=config,
    class_name="AutoencoderKL",
)
KL_ORIGINAL = replace(
    KL_DIFFUSERS,
    style="original",
    marks=("encoder.down.0.block.0.conv1.weight", "decoder.norm_out.weight", "quant_conv.weight"),
    place=place,
)

# The VAE of Flux, which other families use too: sixteen latent channels, and no convolutions between encoder and
# latents. Constants: vae/config.json of black-forest-labs/FLUX.1-schnell. Stable Diffusion 3's has the same shapes.
FLUX_SCALING, FLUX_SHIFT = 0.3611, 0.1159


def flux_config(shapes: Shapes) -> Config:
    """Return the configuration of the Flux VAE."""
    return {
        **_levels(shapes),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "scaling_factor": FLUX_SCALING,
        "shift_factor": FLUX_SHIFT,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }


FLUX_TITLE = "Flux VAE"
FLUX_DIFFUSERS, FLUX_ORIGINAL = (
    replace(layout, title=FLUX_TITLE, marks=layout.marks[:2], config=flux_config)
    for layout in (KL_DIFFUSERS, KL_ORIGINAL)
)
