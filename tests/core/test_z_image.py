"""Z-Image: images are those of diffusers' pipelines; folders, single files, LoRAs, FP8, streaming, plans."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import piying
import pytest
import torch
from piying.core.catalog.component_sizes import listed_components
from piying.core.catalog.discovery import installed_models
from piying.core.catalog.installed_model import BUILT_IN_ROOT
from piying.core.catalog.selection import ModelHandle, check_model, choose_model, model_choices
from piying.core.checkpoints import apply_lora, load_component
from piying.core.checkpoints.inspect import inspect
from piying.core.errors import PiyingError
from piying.core.executor import model_cache
from piying.core.executor.streaming import streamed
from piying.core.host.current import set_host
from piying.core.host.headless import HeadlessHost
from piying.core.planner.machine import synthetic
from piying.core.planner.plan import plan
from piying.core.preview import FlowPreview
from piying.core.quantization.fp8_linear import Fp8Linear
from piying.core.z_image.family import Z_IMAGE
from piying.core.z_image.request import ZImageRequest
from piying.core.z_image.run import TEMPLATE, sample
from safetensors.torch import load_file

from .formats import models, names, writers

FOLDER = "diffusers/Z-Image-toy"
FILE = "diffusion_models/renamed.safetensors"
REQUEST = ZImageRequest("一只红猫 the red cat", "blue", 80, 64, steps=3, cfg=1.0, shift=3.0, seed=7)
NODES = piying.NODE_CLASS_MAPPINGS
RANK = 4


def random_parts():
    """Return modules with random weights that go together."""
    return {
        "transformer": models.z_image_transformer(),
        "text_encoder": models.qwen3(vocab_size=1101, eos_token_id=2, num_hidden_layers=3).model,
        "vae": models.flux_vae(),
    }


@pytest.fixture(scope="module")
def parts():
    return random_parts()


@pytest.fixture
def host(tmp_path):
    host = HeadlessHost(models=[tmp_path], chosen_device="cpu")
    set_host(host)
    yield host
    set_host(None)
    model_cache.evict_models()


def tokenizer_files(folder):
    folder.mkdir(parents=True)
    for file in (BUILT_IN_ROOT / "prompt").iterdir():
        if "tokenizer" in file.name or file.suffix == ".jinja":
            shutil.copy(file, folder)


def write_folder(path, parts):
    """Write a folder as ZImagePipeline saves one."""
    for name, module in parts.items():
        module.save_pretrained(path / name)
    tokenizer_files(path / "tokenizer")
    index = {
        "_class_name": "ZImagePipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3Model"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", "ZImageTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (path / "model_index.json").write_text(json.dumps(index))
    (path / "scheduler").mkdir()
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))


@pytest.fixture
def folder(tmp_path, parts):
    """A folder as ZImagePipeline saves one."""
    write_folder(tmp_path / FOLDER, parts)
    return tmp_path / FOLDER


@pytest.fixture
def files(tmp_path, parts):
    """The single files ComfyUI takes, and a Qwen3 folder that lends its tokenizer."""
    for name in ("diffusion_models", "text_encoders", "vae"):
        (tmp_path / name).mkdir()
    transformer = names.z_image_transformer(models.tensors(parts["transformer"]))
    writers.save(transformer, tmp_path / FILE)
    encoder = {f"model.{name}": tensor for name, tensor in models.tensors(parts["text_encoder"]).items()}
    writers.save(encoder, tmp_path / "text_encoders" / "qwen_3_4b.safetensors")
    vae = names.kl_vae(models.tensors(parts["vae"]), levels=4)
    writers.save(vae, tmp_path / "vae" / "ae.safetensors")
    other = tmp_path / "LLM" / "Qwen3-toy"
    tokenizer_files(other)
    models.qwen3(vocab_size=1101).save_pretrained(other)
    return tmp_path


def plain(parts, request, image=None):
    """Return what diffusers' pipeline of the same modules draws."""
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImageImg2ImgPipeline, ZImagePipeline
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BUILT_IN_ROOT / "prompt")
    tokenizer.chat_template = TEMPLATE
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=request.shift)
    made = ZImagePipeline if image is None else ZImageImg2ImgPipeline
    pipeline = made(scheduler=scheduler, tokenizer=tokenizer, **parts)
    more = {} if image is None else {"image": image, "strength": request.strength}
    return torch.from_numpy(
        pipeline(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            width=request.width,
            height=request.height,
            num_inference_steps=request.steps,
            guidance_scale=request.cfg - 1,
            generator=torch.Generator().manual_seed(request.seed),
            output_type="np",
            **more,
        ).images
    )


