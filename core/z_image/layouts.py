"""Layouts of the Z-Image transformer: ZImageTransformer2DModel of diffusers, and as its authors published it.

Original names: src/zimage/transformer.py of Tongyi-MAI/Z-Image; ComfyUI's files have them, with the three
projections of an attention joined.
"""

from __future__ import annotations

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
    Split,
    Tensors,
    below,
    by_prefix,
    count,
    linear,
    norm,
    same,
)

# diffusers names the layers of a patch size after it: 2 × 2 latent pixels of 1 frame.
PATCH = "2-1"
OUTSIDE = {
    "x_embedder": f"all_x_embedder.{PATCH}",
    "final_layer": f"all_final_layer.{PATCH}",
    **{name: name for name in ("t_embedder.mlp.0", "t_embedder.mlp.2", "cap_embedder.0", "cap_embedder.1")},
    **{name: name for name in ("x_pad_token", "cap_pad_token")},
}
INSIDE = {
    "attention.q_norm": "attention.norm_q",
    "attention.k_norm": "attention.norm_k",
    "attention.out": "attention.to_out.0",
    **{
        name: name
        for name in (
            "attention.to_q",
            "attention.to_k",
            "attention.to_v",
            "feed_forward.w1",
            "feed_forward.w2",
            "feed_forward.w3",
            "attention_norm1",
            "attention_norm2",
            "ffn_norm1",
            "ffn_norm2",
            "adaLN_modulation.0",
        )
    },
}
JOINED = "attention.qkv"
BLOCK_LISTS = ("noise_refiner", "context_refiner", "layers")
BLOCK = re.compile(rf"((?:{'|'.join(BLOCK_LISTS)})\.\d+\.)(.+)")
PATCH_AREA = 4


def place(name: str, shapes: Shapes) -> Place | None:
    """Place a tensor of the original layout."""
    del shapes
    block = BLOCK.fullmatch(name)
    if block is None:
        return by_prefix(name, OUTSIDE)
    layer, _, own = block[2].rpartition(".")
    if layer == JOINED:
        return Split(tuple(f"{block[1]}attention.to_{part}.{own}" for part in "qkv"))
    return by_prefix(block[2], INSIDE, block[1])


def config(shapes: Shapes) -> Config:
    """Return the configuration; what no shape tells is that of Tongyi-MAI/Z-Image-Turbo."""
    width, head = shapes["layers.0.attention.to_q.weight"][0], shapes["layers.0.attention.norm_q.weight"][0]
    return {
        "_class_name": "ZImageTransformer2DModel",
        "all_patch_size": [2],
        "all_f_patch_size": [1],
        "in_channels": shapes[f"all_x_embedder.{PATCH}.weight"][1] // PATCH_AREA,
        "dim": width,
        "n_layers": count(shapes, "layers."),
        "n_refiner_layers": count(shapes, "noise_refiner."),
        "n_heads": width // head,
        "n_kv_heads": shapes["layers.0.attention.to_k.weight"][0] // head,
        "cap_feat_dim": shapes["cap_embedder.1.weight"][1],
        # A quarter of a head turns with the place in the text, the rest with row and column.
        "axes_dims": [head // 4, 3 * head // 8, 3 * head // 8],
        "axes_lens": [1536, 512, 512],
        "rope_theta": 256.0,
        "t_scale": 1000.0,
    }


# The options of ZImageTransformer2DModel that shapes depend on.
OPTIONS: Config = {
    "all_patch_size": (2,),
    "all_f_patch_size": (1,),
    "in_channels": 16,
    "dim": 3840,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "qk_norm": True,
    "cap_feat_dim": 2560,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1024, 512, 512],
}
TEXT_PLACES = 512 + 32  # of a prompt, filled up to a multiple of 32, and of the picture behind it
TIME_DIM, TIME_INNER, MODULATION_DIM = 256, 1024, 256


