"""Wan without VACE: text, first and last frame, as diffusers' pipelines make them, from folders and single files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel, WanVACETransformer3DModel
from piying.core.catalog.discovery import installed_models, why_no_model
from piying.core.catalog.installed_model import BUILT_IN_ROOT
from piying.core.catalog.selection import ModelHandle, check_model, choose_model, model_choices
from piying.core.checkpoints.inspect import inspect
from piying.core.errors import PiyingError
from piying.core.executor import model_cache
from piying.core.host.headless import HeadlessHost
from piying.core.wan.context import Context
from piying.core.wan.family import WAN_VACE
from piying.core.wan.guidance import Guidance
from piying.core.wan.request import WanRequest
from piying.core.wan_video.family import WAN_VIDEO
from piying.core.wan_video.frame_inputs import frame_inputs
from piying.core.wan_video.run import sample
from piying.nodes import routes
from piying.nodes.long_video import PiyingVACELongVideo
from piying.nodes.wan_vace import PiyingVACESample
from piying.nodes.wan_video import PiyingWanSample
from transformers import CLIPVisionConfig, CLIPVisionModel

from .formats import models, names, writers
from .hosts import current_host
from .plain_pipeline import plain_frames
from .test_single_files import spiece

REQUEST = WanRequest("a red circle", "static", width=64, height=32, num_frames=5, steps=3, cfg=4.0, shift=3.0, seed=7)
TOY = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 64, "freq_dim": 32, "ffn_dim": 48}
ROOT = Path(__file__).resolve().parents[2]
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
    sizes = {"in_channels": CHANNELS, "out_channels": CHANNELS, "num_layers": 2, **TOY, **changes}
    random_weights(WanTransformer3DModel(**sizes), seed).save_pretrained(folder)


def write_wide_vae(folder):
    """Write a VAE as Wan2.2-TI2V's is built: residual blocks, and 2×2 pixels folded into channels."""
    sizes = {"base_dim": 4, "decoder_base_dim": 6, "z_dim": 12, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1}
    folded = {"in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16, "is_residual": True}
    numbers = {"latents_mean": [0.1] * 12, "latents_std": [0.7] * 12}
    random_weights(AutoencoderKLWan(**sizes, **folded, **numbers), 9).save_pretrained(folder)


def write_image_encoder(folder):
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
    with current_host(models=[models_folder], **folders) as made:
        yield made


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
    second = (request.cfg_2 or None) if pipeline.config.boundary_ratio is not None else None
    return plain_frames(pipeline, request, guidance_scale_2=second, **shown)


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
    made, fps, record = sample(handle(name), request, host, **dict(zip(("first", "last"), given, strict=False)))
    wanted = by_diffusers(models_folder / "diffusers" / name, request, *given)
    assert made.shape == wanted.shape
    assert torch.equal(made, wanted), float((made - wanted).abs().max())
    assert (record["model"], fps) == (f"diffusers/{name}", 24 if name == "TI2V" else 16)


# What a model can do


@pytest.mark.parametrize(
    ("name", "frames", "said"),
    [
        ("T2V", {"first": 1}, "first_frame is wired, and diffusers/T2V makes videos from text alone."),
        ("T2V", {"last": 1}, "last_frame is wired, and diffusers/T2V makes videos from text alone."),
        ("I2V", {}, "first_frame is not wired, and diffusers/I2V makes videos from a first frame."),
        ("I2V", {"first": 1, "last": 2}, "last_frame is wired, and diffusers/I2V makes videos from a first frame."),
        ("FLF2V", {"first": 1}, "last_frame is not wired, and .* from a first and a last frame."),
        ("TI2V", {"last": 1}, "last_frame is wired, and .* from text, and a first frame where one is given."),
        ("I2V-A14B", {"last": 1}, "first_frame is not wired, and .* a first frame, and a last one where one is"),
    ],
)
def test_frames_that_a_model_cannot_read_are_refused(host, name, frames, said):
    with pytest.raises(PiyingError, match=said):
        sample(handle(name), REQUEST, host, **{which: picture(seed) for which, seed in frames.items()})


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("TI2V", {"width": 48}, "width is 48. Wan takes multiples of 32 from 32 to 2048: use 32 or 64."),
        ("T2V", {"width": 40}, "width is 40. Wan takes multiples of 16 from 16 to 2048: use 32 or 48."),
        ("T2V", {"num_frames": 6}, "num_frames is 6. Wan takes 4n.1 frames from 1 to 241 .*: use 5 or 9.$"),
    ],
)
def test_sizes_are_those_of_the_model(host, name, changes, said):
    with pytest.raises(PiyingError, match=said):
        sample(handle(name), replace(REQUEST, **changes), host)