def picture(height=64, width=80):
    across = np.linspace(0, 1, width, dtype=np.float32)[None, :].repeat(height, 0)
    return torch.from_numpy(np.stack([across, across[:, ::-1], across * across], -1))[None]


# Against diffusers


@pytest.mark.parametrize("cfg", [1.0, 4.5])
@pytest.mark.parametrize("shift", [3.0, 6.0])
def test_an_image_of_text_is_the_plain_pipelines(parts, folder, host, cfg, shift):
    request = ZImageRequest("一只红猫 the red cat", "blue", 80, 64, steps=3, cfg=cfg, shift=shift, seed=7)
    image, record = sample(ModelHandle(Z_IMAGE), request, host)
    assert image.shape == (1, 64, 80, 3) and image.dtype == torch.float32
    assert torch.equal(image, plain(parts, request))
    assert image.std() > 0.01
    assert (record["model"], record["dtype"], record["seed"]) == (FOLDER, "fp32", 7)


def test_weights_and_what_is_too_long_are_told(parts, folder, host, caplog):
    request = replace(REQUEST, prompt="(the red:1.2) cat " * 200, steps=1)
    assert torch.equal(sample(ModelHandle(Z_IMAGE), request, host)[0], plain(parts, request))
    told = [entry.getMessage() for entry in caplog.records if entry.getMessage().startswith("The text encoder")]
    assert told[0] == "The text encoder knows no weights: '(the red:1.2)' is read as it is written."
    assert told[1].startswith("The text encoder reads 512 tokens. This prompt has ")
    assert len(told) == 2


@pytest.mark.parametrize(("strength", "cfg"), [(0.6, 1.0), (1.0, 1.0), (0.3, 3.0)])
def test_an_image_of_a_picture_is_the_plain_pipelines(parts, folder, host, strength, cfg):
    request = ZImageRequest("the red cat", "", 80, 64, steps=4, cfg=cfg, shift=3.0, seed=3, strength=strength)
    given = picture()
    image, _ = sample(ModelHandle(Z_IMAGE), request, host, given)
    assert torch.equal(image, plain(parts, request, given.permute(0, 3, 1, 2)))
    assert not torch.equal(image, sample(ModelHandle(Z_IMAGE), request, host)[0])


def test_single_files_draw_what_the_folder_draws(parts, files, host):
    found = next(one for one in installed_models(Z_IMAGE, host) if one.name == FILE)
    assert (found.lacking, found.details) == ((), "Z-Image transformer, 0.0B, fp32, 0.0 GB")
    image, record = sample(ModelHandle(Z_IMAGE), REQUEST, host)
    assert record["model"] == FILE
    assert torch.equal(image, plain(parts, REQUEST))


def test_a_file_with_the_names_of_diffusers_draws_the_same(parts, files, host):
    writers.save(models.tensors(parts["transformer"]), files / FILE)
    assert torch.equal(sample(ModelHandle(Z_IMAGE), REQUEST, host)[0], plain(parts, REQUEST))


def test_the_configuration_is_told_from_the_shapes(parts, files):
    loaded = load_component("transformer", files / FILE)
    told = {name: loaded.config[name] for name in models.Z_IMAGE}
    assert told == models.Z_IMAGE


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_gguf(parts, files, host, kind):
    pytest.importorskip("gguf")
    tensors = names.z_image_transformer(models.tensors(parts["transformer"]))
    path = files / FILE.replace("safetensors", "gguf")
    writers.gguf(tensors, path, kind)
    (files / FILE).unlink()
    image, record = sample(ModelHandle(Z_IMAGE), REQUEST, host)
    assert record["model"].endswith(".gguf")
    assert (image - plain(parts, REQUEST)).abs().mean() < 0.2


