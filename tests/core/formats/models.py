"""Modules with random weights, small, but with heads as wide as the published models'."""

from __future__ import annotations

import torch

WAN = {
    "num_attention_heads": 1,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 48,
    "freq_dim": 256,
    "ffn_dim": 160,
    "num_layers": 4,
    "vace_layers": [0, 2],
    "vace_in_channels": 96,
}
HUNYUAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "hidden_size": 32,
    "num_layers": 4,
    "patch_size": 2,
    "in_channels": 4,
    "mlp_ratio": 4.3637,
    "cross_attention_dim": 24,
    "cross_attention_dim_t5": 40,
    "pooled_projection_dim": 1024,
    "text_len": 7,
    "text_len_t5": 9,
    "sample_size": 128,
    "learn_sigma": True,
    "activation_fn": "gelu-approximate",
    "norm_type": "layer_norm",
}


def randomised(module, seed=0):
    """Give every parameter values that tell it from all others, so that no mix-up goes unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.06, generator=generator)
    return module.eval().requires_grad_(False)


def wan_transformer(**changes):
    from diffusers import WanVACETransformer3DModel

    return randomised(WanVACETransformer3DModel(**WAN | changes))


def wan_base_transformer():
    """Return one for pictures: its layers are those of the one for text, and more."""
    from diffusers import WanTransformer3DModel

    sizes = {name: value for name, value in WAN.items() if not name.startswith("vace_")}
    return randomised(WanTransformer3DModel(**sizes | {"in_channels": 36, "image_dim": 48, "added_kv_proj_dim": 128}))


def wan_vae():
    from diffusers import AutoencoderKLWan

    return randomised(AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2))


def umt5(**changes):
    from transformers import UMT5Config, UMT5EncoderModel

    sizes = {"vocab_size": 99, "d_model": 48, "d_kv": 64, "num_heads": 2, "d_ff": 80, "num_layers": 3}
    return randomised(UMT5EncoderModel(UMT5Config(**sizes | changes, feed_forward_proj="gated-gelu")))


def mt5():
    from transformers import T5Config, T5EncoderModel

    sizes = {"vocab_size": 99, "d_model": 40, "d_kv": 64, "num_heads": 2, "d_ff": 80, "num_layers": 3}
    return randomised(T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu")))


def bert(pooling=True):
    from transformers import BertConfig, BertModel

    sizes = {"vocab_size": 77, "hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2}
    sizes |= {"intermediate_size": 96, "max_position_embeddings": 30}
    return randomised(BertModel(BertConfig(**sizes), add_pooling_layer=pooling))


def hunyuan_transformer(**changes):
    from diffusers import HunyuanDiT2DModel

    return randomised(HunyuanDiT2DModel(**HUNYUAN | {"use_style_cond_and_image_meta_size": False} | changes))


def kl_vae():
    from diffusers import AutoencoderKL

    levels = 3
    return randomised(
        AutoencoderKL(
            block_out_channels=(32, 64, 64),
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=2,
            latent_channels=4,
            scaling_factor=0.13025,
        )
    )


def qwen3(**changes):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    sizes = {"vocab_size": 120, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": True}
    sizes |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    return randomised(Qwen3ForCausalLM(Qwen3Config(**sizes | changes)))


def wan_inputs(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(1, 16, 2, 4, 6, generator=generator),
        "timestep": torch.tensor([400]),
        "encoder_hidden_states": torch.randn(1, 5, 48, generator=generator),
        "control_hidden_states": torch.randn(1, 96, 2, 4, 6, generator=generator),
    }


def run_wan(model, dtype=torch.float32):
    inputs = {n: t.to(dtype) if t.is_floating_point() else t for n, t in wan_inputs().items()}
    with torch.no_grad():
        return model(**inputs, return_dict=False)[0]


def tensors(module):
    """Return what a module saves, its own copy."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


Z_IMAGE = {
    "dim": 128,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "cap_feat_dim": 128,
    "axes_dims": [16, 24, 24],
    "axes_lens": [1536, 512, 512],
}


def z_image_transformer(**changes):
    from diffusers import ZImageTransformer2DModel

    return randomised(ZImageTransformer2DModel(**Z_IMAGE | changes))


def flux_vae():
    from diffusers import AutoencoderKL

    levels = 4
    return randomised(
        AutoencoderKL(
            block_out_channels=(32,) * levels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=2,
            latent_channels=16,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    )