@pytest.mark.parametrize("shape", [(0, 32, 64, 3), (1, 32, 64, 1), (1, 0, 64, 3), (32, 64, 3)])
@pytest.mark.parametrize("which", ["first", "last"])
def test_what_is_no_picture_is_refused(host, which, shape):
    """As other packs' nodes may give it: nothing in a batch, or gray alone."""
    frames = {"first": picture(1), "last": picture(2), which: torch.zeros(shape)}
    with pytest.raises(PiyingError, match=rf"{which}_frame has the shape .*Connect an IMAGE with at least one frame"):
        sample(handle("FLF2V"), REQUEST, host, **frames)


def test_a_video_that_is_the_given_frame_is_refused(host):
    with pytest.raises(PiyingError, match="num_frames is 1, and first_frame is that frame already"):
        sample(handle("TI2V"), replace(REQUEST, num_frames=1), host, first=picture(1))


def test_a_loop_has_no_first_frame(host):
    with pytest.raises(PiyingError, match="loop is on, and first_frame is wired"):
        sample(handle("I2V-A14B"), replace(REQUEST, context=Context(loop=True)), host, first=picture(1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_frame_that_holds_no_numbers_is_refused(host, value):
    frame = picture(1)
    frame[0, 3, 2, 1] = value
    with pytest.raises(PiyingError, match="first_frame holds values that are no numbers"):
        sample(handle("I2V-A14B"), REQUEST, host, first=frame)


def test_two_frames_do_not_go_into_one(host):
    with pytest.raises(PiyingError, match="num_frames is 1, and a first and a last frame are two"):
        sample(handle("I2V-A14B"), replace(REQUEST, num_frames=1), host, first=picture(1), last=picture(2))


def test_a_video_takes_the_shape_of_its_frame(host):
    """As many pixels as asked for at most, sides rounded down to what the model takes; several pictures are named."""
    tall = torch.cat([picture(1, 40, 100), picture(2, 40, 100)])
    made, _, record = sample(handle("I2V-A14B"), REQUEST, host, first=tall, shaped=True)
    assert made.shape == (5, 64, 16, 3)
    assert (record["width"], record["height"], record["given_frames"]) == (16, 64, ["first"])
    with pytest.raises(PiyingError, match="The given frame is 400×1: .* Set size_from to widgets, or crop the frame"):
        sample(handle("I2V-A14B"), REQUEST, host, first=picture(1, 400, 1), shaped=True)


def test_given_frames_stand_in_the_result(host):
    """The first latent frame of TI2V is the given one; what the VAE makes of it alone comes back."""
    given = picture(1)
    made, *_ = sample(handle("TI2V"), replace(REQUEST, num_frames=9), host, first=given)
    again, *_ = sample(handle("TI2V"), replace(REQUEST, num_frames=9, seed=8), host, first=given)
    other, *_ = sample(handle("TI2V"), replace(REQUEST, num_frames=9), host, first=picture(2))
    assert torch.equal(made[0], again[0])
    assert not torch.equal(made[1:], again[1:])
    assert not torch.equal(made[0], other[0])


@pytest.mark.parametrize("name", ["T2V", "I2V", "TI2V"])
@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": "euler"},
        {"sampler": "res_multistep", "step_cache": 0.5, "steps": 8},
        {"batch_cfg": True},
        {"guidance": Guidance(nag_scale=5.0), "cfg": 1.0},
        {"guidance": Guidance("apg", slg_scale=1.0, slg_blocks=(1,))},
    ],
    ids=["euler", "cache", "batched", "nag", "apg and slg"],
)
def test_settings_of_sampling_hold(host, name, changes):
    """Each changes the video, but for one batch, which only rounds differently."""
    given = {"first": picture(1)} if name != "T2V" else {}
    plain, *_ = sample(handle(name), replace(REQUEST, steps=changes.get("steps", 3)), host, **given)
    made, *_ = sample(handle(name), replace(REQUEST, **changes), host, **given)
    assert torch.isfinite(made).all()
    if "batch_cfg" in changes:
        assert torch.allclose(made, plain, atol=1e-4)
    else:
        assert not torch.equal(made, plain)


