"""Layouts of Hunyuan-DiT: its transformer and its BERT.

The transformer is HunyuanDiT2DModel of diffusers, HunYuanDiT of Tencent (hydit/modules/models.py); the BERT is that of
transformers.
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
    SwapHalves,
    Tensors,
    Whole,
    below,
    by_prefix,
    conv,
    count,
    linear,
    norm,
    same,
)

OUTSIDE = {
    "text_embedding_padding": "text_embedding_padding",
    "mlp_t5.0": "text_embedder.linear_1",
    "mlp_t5.2": "text_embedder.linear_2",
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "time_extra_emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_extra_emb.timestep_embedder.linear_2",
    "pooler": "time_extra_emb.pooler",
    "style_embedder": "time_extra_emb.style_embedder",
    "extra_embedder.0": "time_extra_emb.extra_embedder.linear_1",
    "extra_embedder.2": "time_extra_emb.extra_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
# The norms are numbered by place in the original, by order of use in diffusers.
INSIDE = {
    "norm1": "norm1.norm",
    "default_modulation.1": "norm1.linear",
    "norm3": "norm2",
    "norm2": "norm3",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "skip_norm": "skip_norm",
    "skip_linear": "skip_linear",
    "attn2.q_proj": "attn2.to_q",
    **{
        f"attn{number}.{old}": f"attn{number}.{new}"
        for number in (1, 2)
        for old, new in {"q_norm": "norm_q", "k_norm": "norm_k", "out_proj": "to_out.0"}.items()
    },
}
JOINED = {"attn1.Wqkv": ("attn1", "to_q", "to_k", "to_v"), "attn2.kv_proj": ("attn2", "to_k", "to_v")}
POOLER = ("k_proj", "q_proj", "v_proj", "c_proj", "positional_embedding")
BLOCK = re.compile(r"(blocks\.\d+\.)(.+)")


def place(name: str, shapes: Shapes) -> Place | None:
    """Place a tensor of the original layout; diffusers' `norm_out` has scale before shift."""
    del shapes
    block = BLOCK.fullmatch(name)
    if block is not None:
        return _inside(block[1], block[2])
    if name.startswith("final_layer.adaLN_modulation.1."):
        return SwapHalves(f"norm_out.linear.{name.rpartition('.')[2]}")
    return by_prefix(name, OUTSIDE)


def _inside(block: str, name: str) -> Place | None:
    layer, _, own = name.rpartition(".")
    if layer in JOINED:
        attention, *parts = JOINED[layer]
        return Split(tuple(f"{block}{attention}.{part}.{own}" for part in parts))
    return by_prefix(name, INSIDE, block)


def config(shapes: Shapes) -> Config:
    """Return the configuration. v1.0 and v1.1 have conditions of style and size, v1.2 has none."""
    width, channels, patch, _ = shapes["pos_embed.proj.weight"]
    heads = width // shapes["blocks.0.attn1.norm_q.weight"][0]
    t5_length = shapes["time_extra_emb.pooler.positional_embedding"][0] - 1
    return {
        "_class_name": "HunyuanDiT2DModel",
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": channels,
        "patch_size": patch,
        "activation_fn": "gelu-approximate",
        "sample_size": 128,
        "hidden_size": width,
        "num_layers": count(shapes, "blocks."),
        # Half a unit more, since the class multiplies again and rounds down.
        "mlp_ratio": (shapes["blocks.0.ff.net.0.proj.weight"][0] + 0.5) / width,
        "learn_sigma": shapes["proj_out.weight"][0] == 2 * channels * patch * patch,
        "cross_attention_dim": shapes["blocks.0.attn2.to_k.weight"][1],
        "norm_type": "layer_norm",
        "cross_attention_dim_t5": shapes["text_embedder.linear_1.weight"][1],
        "pooled_projection_dim": shapes["time_extra_emb.pooler.c_proj.weight"][0],
        "text_len": shapes["text_embedding_padding"][0] - t5_length,
        "text_len_t5": t5_length,
        "use_style_cond_and_image_meta_size": "time_extra_emb.style_embedder.weight" in shapes,
    }


