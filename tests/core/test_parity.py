"""Same weights, same noise: our phases give exactly what the plain pipelines give."""

from __future__ import annotations

import pytest
import torch
from piying.core.catalog.installed_model import built_in
from piying.core.catalog.selection import ModelHandle
from piying.core.host.headless import HeadlessHost
from piying.core.hunyuan_dit.family import HUNYUAN_DIT
from piying.core.hunyuan_dit.request import ImageRequest
from piying.core.hunyuan_dit.run import sample as draw
from piying.core.prompting.expand import ExpandRequest, expand
from piying.core.prompting.family import PROMPT
from piying.core.prompting.presets import preset_text
from piying.core.wan.family import WAN_VACE
from piying.core.wan.request import WanRequest
from piying.core.wan.run import sample

HOST = HeadlessHost(chosen_device="cpu")


def wan_pipeline(shift):
    from diffusers import UniPCMultistepScheduler, WanVACEPipeline

    pipeline = WanVACEPipeline.from_pretrained(built_in("wan_vace").path, dtype=torch.float32)
    pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config, flow_shift=shift)
    return pipeline


@pytest.mark.parametrize(
    ("width", "height", "num_frames", "cfg", "shift", "negative"),
    [(64, 48, 9, 5.0, 16.0, "静态"), (48, 64, 5, 1.0, 3.0, "static"), (32, 32, 1, 2.5, 8.0, "")],
)
def test_vace_sample_equals_the_plain_pipeline(width, height, num_frames, cfg, shift, negative):
    request = WanRequest("a red circle", negative, width, height, num_frames, steps=3, cfg=cfg, shift=shift, seed=7)
    frames, record = sample(ModelHandle(WAN_VACE), request, HOST)
    plain = wan_pipeline(shift)(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        width=width,
        height=height,
        num_frames=num_frames,
        num_inference_steps=3,
        guidance_scale=cfg,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
    ).frames[0]
    assert frames.shape == (num_frames, height, width, 3)
    assert frames.dtype == torch.float32
    assert torch.equal(frames, torch.from_numpy(plain))
    assert frames.std() > 0.01
    assert record["model"] == "built-in"


@pytest.mark.parametrize(("size", "cfg"), [((64, 64), 5.0), ((96, 64), 1.0)])
def test_hunyuan_dit_equals_the_plain_pipeline(size, cfg):
    from diffusers import HunyuanDiTPipeline

    request = ImageRequest("蓝色背景上,一个红色圆形", "black", *size, steps=3, cfg=cfg, seed=7)
    image, _ = draw(ModelHandle(HUNYUAN_DIT), request, HOST)
    pipeline = HunyuanDiTPipeline.from_pretrained(built_in("hunyuan_dit").path, dtype=torch.float32)
    plain = pipeline(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        width=size[0],
        height=size[1],
        num_inference_steps=3,
        guidance_scale=cfg,
        generator=torch.Generator().manual_seed(7),
        use_resolution_binning=False,
        output_type="np",
    ).images
    assert torch.equal(image, torch.from_numpy(plain))
    assert image.std() > 0.01


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_expand_equals_plain_generate(temperature, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    request = ExpandRequest("red ball", max_new_tokens=96, temperature=temperature, seed=11, strict=True)
    text, _ = expand(ModelHandle(PROMPT), request, HeadlessHost(chosen_device="cpu", cache=tmp_path))
    folder = built_in("prompt").path
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    messages = [
        {"role": "system", "content": preset_text("text_to_video")},
        {"role": "user", "content": "red ball"},
    ]
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, enable_thinking=False, return_tensors="pt", return_dict=True
    )
    drawing = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20} if temperature else {}
    torch.manual_seed(11)
    tokens = model.generate(**inputs, max_new_tokens=96, **drawing)
    answer = tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text == answer


def test_seeds_decide():
    def frames(seed):
        request = WanRequest("x", width=32, height=32, num_frames=5, steps=2, seed=seed)
        return sample(ModelHandle(WAN_VACE), request, HOST)[0]

    assert torch.equal(frames(1), frames(1))
    assert not torch.equal(frames(1), frames(2))
    assert frames(2**64 - 1).isfinite().all()
