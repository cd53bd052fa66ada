"""Settings: which values a configuration may have, by their names, which mean the same in every class.

Types are those that the signatures of diffusers' and transformers' classes declare for their defaults, ranges those in
which they compute. Neither library looks at all of them before it computes, and importing one takes seconds.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import PiyingError, clipped

LARGEST = 1 << 24  # of what is counted: longer contexts, more words or rows have no published model
LONGEST = 1 << 16  # of tables that are computed when the module is made


@dataclass(frozen=True)
class Kind:
    """What a value may be.

    Attributes:
        words: for messages, as in "there can be a whole number from 1".
        holds: whether a value is one.
    """

    words: str
    holds: Callable[[Any], bool]


def whole(low: int, high: int = LARGEST) -> Kind:
    """Return the whole numbers between two; true and false are none."""
    return Kind(f"a whole number from {low} to {high}", lambda value: type(value) is int and low <= value <= high)


def number(low: float, high: float, *types: type) -> Kind:
    """Return the numbers between two, of the types float and int or of those that are named."""
    types = types or (float, int)
    return Kind(f"a number from {low:g} to {high:g}", lambda value: type(value) in types and low <= value <= high)


def one_of(names: Iterable[str]) -> Kind:
    """Return some names."""
    known = tuple(names)
    return Kind(f"one of {', '.join(known)}", lambda value: isinstance(value, str) and value in known)


def list_of(kind: Kind) -> Kind:
    """Return lists of a kind of values."""
    return Kind(
        f"a list of which each is {kind.words}",
        lambda value: isinstance(value, (list, tuple)) and all(map(kind.holds, value)),
    )


NULL = Kind("null", lambda value: value is None)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a text", lambda value: isinstance(value, str))
TABLE = Kind("a table", lambda value: isinstance(value, Mapping))
SIZE, COUNT, TOKEN, INDEX = whole(1), whole(0), whole(-1), whole(-LONGEST, LONGEST)
SHARE = number(0, 1)
EPSILON = number(1e-38, 0.1, float)  # transformers takes no whole number for it; the first is bf16's smallest
FACTOR = number(1e-6, 1e12)
FINITE = list_of(Kind("a finite number", lambda value: type(value) in (float, int) and math.isfinite(value)))

# What transformers has (ACT2FN), and diffusers for VAEs and for feed-forward layers.
ACTIVATIONS = [
    "gelu",
    "gelu_10",
    "gelu_accurate",
    "gelu_fast",
    "gelu_new",
    "gelu_python",
    "gelu_python_tanh",
    "gelu_pytorch_tanh",
    "hardswish",
    "laplace",
    "leaky_relu",
    "linear",
    "mish",
    "prelu",
    "quick_gelu",
    "relu",
    "relu2",
    "relu6",
    "sigmoid",
    "silu",
    "sqrtsoftplus",
    "swish",
    "tanh",
    "xielu",
]
VAE_ACTIVATIONS = ("swish", "silu", "mish", "gelu", "relu")
FEED_FORWARD = ("gelu", "gelu-approximate", "geglu", "geglu-approximate", "swiglu", "linear-silu")
BLOCKS = [f"{attention}{half}Block2D" for half in ("DownEncoder", "UpDecoder") for attention in ("", "Attn")]
LAYER_TYPES = ("full_attention", "sliding_attention")  # of the language models that are read here
# What transformers' functions of rotary positions need beside their defaults (modeling_rope_utils.py).
ROPE_NEEDS = {
    "default": (),
    "mrope": (),
    "axial": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "proportional": (),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
DTYPES = ("float16", "bfloat16", "float32", "float64", "auto")

NOT_READ = re.compile(r"quantization_config|task_specific_params|pruned_heads|id2label|label2id")
# Regular expressions of whole names; the first that fits counts.
RULES: tuple[tuple[str, tuple[Kind, ...]], ...] = (
    (r"(torch_)?dtype", (one_of(DTYPES), NULL)),
    (r"rope_(parameters|scaling)|\w+_config|id2label|label2id", (TABLE, NULL)),
    (r"architectures|stage_names|_?out_features", (list_of(TEXT), NULL)),
    (r"layer_types", (list_of(one_of(LAYER_TYPES)), NULL)),
    (r"rope_type", (one_of(ROPE_NEEDS),)),
    (r"model_type|norm_type", (TEXT,)),
    (r"depth_estimation_type", (one_of(("relative", "metric")),)),
    (r"qk_norm", (FLAG, TEXT, NULL)),
    (r"hidden_act|hidden_activation|dense_act_fn", (one_of(ACTIVATIONS),)),
    (
        r"feed_forward_proj",
        (one_of(ACTIVATIONS), one_of(f"gated-{name}" for name in ACTIVATIONS)),
    ),
    (r"act_fn", (one_of(VAE_ACTIVATIONS),)),
    (r"activation_fn", (one_of(FEED_FORWARD),)),
    (r"(down|up)_block_types", (list_of(one_of(BLOCKS)),)),
    (r"is_(decoder|encoder_decoder|gated_act|residual)|use_(cache|sliding_window|(post_)?quant_conv)", (FLAG,)),
    (
        r"use_(mask_token|swiglu_ffn|style_cond_and_image_meta_size)|tie_word_embeddings|add_(cross|pooling)_\w+",
        (FLAG,),
    ),
    (r"scale_decoder_outputs|(attention|qkv)_bias|cross_attn_norm|learn_sigma|mid_block_add_attention", (FLAG,)),
    (r"apply_layernorm|reshape_\w+", (FLAG,)),
    (r"force_upcast", (FLAG, NULL)),
    (r"(pad|bos|decoder_start)_token_id", (TOKEN, NULL)),
    (r"eos_token_id", (TOKEN, list_of(TOKEN), NULL)),
    (r"(\w*_)?norm_(eps|epsilon)|eps", (EPSILON,)),
    (r"attention_dropout", (SHARE, NULL)),
    (r"(\w*_)?(dropout|dropout_prob|dropout_rate|drop_path_rate)", (SHARE,)),
    (r"initializer_(range|factor)", (number(0, 1e6),)),
    (r"layerscale_value", (number(-1e6, 1e6, float),)),
    (r"latents_(mean|std)", (FINITE, NULL)),
    (r"mlp_ratios|reassemble_factors", (list_of(FACTOR),)),
    (r"scaling_factor|mlp_ratio|rope_theta|t_scale", (FACTOR,)),
    (r"factor|(low|high)_freq_factor|beta_(fast|slow)|attention_factor", (FACTOR, NULL)),
    (r"(short|long)_factor", (list_of(FACTOR), NULL)),
    (r"original_max_position_embeddings", (SIZE,)),
    (r"partial_rotary_factor|max_depth", (FACTOR, NULL)),
    (r"shift_factor", (number(-1e6, 1e6), NULL)),
    (r"attn_scales", (list_of(FACTOR),)),
    (r"temperal_downsample", (list_of(FLAG),)),
    (r"sample_size", (whole(1, LONGEST),)),
    (r"rope_max_seq_len", (whole(128, LONGEST),)),  # positions along a side: one for 16 pixels, of 2048 at most
    (r"axes_lens", (list_of(whole(128, LONGEST)),)),
    (r"num_train_timesteps", (whole(1, LONGEST),)),
    (r"beta_(start|end)|(base|max|flow)_shift|shift", (number(0, 1e6), NULL)),
    (r"solver_order", (whole(1, 3),)),
    (r"(beta_schedule|prediction_type|timestep_spacing|solver_type|final_sigmas_type)", (TEXT,)),
    (r"relative_attention_max_distance", (whole(64, LONGEST),)),  # its logarithm is divided into buckets
    (r"chunk_size_feed_forward|max_window_layers|semantic_loss_ignore_index", (COUNT,)),
    (r"vace_layers", (list_of(COUNT),)),
    (r"_?out_indices", (list_of(INDEX), NULL)),
    (r"head_in_index", (INDEX,)),
    (r"num_decoder_layers|sliding_window", (COUNT, NULL)),
    (
        r"depths|strides|sr_ratios|dim_mult|all_\w*patch_size|axes_dims|(\w*_)?hidden_sizes|patch_sizes|block_out_channels",
        (list_of(SIZE),),
    ),
    (
        r"num_(hidden_layers|encoder_blocks|channels)|((decoder|fusion|head|reassemble)_)?hidden_size|vocab_size|d_\w+",
        (SIZE,),
    ),
    (r"(image|patch)_size|num_attention_heads", (SIZE, list_of(SIZE), NULL)),
    (r"scale_factor_(temporal|spatial)|norm_num_groups|max_position_embeddings", (SIZE,)),
)
PATTERNS = tuple((re.compile(pattern), kinds) for pattern, kinds in RULES)
# Of names that no rule has, where the class is known: others use such names for much else.
COUNTED = re.compile(r"(num|n)_\w+|\w+_(dim|size|heads|layers|channels|buckets|len|len_t5)")
COUNTS = (COUNT, list_of(COUNT), NULL)


def check_settings(config: Mapping[str, Any], is_described: bool) -> None:
    """Accept the values of a configuration, and of the tables in it, whether tensors depend on them or not.

    Args:
        config: the configuration.
        is_described: whether it is of a class whose tensors are described here. Those of other classes may be null,
            and what their names count is not judged.

    Raises:
        PiyingError: one is of another type than its name's, or out of range.
    """
    for name, value in config.items():
        kinds = next((kinds for pattern, kinds in PATTERNS if pattern.fullmatch(name)), ())
        if is_described and not kinds and COUNTED.fullmatch(name):
            kinds = COUNTS
        elif value is None and not is_described:
            continue
        if kinds and not any(kind.holds(value) for kind in kinds):
            raise PiyingError(
                f"its configuration says {name} is {clipped(json.dumps(value, default=str), 40)}; there can be "
                f"{' or '.join(kind.words for kind in kinds)}. Fetch it again."
            )
        if isinstance(value, Mapping) and not NOT_READ.fullmatch(name):
            check_settings(value, is_described)
    _check_together(config)


def _check_together(config: Mapping[str, Any]) -> None:
    """Accept values of one table that are only right beside each other; each alone has been accepted.

    Raises:
        PiyingError: two of them contradict each other, or one lacks what it needs.
    """
    padding, words = config.get("pad_token_id"), config.get("vocab_size")
    if isinstance(padding, int) and isinstance(words, int) and padding >= words:
        raise PiyingError(f"its configuration says pad_token_id is {padding}, and vocab_size {words}. Fetch it again.")
    types, count = config.get("layer_types"), config.get("num_hidden_layers")
    if types is not None and isinstance(count, int) and len(types) != count:
        raise PiyingError(
            f"its configuration has {len(types)} layer_types, and num_hidden_layers is {count}. Fetch it again."
        )
    # transformers puts aside the window of a model that does not use it.
    window = config.get("sliding_window") if config.get("use_sliding_window") else None
    slides = "sliding_attention" in (types or ()) and "use_sliding_window" in config
    if (window is not None and window < 2) or (window is None and slides):
        raise PiyingError(
            f"its configuration says some layers see a sliding window, and sliding_window is {json.dumps(window)}; "
            "there can be a whole number from 2, with use_sliding_window. Fetch it again."
        )
    for table in (config.get("rope_scaling"), config.get("rope_parameters")):
        rope = table.get("rope_type", table.get("type", "default")) if isinstance(table, Mapping) else "default"
        if rope not in ROPE_NEEDS:
            raise PiyingError(
                f"its configuration says the type of its rotary positions is {clipped(json.dumps(rope), 40)}; "
                f"there can be {', '.join(ROPE_NEEDS)}. Fetch it again."
            )
        missing = [name for name in ROPE_NEEDS[rope] if table.get(name) is None] if table else []
        if missing:
            raise PiyingError(
                f"its configuration says rope_type is {rope}, without {', '.join(missing)}. Fetch it again."
            )
