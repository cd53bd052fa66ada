"""Models in single files, as ComfyUI's users have them: found, told apart, chosen and run."""

from __future__ import annotations

import io
import json

import pytest
import torch
from piying.core.catalog.component_sizes import folder_components, found_components
from piying.core.catalog.discovery import installed_models
from piying.core.catalog.installed_model import BUILT_IN_ROOT
from piying.core.catalog.selection import ModelHandle, check_model, choose_model, model_choices
from piying.core.checkpoints.inspect import inspect
from piying.core.errors import PiyingError
from piying.core.families.registry import family_named
from piying.core.host.headless import HeadlessHost
from piying.core.wan.family import WAN_VACE
from piying.core.wan.request import WanRequest
from piying.core.wan.run import sample
from safetensors.torch import load_file

from .formats import models, names, writers

REQUEST = WanRequest("the red cat", width=32, height=32, num_frames=5, steps=1, seed=3)
NAME = "diffusion_models/a name that says nothing.safetensors"


def spiece():
    from sentencepiece import SentencePieceTrainer

    written = io.BytesIO()
    text = ["the red cat sits on the blue sea", "a small boat"] * 5
    options = {"vocab_size": 50, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "hard_vocab_limit": False}
    SentencePieceTrainer.train(sentence_iterator=iter(text), model_writer=written, minloglevel=2, **options)
    return torch.frombuffer(bytearray(written.getvalue()), dtype=torch.uint8)


@pytest.fixture
def host(tmp_path):
    return HeadlessHost(models=[tmp_path], chosen_device="cpu")


@pytest.fixture
def folders(tmp_path):
    """ComfyUI's folders with a transformer, a text encoder with its tokenizer, and a VAE."""
    for category in ("diffusion_models", "text_encoders", "vae", "loras"):
        (tmp_path / category).mkdir()
    write_transformer(tmp_path / NAME)
    encoder = {n: t for n, t in models.tensors(models.umt5()).items() if "embed_tokens" not in n}
    writers.save(encoder | {"spiece_model": spiece()}, tmp_path / "text_encoders" / "x.safetensors")
    torch.save(names.wan_vae(models.tensors(models.wan_vae())), tmp_path / "vae" / "y.pth")
    return tmp_path


def write_transformer(path, part=lambda name: True):
    original = names.wan_transformer(models.tensors(models.wan_transformer()))
    tensors = {writers.PREFIX + name: tensor for name, tensor in original.items() if part(name)}
    return writers.save(tensors, path)


def test_a_renamed_file_is_offered_and_says_what_it_is(folders, host):
    assert model_choices(WAN_VACE, host) == ["auto", NAME, "built-in"]
    (found,) = installed_models(family_named("wan_vace"), host)
    assert found.details == "Wan2.1-VACE transformer, 0.0B, fp32, 0.0 GB"
    assert choose_model(ModelHandle(WAN_VACE), host) == found


def test_it_runs(folders, host):
    frames, record = sample(ModelHandle(WAN_VACE, NAME), REQUEST, host)
    assert frames.shape == (5, 32, 32, 3)
    assert record["model"] == NAME


def test_a_checkpoint_of_all_components_runs_alone(folders, host):
    """ComfyUI's "Save Checkpoint" writes one: the same frames as from the files that it is made of."""
    expected, _ = sample(ModelHandle(WAN_VACE, NAME), REQUEST, host)
    tensors = load_file(folders / NAME)
    encoder = load_file(folders / "text_encoders" / "x.safetensors")
    tensors["text_encoders.umt5xxl.spiece_model"] = encoder.pop("spiece_model")
    tensors["text_encoders.umt5xxl.logit_scale"] = torch.tensor(4.6055)
    tensors |= {f"text_encoders.umt5xxl.transformer.{name}": tensor for name, tensor in encoder.items()}
    tensors |= {f"vae.{name}": tensor for name, tensor in torch.load(folders / "vae" / "y.pth").items()}
    for file in (NAME, "text_encoders/x.safetensors", "vae/y.pth"):
        (folders / file).unlink()
    path = writers.save(tensors, folders / "diffusion_models" / "all.safetensors")
    found = inspect(path)
    assert (found.readable, found.needs) == (True, ())
    assert model_choices(WAN_VACE, host) == ["auto", "diffusion_models/all.safetensors", "built-in"]
    frames, _ = sample(ModelHandle(WAN_VACE, "diffusion_models/all.safetensors"), REQUEST, host)
    assert torch.equal(frames, expected)


def test_a_folder_of_one_component_is_named_as_such(folders, host):
    """As Wan-AI publishes its 14B model: shards beside the configuration of a class of its own."""
    (folders / "diffusers" / "x").mkdir(parents=True)
    (folders / "diffusers" / "x" / "config.json").write_text('{"_class_name": "VaceWanModel"}')
    with pytest.raises(PiyingError, match="holds one component alone, a VaceWanModel; models are read from"):
        check_model(WAN_VACE, "diffusers/x", host)


def test_its_sizes_are_those_of_the_same_model_in_a_folder(folders, host):
    (found,) = installed_models(family_named("wan_vace"), host)
    folder = folders / "as a folder"
    for part, model in (("transformer", models.wan_transformer()), ("vae", models.wan_vae())):
        model.save_pretrained(folder / part)
    models.umt5().save_pretrained(folder / "text_encoder")
    assert found_components(found, (rules := WAN_VACE.rules_of(found))) == folder_components(folder, rules)


