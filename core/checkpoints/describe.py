"""What a file is, in a few words, also where it is none we read."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .header import Entry
from .lora_names import lora_shape
from .parts import Part, find_parts

LORA_ENDINGS = (".lora_down.weight", ".lora_up.weight", ".lora_A.weight", ".lora_B.weight", ".diff", ".diff_b")
LORA_PARTS = (".lora_A.", ".lora_B.", ".lora_down.", ".lora_up.")
WIDTHS_OF_CLIP = {768: "a CLIP-L text encoder", 1280: "a CLIP-G text encoder", 1024: "a CLIP-H text encoder"}
CLIP = re.compile(r"(.*\.)?text_model\.embeddings\.token_embedding\.weight")

# UMT5 has a position bias in every block, T5 and mT5 in the first alone.
UMT5_MARKS = (
    "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight",
    "blocks.1.pos_embedding.embedding.weight",
)

# Models of others by a name that only they have, as a regular expression of its beginning.
FOREIGN = (
    (r"model\.diffusion_model\.input_blocks\.", "a Stable Diffusion checkpoint"),
    (r"(model\.diffusion_model\.)?double_blocks\.0\.img_attn", "a Flux or HunyuanVideo transformer"),
    (r"(model\.diffusion_model\.)?joint_blocks\.", "a Stable Diffusion 3 transformer"),
    (r"(.*\.)?vision_model\.encoder\.|visual\.transformer\.", "a CLIP vision encoder"),
    (r"transformer_blocks\.0\.attn\.add_q_proj", "a Flux, Stable Diffusion 3 or Qwen-Image transformer"),
    (r"control_model\.|controlnet_", "a ControlNet"),
    (r"down_blocks\.0\.", "a U-Net of diffusers"),
)


def is_lora(names: Mapping[str, object]) -> bool:
    """Return whether tensor names are those of a LoRA."""
    return any(name.endswith(LORA_ENDINGS) or any(part in name for part in LORA_PARTS) for name in names)


def describe(entries: Mapping[str, Entry]) -> str:
    """Return what a file is: "a Wan2.1 VAE", "a CLIP-L text encoder", "no model known here"."""
    if is_lora(entries):
        return lora_shape(entries).title
    titles = [title_of(part) for part in find_parts(entries) if part.layout is not None]
    if titles:
        return "a checkpoint of " + ", ".join(titles) if len(titles) > 1 else f"a {titles[0]}"
    for name, entry in entries.items():
        if CLIP.fullmatch(name) and len(entry.shape) == 2:
            return WIDTHS_OF_CLIP.get(entry.shape[1], "a CLIP text encoder")
    for pattern, title in FOREIGN:
        if any(re.match(pattern, name) for name in entries):
            return title
    return "no model known here"


def title_of(part: Part) -> str:
    """Return a known part's title; a Wan transformer's says what it lacks or is made for."""
    assert part.layout is not None
    names = part.names
    if any(mark in names for mark in UMT5_MARKS):
        return "UMT5 text encoder"
    if part.layout.family != "wan_vace" or part.kind != "transformer":
        return part.layout.title
    if "vace_patch_embedding.weight" not in names:
        image = any(".cross_attn.k_img." in name or ".attn2.add_k_proj." in name for name in names)
        return f"Wan2.1 {'image-to-video' if image else 'text-to-video'} transformer"
    if "patch_embedding.weight" not in names:
        return "Wan2.1 VACE module"
    return "Wan2.1-VACE transformer"
