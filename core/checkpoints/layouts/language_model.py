"""Language models: Qwen3 and Qwen2.5 by their shapes, others by a config.json; names of transformers or of llama.cpp.

Of the models that see (Qwen2.5-VL, Qwen3-VL) the text side is read: it is a Qwen2.5 or a Qwen3. Names of llama.cpp:
gguf-py/gguf/tensor_mapping.py of ggml-org/llama.cpp.
"""

from __future__ import annotations

import re
from functools import partial

from ...errors import PiyingError
from .base import (
    Config,
    Layout,
    Metadata,
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

ATTENTION = "model.layers.0.self_attn"
# Values that no shape tells, from the config.json files of Qwen/Qwen3-* and Qwen/Qwen2.5-*.
ROPE_THETA = 1_000_000.0
RMS_NORM_EPS = 1e-6
# From this width on Qwen's models have an output layer of their own; smaller ones use their embeddings.
UNTIED_WIDTH = 3584
QWEN2_HEAD_DIM = {896: 64, 1536: 128, 2048: 128, 3584: 128, 5120: 128}


def config(shapes: Shapes, has_metadata: bool = False) -> Config:
    """Return the configuration of a Qwen3 or Qwen2.5 model.

    Args:
        shapes: by the names of the class.
        has_metadata: whether the file says besides how wide the heads are; see `settings`.

    Raises:
        PiyingError: it is another language model.
    """
    vocabulary, width = shapes["model.embed_tokens.weight"]
    qwen3 = f"{ATTENTION}.q_norm.weight" in shapes
    qwen2 = f"{ATTENTION}.q_proj.bias" in shapes and (width in QWEN2_HEAD_DIM or has_metadata)
    if not (qwen3 or qwen2) or f"{ATTENTION}.o_proj.weight" not in shapes:
        raise PiyingError("this is a language model that its shapes do not name: it needs its config.json beside it.")
    if width >= UNTIED_WIDTH and "lm_head.weight" not in shapes:
        raise PiyingError("its output layer is not in it: it can encode prompts and cannot write them.")
    head = shapes[f"{ATTENTION}.q_norm.weight"][0] if qwen3 else QWEN2_HEAD_DIM.get(width, 128)
    return {
        "architectures": ["Qwen3ForCausalLM" if qwen3 else "Qwen2ForCausalLM"],
        "model_type": "qwen3" if qwen3 else "qwen2",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "head_dim": head,
        "num_attention_heads": shapes[f"{ATTENTION}.q_proj.weight"][0] // head,
        "num_key_value_heads": shapes[f"{ATTENTION}.k_proj.weight"][0] // head,
        "intermediate_size": shapes["model.layers.0.mlp.gate_proj.weight"][0],
        "num_hidden_layers": count(shapes, "model.layers."),
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "rms_norm_eps": RMS_NORM_EPS,
        "tie_word_embeddings": "lm_head.weight" not in shapes,
    }


OUTSIDE_GGUF = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
INSIDE_GGUF = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
BLOCK_GGUF = re.compile(r"blk\.(\d+)\.(.+)")
ARCHITECTURES = ("qwen2", "qwen2vl", "qwen3", "qwen3vl")


def place(name: str, shapes: Shapes) -> Place:
    """Place a tensor under transformers' names; those of models that see say which side it is of."""
    del shapes
    return Whole(name.replace("model.language_model.", "model.", 1))


def place_gguf(name: str, shapes: Shapes) -> Place | None:
    """Place a tensor under llama.cpp's names."""
    del shapes
    block = BLOCK_GGUF.fullmatch(name)
    if block is None:
        return by_prefix(name, OUTSIDE_GGUF)
    return by_prefix(block[2], INSIDE_GGUF, f"model.layers.{block[1]}.")


def settings(metadata: Metadata) -> Config:
    """Return what the metadata of a GGUF file say of the configuration.

    Raises:
        PiyingError: it is another language model, whose layers have the same names.
    """
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise PiyingError(
            f"this is a language model of the architecture {str(architecture)[:40]!r}; of GGUF files Qwen3, Qwen2.5 "
            "and the text sides of Qwen3-VL and Qwen2.5-VL are read. Choose another file, or the model's folder."
        )
    known = {
        "attention.key_length": "head_dim",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "attention.layer_norm_rms_epsilon": "rms_norm_eps",
        "context_length": "max_position_embeddings",
    }
    theta = gguf_settings(metadata, {"rope.freq_base": "rope_theta"})
    heads = gguf_settings(metadata, {"attention.head_count": "count", "embedding_length": "width"})
    head = {"head_dim": heads["width"] // heads["count"]} if len(heads) == 2 else {}
    rope = {"rope_parameters": {"rope_type": "default", **theta}} if theta else {}
    return head | gguf_settings(metadata, known) | rope


# The options of Qwen2ForCausalLM and Qwen3ForCausalLM that shapes depend on, by transformers' configurations.
QWEN2_OPTIONS: Config = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "tie_word_embeddings": False,
}
QWEN3_OPTIONS = QWEN2_OPTIONS | {"head_dim": 128, "attention_bias": False}
HEAD = "lm_head.weight"


def qwen2_tensors(config: Config) -> Tensors | None:
    """Describe Qwen2ForCausalLM, whose queries, keys and values have a bias."""
    known = QWEN2_OPTIONS | config
    head = known.get("head_dim") or known["hidden_size"] // known["num_attention_heads"]
    return _tensors({**known, "head_dim": head}, biased=("q", "k", "v"), has_norms=False)


def qwen3_tensors(config: Config) -> Tensors | None:
    """Describe Qwen3ForCausalLM, whose queries and keys have norms."""
    known = QWEN3_OPTIONS | config
    return _tensors(known, biased=("q", "k", "v", "o") if known["attention_bias"] else (), has_norms=True)


def qwen3_encoder_tensors(config: Config) -> Tensors | None:
    """Describe Qwen3Model: a Qwen3 without its output layer."""
    whole = qwen3_tensors(config)
    if whole is None:
        return None
    needed = {name.removeprefix("model."): shape for name, shape in whole.needed.items() if name != HEAD}
    return Tensors(needed, prefix="model")


def _tensors(known: Config, biased: tuple[str, ...], has_norms: bool) -> Tensors | None:
    types = known.get("layer_types")
    if types is not None and len(types) != known["num_hidden_layers"]:
        raise ValueError(f"layer_types are {len(types)}, and num_hidden_layers {known['num_hidden_layers']}")
    width, inner, head = known["hidden_size"], known["intermediate_size"], known["head_dim"]
    queries, keys = head * known["num_attention_heads"], head * (known["num_key_value_heads"] or 0)
    layer: ShapeTable = {"input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,)}
    for part, outputs, inputs in (
        ("q", queries, width),
        ("k", keys, width),
        ("v", keys, width),
        ("o", width, queries),
    ):
        layer |= linear(f"self_attn.{part}_proj", outputs, inputs, bias=part in biased)
    layer |= {f"self_attn.{part}_norm.weight": (head,) for part in "qk" if has_norms}
    layer |= linear("mlp.gate_proj", inner, width, bias=False) | linear("mlp.up_proj", inner, width, bias=False)
    layer |= linear("mlp.down_proj", width, inner, bias=False)
    embeddings = (known["vocab_size"], width)
    found: ShapeTable = {"model.embed_tokens.weight": embeddings, "model.norm.weight": (width,)}
    for number in range(known["num_hidden_layers"]):
        found |= below(f"model.layers.{number}", layer)
    if known["tie_word_embeddings"]:
        return Tensors(found, {HEAD: embeddings}, prefix="model")
    return Tensors({**found, HEAD: embeddings}, prefix="model")


TITLE = "language model"
LANGUAGE_MODEL = Layout(
    kind="prompt_model",
    style="transformers",
    title=TITLE,
    marks=(
        r"model\.(language_model\.)?embed_tokens\.weight",
        r"model\.(language_model\.)?layers\.0\.self_attn\.q_proj\.weight",
    ),
    place=place,
    config=config,
    needs=needs_tokenizer,
    spare=(r"(model\.)?visual\..+", r"logit_scale", r".+\.rotary_emb\.inv_freq"),
)
LANGUAGE_MODEL_GGUF = Layout(
    kind="prompt_model",
    style="llama.cpp",
    title=TITLE,
    marks=("token_embd.weight", "blk.0.attn_q.weight", "blk.0.attn_output.weight", "blk.0.ffn_gate.weight"),
    place=place_gguf,
    config=partial(config, has_metadata=True),
    needs=needs_tokenizer,
    spare=(r"(blk\.\d+\.)?(rope_freqs|attn_rot_embd)\.weight",),
    settings=settings,
)