def test_scaled_fp8_files_run(parts, files, host):
    tensors = names.z_image_transformer(models.tensors(parts["transformer"]))
    layers = {name: tensor for name, tensor in tensors.items() if ".attention." in name and tensor.ndim == 2}
    small = writers.comfy_new({f"block.{name}": tensor for name, tensor in layers.items()})
    writers.save(tensors | {n.removeprefix("block."): t for n, t in small.items()}, files / FILE)
    loaded = load_component("transformer", files / FILE, rules=Z_IMAGE.rules["transformer"])
    assert any(isinstance(module, Fp8Linear) for module in loaded.modules())
    image, _ = sample(ModelHandle(Z_IMAGE), REQUEST, host)
    assert (image - plain(parts, REQUEST)).abs().mean() < 0.1


def test_the_preview_shows_where_the_steps_lead():
    """On a straight path from noise to a picture, the guess is the picture from the second step on."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(4)
    clean, noise = torch.randn(2, 1, 16, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()
    preview, latents, guesses = FlowPreview(torch.zeros(17, 3), scheduler), noise, []
    for timestep in scheduler.timesteps:
        latents = scheduler.step(noise - clean, timestep, latents, return_dict=False)[0]
        guesses.append(preview.of(latents).latents)
    for guess in guesses[1:]:
        assert torch.allclose(guess, clean, atol=1e-5)


# Memory


def test_fp8_casts_the_blocks_and_keeps_the_modulation(parts, folder, host):
    full = sample(ModelHandle(Z_IMAGE), REQUEST, host)[0]
    image, record = sample(ModelHandle(Z_IMAGE, memory="fp8"), REQUEST, host)
    assert record["storage"] == "fp8"
    assert 0 < (image - full).abs().mean() < 0.1
    loaded = load_component(
        "transformer", folder / "transformer", storage="fp8", rules=Z_IMAGE.rules["transformer"], dtype="fp32"
    )
    cast = {name for name, module in loaded.named_modules() if isinstance(module, Fp8Linear)}
    assert {"layers.0.attention.to_q", "noise_refiner.0.feed_forward.w1"} <= cast
    assert not any("adaLN" in name for name in cast)


def test_streaming_changes_nothing(parts):
    transformer = models.z_image_transformer()
    blocks = [*transformer.noise_refiner, *transformer.context_refiner, *transformer.layers]
    generator = torch.Generator().manual_seed(1)
    latents = [torch.randn(16, 1, 6, 8, generator=generator)]
    text = [torch.randn(5, 128, generator=generator)]
    with torch.no_grad():
        expected = transformer(latents, torch.tensor([0.4]), text, return_dict=False)[0][0]
        with streamed(transformer, blocks, "cpu"):
            found = transformer(latents, torch.tensor([0.4]), text, return_dict=False)[0][0]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("gigabytes", [4, 6, 8, 16, 24])
def test_every_card_has_a_plan(gigabytes):
    work = Z_IMAGE.work({"image": True, "steps": 8}, ModelHandle(Z_IMAGE))
    made = plan(Z_IMAGE.phases(listed_components("z-image-turbo-bf16"), work), synthetic(gigabytes, 32))
    assert made.fits
    assert [phase.phase for phase in made.phases] == ["encode", "condition", "sample", "decode"]
    assert made.phase("sample").placement == ("streamed" if gigabytes < 8 else "resident")


def test_what_fits_instead_is_told(tmp_path):
    work = Z_IMAGE.work({"width": 2048, "height": 1024, "cfg": 4.0}, ModelHandle(Z_IMAGE))
    components, handle = listed_components("z-image-turbo-bf16"), ModelHandle(Z_IMAGE)
    told = Z_IMAGE.what_fits(Z_IMAGE.fitting(components, synthetic(2, 32), handle, work), work)
    width, height = map(int, re.fullmatch(r"What would fit: (\d+)×(\d+)\.", told).groups())
    assert width == 2 * height and width < 2048


# LoRAs


def lora(path, spelling):
    generator = torch.Generator().manual_seed(5)
    shapes = {"layers.0.attention.to_q": (128, 128), "layers.1.feed_forward.w2": (128, 341)}
    prefix = {"diffusers": "transformer.", "original": "diffusion_model.", "kohya": "lora_unet_"}[spelling]
    down, up = ("lora_down", "lora_up") if spelling == "kohya" else ("lora_A", "lora_B")
    tensors = {}
    for layer, (out, into) in shapes.items():
        name = layer.replace(".", "_") if spelling == "kohya" else layer
        tensors[f"{prefix}{name}.{down}.weight"] = torch.randn(RANK, into, generator=generator) * 2
        tensors[f"{prefix}{name}.{up}.weight"] = torch.randn(out, RANK, generator=generator) * 2
    path.parent.mkdir(exist_ok=True)
    writers.save(tensors, path)
    return {
        layer: tensors[f"{prefix}{name}.{up}.weight"] @ tensors[f"{prefix}{name}.{down}.weight"]
        for layer in shapes
        for name in [layer.replace(".", "_") if spelling == "kohya" else layer]
    }


@pytest.mark.parametrize("spelling", ["diffusers", "original", "kohya"])
def test_a_lora_gives_what_merged_weights_give(parts, folder, host, tmp_path, spelling):
    inner = parts["transformer"].layers[0].feed_forward.w2.weight.shape[1]
    assert inner == 341
    products = lora(tmp_path / "loras" / "style.safetensors", spelling)
    handle, steps, cfg = NODES["PiyingZImageLoRA"]().add(ModelHandle(Z_IMAGE), "style.safetensors", 0.5)
    assert (steps, cfg) == (8, 1.0)
    before = sample(ModelHandle(Z_IMAGE), REQUEST, host)[0]
    image, record = sample(handle, REQUEST, host)
    merged = models.z_image_transformer()
    for layer, product in products.items():
        merged.get_submodule(layer).weight += 0.5 * product
    expected = plain({**parts, "transformer": merged}, REQUEST)
    assert (image - expected).abs().max() < 0.01 * (image - before).abs().max()
    assert torch.equal(sample(ModelHandle(Z_IMAGE), REQUEST, host)[0], before)
    assert "style" in str(record["loras"])


@pytest.mark.parametrize("name", ["diffusion_model.layers.0.attention.qkv", "lora_unet_layers_0_attention_qkv"])
def test_a_lora_of_joined_projections_is_told_apart(parts, folder, host, tmp_path, name):
    generator = torch.Generator().manual_seed(5)
    down, up = torch.randn(RANK, 128, generator=generator) * 2, torch.randn(384, RANK, generator=generator) * 2
    (tmp_path / "loras").mkdir()
    writers.save({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, tmp_path / "loras" / "a.safetensors")
    handle = NODES["PiyingZImageLoRA"]().add(ModelHandle(Z_IMAGE), "a.safetensors", 1.0)[0]
    merged = models.z_image_transformer()
    for part, rows in zip("qkv", (up @ down).chunk(3), strict=True):
        merged.layers[0].attention.get_submodule(f"to_{part}").weight += rows
    before, expected = plain(parts, REQUEST), plain({**parts, "transformer": merged}, REQUEST)
    image = sample(handle, REQUEST, host)[0]
    assert (image - expected).abs().max() < 0.01 * (image - before).abs().max()


# What is missing or wrong


@pytest.mark.parametrize("part", ["text_encoder", "transformer", "vae"])
def test_what_is_no_number_stops_in_its_phase(folder, host, part):
    tensors = {"text_encoder": "layers.0.self_attn.v_proj.weight", "transformer": "all_final_layer.2-1.linear.weight"}
    (path,) = (folder / part).glob("*.safetensors")
    weights = load_file(path)
    weights[tensors.get(part, "decoder.conv_in.weight")].fill_(3e38)
    writers.save(weights, path, {"format": "pt"})
    phase = {"text_encoder": "Encoding the prompt", "transformer": "Sampling", "vae": "Decoding"}[part]
    words = rf"{phase}: the {part.replace('_', ' ')} in fp32 gave values that are no numbers \(NaN or infinity\)"
    with pytest.raises(PiyingError, match=words):
        sample(ModelHandle(Z_IMAGE), REQUEST, host)


def test_a_picture_that_is_no_number_is_refused(folder, host):
    picture = torch.full((1, 64, 80, 3), float("nan"))
    with pytest.raises(PiyingError, match=r"image holds values that are no numbers \(NaN or infinity\). Look at"):
        sample(ModelHandle(Z_IMAGE), REQUEST, host, picture)


def test_without_a_model_it_says_how_to_get_one(host):
    assert model_choices(Z_IMAGE, host) == ["auto"]
    with pytest.raises(
        PiyingError, match=r"no Z-Image model is installed. Fetch one with `python install.py --models"
    ):
        choose_model(ModelHandle(Z_IMAGE), host)


@pytest.mark.parametrize(
    ("lost", "told"),
    [
        ("text_encoders/qwen_3_4b.safetensors", "the Qwen3-4B text encoder, in models/text_encoders"),
        ("vae/ae.safetensors", r"the Flux VAE \(ae.safetensors\), in models/vae"),
        ("LLM/Qwen3-toy/tokenizer_config.json", "the tokenizer of a Qwen3 model, in models/tokenizers or in a Qwen3"),
    ],
)
@pytest.mark.parametrize("model", ["auto", FILE])
def test_what_a_file_lacks_is_named(files, host, lost, told, model):
    (files / lost).unlink()
    with pytest.raises(PiyingError, match=f"cannot run alone; not here: .*{told}"):
        choose_model(ModelHandle(Z_IMAGE, model), host)


def test_a_checkpoint_of_all_components_needs_a_tokenizer_alone(files, host):
    expected, _ = sample(ModelHandle(Z_IMAGE, FILE), REQUEST, host)
    places = {
        "model.diffusion_model.": FILE,
        "text_encoders.qwen3_4b.transformer.": "text_encoders/qwen_3_4b.safetensors",
        "vae.": "vae/ae.safetensors",
    }
    tensors = {prefix + name: t for prefix, file in places.items() for name, t in load_file(files / file).items()}
    for file in places.values():
        (files / file).unlink()
    path = files / "diffusion_models" / "all.safetensors"
    writers.save(tensors | {"text_encoders.qwen3_4b.logit_scale": torch.tensor(4.6055)}, path)
    image, _ = sample(ModelHandle(Z_IMAGE, "diffusion_models/all.safetensors"), REQUEST, host)
    assert torch.equal(image, expected)


@pytest.mark.parametrize("file", ["vocab.json", "tokenizer.json"])
def test_a_tokenizer_without_a_model_lends_itself(files, host, file):
    """Hubs have vocab.json and merges.txt; transformers 5 saves one tokenizer.json in their place."""
    shutil.rmtree(files / "LLM")
    folder = files / "tokenizers" / "qwen"
    folder.mkdir(parents=True)
    words = {str(number): number for number in range(1001)}
    (folder / file).write_text(json.dumps(words if file == "vocab.json" else {"model": {"vocab": words}}))
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    found = choose_model(ModelHandle(Z_IMAGE), host)
    assert found.place("tokenizer") == (folder,)
    settings.write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    with pytest.raises(PiyingError, match="not here: the tokenizer of a Qwen3 model"):
        choose_model(ModelHandle(Z_IMAGE), host)


def test_an_encoder_of_another_width_is_not_taken(files, host):
    other = models.qwen3(vocab_size=1101, hidden_size=64).model
    tensors = {f"model.{name}": tensor for name, tensor in models.tensors(other).items()}
    writers.save(tensors, files / "text_encoders" / "qwen_3_4b.safetensors")
    with pytest.raises(PiyingError, match="not here: the Qwen3-4B text encoder"):
        choose_model(ModelHandle(Z_IMAGE), host)


@pytest.mark.parametrize(
    ("shape", "strength", "told"),
    [
        ((1, 64, 80, 3), 0.0, "strength is 0. It goes from above 0 to 1"),
        ((0, 64, 80, 3), 0.5, r"image has the shape \[0, 64, 80, 3\]"),
        ((64, 80, 3), 0.5, r"image has the shape \[64, 80, 3\]"),
    ],
)
def test_pictures_that_cannot_be_used(folder, host, shape, strength, told):
    request = ZImageRequest("a", width=80, height=64, steps=2, strength=strength)
    with pytest.raises(PiyingError, match=told):
        sample(ModelHandle(Z_IMAGE), request, host, torch.zeros(shape))


def test_a_picture_of_another_shape_is_cut_and_scaled(folder, host):
    request = ZImageRequest("a", width=80, height=64, steps=2, seed=1)
    wide = torch.cat([torch.zeros(1, 24, 8, 3), picture(24, 32), torch.zeros(1, 24, 8, 3)], 2)
    image = sample(ModelHandle(Z_IMAGE), request, host, wide)[0]
    assert image.shape == (1, 64, 80, 3)
    with_alpha = torch.cat([wide, torch.ones(1, 24, 48, 1)], 3)
    assert torch.equal(image, sample(ModelHandle(Z_IMAGE), request, host, with_alpha)[0])


# The nodes


def test_the_nodes_draw(folder, host):
    (handle,) = NODES["PiyingLoadZImage"]().load("auto", "auto")
    widgets = {"prompt": "a", "negative_prompt": "", "width": 80, "height": 64, "steps": 2, "cfg": 1.0, "shift": 3.0}
    shown = NODES["PiyingZImage"]().draw(handle, image=picture(), seed=2, strength=0.5, **widgets)
    assert shown["result"][0].shape == (1, 64, 80, 3)


def test_a_size_it_cannot_draw_is_told_before_the_run():
    check = NODES["PiyingZImage"].VALIDATE_INPUTS
    assert check(1024, 768) is True
    assert check(1000, 768) == "width is 1000. Z-Image takes multiples of 16 from 64 to 2048: use 992 or 1008."
    assert check(None, 4096).startswith("height is 4096.")


def test_memory_plan_shows_the_run_of_a_picture(folder, host):
    (handle,) = NODES["PiyingLoadZImage"]().load("auto", "auto")
    found = NODES["PiyingZImage"]().plan_memory(handle, ("image",), width=80, height=64, steps=2, cfg=1.0, prompt="a")
    assert [phase.phase for phase in found.plan.phases] == ["encode", "condition", "sample", "decode"]
    found = NODES["PiyingZImage"]().plan_memory(handle, width=80, height=64, steps=2, cfg=1.0)
    assert [phase.phase for phase in found.plan.phases] == ["encode", "sample", "decode"]
    assert NODES["PiyingMemoryPlan"].INPUT_TYPES()["optional"]["z_image"][0] == "Z_IMAGE"


def test_the_encoder_s_own_folder_is_inspected_as_it_is_loaded(folder):
    """Written by save_pretrained of its class, whose names lack those of the model around it."""
    found = inspect(folder / "text_encoder")
    assert (found.what, found.reason) == ("a language model", "")


def test_too_few_places_are_told_before_a_run(folder, host):
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"axes_lens": [130, 512, 512]}))
    with pytest.raises(PiyingError, match="axes_lens .* have no 544 places for a text"):
        check_model(Z_IMAGE, FOLDER, host)


def test_a_bias_that_no_layer_has_is_left_out_alone(parts, tmp_path):
    made = lora(tmp_path / "loras" / "plain.safetensors", "original")
    tensors = load_file(tmp_path / "loras" / "plain.safetensors")
    tensors |= {f"diffusion_model.{layer}.diff_b": torch.ones(change.shape[0]) for layer, change in made.items()}
    path = writers.save(models.tensors(parts["transformer"]), tmp_path / "model.safetensors")
    found = []
    for file in (tmp_path / "loras" / "plain.safetensors", writers.save(tensors, tmp_path / "x.safetensors")):
        model = load_component("transformer", path)
        applied = apply_lora(model, file)
        layer = model.get_submodule("layers.0.attention.to_q")
        found.append((layer(torch.eye(128)), applied.left_out))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == ""
    assert "2 with a bias that the layer does not have" in found[1][1]
