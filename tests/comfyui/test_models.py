"""Models and LoRAs from ComfyUI's own folders: listed, run as headless, and lent ComfyUI's tokenizer."""

from __future__ import annotations

import pytest
import torch
from piying.core.catalog.installed_model import BUILT_IN_ROOT
from piying.core.checkpoints import load_component
from piying.tests.comfyui.headless import assert_same_frames, read_frames, run_headless
from piying.tests.core.formats import writers
from piying.tests.core.test_single_models import all_in_one, hunyuan

pytestmark = pytest.mark.comfyui

LORA, CHECKPOINT = "style/a.safetensors", "checkpoints/all in one.safetensors"
BERT_WORDS = 47_020  # rows of Hunyuan-DiT's BERT, and of the tokenizer that ComfyUI comes with


@pytest.fixture(scope="module")
def folders(comfyui):
    models = comfyui.base / "models"
    write_lora(models / "loras" / LORA)
    all_in_one(hunyuan(bert_words=BERT_WORDS), models / CHECKPOINT)
    yield models
    # Other tests must find the built-in models under auto.
    (models / "loras" / LORA).unlink()
    (models / CHECKPOINT).unlink()


def write_lora(path):
    transformer = load_component("transformer", BUILT_IN_ROOT / "wan_vace" / "transformer")
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, tensor in transformer.state_dict().items():
        if name.endswith("attn1.to_q.weight"):
            layer = name.removesuffix(".weight")
            tensors[f"transformer.{layer}.lora_A.weight"] = torch.randn(4, tensor.shape[1], generator=generator) * 0.3
            tensors[f"transformer.{layer}.lora_B.weight"] = torch.randn(tensor.shape[0], 4, generator=generator) * 0.3
    path.parent.mkdir(parents=True, exist_ok=True)
    writers.save(tensors, path)


def graph_of(loader, sampler, prefix, **more):
    return {
        "1": loader,
        "3": sampler,
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": prefix}},
        **more,
    }


def video_graph(prefix, lora):
    values = {"prompt": "a red circle", "negative_prompt": "", "width": 64, "height": 64, "num_frames": 5}
    return graph_of(
        {"class_type": "PiyingLoadWanVACE", "inputs": {"model": "built-in", "precision": "auto"}},
        {
            "class_type": "PiyingVACESample",
            "inputs": {**values, "steps": 2, "cfg": 3.0, "shift": 5.0, "seed": 1, "model": ["2", 0]},
        },
        prefix,
        **{"2": {"class_type": "PiyingLoRA", "inputs": {"model": ["1", 0], "lora": lora, "strength": 1.0}}},
    )


def test_they_are_listed(comfyui, folders):
    info = comfyui.object_info()
    assert info["PiyingLoRA"]["input"]["required"]["lora"][0] == ["none", LORA]
    assert CHECKPOINT in info["PiyingLoadHunyuanDiT"]["input"]["required"]["model"][0]


def test_a_lora_gives_what_it_gives_headless(comfyui, folders, tmp_path):
    graph = video_graph("comfyui/lora", LORA)
    assert comfyui.run(graph)["status"]["status_str"] == "success"
    assert comfyui.run(video_graph("comfyui/plain", "none"))["status"]["status_str"] == "success"
    headless = run_headless(graph, tmp_path, "--models", str(folders))
    found = read_frames(comfyui.output_dir / "comfyui", "lora")
    assert_same_frames(found, read_frames(headless / "comfyui", "lora"))
    plain = read_frames(comfyui.output_dir / "comfyui", "plain")
    assert any((one != other).any() for one, other in zip(found, plain, strict=True))


def test_a_lora_that_is_not_there_is_refused_by_name(comfyui, folders):
    status, body = comfyui.post(video_graph("comfyui/none", "missing.safetensors"))
    assert status == 400
    assert "missing.safetensors" in str(body)


def test_an_all_in_one_checkpoint_draws_with_comfyuis_own_words(comfyui, folders):
    values = {"prompt": "一只红色的猫", "negative_prompt": "", "width": 768, "height": 1024, "steps": 1, "cfg": 1.0}
    graph = graph_of(
        {"class_type": "PiyingLoadHunyuanDiT", "inputs": {"model": CHECKPOINT, "precision": "auto"}},
        {"class_type": "PiyingHunyuanDiT", "inputs": {**values, "seed": 1, "model": ["1", 0]}},
        "comfyui/all_in_one",
    )
    entry = comfyui.run(graph)
    assert entry["status"]["status_str"] == "success", entry["status"]
    (image,) = read_frames(comfyui.output_dir / "comfyui", "all_in_one")
    assert image.shape == (1024, 768, 3)
