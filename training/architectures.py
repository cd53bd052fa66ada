"""The built-in models: the architectures of the real ones at toy size.

What the pipelines rely on is kept: Wan's 16 latent channels and three downsamples, VACE's 96 input
channels, Hunyuan-DiT's two text encoders, Qwen3's chat. Widths and depths are the least that run.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DDPMScheduler,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    UniPCMultistepScheduler,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from .tokenizers import bert_tokenizer, qwen_tokenizer, t5_tokenizer

LATENT_CHANNELS = 16
TEXT_WIDTH = 32


def wan_vace() -> WanVACEPipeline:
    """Return an untrained Wan VACE pipeline."""
    tokenizer = t5_tokenizer(max_length=512)
    return WanVACEPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(UMT5Config(**_t5_sizes(tokenizer))),
        vae=_wan_vae(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=16.0),
        transformer=_wan_transformer(),
    )


def _t5_sizes(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    return {
        "vocab_size": len(tokenizer),
        "d_model": TEXT_WIDTH,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 2,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _wan_vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=1,
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )


def _wan_transformer() -> WanVACETransformer3DModel:
    return WanVACETransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_WIDTH,
        freq_dim=64,
        ffn_dim=96,
        num_layers=3,
        vace_layers=[0, 2],
        vace_in_channels=2 * LATENT_CHANNELS + 64,
    )


def hunyuan_dit(folder: Path) -> HunyuanDiTPipeline:
    """Return an untrained Hunyuan-DiT pipeline; `folder` takes its BERT vocabulary file."""
    bert, t5 = bert_tokenizer(folder), t5_tokenizer(max_length=256)
    return HunyuanDiTPipeline(
        vae=_image_vae(),
        text_encoder=BertModel(_bert_config(len(bert))),
        tokenizer=bert,
        transformer=_hunyuan_transformer(),
        scheduler=DDPMScheduler(
            beta_start=0.00085, beta_end=0.02, beta_schedule="scaled_linear", prediction_type="v_prediction",
            clip_sample=False, steps_offset=1, timestep_spacing="leading",
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=T5EncoderModel(T5Config(**_t5_sizes(t5))),
        tokenizer_2=t5,
    )


def _bert_config(vocabulary: int) -> BertConfig:
    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=77,
    )


def _image_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        scaling_factor=0.13025,
    )


def _hunyuan_transformer() -> HunyuanDiT2DModel:
    return HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=4,
        patch_size=2,
        sample_size=16,
        hidden_size=48,
        num_layers=4,
        mlp_ratio=2.0,
        learn_sigma=True,
        cross_attention_dim=TEXT_WIDTH,
        cross_attention_dim_t5=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        text_len=77,
        text_len_t5=256,
        norm_type="layer_norm",
        use_style_cond_and_image_meta_size=False,
    )


def prompt() -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """Return an untrained Qwen3 and its tokenizer."""
    tokenizer = qwen_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=24,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config), tokenizer


def seeded(seed: int) -> None:
    """Make the weights built next depend on `seed` alone."""
    torch.manual_seed(seed)
