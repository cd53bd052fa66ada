"""CLIP's image encoder: CLIPVisionModel of transformers, whose names ComfyUI's files have too.

Of the larger model that it is a part of, the projection into the space of texts is left out.
"""

from __future__ import annotations

from .base import Config, Layout, Place, Shapes, Tensors, Whole, below, count, linear, norm

PREFIX = "vision_model."
HEAD_WIDTH = {768: 64, 1024: 64, 1280: 80, 1408: 88, 1664: 104}  # of OpenAI's and OpenCLIP's, by the encoder's width


def place(name: str, shapes: Shapes) -> Place:
    """Place a tensor under its name within the encoder."""
    del shapes
    return Whole(name.removeprefix(PREFIX))


def config(shapes: Shapes) -> Config:
    """Return the configuration of an encoder; its activation is that of OpenCLIP's ViT-H, in no shape to be seen."""
    width, channels, patch, _ = shapes["embeddings.patch_embedding.weight"]
    places, layers = shapes["embeddings.position_embedding.weight"][0], count(shapes, "encoder.layers.")
    return {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": layers,
        "num_attention_heads": width // HEAD_WIDTH.get(width, 64),
        "num_channels": channels,
        "image_size": patch * round((places - 1) ** 0.5),
        "patch_size": patch,
        "hidden_act": "gelu" if width > 1024 else "quick_gelu",
    }


# The options of CLIPVisionConfig that shapes depend on.
OPTIONS: Config = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
}


def tensors(config: Config) -> Tensors:
    """Describe CLIPVisionModel."""
    known = OPTIONS | config
    width, inner, patch = known["hidden_size"], known["intermediate_size"], known["patch_size"]
    block = norm("layer_norm1", width) | norm("layer_norm2", width)
    for layer in ("q_proj", "k_proj", "v_proj", "out_proj"):
        block |= linear(f"self_attn.{layer}", width, width)
    block |= linear("mlp.fc1", inner, width) | linear("mlp.fc2", width, inner)
    found = {
        "embeddings.class_embedding": (width,),
        "embeddings.patch_embedding.weight": (width, known["num_channels"], patch, patch),
        "embeddings.position_embedding.weight": ((known["image_size"] // patch) ** 2 + 1, width),
        **norm("pre_layrnorm", width),
        **norm("post_layernorm", width),
    }
    for number in range(known["num_hidden_layers"]):
        found |= below(f"encoder.layers.{number}", block)
    return Tensors(found, prefix="clip")


CLIP_VISION_TITLE = "CLIP image encoder"
CLIP_VISION = Layout(
    kind="image_encoder",
    style="transformers",
    title=CLIP_VISION_TITLE,
    marks=(
        r"(vision_model\.)?embeddings\.class_embedding",
        r"(vision_model\.)?encoder\.layers\.0\.self_attn\.q_proj\.weight",
        r"(vision_model\.)?pre_layrnorm\.weight",
    ),
    place=place,
    config=config,
    class_name="CLIPVisionModel",
    spare=(r"visual_projection\.weight", r"(vision_model\.)?embeddings\.position_ids"),
)
