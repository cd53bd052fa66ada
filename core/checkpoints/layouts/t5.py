"""T5, mT5 and UMT5 text encoders: names of transformers, of wan/modules/t5.py of Wan-Video/Wan2.1, of llama.cpp.

Those of llama.cpp: gguf-py/gguf/tensor_mapping.py of ggml-org/llama.cpp.
"""

from __future__ import annotations

import re
from dataclasses import replace

from .base import (
    Config,
    Layout,
    LeftOut,
    Metadata,
    Names,
    Place,
    Shapes,
    Whole,
    by_prefix,
    count,
    gguf_settings,
    needs_tokenizer,
)

HEAD_DIM = 64  # of every published T5

OUTSIDE = {"token_embedding": "shared", "norm": "encoder.final_layer_norm"}
INSIDE = {
    "norm1": "layer.0.layer_norm",
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
OUTSIDE_GGUF = {"token_embd": "shared", "enc.output_norm": "encoder.final_layer_norm"}
INSIDE_GGUF = {
    "attn_norm": "layer.0.layer_norm",
    "attn_q": "layer.0.SelfAttention.q",
    "attn_k": "layer.0.SelfAttention.k",
    "attn_v": "layer.0.SelfAttention.v",
    "attn_o": "layer.0.SelfAttention.o",
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "ffn_norm": "layer.1.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
}
BLOCK_GGUF = re.compile(r"enc\.blk\.(\d+)\.(.+)")
BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
BIAS = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"


def place(name: str, shapes: Shapes) -> Place | None:
    """Place a tensor of the original layout."""
    del shapes
    block = BLOCK.fullmatch(name)
    if block is None:
        return by_prefix(name, OUTSIDE)
    return by_prefix(block[2], INSIDE, f"encoder.block.{block[1]}.")


def place_gguf(name: str, shapes: Shapes) -> Place | None:
    """Place a tensor under llama.cpp's names."""
    del shapes
    block = BLOCK_GGUF.fullmatch(name)
    if block is None:
        return by_prefix(name, OUTSIDE_GGUF)
    return by_prefix(block[2], INSIDE_GGUF, f"encoder.block.{block[1]}.")


def place_transformers(name: str, shapes: Shapes) -> Place:
    """Place a tensor under transformers' names: the embeddings lie under either of their two."""
    if name == "encoder.embed_tokens.weight":
        return LeftOut() if "shared.weight" in shapes else Whole("shared.weight")
    return Whole(name)


def config(shapes: Shapes) -> Config:
    """Return the configuration: UMT5 has a position bias in every block, T5 and mT5 in the first alone."""
    vocabulary, width = shapes["shared.weight"]
    umt5 = BIAS.format(1) in shapes
    layers = count(shapes, "encoder.block.")
    return {
        "architectures": ["UMT5EncoderModel" if umt5 else "T5EncoderModel"],
        "model_type": "umt5" if umt5 else "t5",
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": HEAD_DIM,
        "num_heads": shapes["encoder.block.0.layer.0.SelfAttention.q.weight"][0] // HEAD_DIM,
        "d_ff": shapes["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"][0],
        "num_layers": layers,
        "num_decoder_layers": layers,
        "relative_attention_num_buckets": shapes[BIAS.format(0)][0],
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": umt5,
        "tie_word_embeddings": False,
    }


TITLE = "T5 text encoder"
UMT5 = "UMT5 text encoder"


def _is_umt5(names: Names) -> bool:
    """Return whether every block has a position bias; T5 and mT5 have one in the first alone."""
    second = (BIAS.format(1), "blocks.1.pos_embedding.embedding.weight", "enc.blk.1.attn_rel_b.weight")
    return any(name in names for name in second)


def settings(metadata: Metadata) -> Config:
    """Return what the metadata of a GGUF file say of the configuration."""
    known = {
        "attention.key_length": "d_kv",
        "attention.head_count": "num_heads",
        "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
        "attention.relative_buckets_count": "relative_attention_num_buckets",
    }
    return gguf_settings(metadata, known)


T5_TRANSFORMERS = Layout(
    kind="text_encoder",
    style="transformers",
    title=TITLE,
    marks=(r"shared\.weight|encoder\.embed_tokens\.weight", "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"),
    place=place_transformers,
    config=config,
    variants={UMT5: _is_umt5},
    needs=needs_tokenizer,
    spare=(r"spiece_model", r"logit_scale", r"decoder\..+", r"lm_head\.weight"),
)
T5_ORIGINAL = replace(
    T5_TRANSFORMERS,
    style="original",
    marks=("token_embedding.weight", "blocks.0.ffn.gate.0.weight", "norm.weight"),
    place=place,
    spare=(),
)
T5_GGUF = replace(
    T5_TRANSFORMERS,
    style="llama.cpp",
    marks=("token_embd.weight", "enc.blk.0.attn_q.weight", "enc.blk.0.ffn_gate.weight"),
    place=place_gguf,
    spare=(r"dec\..+", r"output\.weight"),
    settings=settings,
)