# Files


def test_folders_of_other_pipelines_are_told_apart(models_folder, host):
    assert {name for name in model_choices(WAN_VIDEO, host) if name.startswith("diffusers")} == {
        f"diffusers/{name}" for name in MODELS
    }
    assert not [name for name in model_choices(WAN_VACE, host) if name.startswith("diffusers")]


def broken(tmp_path, change):
    """Return a host with one model, after a change to its folder."""
    folder = tmp_path / "models" / "diffusers" / "broken"
    folder.parent.mkdir(parents=True)
    write_model(folder, **change.pop("model", {}))
    return folder, HeadlessHost(models=[tmp_path / "models"], chosen_device="cpu")


def test_a_transformer_of_another_family_is_refused(tmp_path):
    folder, host = broken(tmp_path, {})
    shutil.rmtree(folder / "transformer")
    shutil.copytree(BUILT_IN_ROOT / "wan_vace" / "transformer", folder / "transformer")
    with pytest.raises(PiyingError, match="its transformer is a WanVACETransformer3DModel, and WanTransformer3DModel"):
        check_model(WAN_VIDEO, "diffusers/broken", host)


def test_a_vae_of_other_latents_is_refused(tmp_path):
    folder, host = broken(tmp_path, {})
    shutil.rmtree(folder / "vae")
    write_wide_vae(folder / "vae")
    with pytest.raises(PiyingError, match="makes latents of 9 channels, and its vae has 12"):
        check_model(WAN_VIDEO, "diffusers/broken", host)


def test_an_image_encoder_that_is_missing_is_named(tmp_path):
    folder, host = broken(tmp_path, {"model": dict(MODELS["I2V"])})
    shutil.rmtree(folder / "image_encoder")
    with pytest.raises(PiyingError, match="there is no image_encoder in it. Fetch it again."):
        check_model(WAN_VIDEO, "diffusers/broken", host)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"image_encoder": [None, None]}))
    with pytest.raises(PiyingError, match="there is no image_encoder in it, which its transformer reads"):
        check_model(WAN_VIDEO, "diffusers/broken", host)


