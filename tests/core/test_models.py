"""Which models are found, which one `auto` takes, and what is said of a folder that cannot be read."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from piying.core.catalog.discovery import installed_models
from piying.core.catalog.installed_model import BUILT_IN_ROOT, InstalledModel
from piying.core.catalog.selection import ModelHandle, choose_model, model_choices
from piying.core.errors import PiyingError
from piying.core.executor.model_cache import evict_models
from piying.core.families.diffusion_model import ModelParts
from piying.core.families.registry import family_named
from piying.core.host.headless import HeadlessHost
from piying.core.hunyuan_dit.family import HUNYUAN_DIT
from piying.core.prompting.family import PROMPT
from piying.core.wan.family import WAN_VACE
from piying.core.wan.request import WanRequest
from piying.core.wan.run import sample

REQUEST = WanRequest("x", width=32, height=32, num_frames=5, steps=1)


@pytest.fixture
def models(tmp_path):
    """A ComfyUI-like models folder with one model of each family."""
    shutil.copytree(BUILT_IN_ROOT / "wan_vace", tmp_path / "diffusers" / "Wan-AI" / "Wan2.1-VACE-1.3B-diffusers")
    shutil.copytree(BUILT_IN_ROOT / "hunyuan_dit", tmp_path / "diffusers" / "HunyuanDiT")
    shutil.copytree(BUILT_IN_ROOT / "prompt", tmp_path / "LLM" / "Qwen3-0.6B")
    return tmp_path


def host(*folders):
    return HeadlessHost(models=folders, chosen_device="cpu")


def test_each_family_finds_its_own(models):
    assert model_choices(WAN_VACE, host(models)) == [
        "auto",
        "diffusers/Wan-AI/Wan2.1-VACE-1.3B-diffusers",
        "built-in",
    ]
    assert model_choices(HUNYUAN_DIT, host(models)) == ["auto", "diffusers/HunyuanDiT", "built-in"]
    assert model_choices(PROMPT, host(models)) == ["auto", "LLM/Qwen3-0.6B", "built-in"]


def test_a_folder_of_models_needs_no_categories(models):
    names = model_choices(HUNYUAN_DIT, host(models / "diffusers"))
    assert names == ["auto", "HunyuanDiT", "built-in"]


def test_auto_takes_the_real_one(models):
    found = choose_model(ModelHandle(WAN_VACE), host(models))
    assert found.name == "diffusers/Wan-AI/Wan2.1-VACE-1.3B-diffusers"
    frames, record = sample(ModelHandle(WAN_VACE), REQUEST, host(models))
    assert record["model"] == found.name
    assert frames.shape == (5, 32, 32, 3)


def test_auto_takes_the_largest_that_fits_the_memory(models, monkeypatch):
    large = models / "diffusers" / "large"
    shutil.copytree(BUILT_IN_ROOT / "wan_vace", large)
    (large / "transformer" / "more.safetensors").write_bytes(b"\0" * 4_000_000)
    assert choose_model(ModelHandle(WAN_VACE), host(models)).name == "diffusers/large"
    monkeypatch.setattr("piying.core.planner.machine.memory_bytes", lambda device: 3_000_000)
    assert choose_model(ModelHandle(WAN_VACE), host(models)).name.endswith("1.3B-diffusers")


def test_without_models_one_line_says_so(tmp_path, caplog):
    assert choose_model(ModelHandle(WAN_VACE), host(tmp_path)).is_built_in
    (message,) = [record.getMessage() for record in caplog.records]
    assert "built-in" in message
    assert "Wan-AI/Wan2.1-VACE-1.3B-diffusers" in message


def test_names_of_other_systems_are_understood(models):
    handle = ModelHandle(WAN_VACE, "diffusers\\Wan-AI\\Wan2.1-VACE-1.3B-diffusers")
    assert choose_model(handle, host(models)).path.name == "Wan2.1-VACE-1.3B-diffusers"


def test_a_file_that_is_replaced_is_another_model_though_its_time_is_the_same(models):
    file = models / "diffusers" / "Wan-AI" / "Wan2.1-VACE-1.3B-diffusers" / "transformer" / "x.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    found = []
    for content in (b"one", b"two"):
        file.write_bytes(content)
        os.utime(file, ns=(10**18, 10**18))
        parts = ModelParts(WAN_VACE, InstalledModel("x", file.parents[1], 0), host(models))
        found.append(parts.identity("transformer"))
    assert found[0] != found[1]


def test_a_name_without_its_folder_stands_for_the_one_model_of_that_name(models, caplog):
    caplog.set_level("INFO")
    chosen = choose_model(ModelHandle(WAN_VACE, "Wan2.1-VACE-1.3B-diffusers"), host(models))
    assert chosen.name == "diffusers/Wan-AI/Wan2.1-VACE-1.3B-diffusers"
    assert "is not here under this name: using diffusers/Wan-AI/Wan2.1-VACE-1.3B-diffusers" in caplog.text
    shutil.copytree(BUILT_IN_ROOT / "wan_vace", models / "diffusers" / "again" / "Wan2.1-VACE-1.3B-diffusers")
    with pytest.raises(PiyingError, match="'Wan2.1-VACE-1.3B-diffusers' is not installed. Here are: auto"):
        choose_model(ModelHandle(WAN_VACE, "Wan2.1-VACE-1.3B-diffusers"), host(models))


def test_an_unknown_name_lists_what_is_here(models):
    with pytest.raises(PiyingError, match="model 'wan9' is not installed. Here are: auto, diffusers/.*built-in"):
        choose_model(ModelHandle(WAN_VACE, "wan9"), host(models))


def test_an_unreadable_index_is_no_model(models):
    (models / "diffusers" / "HunyuanDiT" / "model_index.json").write_text("{not json")
    assert installed_models(family_named("hunyuan_dit"), host(models)) == []


def test_a_model_whose_fetch_was_stopped_is_not_taken(models):
    folder = models / "diffusers" / "HunyuanDiT"
    (folder / "transformer").mkdir(exist_ok=True)
    (folder / "transformer" / "model.safetensors.part").write_bytes(b"half")
    assert installed_models(family_named("hunyuan_dit"), host(models)) == []
    assert choose_model(ModelHandle(HUNYUAN_DIT), host(models)).is_built_in
    with pytest.raises(PiyingError, match="not all here yet: fetch it again"):
        choose_model(ModelHandle(HUNYUAN_DIT, "diffusers/HunyuanDiT"), host(models))


def test_a_folder_that_is_no_such_model_says_why(models):
    index = models / "diffusers" / "HunyuanDiT" / "model_index.json"
    with pytest.raises(PiyingError, match="is a HunyuanDiTPipeline, not a WanVACEPipeline"):
        choose_model(ModelHandle(WAN_VACE, "diffusers/HunyuanDiT"), host(models))
    index.write_text("{not json")
    with pytest.raises(PiyingError, match=r"model_index.json cannot be read\. Here are: auto, built-in"):
        choose_model(ModelHandle(HUNYUAN_DIT, "diffusers/HunyuanDiT"), host(models))
    index.unlink()
    with pytest.raises(PiyingError, match="has neither model_index.json nor config.json"):
        choose_model(ModelHandle(HUNYUAN_DIT, "diffusers/HunyuanDiT"), host(models))


def damage_config(folder):
    (folder / "transformer" / "config.json").write_text("{")


def damage_weights(folder):
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def remove_weights(folder):
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()


def remove_component(folder):
    shutil.rmtree(folder / "text_encoder")


def change_shape(folder):
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ffn_dim": 64}))


def only_pickles(folder):
    (folder / "text_encoder" / "model.safetensors").rename(folder / "text_encoder" / "pytorch_model.bin")


def drop_tensors(folder, component="transformer", name="diffusion_pytorch_model.safetensors"):
    from safetensors.torch import load_file, save_file

    path = folder / component / name
    tensors = load_file(path)
    save_file(dict(list(tensors.items())[3:]), path)


def drop_encoder_tensors(folder):
    drop_tensors(folder, "text_encoder", "model.safetensors")


@pytest.mark.parametrize(
    "damage",
    [
        damage_config,
        damage_weights,
        remove_weights,
        remove_component,
        change_shape,
        only_pickles,
        drop_tensors,
        drop_encoder_tensors,
    ],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_folder_gives_one_sentence(models, damage):
    evict_models()
    folder = models / "diffusers" / "Wan-AI" / "Wan2.1-VACE-1.3B-diffusers"
    damage(folder)
    with pytest.raises(PiyingError, match="(?i)fetch it again") as caught:
        sample(ModelHandle(WAN_VACE), REQUEST, host(models))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_prompt_model_gives_one_sentence(models):
    from piying.core.prompting.expand import ExpandRequest, expand

    evict_models()
    (models / "LLM" / "Qwen3-0.6B" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(PiyingError, match="The file is cut short or damaged"):
        expand(ModelHandle(PROMPT), ExpandRequest("x", strict=True), host(models))


def test_the_second_run_reads_no_weights(models, monkeypatch):
    from piying.core.checkpoints import load

    evict_models()
    first, _ = sample(ModelHandle(WAN_VACE), REQUEST, host(models))
    monkeypatch.setattr(load, "load_component", None)
    again, _ = sample(ModelHandle(WAN_VACE), replace(REQUEST, seed=REQUEST.seed + 1), host(models))
    assert not torch.equal(first, again)
    evict_models()