def tensors(config: Config) -> Tensors:
    """Describe ZImageTransformer2DModel.

    Raises:
        ValueError: it takes pictures of SigLIP, or its values make none.
    """
    if config.get("siglip_feat_dim") is not None:
        raise ValueError(f"siglip_feat_dim is {config['siglip_feat_dim']}, and models for pictures are not read")
    known = OPTIONS | config
    width, head = known["dim"], known["dim"] // known["n_heads"]
    if head != sum(known["axes_dims"]):
        raise ValueError(f"axes_dims {known['axes_dims']} do not add up to a head's width of {head}")
    if len(known["axes_lens"]) != len(known["axes_dims"]):
        raise ValueError(f"axes_lens {known['axes_lens']} are not as many as axes_dims {known['axes_dims']}")
    if known["axes_lens"][0] < TEXT_PLACES:
        raise ValueError(f"axes_lens {known['axes_lens']} have no {TEXT_PLACES} places for a text")
    found: ShapeTable = {"x_pad_token": (1, width), "cap_pad_token": (1, width)}
    time = min(width, MODULATION_DIM)
    for side, frames in zip(known["all_patch_size"], known["all_f_patch_size"], strict=True):
        numbers, patch = frames * side * side * known["in_channels"], f"{side}-{frames}"
        found |= linear(f"all_x_embedder.{patch}", width, numbers)
        found |= linear(f"all_final_layer.{patch}.linear", numbers, width)
        found |= linear(f"all_final_layer.{patch}.adaLN_modulation.1", width, time)
    found |= linear("t_embedder.mlp.0", TIME_INNER, TIME_DIM) | linear("t_embedder.mlp.2", time, TIME_INNER)
    found |= norm("cap_embedder.0", known["cap_feat_dim"], bias=False)
    found |= linear("cap_embedder.1", width, known["cap_feat_dim"])
    block = _block(width, head * known["n_heads"], head if known["qk_norm"] else 0)
    modulated = block | linear("adaLN_modulation.0", 4 * width, time)
    for blocks, number, own in (
        ("noise_refiner", known["n_refiner_layers"], modulated),
        ("context_refiner", known["n_refiner_layers"], block),
        ("layers", known["n_layers"], modulated),
    ):
        for index in range(number):
            found |= below(f"{blocks}.{index}", own)
    return Tensors(found)


def _block(width: int, inside: int, normed: int) -> ShapeTable:
    """Return the tensors of a block without modulation; `normed` is the width of norms of a head, 0 for none."""
    inner = int(width / 3 * 8)
    found = linear("attention.to_out.0", width, inside, bias=False)
    for layer in ("attention.to_q", "attention.to_k", "attention.to_v"):
        found |= linear(layer, inside, width, bias=False)
    for layer in ("attention.norm_q", "attention.norm_k") if normed else ():
        found |= norm(layer, normed, bias=False)
    for layer in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"):
        found |= norm(layer, width, bias=False)
    found |= linear("feed_forward.w1", inner, width, bias=False) | linear("feed_forward.w3", inner, width, bias=False)
    return found | linear("feed_forward.w2", width, inner, bias=False)


def _needs(names: Names, together: Mapping[str, int]) -> list[str]:
    del names
    encoder = [] if together.get("text_encoder") or together.get("prompt_model") else ["the Qwen3-4B text encoder"]
    return [*encoder, *([] if together.get("vae") else ["the Flux VAE"])]


TITLE = "Z-Image transformer"
Z_IMAGE_DIFFUSERS = Layout(
    kind="transformer",
    style="diffusers",
    title=TITLE,
    marks=("cap_embedder.1.weight", r"all_x_embedder\.2-1\.weight", "layers.0.attention.to_q.weight"),
    place=same,
    config=config,
    needs=_needs,
    class_name="ZImageTransformer2DModel",
)
Z_IMAGE_ORIGINAL = replace(
    Z_IMAGE_DIFFUSERS,
    style="original",
    gguf="lumina2",
    marks=("cap_embedder.1.weight", "x_embedder.weight", r"layers\.0\.attention\.(qkv|to_q)\.weight"),
    place=place,
    spare=(r"norm_final\.weight",),
    layers=(
        *OUTSIDE,
        "final_layer.linear",
        "final_layer.adaLN_modulation.1",
        *(f"{blocks}.{{}}.{layer}" for blocks in BLOCK_LISTS for layer in (*INSIDE, JOINED)),
    ),
)
