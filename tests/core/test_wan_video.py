"""Wan without VACE: text, first and last frame, as diffusers' pipelines make them, from folders and single files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from piying.core.catalog.installed_model import BUILT_IN_ROOT
from piying.core.catalog.selection import ModelHandle
from piying.core.errors import PiyingError
from piying.core.executor import model_cache
from piying.core.host.current import set_host
from piying.core.host.headless import HeadlessHost
from piying.core.wan.request import WanRequest
from piying.core.wan_video.family import WAN_VIDEO
from piying.core.wan_video.run import sample

REQUEST = WanRequest(
    "a red circle", "static", width=64, height=32, num_frames=5, steps=3, cfg=4.0, shift=3.0, seed=7
)
TOY = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 64, "freq_dim": 32, "ffn_dim": 48}
CHANNELS = 9  # of the built-in VAE's latents
CLIP = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28}
PATCHES = (28 // 14) ** 2 + 1


def random_weights(module, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
    return module


def write_transformer(folder, seed, **changes):
    from diffusers import WanTransformer3DModel

    sizes = {"in_channels": CHANNELS, "out_channels": CHANNELS, "num_layers": 2, **TOY, **changes}
    random_weights(WanTransformer3DModel(**sizes), seed).save_pretrained(folder)


def write_wide_vae(folder):
    """Write a VAE as Wan2.2-TI2V's is built: residual blocks, and 2×2 pixels folded into channels."""
    from diffusers import AutoencoderKLWan

    sizes = {"base_dim": 4, "decoder_base_dim": 6, "z_dim": 12, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1}
    folded = {"in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16, "is_residual": True}
    numbers = {"latents_mean": [0.1] * 12, "latents_std": [0.7] * 12}
    random_weights(AutoencoderKLWan(**sizes, **folded, **numbers), 9).save_pretrained(folder)


def write_image_encoder(folder):
    from transformers import CLIPVisionConfig, CLIPVisionModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    random_weights(CLIPVisionModel(CLIPVisionConfig(patch_size=14, hidden_act="gelu", **CLIP)), 5).save_pretrained(
        folder / "image_encoder"
    )
    side = CLIP["image_size"]
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    processor.save_pretrained(folder / "image_processor")


BESIDE = 2 * CHANNELS + 4
SEES = {"image_dim": 16, "added_kv_proj_dim": 24}
MODELS = {
    "T2V": {},
    "T2V-A14B": {"second": True},
    "I2V": {"in_channels": BESIDE, **SEES},
    "FLF2V": {"in_channels": BESIDE, **SEES, "pos_embed_seq_len": 2 * PATCHES},
    "I2V-A14B": {"in_channels": BESIDE, "second": True},
    "TI2V": {"in_channels": 12, "out_channels": 12},
}


def write_model(folder, *, second=False, **changes):
    """Write a model's folder with random weights, its text encoder and VAE the built-in ones."""
    pictures = changes.get("in_channels", CHANNELS) == BESIDE or changes.get("in_channels") == 12
    index = json.loads((BUILT_IN_ROOT / "wan_vace" / "model_index.json").read_text())
    index |= {
        "_class_name": "WanImageToVideoPipeline" if pictures else "WanPipeline",
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": [None, None],
    }
    for part in ("text_encoder", "tokenizer", "scheduler", "vae"):
        shutil.copytree(BUILT_IN_ROOT / "wan_vace" / part, folder / part)
    write_transformer(folder / "transformer", 1, **changes)
    if second:
        write_transformer(folder / "transformer_2", 2, **changes)
        index |= {"boundary_ratio": 0.7, "transformer_2": ["diffusers", "WanTransformer3DModel"]}
    if "image_dim" in changes:
        write_image_encoder(folder)
        index |= {
            "image_encoder": ["transformers", "CLIPVisionModel"],
            "image_processor": ["transformers", "CLIPImageProcessor"],
        }
    if changes.get("in_channels") == 12:
        shutil.rmtree(folder / "vae")
        write_wide_vae(folder / "vae")
        index |= {"expand_timesteps": True}
    (folder / "model_index.json").write_text(json.dumps(index))


@pytest.fixture(scope="module")
def models_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name, changes in MODELS.items():
        write_model(root / "diffusers" / name, **changes)
    return root


@pytest.fixture
def host(models_folder, tmp_path):
    folders = {name: tmp_path / name for name in ("input", "output", "temp")}
    made = HeadlessHost(models=[models_folder], chosen_device="cpu", **folders)
    set_host(made)
    yield made
    set_host(None)
    model_cache.evict_models()


def handle(name):
    return ModelHandle(WAN_VIDEO, f"diffusers/{name}")


def picture(seed, width=REQUEST.width, height=REQUEST.height):
    """Return a picture as ComfyUI loads one: bytes over 255."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, height, width, 3), generator=generator).float() / 255


def by_diffusers(folder, request, first=None, last=None):
    from diffusers import UniPCMultistepScheduler, WanImageToVideoPipeline, WanPipeline
    from PIL import Image

    pipeline = (WanPipeline if first is None else WanImageToVideoPipeline).from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config, flow_shift=request.shift)
    shown = {
        name: Image.fromarray((one[0] * 255).round().byte().numpy())
        for name, one in (("image", first), ("last_image", last))
        if one is not None
    }
    return pipeline(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        height=request.height,
        width=request.width,
        num_frames=request.num_frames,
        num_inference_steps=request.steps,
        guidance_scale=request.cfg,
        guidance_scale_2=(request.cfg_2 or None) if pipeline.config.boundary_ratio is not None else None,
        generator=torch.Generator().manual_seed(request.seed),
        output_type="pt",
        **shown,
    ).frames[0].permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("name", "frames", "changes"),
    [
        ("T2V", (), {}),
        ("T2V", (), {"cfg": 1.0, "num_frames": 1}),
        ("T2V-A14B", (), {"cfg_2": 2.0, "steps": 4}),
        ("I2V", (1,), {}),
        ("FLF2V", (1, 2), {}),
        ("I2V-A14B", (1,), {"steps": 4}),
        ("I2V-A14B", (1, 2), {"num_frames": 9}),
        ("TI2V", (), {"width": 96}),
        ("TI2V", (1,), {"num_frames": 9}),
    ],
)
def test_equals_the_plain_pipeline(host, models_folder, name, frames, changes):
    request = replace(REQUEST, **changes)
    given = [picture(seed, request.width, request.height) for seed in frames]
    made, record = sample(handle(name), request, host, **dict(zip(("first", "last"), given, strict=False)))
    wanted = by_diffusers(models_folder / "diffusers" / name, request, *given)
    assert made.shape == wanted.shape
    assert torch.equal(made, wanted), float((made - wanted).abs().max())
    assert record["model"] == f"diffusers/{name}"
