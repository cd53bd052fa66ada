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
    ShapeTable,
    Tensors,
    Whole,
    below,
    by_prefix,
    count,
    gguf_settings,
    linear,
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
    inner = shapes["encoder.block.0.layer.0.SelfAttention.q.weight"][0]
    buckets, heads = shapes[BIAS.format(0)]
    layers = count(shapes, "encoder.block.")
    return {
        "architectures": ["UMT5EncoderModel" if umt5 else "T5EncoderModel"],
        "model_type": "umt5" if umt5 else "t5",
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": inner // heads,
        "num_heads": heads,
        "d_ff": shapes["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"][0],
        "num_layers": layers,
        "num_decoder_layers": layers,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": umt5,
        "tie_word_embeddings": False,
    }


# The options of T5EncoderModel and UMT5EncoderModel that shapes depend on, as transformers' configurations have them.
OPTIONS: Config = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "feed_forward_proj": "relu",
}
UMT5_OPTIONS = OPTIONS | {
    "vocab_size": 250112,
    "d_ff": 1024,
    "num_layers": 8,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
}
ALIASES = {"hidden_size", "num_attention_heads", "num_hidden_layers", "head_dim"}


def tensors(config: Config) -> Tensors | None:
    """Describe T5EncoderModel, in whose first block alone is a position bias."""
    return _encoder(OPTIONS | config, biases=1, ignored=("decoder",))


def umt5_tensors(config: Config) -> Tensors | None:
    """Describe UMT5EncoderModel."""
    known = UMT5_OPTIONS | config
    return _encoder(known, biases=known["num_layers"])


def _encoder(known: Config, biases: int, ignored: tuple[str, ...] = ()) -> Tensors | None:
    """Describe an encoder; one whose configuration has transformers' other names for sizes is not described."""
    if known.get("is_decoder"):
        raise ValueError("it is a decoder")
    if ALIASES & known.keys():
        return None
    width, inner, heads = known["d_model"], known["d_ff"], known["num_heads"]
    block: ShapeTable = {f"layer.{number}.layer_norm.weight": (width,) for number in (0, 1)}
    for layer in "qkv":
        block |= linear(f"layer.0.SelfAttention.{layer}", heads * known["d_kv"], width, bias=False)
    block |= linear("layer.0.SelfAttention.o", width, heads * known["d_kv"], bias=False)
    is_gated = known.get("is_gated_act", known["feed_forward_proj"].startswith("gated-"))
    for layer in ("wi_0", "wi_1") if is_gated else ("wi",):
        block |= linear(f"layer.1.DenseReluDense.{layer}", inner, width, bias=False)
    block |= linear("layer.1.DenseReluDense.wo", width, inner, bias=False)
    found: ShapeTable = {"shared.weight": (known["vocab_size"], width), "encoder.final_layer_norm.weight": (width,)}
    for number in range(known["num_layers"]):
        found |= below(f"encoder.block.{number}", block)
        if number < biases:
            found[BIAS.format(number)] = (known["relative_attention_num_buckets"], heads)
    return Tensors(found, {"encoder.embed_tokens.weight": found["shared.weight"]}, "transformer", ignored)


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
