"""Language models: Qwen3 and Qwen2.5 by their shapes, others by a config.json; names of transformers or of llama.cpp.

Of the models that see (Qwen2.5-VL, Qwen3-VL) the text side is read: it is a Qwen2.5 or a Qwen3. Names of llama.cpp:
gguf-py/gguf/tensor_mapping.py of ggml-org/llama.cpp. Its files name their architecture, and more of them are read.
"""

from __future__ import annotations

import re

from ...errors import PiyingError, clipped
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
HEAD = "lm_head.weight"
# Values that no shape tells, from the config.json files of Qwen/Qwen3-* and Qwen/Qwen2.5-*.
ROPE_THETA = 1_000_000.0
RMS_NORM_EPS = 1e-6
# From this width on Qwen's models have an output layer of their own; smaller ones use their embeddings.
UNTIED_WIDTH = 3584
QWEN2_HEAD_DIM = {896: 64, 1536: 128, 2048: 128, 3584: 128, 5120: 128}


def config(shapes: Shapes) -> Config:
    """Return the configuration of a Qwen3 or Qwen2.5 model.

    Args:
        shapes: by the names of the class.

    Raises:
        PiyingError: it is another language model.
    """
    width = shapes["model.embed_tokens.weight"][1]
    qwen3 = f"{ATTENTION}.q_norm.weight" in shapes
    qwen2 = f"{ATTENTION}.q_proj.bias" in shapes and width in QWEN2_HEAD_DIM
    if not (qwen3 or qwen2) or f"{ATTENTION}.o_proj.weight" not in shapes:
        raise PiyingError("this is a language model that its shapes do not name: it needs its config.json beside it.")
    _check_head(shapes)
    head = shapes[f"{ATTENTION}.q_norm.weight"][0] if qwen3 else QWEN2_HEAD_DIM[width]
    return {
        **_sizes(shapes),
        "architectures": ["Qwen3ForCausalLM" if qwen3 else "Qwen2ForCausalLM"],
        "model_type": "qwen3" if qwen3 else "qwen2",
        **_heads(shapes, head),
    }


def gguf_config(shapes: Shapes) -> Config:
    """Return what shapes tell of a language model whose file says the rest, see `settings`.

    Raises:
        PiyingError: it cannot write.
    """
    _check_head(shapes)
    norms = shapes.get(f"{ATTENTION}.q_norm.weight")
    # Without a number in the file heads are as wide as their norms, or as Qwen2.5's of that width.
    head = norms[0] if norms else QWEN2_HEAD_DIM.get(shapes["model.embed_tokens.weight"][1], 128)
    # Classes have tokens of their vocabularies as defaults, which a smaller one has not: the tokenizer says them.
    return {**_sizes(shapes), **_heads(shapes, head), "pad_token_id": None}


def _check_head(shapes: Shapes) -> None:
    if shapes["model.embed_tokens.weight"][1] >= UNTIED_WIDTH and HEAD not in shapes:
        raise PiyingError("its output layer is not in it: it can encode prompts and cannot write them.")


def _heads(shapes: Shapes, head: int) -> Config:
    return {
        "head_dim": head,
        "num_attention_heads": shapes[f"{ATTENTION}.q_proj.weight"][0] // head,
        "num_key_value_heads": shapes[f"{ATTENTION}.k_proj.weight"][0] // head,
    }


def _sizes(shapes: Shapes) -> Config:
    vocabulary, width = shapes["model.embed_tokens.weight"]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes["model.layers.0.mlp.down_proj.weight"][1],
        "num_hidden_layers": count(shapes, "model.layers."),
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "rms_norm_eps": RMS_NORM_EPS,
        "tie_word_embeddings": HEAD not in shapes,
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
    "post_attention_norm": "post_self_attn_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_mlp_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
BLOCK_GGUF = re.compile(r"blk\.(\d+)\.(.+)")
# Architecture in llama.cpp → model_type in transformers. Files have Llama's queries and keys in the order of Meta's
# code, where neighbours are rotated together (LlamaModel.permute in convert_hf_to_gguf.py). That is the one difference
# between transformers' Llama and its ERNIE 4.5, which therefore computes them as they are.
ARCHITECTURES = {
    "qwen2": "qwen2",
    "qwen2vl": "qwen2",
    "qwen3": "qwen3",
    "qwen3vl": "qwen3",
    "llama": "ernie4_5",
    "ernie4_5": "ernie4_5",
    "glm4": "glm4",
}
READ = "Qwen3, Qwen2.5, the text sides of Qwen3-VL and Qwen2.5-VL, Llama, Mistral, ERNIE 4.5 and GLM-4-0414"
# From Llama 3.1 on: config.json of meta-llama/Llama-3.1-* and Llama-3.2-*; files have the factors as a tensor.
LLAMA3_CONTEXT, LLAMA3_THETA = 131_072, 500_000.0
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LLAMA3_FACTORS = {2048: 32.0, 3072: 32.0}  # by width: 1B and 3B
LLAMA3_FACTOR = 8.0  # of the larger ones


def place(name: str, shapes: Shapes) -> Place:
    """Place a tensor under transformers' names; those of models that see say which side it is of."""
    del shapes
    own = name.replace("model.language_model.", "model.", 1)
    # Of a text encoder's class, such as Qwen3Model, which has no output layer.
    return Whole(own if own.startswith(("model.", "lm_head.")) else f"model.{own}")