# The options of HunyuanDiT2DModel that shapes depend on.
OPTIONS: Config = {
    "num_attention_heads": 16,
    "attention_head_dim": 88,
    "in_channels": None,
    "patch_size": None,
    "hidden_size": 1152,
    "num_layers": 28,
    "mlp_ratio": 4.0,
    "learn_sigma": True,
    "cross_attention_dim": 1024,
    "cross_attention_dim_t5": 2048,
    "pooled_projection_dim": 1024,
    "text_len": 77,
    "text_len_t5": 256,
    "use_style_cond_and_image_meta_size": True,
}
TIME_DIM = 256  # sines of the step, and of each of the six numbers of a picture's size
STYLE_DIM = 6 * TIME_DIM


def tensors(config: Config) -> Tensors:
    """Describe HunyuanDiT2DModel.

    Raises:
        ValueError: its activation has a gate, which no published model has, or its values make none.
    """
    if config.get("activation_fn", "gelu-approximate") not in ("gelu-approximate", "gelu"):
        raise ValueError(f"activation_fn is {config['activation_fn']}, not gelu-approximate or gelu")
    known = OPTIONS | config
    width, hidden = known["num_attention_heads"] * known["attention_head_dim"], known["hidden_size"]
    text, t5, pooled = known["cross_attention_dim"], known["cross_attention_dim_t5"], known["pooled_projection_dim"]
    channels, patch, layers = known["in_channels"], known["patch_size"], known["num_layers"]
    found: ShapeTable = {"text_embedding_padding": (known["text_len"] + known["text_len_t5"], text)}
    found |= linear("text_embedder.linear_1", 4 * t5, t5) | linear("text_embedder.linear_2", text, 4 * t5)
    found |= conv("pos_embed.proj", hidden, channels, patch, patch)
    found |= linear("time_extra_emb.timestep_embedder.linear_1", hidden, TIME_DIM)
    found |= linear("time_extra_emb.timestep_embedder.linear_2", hidden, hidden)
    found["time_extra_emb.pooler.positional_embedding"] = (known["text_len_t5"] + 1, t5)
    for layer, outputs in (("k_proj", t5), ("q_proj", t5), ("v_proj", t5), ("c_proj", pooled)):
        found |= linear(f"time_extra_emb.pooler.{layer}", outputs, t5)
    has_style = known["use_style_cond_and_image_meta_size"]
    if has_style:
        found["time_extra_emb.style_embedder.weight"] = (1, hidden)
    inputs = pooled + (STYLE_DIM + hidden if has_style else 0)
    found |= linear("time_extra_emb.extra_embedder.linear_1", 4 * hidden, inputs)
    found |= linear("time_extra_emb.extra_embedder.linear_2", hidden, 4 * hidden)
    block = _block(width, known["attention_head_dim"], text, int(width * known["mlp_ratio"]))
    for number in range(layers):
        found |= below(f"blocks.{number}", block)
        if number > layers // 2:
            found |= norm(f"blocks.{number}.skip_norm", 2 * width)
            found |= linear(f"blocks.{number}.skip_linear", width, 2 * width)
    found |= linear("norm_out.linear", 2 * width, width)
    return Tensors(found | linear("proj_out", patch * patch * channels * (2 if known["learn_sigma"] else 1), width))


def _block(width: int, head: int, text: int, inner: int) -> ShapeTable:
    """Return the tensors of a block, without those of its skip connection."""
    found = linear("norm1.linear", width, width) | norm("norm1.norm", width) | norm("norm2", width)
    for attention, inputs in (("attn1", width), ("attn2", text)):
        found |= norm(f"{attention}.norm_q", head) | norm(f"{attention}.norm_k", head)
        found |= linear(f"{attention}.to_q", width, width) | linear(f"{attention}.to_out.0", width, width)
        found |= linear(f"{attention}.to_k", width, inputs) | linear(f"{attention}.to_v", width, inputs)
    return found | norm("norm3", width) | linear("ff.net.0.proj", inner, width) | linear("ff.net.2", width, inner)


TITLE = "Hunyuan-DiT transformer"


