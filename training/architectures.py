"""The built-in models: the architectures of the real ones at toy size.

What the pipelines rely on is kept: the three downsamples of Wan's autoencoder, VACE's masks folded
into 64 channels, Hunyuan-DiT's two text encoders, Qwen3's chat.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDPMScheduler,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
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

from .image_autoencoder import image_autoencoder
from .tokenizers import bert_tokenizer, qwen_tokenizer, t5_tokenizer
from .video_autoencoder import VIDEO_CHANNELS, video_autoencoder

TEXT_WIDTH = 64


def wan_vace() -> WanVACEPipeline:
    """Return a Wan VACE pipeline whose transformer, text encoder and decoder are untrained."""
    tokenizer = t5_tokenizer(max_length=512)
    return WanVACEPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(UMT5Config(**_t5_sizes(tokenizer))),
        vae=video_autoencoder(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
        transformer=_wan_transformer(),
    )


def _t5_sizes(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "d_model": TEXT_WIDTH,
        "d_kv": 16,
        "d_ff": 128,
        "num_layers": 2,
        "num_heads": 4,
        "dropout_rate": 0.0,
        "feed_forward_proj": "gated-gelu",
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


WAN_SIZES: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 4,
    "attention_head_dim": 24,
    "in_channels": VIDEO_CHANNELS,
    "out_channels": VIDEO_CHANNELS,
    "text_dim": TEXT_WIDTH,
    "freq_dim": 128,
    "ffn_dim": 384,
    "num_layers": 4,
}


def _wan_transformer() -> WanVACETransformer3DModel:
    return WanVACETransformer3DModel(
        **WAN_SIZES,
        vace_layers=[0, 2],
        vace_in_channels=2 * VIDEO_CHANNELS + 64,
    )


def wan_video_transformer() -> WanTransformer3DModel:
    """Return the transformer of the Wan Video model, untrained."""
    return WanTransformer3DModel(**WAN_SIZES)


def hunyuan_dit(folder: Path) -> HunyuanDiTPipeline:
    """Return a Hunyuan-DiT pipeline, untrained but for the encoder; `folder` takes its BERT vocabulary file."""
    bert, t5 = bert_tokenizer(folder), t5_tokenizer(max_length=256)
    return HunyuanDiTPipeline(
        vae=image_autoencoder(),
        text_encoder=BertModel(_bert_config(len(bert))),
        tokenizer=bert,
        transformer=_hunyuan_transformer(),
        # Training and sampling both start from pure noise: a flat background is all mean colour,
        # and the mean is what a schedule that ends before pure noise gives away.
        scheduler=DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.02,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            clip_sample=False,
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
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
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=77,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def _hunyuan_transformer() -> HunyuanDiT2DModel:
    transformer = HunyuanDiT2DModel(
        num_attention_heads=4,
        attention_head_dim=24,
        in_channels=4,
        patch_size=2,
        sample_size=16,
        hidden_size=96,
        num_layers=6,
        mlp_ratio=4.0,
        learn_sigma=True,
        cross_attention_dim=TEXT_WIDTH,
        cross_attention_dim_t5=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        text_len=77,
        text_len_t5=256,
        norm_type="layer_norm",
        use_style_cond_and_image_meta_size=False,
    )
    # All padding the same (see `text_padding`), and no pooled text: it would be mostly padding.
    transformer.text_embedding_padding.data.zero_().requires_grad_(False)
    pooled = transformer.time_extra_emb.pooler.c_proj
    for weight in (pooled.weight, pooled.bias):
        weight.requires_grad_(False).zero_()
    return transformer


def prompt(texts: Iterable[str] = ()) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """Return an untrained Qwen3 and its tokenizer; `texts` are what it will often read."""
    tokenizer = qwen_tokenizer(texts)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
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
