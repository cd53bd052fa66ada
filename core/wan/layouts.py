"""Layouts of Wan: its transformers with VACE and without, under diffusers' names and under those of Wan-Video/Wan2.1.

The classes are WanVACETransformer3DModel and WanTransformer3DModel of diffusers. Original names: WanModel and
VaceWanModel in wan/modules/model.py and vace_model.py. ComfyUI's files have them too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace

from ..checkpoints.layouts.base import (
    Config,
    Layout,
    Names,
    Place,
    Shapes,
    ShapeTable,
    Tensors,
    TensorTable,
    below,
    by_prefix,
    conv,
    count,
    linear,
    norm,
    same,
)
from ..errors import PiyingError
from .latents import TI2V_CHANNELS

HEAD_DIM = 128  # of every published model
IMAGE_EMBEDDER = "condition_embedder.image_embedder"
VACE_CLASS, BASE_CLASS = "WanVACETransformer3DModel", "WanTransformer3DModel"
FRAME_MASK = 4  # channels that say which of a latent frame's four frames are given
LAST, PATCH = ("proj_out.weight", "head.head.weight"), 4  # the last layer in either style; its rows are of 2×2 patches

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
# Of image-to-video models, and of those for a first and a last frame.
PICTURES_OUTSIDE = {
    "img_emb.proj.0": f"{IMAGE_EMBEDDER}.norm1",
    "img_emb.proj.1": f"{IMAGE_EMBEDDER}.ff.net.0.proj",
    "img_emb.proj.3": f"{IMAGE_EMBEDDER}.ff.net.2",
    "img_emb.proj.4": f"{IMAGE_EMBEDDER}.norm2",
    "img_emb.emb_pos": f"{IMAGE_EMBEDDER}.pos_embed",
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
PICTURES_INSIDE = {
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "cross_attn.norm_k_img": "attn2.norm_added_k",
}
BLOCK = re.compile(r"((?:vace_)?blocks\.\d+\.)(.+)")


def place(name: str, shapes: Shapes) -> Place | None:
    """Place a tensor of the original layout."""
    del shapes
    block = BLOCK.fullmatch(name)
    if block is None:
        return by_prefix(name, OUTSIDE | PICTURES_OUTSIDE)
    return by_prefix(block[2], INSIDE | PICTURES_INSIDE, block[1])


def config(shapes: Shapes) -> Config:
    """Return the configuration of a transformer, with VACE or without.

    Raises:
        PiyingError: it is a VACE module alone, or a model for other inputs.
    """
    if not _has_vace(shapes):
        return {"_class_name": BASE_CLASS, **_main_sizes(shapes), **_picture_sizes(shapes)}
    if not _has_main_blocks(shapes) or not count(shapes, "blocks."):
        raise PiyingError(
            "this is the VACE module alone. Choose it together with the Wan text-to-video model of its size."
        )
    layers, control = count(shapes, "blocks."), count(shapes, "vace_blocks.")
    return {
        "_class_name": VACE_CLASS,
        **_main_sizes(shapes),
        # No tensor says which: in both published models they are spread evenly from the first block on.
        "vace_layers": [index * (layers // control) for index in range(control)],
        "vace_in_channels": shapes["vace_patch_embedding.weight"][1],
    }


def _picture_sizes(shapes: Shapes) -> Config:
    """Return what the shapes of the layers for an image encoder's embedding tell; nothing where there are none."""
    if f"{IMAGE_EMBEDDER}.norm1.weight" not in shapes:
        return {}
    sizes = {
        "image_dim": shapes[f"{IMAGE_EMBEDDER}.norm1.weight"][0],
        "added_kv_proj_dim": shapes["blocks.0.attn2.add_k_proj.weight"][1],
    }
    places = shapes.get(f"{IMAGE_EMBEDDER}.pos_embed")
    return sizes if places is None else {**sizes, "pos_embed_seq_len": places[1]}


def _sizes(shapes: Shapes, patch_embedding: str, block: str) -> Config:
    """Return what the shapes of a patch embedding and of a block tell."""
    width, _, *patch = shapes[f"{patch_embedding}.weight"]
    if width % HEAD_DIM:
        raise PiyingError(f"its width of {width} is no multiple of {HEAD_DIM}: it needs a config.json beside it.")
    return {
        "patch_size": patch,
        "num_attention_heads": width // HEAD_DIM,
        "attention_head_dim": HEAD_DIM,
        "ffn_dim": shapes[f"{block}.ffn.net.0.proj.weight"][0],
        "cross_attn_norm": f"{block}.norm2.weight" in shapes,
    }