def test_a_module_is_offered_with_its_base(folders, host):
    (folders / NAME).unlink()
    write_transformer(folders / "diffusion_models" / "base.safetensors", lambda name: not name.startswith("vace"))
    assert model_choices(WAN_VACE, host) == ["auto", "built-in"]
    write_transformer(folders / "diffusion_models" / "module.safetensors", lambda name: name.startswith("vace"))
    assert model_choices(WAN_VACE, host) == ["auto", "diffusion_models/module.safetensors", "built-in"]
    sample(ModelHandle(WAN_VACE, "diffusion_models/module.safetensors"), REQUEST, host)


def test_what_is_not_there_is_named(folders, host):
    (folders / "vae" / "y.pth").unlink()
    with pytest.raises(PiyingError, match="cannot run alone; not here: the Wan2.1 VAE, in models/vae"):
        choose_model(ModelHandle(WAN_VACE, NAME), host)
    assert choose_model(ModelHandle(WAN_VACE), host).is_built_in, "auto takes what can run"


def test_a_text_encoder_of_another_width_is_refused_and_one_that_fits_taken(folders, host):
    other = models.tensors(models.umt5(d_model=64))
    wide = {n: t for n, t in other.items() if "embed_tokens" not in n} | {"spiece_model": spiece()}
    path = writers.save(wide, folders / "text_encoders" / "a wide one.safetensors")  # by name before x.safetensors
    found = choose_model(ModelHandle(WAN_VACE, NAME), host)
    assert found.place("text_encoder") == (folders / "text_encoders" / "x.safetensors",)
    (folders / "text_encoders" / "x.safetensors").unlink()
    said = rf"{path.name}: this text encoder has a width of 64, and the transformer reads 48\. Put the UMT5-XXL"
    with pytest.raises(PiyingError, match=said):
        check_model(WAN_VACE, NAME, host)
    with pytest.raises(PiyingError, match=said):
        choose_model(ModelHandle(WAN_VACE, NAME), host)
    assert model_choices(WAN_VACE, host) == ["auto", "built-in"]


def test_of_two_vaes_the_pruned_one_is_taken_last(folders, host):
    """Unless it lies beside the transformer, as everything that belongs to it may."""
    from diffusers import AutoencoderKLWan

    light = names.wan_vae(models.tensors(models.randomised(AutoencoderKLWan(base_dim=24))))
    path = writers.save(light, folders / "vae" / "lightvaew2_1.safetensors")  # by name before y.pth
    assert choose_model(ModelHandle(WAN_VACE, NAME), host).place("vae") == (folders / "vae" / "y.pth",)
    beside = path.rename(folders / "diffusion_models" / path.name)
    assert choose_model(ModelHandle(WAN_VACE, NAME), host).place("vae") == (beside,)
    beside.rename(path)
    (folders / "vae" / "y.pth").unlink()
    assert choose_model(ModelHandle(WAN_VACE, NAME), host).place("vae") == (path,)


def test_a_folder_lends_its_parts(folders, host):
    (folders / "vae" / "y.pth").unlink()
    target = folders / "diffusers" / "other"
    for part in ("text_encoder", "vae", "tokenizer"):
        (target / part).mkdir(parents=True)
        for file in (BUILT_IN_ROOT / "wan_vace" / part).iterdir():
            (target / part / file.name).write_bytes(file.read_bytes())
    (target / "model_index.json").write_text(json.dumps({"_class_name": "WanVACEPipeline"}))
    found = next(one for one in installed_models(family_named("wan_vace"), host) if one.parts)
    assert found.place("vae") == ((target / "vae").resolve(),)
    assert found.lacking == ()


def test_a_file_of_another_family_says_what_it_is(folders, host):
    clip = {"text_model.embeddings.token_embedding.weight": torch.zeros(10, 768)}
    writers.save(clip, folders / "text_encoders" / "clip.safetensors")
    writers.save({"a.lora_A.weight": torch.zeros(2, 2)}, folders / "diffusion_models" / "b.safetensors")
    for name, what in (
        ("text_encoders/clip.safetensors", "a CLIP-L text encoder"),
        ("diffusion_models/b.safetensors", "a LoRA"),
    ):
        with pytest.raises(PiyingError, match=f"cannot be used: .*is {what}"):
            check_model(WAN_VACE, name, host)
    assert model_choices(WAN_VACE, host) == ["auto", NAME, "built-in"]


def test_damaged_files_and_changes_are_seen(folders, host):
    path = folders / NAME
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    assert model_choices(WAN_VACE, host) == ["auto", "built-in"]
    with pytest.raises(PiyingError, match="cut short or damaged"):
        check_model(WAN_VACE, NAME, host)
    path.write_bytes(whole)
    assert NAME in model_choices(WAN_VACE, host)


def test_the_loader_shows_family_size_and_format(folders, host):
    from piying.core.host.current import set_host
    from piying.nodes.wan_vace import PiyingLoadWanVACE

    set_host(host)
    try:
        choices, options = PiyingLoadWanVACE.INPUT_TYPES()["required"]["model"]
    finally:
        set_host(None)
    assert NAME in choices
    assert f"{NAME}: Wan2.1-VACE transformer, 0.0B, fp32, 0.0 GB" in options["tooltip"]