def place_gguf(name: str, shapes: Shapes) -> Place | None:
    """Place a tensor under llama.cpp's names."""
    block = BLOCK_GGUF.fullmatch(name)
    if block is None:
        return by_prefix(name, OUTSIDE_GGUF)
    if block[2] == "ffn_up.weight" and name.replace("ffn_up", "ffn_gate") not in shapes:
        return Whole(f"model.layers.{block[1]}.mlp.gate_up_proj.weight")  # GLM's has both in one
    return by_prefix(block[2], INSIDE_GGUF, f"model.layers.{block[1]}.")


def settings(metadata: Metadata) -> Config:
    """Return what the metadata of a GGUF file say of the configuration.

    Raises:
        PiyingError: it is another language model, whose layers have the same names.
    """
    architecture = str(metadata.get("general.architecture"))
    if architecture not in ARCHITECTURES:
        raise PiyingError(
            f"this is a language model of the architecture {clipped(architecture, 40)!r}; of GGUF files {READ} are "
            "read. Choose another file, or the model's folder."
        )
    known = {
        "attention.key_length": "head_dim",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "attention.layer_norm_rms_epsilon": "rms_norm_eps",
        "context_length": "max_position_embeddings",
    }
    heads = gguf_settings(metadata, {"attention.head_count": "count", "embedding_length": "width"})
    head = {"head_dim": heads["width"] // heads["count"]} if len(heads) == 2 else {}
    found: Config = {"model_type": ARCHITECTURES[architecture], **head, **gguf_settings(metadata, known)}
    rope = _rope(metadata, found)
    return found | ({"rope_parameters": {"rope_type": "default", **rope}} if rope else {})


def _rope(metadata: Metadata, found: Config) -> Config:
    """Return how positions are rotated, as far as metadata tell."""
    said = gguf_settings(metadata, {"rope.freq_base": "theta", "rope.dimension_count": "rotated"})
    theta, width = said.get("theta"), metadata.get("llama.embedding_length")
    rope: Config = {} if theta is None else {"rope_theta": theta}
    if found["model_type"] == "glm4" and "rotated" in said and "head_dim" in found:
        rope["partial_rotary_factor"] = said["rotated"] / found["head_dim"]
    rope |= _scaling(metadata)
    if width and theta == LLAMA3_THETA and found.get("max_position_embeddings") == LLAMA3_CONTEXT:
        rope |= {**LLAMA3_ROPE, "factor": LLAMA3_FACTORS.get(int(width), LLAMA3_FACTOR)}
    return rope


def _scaling(metadata: Metadata) -> Config:
    """Return how positions are stretched beyond those that the model was trained on.

    Raises:
        PiyingError: in a way that is not read.
    """
    architecture = metadata.get("general.architecture")
    way = metadata.get(f"{architecture}.rope.scaling.type", "none")
    if way == "none":
        return {}
    known = {"rope.scaling.factor": "factor", "rope.scaling.original_context_length": "original"}
    said = gguf_settings(metadata, known)
    if way not in ("linear", "yarn") or "factor" not in said:
        raise PiyingError(
            f"its metadata say {architecture}.rope.scaling.type is {clipped(str(way), 40)!r}, with factor "
            f"{said.get('factor')}; linear and yarn with a factor are read. Choose another file."
        )
    original = {"original_max_position_embeddings": said["original"]} if way == "yarn" and "original" in said else {}
    return {"rope_type": way, "factor": float(said["factor"]), **original}


# The options of the classes that shapes depend on, by transformers' configurations.
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
ERNIE_OPTIONS: Config = {
    "vocab_size": 103424,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 18,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "use_bias": False,
    "tie_word_embeddings": True,
}
GLM4_OPTIONS: Config = {
    "vocab_size": 151552,
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "attention_bias": True,
    "tie_word_embeddings": False,
}


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


def ernie_tensors(config: Config) -> Tensors | None:
    """Describe the class of ERNIE 4.5, which has neither biases nor norms of queries; None where it has biases."""
    known = ERNIE_OPTIONS | config
    head = known.get("head_dim") or known["hidden_size"] // known["num_attention_heads"]
    return None if known["use_bias"] else _tensors({**known, "head_dim": head}, biased=(), has_norms=False)


def glm4_tensors(config: Config) -> Tensors | None:
    """Describe the class of GLM-4-0414, whose MLP has its first two layers in one, and norms behind both its parts."""
    known = GLM4_OPTIONS | config
    found = _tensors(known, biased=("q", "k", "v") if known["attention_bias"] else (), has_norms=False)
    needed = dict(found.needed)
    for number in range(known["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        gate, up = (needed.pop(f"{layer}.mlp.{name}_proj.weight") for name in ("gate", "up"))
        needed[f"{layer}.mlp.gate_up_proj.weight"] = (gate[0] + up[0], gate[1])
        for name in ("post_self_attn_layernorm", "post_mlp_layernorm"):
            needed[f"{layer}.{name}.weight"] = (known["hidden_size"],)
    return Tensors(needed, found.optional, prefix=found.prefix)


def _tensors(known: Config, biased: tuple[str, ...], has_norms: bool) -> Tensors:
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
        r"(model\.(language_model\.)?)?embed_tokens\.weight",
        r"(model\.(language_model\.)?)?layers\.0\.self_attn\.q_proj\.weight",
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
    marks=("token_embd.weight", "blk.0.attn_q.weight", "blk.0.attn_output.weight", "blk.0.ffn_down.weight"),
    place=place_gguf,
    config=gguf_config,
    needs=needs_tokenizer,
    spare=(r"(blk\.\d+\.)?(rope_freqs|attn_rot_embd)\.weight",),
    settings=settings,
)