def _needs(names: Names, together: Mapping[str, int]) -> list[str]:
    del names
    encoders = [] if together.get("text_encoder", 0) > 1 else ["its BERT and mT5 text encoders"]
    return encoders + ([] if together.get("vae") else ["the Stable Diffusion XL VAE"])


HUNYUAN_DIFFUSERS = Layout(
    kind="transformer",
    style="diffusers",
    title=TITLE,
    marks=("text_embedding_padding", "time_extra_emb.pooler.c_proj.weight", "blocks.0.attn1.to_q.weight"),
    place=same,
    config=config,
    needs=_needs,
    class_name="HunyuanDiT2DModel",
)
HUNYUAN_ORIGINAL = replace(
    HUNYUAN_DIFFUSERS,
    style="original",
    marks=("text_embedding_padding", "mlp_t5.0.weight", "blocks.0.attn1.Wqkv.weight"),
    place=place,
    layers=(
        *OUTSIDE,
        *(f"pooler.{layer}" for layer in POOLER),
        *(f"blocks.{{}}.{layer}" for layer in (*INSIDE, *JOINED)),
        "final_layer.adaLN_modulation.1",
    ),
)

BERT_HEAD_DIM = 64  # of every published BERT
BERT_LAYER = "encoder.layer.0"


def bert_place(name: str, shapes: Shapes) -> Place:
    """Place a tensor of BERT: masked-language models put "bert." in front, old files call norms gamma and beta."""
    del shapes
    name = name.removeprefix("bert.")
    return Whole(name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"))


def bert_config(shapes: Shapes) -> Config:
    """Return the configuration of a BERT, with or without its pooler."""
    vocabulary, width = shapes["embeddings.word_embeddings.weight"]
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "add_pooling_layer": "pooler.dense.weight" in shapes,
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_attention_heads": width // BERT_HEAD_DIM,
        "num_hidden_layers": count(shapes, "encoder.layer."),
        "intermediate_size": shapes[f"{BERT_LAYER}.intermediate.dense.weight"][0],
        "max_position_embeddings": shapes["embeddings.position_embeddings.weight"][0],
        "type_vocab_size": shapes["embeddings.token_type_embeddings.weight"][0],
    }


# The options of BertModel that shapes depend on, as transformers' BertConfig has them.
BERT_OPTIONS: Config = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "add_pooling_layer": True,
}


def bert_tensors(config: Config) -> Tensors:
    """Describe BertModel.

    Raises:
        ValueError: it attends to another model's states, or its values make none.
    """
    if config.get("add_cross_attention") or config.get("is_decoder"):
        raise ValueError("it is a decoder")
    known = BERT_OPTIONS | config
    width, inner, heads = known["hidden_size"], known["intermediate_size"], known["num_attention_heads"]
    if width % heads and "embedding_size" not in config:
        raise ValueError(f"hidden_size {width} is no multiple of num_attention_heads {heads}")
    found = norm("embeddings.LayerNorm", width)
    tables = {"word": "vocab_size", "position": "max_position_embeddings", "token_type": "type_vocab_size"}
    found |= {f"embeddings.{table}_embeddings.weight": (known[rows], width) for table, rows in tables.items()}
    layer = linear("attention.output.dense", width, width) | norm("attention.output.LayerNorm", width)
    for part in ("query", "key", "value"):
        layer |= linear(f"attention.self.{part}", width, width)
    layer |= linear("intermediate.dense", inner, width) | linear("output.dense", width, inner)
    layer |= norm("output.LayerNorm", width)
    for number in range(known["num_hidden_layers"]):
        found |= below(f"encoder.layer.{number}", layer)
    found |= linear("pooler.dense", width, width) if known["add_pooling_layer"] else {}
    return Tensors(found, prefix="bert")


BERT = Layout(
    kind="text_encoder",
    style="transformers",
    title="BERT text encoder",
    marks=(
        r"(bert\.)?embeddings\.word_embeddings\.weight",
        r"(bert\.)?encoder\.layer\.0\.attention\.self\.query\.weight",
    ),
    place=bert_place,
    config=bert_config,
    needs=lambda names, together: ["the tokenizer of its BERT"],
    spare=(r"logit_scale", r"(bert\.)?embeddings\.position_ids", r"cls\..+"),
)