def _main_sizes(shapes: Shapes) -> Config:
    """Return what the shapes of the main blocks and of what is around them tell."""
    sizes = _sizes(shapes, "patch_embedding", "blocks.0")
    return {
        **sizes,
        "in_channels": shapes["patch_embedding.weight"][1],
        "out_channels": shapes["proj_out.weight"][0] // math.prod(sizes["patch_size"]),
        "text_dim": shapes["condition_embedder.text_embedder.linear_1.weight"][1],
        "freq_dim": shapes["condition_embedder.time_embedder.linear_1.weight"][1],
        "num_layers": count(shapes, "blocks."),
    }


# The options of both classes that shapes depend on.
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
}
VACE_OPTIONS: Config = OPTIONS | {"vace_layers": [0, 5, 10, 15, 20, 25, 30, 35], "vace_in_channels": 96}
BASE_OPTIONS: Config = OPTIONS | {"image_dim": None, "added_kv_proj_dim": None, "pos_embed_seq_len": None}


def tensors(config: Config) -> Tensors:
    """Describe WanVACETransformer3DModel.

    Raises:
        ValueError: it is one for pictures, or its values make none.
    """
    odd = next((name for name in ("image_dim", "added_kv_proj_dim") if config.get(name) is not None), None)
    if odd is not None:
        raise ValueError(f"{odd} is {config[odd]}, and VACE models for pictures are not read")
    known = VACE_OPTIONS | config
    vace_layers, layers = known["vace_layers"], known["num_layers"]
    if 0 not in vace_layers or max(vace_layers) >= layers or len(set(vace_layers)) < len(vace_layers):
        raise ValueError(f"vace_layers {vace_layers} lack 0, name a layer twice or exceed its {layers} layers")
    width = known["num_attention_heads"] * known["attention_head_dim"]
    block = _block(width, known["ffn_dim"], known["cross_attn_norm"])
    found = _around_blocks(known, width, block)
    found |= conv("vace_patch_embedding", width, known["vace_in_channels"], *known["patch_size"])
    vace_block = block | linear("proj_out", width, width)
    for number in range(len(vace_layers)):
        found |= below(f"vace_blocks.{number}", vace_block)
    found |= linear("vace_blocks.0.proj_in", width, width)
    return Tensors(found, ignored=("norm_added_q",))


def base_tensors(config: Config) -> Tensors:
    """Describe WanTransformer3DModel.

    Raises:
        ValueError: its values make none, or one whose inputs are none that are known here.
    """
    known = BASE_OPTIONS | config
    width, pictures, read = (
        known["num_attention_heads"] * known["attention_head_dim"],
        known["image_dim"],
        known["added_kv_proj_dim"],
    )
    inputs, channels = known["in_channels"], known["out_channels"] or known["in_channels"]
    if inputs not in (channels, 2 * channels + FRAME_MASK):
        raise ValueError(
            f"it reads {inputs} channels and makes {channels}; text-to-video models read {channels}, image-to-video "
            f"models {2 * channels + FRAME_MASK}"
        )
    if (pictures is None) is not (read is None):
        raise ValueError(f"image_dim is {pictures}, and added_kv_proj_dim {read}")
    block = _block(width, known["ffn_dim"], known["cross_attn_norm"])
    if pictures is not None:
        block |= linear("attn2.add_k_proj", width, read) | linear("attn2.add_v_proj", width, read)
        block |= norm("attn2.norm_added_k", width, bias=False)
    found = _around_blocks(known, width, block)
    if pictures is not None:
        found |= norm(f"{IMAGE_EMBEDDER}.norm1", pictures) | norm(f"{IMAGE_EMBEDDER}.norm2", width)
        found |= linear(f"{IMAGE_EMBEDDER}.ff.net.0.proj", pictures, pictures)
        found |= linear(f"{IMAGE_EMBEDDER}.ff.net.2", width, pictures)
        if known["pos_embed_seq_len"] is not None:
            found[f"{IMAGE_EMBEDDER}.pos_embed"] = (1, known["pos_embed_seq_len"], pictures)
    return Tensors(found, ignored=("norm_added_q",))


def _around_blocks(known: Config, width: int, block: Shapes) -> ShapeTable:
    """Return the tensors of the main blocks, which are all alike, and those around them."""
    patch = tuple(known["patch_size"])
    if len(patch) != 3:
        raise ValueError(f"patch_size {list(patch)} has not three sides")
    channels = known["in_channels"]
    found = conv("patch_embedding", width, channels, *patch)
    for layer, inputs in (("time_embedder", known["freq_dim"]), ("text_embedder", known["text_dim"])):
        found |= linear(f"condition_embedder.{layer}.linear_1", width, inputs)
        found |= linear(f"condition_embedder.{layer}.linear_2", width, width)
    found |= linear("condition_embedder.time_proj", 6 * width, width)
    for number in range(known["num_layers"]):
        found |= below(f"blocks.{number}", block)
    found |= linear("proj_out", (known["out_channels"] or channels) * math.prod(patch), width)
    return {**found, "scale_shift_table": (1, 2, width)}


