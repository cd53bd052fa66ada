"""One place of padding with a weight gives what all the places a pipeline fills give."""

from __future__ import annotations

import torch
from piying.training import architectures, image, video
from piying.training.text_padding import WanPaddedText

TEXTS = ["a red circle on a blue background", "蓝色背景上,一个红色圆形。"]


def test_wan():
    torch.manual_seed(0)
    pipeline = architectures.wan_vace()
    inputs = {
        "hidden_states": torch.randn(2, 9, 2, 4, 4),
        "timestep": torch.tensor([300.0, 900.0]),
        "control_hidden_states": torch.randn(2, 82, 2, 4, 4),
        "return_dict": False,
    }
    with torch.no_grad():
        states, _ = pipeline.encode_prompt(TEXTS, do_classifier_free_guidance=False, max_sequence_length=512)
        expected = pipeline.transformer(encoder_hidden_states=states, **inputs)[0]
        processor = WanPaddedText()
        states, processor.scores = video.encode_texts(pipeline, TEXTS)
        pipeline.transformer.set_attn_processor(processor)
        assert torch.allclose(pipeline.transformer(encoder_hidden_states=states, **inputs)[0], expected, atol=1e-4)


def test_hunyuan_dit(tmp_path):
    torch.manual_seed(0)
    pipeline = architectures.hunyuan_dit(tmp_path)
    transformer = pipeline.transformer
    latents, times = torch.randn(2, 4, 8, 12), torch.tensor([300.0, 900.0])
    around = {"image_rotary_emb": image.rotary(96, 64, 24), "return_dict": False}
    names = ("encoder_hidden_states", "text_embedding_mask", "encoder_hidden_states_t5", "text_embedding_mask_t5")
    with torch.no_grad():
        values: list[torch.Tensor] = []
        for index, length in enumerate((77, 256)):
            states, _, mask, _ = pipeline.encode_prompt(
                TEXTS, text_encoder_index=index, do_classifier_free_guidance=False, max_sequence_length=length
            )
            values += [states, mask]
        expected = transformer(latents, times, **dict(zip(names, values, strict=True)), **around)[0]
        with image.short_texts(transformer) as processor:
            arguments, processor.scores = image.encode_texts(pipeline, TEXTS)
            found = transformer(latents, times, **arguments, **around)[0]
    assert torch.allclose(found, expected, atol=1e-4)
    assert transformer.text_embedding_padding.shape == (333, architectures.TEXT_WIDTH)


def test_hunyuan_dit_knows_where_it_is(tmp_path):
    """Constant input gives output that differs from place to place: attention to text rotates queries alone."""
    torch.manual_seed(0)
    pipeline = architectures.hunyuan_dit(tmp_path)
    with torch.no_grad(), image.short_texts(pipeline.transformer) as processor:
        arguments, processor.scores = image.encode_texts(pipeline, TEXTS[:1])
        drawn = pipeline.transformer(
            torch.ones(1, 4, 8, 8),
            torch.tensor([500.0]),
            **arguments,
            image_rotary_emb=image.rotary(64, 64, 24),
            return_dict=False,
        )[0]
    assert (drawn[..., ::2, ::2] - drawn[..., :1, :1]).abs().max() > 1e-3
