"""BERT text encoders under transformers' names, with or without its pooler."""

from __future__ import annotations

from .base import Config, Layout, Place, Shapes, Whole, count

HEAD_DIM = 64  # of every published BERT
LAYER = "encoder.layer.0"


def place(name: str, shapes: Shapes) -> Place:
    """Place a tensor: masked-language models put "bert." in front, old files call norms gamma and beta."""
    del shapes
    name = name.removeprefix("bert.")
    return Whole(name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"))


def config(shapes: Shapes) -> Config:
    """Return the configuration."""
    vocabulary, width = shapes["embeddings.word_embeddings.weight"]
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "add_pooling_layer": "pooler.dense.weight" in shapes,
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_attention_heads": width // HEAD_DIM,
        "num_hidden_layers": count(shapes, "encoder.layer."),
        "intermediate_size": shapes[f"{LAYER}.intermediate.dense.weight"][0],
        "max_position_embeddings": shapes["embeddings.position_embeddings.weight"][0],
        "type_vocab_size": shapes["embeddings.token_type_embeddings.weight"][0],
    }


BERT = Layout(
    kind="text_encoder",
    style="transformers",
    title="BERT text encoder",
    marks=(
        r"(bert\.)?embeddings\.word_embeddings\.weight",
        r"(bert\.)?encoder\.layer\.0\.attention\.self\.query\.weight",
    ),
    place=place,
    config=config,
    needs=lambda names, together: ["the tokenizer of its BERT"],
    spare=(r"logit_scale", r"(bert\.)?embeddings\.position_ids", r"cls\..+"),
)