@pytest.mark.parametrize(
    ("name", "changes", "part", "other", "said"),
    [
        ("I2V-A14B", {}, "transformer_2", {}, "its transformer has in_channels 22, and its transformer_2 9"),
        ("T2V", {"text_dim": 32}, None, {}, "its text_encoder has a width of 64, and its transformer reads 32"),
        ("I2V", {"image_dim": 20}, None, {}, "its image_encoder has a width of 16, and its transformer reads 20"),
    ],
)
def test_parts_of_other_models_in_a_folder_are_refused(tmp_path, name, changes, part, other, said):
    """By the check before a run as by the list; else layers of other sizes would meet minutes later."""
    folder, host = broken(tmp_path, {"model": MODELS[name] | changes})
    if part is not None:
        shutil.rmtree(folder / part)
        write_transformer(folder / part, 3, **other)
    assert "diffusers/broken" not in model_choices(WAN_VIDEO, host)
    with pytest.raises(PiyingError, match=said):
        check_model(WAN_VIDEO, "diffusers/broken", host)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("vae", "its transformer makes latents of 9 channels, and its vae has 12. Fetch it again."),
        ("stride", "its vae has a stride of 16, and VACE reads one of 8. Fetch it again."),
        ("expert", "its transformer has text_dim 64, and its transformer_2 32: they are no two experts"),
    ],
)
def test_a_vace_folder_with_parts_of_other_models_is_refused(tmp_path, change, said):
    """Alike by the list, by the check before a run, and where --inspect asks."""
    folder, host = broken(tmp_path, {})
    shutil.rmtree(folder)
    shutil.copytree(BUILT_IN_ROOT / "wan_vace", folder)
    if change == "vae":
        shutil.rmtree(folder / "vae")
        write_wide_vae(folder / "vae")
    if change == "stride":
        config = json.loads((folder / "vae" / "config.json").read_text())
        (folder / "vae" / "config.json").write_text(json.dumps(config | {"scale_factor_spatial": 16}))
    if change == "expert":
        made = WanVACETransformer3DModel.load_config(folder / "transformer")
        WanVACETransformer3DModel.from_config(made | {"text_dim": 32}).save_pretrained(folder / "transformer_2")
    assert "diffusers/broken" not in model_choices(WAN_VACE, host)
    with pytest.raises(PiyingError, match=said):
        check_model(WAN_VACE, "diffusers/broken", host)
    assert re.search(said, why_no_model(folder, inspect(folder / "vae")))


@pytest.fixture(scope="module")
def single_files(tmp_path_factory):
    """ComfyUI's folders with transformers of several kinds, two VAEs, a text encoder and an image encoder."""
    root = tmp_path_factory.mktemp("files")
    for category in ("diffusion_models", "text_encoders", "vae", "clip_vision"):
        (root / category).mkdir()
    base = {"num_attention_heads": 1, "attention_head_dim": 128, "text_dim": 48, "ffn_dim": 160, "num_layers": 2}
    for name, changes in {
        "wan2.1_t2v_1.3B": {},
        "wan2.2_i2v_high_noise_14B": {"in_channels": 36},
        "wan2.2_i2v_low_noise_14B": {"in_channels": 36},
        "wan2.1_i2v_480p_14B": {"in_channels": 36, "image_dim": 128, "added_kv_proj_dim": 128},
        "wan2.2_ti2v_5B": {"in_channels": 48, "out_channels": 48},
    }.items():
        made = models.randomised(WanTransformer3DModel(**base | changes))
        writers.save(names.wan_transformer(models.tensors(made)), root / "diffusion_models" / f"{name}.safetensors")
    encoder = {n: t for n, t in models.tensors(models.umt5()).items() if "embed_tokens" not in n}
    writers.save(encoder | {"spiece_model": spiece()}, root / "text_encoders" / "umt5.safetensors")
    writers.save(names.wan_vae(models.tensors(models.wan_vae())), root / "vae" / "wan_2.1_vae.safetensors")
    wide = AutoencoderKLWan(
        base_dim=4, decoder_base_dim=6, z_dim=48, in_channels=12, out_channels=12, patch_size=2,
        is_residual=True, scale_factor_spatial=16, latents_mean=[0.0] * 48, latents_std=[1.0] * 48,
    )  # fmt: skip
    writers.save(models.tensors(models.randomised(wide)), root / "vae" / "wan2.2_vae.safetensors")
    vision = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=128, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=28,
            patch_size=14,
        )
    )  # fmt: skip
    state = {f"vision_model.{name}": one for name, one in models.tensors(models.randomised(vision)).items()}
    state["visual_projection.weight"] = torch.zeros(4, 128)
    writers.save(state, root / "clip_vision" / "clip_vision_h.safetensors")
    return root