def _block(width: int, inner: int, has_norm: bool) -> ShapeTable:
    """Return the tensors of a block."""
    found: ShapeTable = {"scale_shift_table": (1, 6, width), **(norm("norm2", width) if has_norm else {})}
    for attention in ("attn1", "attn2"):
        for layer in ("to_q", "to_k", "to_v", "to_out.0"):
            found |= linear(f"{attention}.{layer}", width, width)
        found |= norm(f"{attention}.norm_q", width, bias=False) | norm(f"{attention}.norm_k", width, bias=False)
    return found | linear("ffn.net.0.proj", inner, width) | linear("ffn.net.2", width, inner)


TITLE = "Wan transformer"
IMAGE_TO_VIDEO = "Wan image-to-video transformer"
TEXT_TO_VIDEO = "Wan text-to-video transformer"
TEXT_OR_FIRST = "Wan2.2 TI2V transformer"
VACE_MODULE = "Wan2.1 VACE module"
VACE = "Wan2.1-VACE transformer"


def _has_vace(names: Names) -> bool:
    return "vace_patch_embedding.weight" in names


def _has_main_blocks(names: Names) -> bool:
    return "patch_embedding.weight" in names


def _has_pictures(entries: TensorTable) -> bool:
    """Return whether a transformer reads more channels than it makes: those of frames that it is given."""
    first = entries.get("patch_embedding.weight")
    last = next((entries[name] for name in LAST if name in entries), None)
    if first is None or last is None or len(first.shape) < 2:
        return False
    return first.shape[1] > last.shape[0] // PATCH


def _has_ti2v_latents(entries: TensorTable) -> bool:
    first = entries.get("patch_embedding.weight")
    return first is not None and tuple(first.shape[1:2]) == (TI2V_CHANNELS,)


# In the order they are tried: the first that holds gives the title.
VARIANTS = {
    VACE: lambda entries: _has_vace(entries) and _has_main_blocks(entries),
    VACE_MODULE: _has_vace,
    IMAGE_TO_VIDEO: _has_pictures,
    TEXT_OR_FIRST: _has_ti2v_latents,
    TEXT_TO_VIDEO: lambda entries: True,
}


def _needs(names: Names, together: Mapping[str, int]) -> list[str]:
    if _has_vace(names) and not _has_main_blocks(names):
        return ["the Wan text-to-video model of the same size"]
    vae = "the Wan2.1 VAE" if _has_vace(names) else "the Wan VAE"
    encoder = [] if together.get("text_encoder") else ["the UMT5-XXL text encoder"]
    seen = any(mark in name for name in names for mark in (".cross_attn.k_img.", ".attn2.add_k_proj."))
    image_encoder = ["the CLIP-ViT-H image encoder"] if seen else []
    return [*encoder, *image_encoder, *([] if together.get("vae") else [vae])]


def part(shapes: Shapes) -> Tensors | None:
    """Return the tensors of a VACE module alone; None for others."""
    if not _has_vace(shapes) or _has_main_blocks(shapes):
        return None
    control = count(shapes, "vace_blocks.")
    sizes = _sizes(shapes, "vace_patch_embedding", "vace_blocks.0")
    sizes |= {"num_layers": control, "vace_layers": list(range(control))}
    sizes["vace_in_channels"] = shapes["vace_patch_embedding.weight"][1]
    whole = tensors(sizes)
    needed = {name: shape for name, shape in whole.needed.items() if name.startswith("vace_")}
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
    class_name=VACE_CLASS,
)
WAN_ORIGINAL = replace(
    WAN_DIFFUSERS,
    style="original",
    gguf="wan",
    marks=(r"(vace_)?blocks\.0\.self_attn\.q\.weight", r"(vace_)?blocks\.0\.ffn\.0\.weight"),
    place=place,
    layers=(*OUTSIDE, *(f"{blocks}.{{}}.{layer}" for blocks in ("blocks", "vace_blocks") for layer in INSIDE)),
)
# Files are known by the layouts above, whichever of the two classes they are of; LoRAs name the layers of one.
WAN_BASE_ORIGINAL = replace(
    WAN_ORIGINAL,
    class_name=BASE_CLASS,
    layers=(
        *(name for name in (*OUTSIDE, *PICTURES_OUTSIDE) if not name.startswith("vace_")),
        *(f"blocks.{{}}.{name}" for name in (*INSIDE, *PICTURES_INSIDE) if name not in ("before_proj", "after_proj")),
    ),
)
