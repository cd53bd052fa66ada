"""Language models under transformers' names: Qwen3 and Qwen2.5 by their shapes, others by a config.json."""

from __future__ import annotations

from ...errors import PiyingError
from .base import Config, Layout, Shapes, count, same

ATTENTION = "model.layers.0.self_attn"
# Values that no shape tells, from the config.json files of Qwen/Qwen3-* and Qwen/Qwen2.5-*.
ROPE_THETA = 1_000_000.0
RMS_NORM_EPS = 1e-6
# From this width on Qwen's models have an output layer of their own; smaller ones use their embeddings.
UNTIED_WIDTH = 3584
QWEN2_HEAD_DIM = {896: 64, 1536: 128, 2048: 128, 3584: 128, 5120: 128}


def config(shapes: Shapes) -> Config:
    """Return the configuration of a Qwen3 or Qwen2.5 model.

    Raises:
        PiyingError: it is another language model.
    """
    vocabulary, width = shapes["model.embed_tokens.weight"]
    qwen3 = f"{ATTENTION}.q_norm.weight" in shapes
    qwen2 = f"{ATTENTION}.q_proj.bias" in shapes and width in QWEN2_HEAD_DIM
    if not (qwen3 or qwen2) or f"{ATTENTION}.o_proj.weight" not in shapes:
        raise PiyingError("this is a language model that its shapes do not name: it needs its config.json beside it.")
    if width >= UNTIED_WIDTH and "lm_head.weight" not in shapes:
        raise PiyingError("its output layer is not in it: it can encode prompts and cannot write them.")
    head = shapes[f"{ATTENTION}.q_norm.weight"][0] if qwen3 else QWEN2_HEAD_DIM[width]
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


LANGUAGE_MODEL = Layout(
    kind="prompt_model",
    style="transformers",
    title="language model",
    marks=("model.embed_tokens.weight", r"model\.layers\.0\.self_attn\.q_proj\.weight"),
    place=same,
    config=config,
    needs=lambda names, together: ["its tokenizer"],
)
