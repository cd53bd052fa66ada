"""Published models: their configurations as config.json has them, and modules of their shapes.

By the names of the manifest's components. What a configuration leaves out is the default of its class.
"""

from __future__ import annotations

from typing import Any

T5 = {"d_kv": 64, "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new", "is_gated_act": True}
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 128,
    "num_key_value_heads": 8,
    "vocab_size": 151_936,
    "max_position_embeddings": 40_960,
    "eos_token_id": 151_645,
    "tie_word_embeddings": True,
}
VAE_2D = {
    "_class_name": "AutoencoderKL",
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "wan-vace-1.3b": {
        "_class_name": "WanVACETransformer3DModel",
        "num_attention_heads": 12,
        "ffn_dim": 8960,
        "num_layers": 30,
        "vace_layers": list(range(0, 30, 2)),
    },
    "wan-vace-14b": {
        "_class_name": "WanVACETransformer3DModel",
        "num_attention_heads": 40,
        "ffn_dim": 13824,
        "num_layers": 40,
        "vace_layers": list(range(0, 40, 5)),
    },
    "umt5-xxl": {
        "architectures": ["UMT5EncoderModel"],
        "model_type": "umt5",
        "vocab_size": 256_384,
        "d_model": 4096,
        "d_ff": 10_240,
        "num_heads": 64,
        "num_layers": 24,
        **T5,
    },
    "wan-vae": {"_class_name": "AutoencoderKLWan"},
    "hunyuan-dit-1.2": {
        "_class_name": "HunyuanDiT2DModel",
        "num_attention_heads": 16,
        "attention_head_dim": 88,
        "in_channels": 4,
        "patch_size": 2,
        "activation_fn": "gelu-approximate",
        "sample_size": 128,
        "hidden_size": 1408,
        "num_layers": 40,
        "mlp_ratio": 4.3637,
        "learn_sigma": True,
        "cross_attention_dim": 1024,
        "cross_attention_dim_t5": 2048,
        "pooled_projection_dim": 1024,
        "text_len": 77,
        "text_len_t5": 256,
        "norm_type": "layer_norm",
        "use_style_cond_and_image_meta_size": False,
    },
    "chinese-clip": {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": 47_020,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    "mt5-xl": {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "vocab_size": 250_112,
        "d_model": 2048,
        "d_ff": 5120,
        "num_heads": 32,
        "num_layers": 24,
        **T5,
    },
    "hunyuan-vae": {**VAE_2D, "latent_channels": 4, "sample_size": 1024, "scaling_factor": 0.13025},
    "z-image": {"_class_name": "ZImageTransformer2DModel"},
    "qwen3-4b": {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        **QWEN3,
    },
    "qwen3-0.6b": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        **QWEN3,
    },
    "flux-vae": {
        **VAE_2D,
        "latent_channels": 16,
        "sample_size": 1024,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
    },
}


def sizes(name: str) -> dict[str, Any]:
    """Return the arguments of a diffusers model's class."""
    return {key: value for key, value in CONFIGURATIONS[name].items() if not key.startswith("_")}


def random_model(name: str) -> Any:
    """Return a model with the random weights that its class begins with, on torch's default device of the moment."""
    import diffusers
    import transformers

    config = CONFIGURATIONS[name]
    if "_class_name" in config:
        return getattr(diffusers, config["_class_name"])(**sizes(name))
    made = transformers.CONFIG_MAPPING[config["model_type"]](**config)
    return getattr(transformers, config["architectures"][0])(made)
