"""extra_model_paths.yaml with is_default: models are looked for where ComfyUI looks, and fetched ones go there."""

from __future__ import annotations

import json

import pytest
from piying.core.download.manifest import files_of, find_listed
from piying.tests.comfyui.server import request_json, running_server

pytestmark = pytest.mark.comfyui

MODEL = "wan2.1-vace-1.3b-fp16"
CATEGORIES = ("diffusion_models", "text_encoders", "vae")


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    return tmp_path_factory.mktemp("another disk")


@pytest.fixture(scope="module")
def server(tmp_path_factory, elsewhere):
    base = tmp_path_factory.mktemp("My nodes 测试")
    lines = ["mine:", f"    base_path: {json.dumps(str(elsewhere))}", "    is_default: true"]
    config = base / "paths.yaml"
    config.write_text("\n".join([*lines, *(f"    {name}: {name}" for name in CATEGORIES)]), encoding="utf-8")
    with running_server(base, "--extra-model-paths-config", str(config)) as started:
        yield started


def put(folder, paths):
    for path, size in paths.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        with (folder / path).open("wb") as file:
            file.truncate(size)  # a hole, which takes no room


def offer(server):
    status, answer = request_json(f"{server.url}/piying/models", {"class_type": "PiyingLoadWanVACE"})
    assert status == 200
    return next(one["here"] for one in answer["offers"] if one["id"] == MODEL)


def test_a_model_in_the_default_folder_is_here(server, elsewhere):
    assert offer(server) == "no"
    put(elsewhere, {file.path: file.bytes for file in files_of(find_listed([MODEL]))})
    assert offer(server) == "yes"


def test_a_fetched_model_would_go_there(server, elsewhere):
    _, answer = request_json(f"{server.url}/piying/models", {"class_type": "PiyingLoadWanVACE"})
    (one,) = [one for one in answer["offers"] if one["id"] == MODEL]
    assert one["place"] == str(elsewhere / "diffusion_models")
    assert answer["folder"] == str(elsewhere)