FILES = {
    "wan2.1_t2v_1.3B.safetensors": ((), "text alone"),
    "wan2.2_i2v_high_noise_14B.safetensors + wan2.2_i2v_low_noise_14B.safetensors": ((1, 2), "a first frame, and a"),
    "wan2.1_i2v_480p_14B.safetensors": ((1,), "a first frame"),
    "wan2.2_ti2v_5B.safetensors": ((1,), "text, and a first frame where one is given"),
}


@pytest.mark.parametrize("name", FILES)
def test_single_files_run(single_files, tmp_path, name):
    """With the VAE of their own, and an image encoder for the one that reads it."""
    folders = {name: tmp_path / name for name in ("input", "output", "temp")}
    host = HeadlessHost(models=[single_files], chosen_device="cpu", **folders)
    frames, words = FILES[name]
    full = f"diffusion_models/{name}"
    assert {one for one in model_choices(WAN_VIDEO, host) if "/" in one} == {f"diffusion_models/{n}" for n in FILES}
    found = choose_model(ModelHandle(WAN_VIDEO, full), host)
    assert frame_inputs(found).words.startswith(words)
    given = dict(zip(("first", "last"), map(picture, frames), strict=False))
    made, fps, record = sample(ModelHandle(WAN_VIDEO, full), REQUEST, host, **given)
    assert made.shape == (5, 32, 64, 3)
    assert fps == (24 if "ti2v" in name else 16)
    assert record.get("high_noise_steps") == (1 if "high" in name else None)
    model_cache.evict_models()


def write_vision(file, width):
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    made = models.tensors(models.randomised(CLIPVisionModel(config)))
    writers.save({f"vision_model.{name}": one for name, one in made.items()}, file)


def test_the_image_encoder_is_the_one_that_the_model_reads(single_files, tmp_path):
    """Among those of other packs, by its width, then by the published name; without one the model cannot run."""
    shutil.copytree(single_files, tmp_path, dirs_exist_ok=True)
    name, folder = "diffusion_models/wan2.1_i2v_480p_14B.safetensors", tmp_path / "clip_vision"
    host = HeadlessHost(models=[tmp_path], chosen_device="cpu")
    write_vision(folder / "CLIP-ViT-L.safetensors", 64)
    write_vision(folder / "CLIP-ViT-H-laion2B.safetensors", 128)
    (encoder,) = choose_model(ModelHandle(WAN_VIDEO, name), host).place("image_encoder")
    assert encoder.name == "clip_vision_h.safetensors"
    encoder.unlink()
    (folder / "CLIP-ViT-H-laion2B.safetensors").unlink()
    assert name not in model_choices(WAN_VIDEO, host)
    with pytest.raises(PiyingError, match="not here: the CLIP-ViT-H image encoder, in models/clip_vision"):
        check_model(WAN_VIDEO, name, host)


def test_experts_that_read_frames_differently_are_no_pair(single_files, tmp_path):
    """The second one would be given no embedding of the frames, and make a video of something else."""
    shutil.copytree(single_files, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "diffusion_models"
    shutil.copy(folder / "wan2.1_i2v_480p_14B.safetensors", folder / "wan2.2_i2v_low_noise_14B.safetensors")
    listed = model_choices(WAN_VIDEO, HeadlessHost(models=[tmp_path], chosen_device="cpu"))
    assert not [name for name in listed if " + " in name]
    assert "diffusion_models/wan2.2_i2v_high_noise_14B.safetensors" in listed


def test_a_module_is_not_put_on_an_image_to_video_model(single_files, tmp_path):
    """Its base has to read the latents alone: Wan2.2's image-to-video models have the same names and widths."""
    original = names.wan_transformer(models.tensors(models.wan_transformer()))
    for folder in ("diffusion_models", "text_encoders", "vae"):
        shutil.copytree(single_files / folder, tmp_path / folder)
    module = {name: one for name, one in original.items() if name.startswith("vace")}
    writers.save(module, tmp_path / "diffusion_models" / "vace_module.safetensors")
    host = HeadlessHost(models=[tmp_path], chosen_device="cpu")
    (found,) = installed_models(WAN_VACE, host)
    assert [path.name for path in found.place("transformer")] == [
        "wan2.1_t2v_1.3B.safetensors",
        "vace_module.safetensors",
    ]


# The page


LOADER = {"model": "diffusers/I2V", "precision": "auto"}


def test_the_page_is_told_what_a_model_reads(host):
    question = {
        "class_type": "PiyingWanSample",
        "inputs": {"model": {"class_type": "PiyingLoadWanVideo", "inputs": LOADER}, "first_frame": None},
    }
    found = routes.plan(question)
    assert found["reads"] == "a first frame"
    question["inputs"].pop("first_frame")
    refused = routes.plan(question)
    assert (refused["verdict"], "first_frame is not wired" in refused["error"]) == ("wrong", True)


def test_a_model_is_used_as_it_was_published(single_files):
    """Known by what it reads and how wide it is, whatever its file is called."""
    host = HeadlessHost(models=[single_files], chosen_device="cpu")
    trained = {one.name: WAN_VIDEO.trained_on(one.name, one) for one in installed_models(WAN_VIDEO, host)}
    by_name = {name.partition("/")[2][:14]: found for name, found in trained.items()}
    assert by_name["wan2.2_ti2v_5B"].words == "1280×704, 121 frames"
    assert by_name["wan2.2_i2v_hig"].settings["cfg"] == 3.5
    assert by_name["wan2.1_i2v_480"].settings["shift"] == 3.0
    assert WAN_VIDEO.trained_on("built-in").words == "96×64, 17 frames"


def test_frames_that_a_model_cannot_read_are_refused_by_check(models_folder, tmp_path):
    """By the command, before anything runs; `auto` would take the largest model here."""
    command = [sys.executable, "-m", "runner", "workflows/image_to_video.json", "--models", str(models_folder)]
    chosen = ["--set", "Load Wan Video.model=diffusers/T2V", "--check", "--input", str(tmp_path)]
    ran = subprocess.run([*command, *chosen], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert "first_frame is wired, and diffusers/T2V makes videos from text alone" in ran.stderr


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"cfg_start": 0.8, "cfg_end": 0.2}, "cfg_start is 0.8 and cfg_end 0.2. Choose a start below the end"),
        ({"cfg_2": 0.5}, "cfg_2 is 0.5. It is 0 .as cfg., or goes from 1 to 30."),
        ({"cfg_2": 2.0, "guidance": Guidance(cfg_steps=(3.0, 2.0))}, "cfg_2 is set, and cfg_steps gives the cfg"),
        ({"num_frames": 1, "last_frame": None}, "num_frames is 1, and a first and a last frame are two"),
    ],
)
@pytest.mark.parametrize("node", [PiyingWanSample, PiyingVACESample, PiyingVACELongVideo])
def test_settings_at_odds_are_refused_before_a_run(host, node, inputs, said):
    """As the run itself would, which has read the text encoder by then."""
    is_wan = node is PiyingWanSample
    if "last_frame" in inputs and not is_wan:
        pytest.skip("VACE takes no last_frame")
    model = handle("I2V-A14B") if is_wan else ModelHandle(WAN_VACE, "built-in")
    frames = ["first_frame", *(["last_frame"] if "last_frame" in inputs else [])] if is_wan else []
    known = {name: value for name, value in inputs.items() if name != "last_frame"}
    assert re.search(said, node.refusal({"model": model, **known}, frames))
