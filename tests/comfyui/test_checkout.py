"""`--comfyui DIR`: the checkout's modules, core's nodes, V3 packs and packs of others in the headless runner."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from piying.tests.comfyui.headless import ROOT, assert_same_frames, read_frames
from piying.tests.comfyui.server import named_checkout, running_server

pytestmark = pytest.mark.comfyui
PYTHON = os.environ.get("COMFYUI_PYTHON", sys.executable)
# As its author puts it among the custom nodes; with parts that only a process like ComfyUI's has.
SERVED = """
import folder_paths, nodes, server
from aiohttp import web
from comfy.utils import ProgressBar

assert STARTED == folder_paths.get_output_directory(), "the prestartup script comes first"

@server.PromptServer.instance.routes.get("/reproduction")
async def route(request):
    return web.Response()

def fill(body):
    for node in body["prompt"].values():
        if node["class_type"] == "Served":
            node["inputs"]["text"] = node["inputs"]["text"].replace("__animal__", "fox")
    return body

server.PromptServer.instance.add_on_prompt_handler(fill)

class Served:
    RETURN_TYPES, FUNCTION, CATEGORY = ("STRING",), "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {}), "vae": (folder_paths.get_filename_list("vae"),)}}

    def run(self, text, vae):
        bar = ProgressBar(3)
        for _ in range(3):
            bar.update(1)
        server.PromptServer.instance.send_sync("progress", {}, None)
        return (f"{text} {folder_paths.get_full_path('vae', vae)} {'KSampler' in nodes.NODE_CLASS_MAPPINGS} "
                f"{server.PromptServer.instance.last_node_id}",)

NODE_CLASS_MAPPINGS = {"Served": Served}
"""
TOY_TEXT = """
import torch

class ToyText:
    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {})}}

    def run(self, text):
        generator = torch.Generator().manual_seed(len(text))
        return ([[torch.randn(1, 8, 4096, generator=generator), {}]],)

NODE_CLASS_MAPPINGS = {"ToyText": ToyText}
"""


@pytest.fixture(scope="module")
def checkout():
    return named_checkout()


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def run(checkout, folder, graph, *options):
    """Answers the events of `python -m runner GRAPH --json`, in the Python that runs ComfyUI."""
    workflow = folder / "workflow.json"
    workflow.write_text(json.dumps(graph), encoding="utf-8")
    command = [PYTHON, "-m", "runner", workflow, "--comfyui", checkout, "--output", folder / "output", "--json"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1"}
    ran = subprocess.run(
        [*map(str, command), "--device", "cpu", *map(str, options)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=600,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def texts(events):
    """What each node showed."""
    shown = {each["node"]: each["output"] for each in events if each["event"] == "executed" and each["output"]}
    return {node: [str(text) for text in ui.get("text", ())] for node, ui in shown.items()}


def saved(events):
    return [Path(each["path"]) for each in events if each["event"] == "saved"]


def test_v3_packs_and_packs_that_need_the_server(checkout, tmp_path):
    packs = tmp_path / "custom_nodes"
    (packs / "v3.test").mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("v3_pack.py"), packs / "v3.test" / "__init__.py")
    (packs / "served").mkdir()
    (packs / "served" / "__init__.py").write_text("from builtins import STARTED\n" + SERVED)
    (packs / "served" / "prestartup_script.py").write_text(
        "import builtins, folder_paths; builtins.STARTED = folder_paths.get_output_directory()"
    )
    (packs / "quits").mkdir()
    (packs / "quits" / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}")
    (packs / "quits" / "prestartup_script.py").write_text("raise SystemExit('a library is missing')")
    (packs / "newer.py").write_text("import comfy.surely_not_there")
    (tmp_path / "models" / "vae").mkdir(parents=True)
    (tmp_path / "models" / "vae" / "a.safetensors").touch()
    graph = {
        "five": node("PrimitiveInt", value=5),
        "double": node("V3Double", value=["five", 0], how="times"),
        "slow": node("V3Slow", value=["double", 0]),
        "hidden": node("V3Hidden", prompt="text"),
        "expand": node("V3Expand", value=["five", 0]),
        "unused": node("V3Double", value=1),
        "lazy": node("V3Lazy", first=True, a=["slow", 0], b=["unused", 0]),
        "block": node("V3Block"),
        "lists": node("V3Lists", values=["slow", 0]),
        "served": node("Served", text="an __animal__", vae="a.safetensors"),
        **{f"show {each}": node("V3Show", source=[each, 0]) for each in ("slow", "hidden", "expand", "lazy", "lists")},
        "show double": node("V3Show", source=["double", 1]),
        "show block": node("V3Show", source=["block", 1]),
        "show served": node("PreviewAny", source=["served", 0]),
    }
    events = run(checkout, tmp_path, graph, "--custom-nodes", packs, "--models", tmp_path / "models")
    assert texts(events) == {
        "show slow": ["11"],
        "show hidden": [f"text hidden {len(graph)} True None"],
        "show expand": ["10"],
        "show lazy": ["a=11 b=None"],
        "show lists": ["11", "11"],
        "show double": ["times 5"],
        "show served": [f"an fox {tmp_path / 'models' / 'vae' / 'a.safetensors'} True served"],
    }
    assert "unused" not in [each["node"] for each in events if each["event"] == "node"]
    # Both notes of the list and those of two others; the text of ui.PreviewText is no file.
    assert len(saved(events)) == 4
    assert all(path.parent == tmp_path / "output" and path.suffix == ".txt" for path in saved(events))
    steps = [each["value"] for each in events if each["event"] == "progress" and each["node"] == "served"]
    assert steps == [1, 2, 3]
    warnings = [each["text"] for each in events if each["event"] == "message"]
    assert "V3Show (node show block): not run: closed today" in warnings
    newer = [text for text in warnings if text.startswith("The pack newer.py wants ComfyUI's module")]
    assert len(newer) == 1
    assert newer[0].endswith("does not have: it is made for another version of ComfyUI.")


def test_v3_inputs_are_checked(checkout, tmp_path):
    (tmp_path / "v3").mkdir()
    shutil.copy(Path(__file__).with_name("v3_pack.py"), tmp_path / "v3" / "__init__.py")
    code = (
        "import sys, json; sys.path.insert(0, 'tests'); import conftest\n"
        "from piying.runner.session import Session\n"
        f"session = Session(comfyui={str(checkout)!r}, custom_nodes=[{str(tmp_path / 'v3')!r}], device='cpu')\n"
        "for inputs in ({'value': 'x'}, {'value': 13}, {'value': 1, 'how': 'never'}, {}):\n"
        "    graph = {'1': {'class_type': 'V3Double', 'inputs': inputs},\n"
        "             '2': {'class_type': 'PreviewAny', 'inputs': {'source': ['1', 0]}}}\n"
        "    try: session.run(graph)\n"
        "    except Exception as error: print(error)\n"
    )
    ran = subprocess.run([PYTHON, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=300)
    assert ran.stdout.splitlines()[-4:] == [
        "Twice (node 1): value is 'x', which is not a whole number.",
        "Twice (node 1): 13 is unlucky",
        "Twice (node 1): how is 'never'. Choose one of: add, times.",
        "Twice (node 1): the input value is missing. Give it a value.",
    ], ran.stderr


def test_a_shared_vace_workflow_of_core_nodes(checkout, tmp_path):
    """Core's loaders, VACE conditioning, sampler, VAE and savers: the frames are those that ComfyUI makes."""
    base, packs = tmp_path / "comfyui", tmp_path / "comfyui" / "custom_nodes"
    packs.mkdir(parents=True)
    (packs / "toy_text.py").write_text(TOY_TEXT)
    toys = [PYTHON, Path(__file__).with_name("toy_core_models.py"), checkout, base / "models"]
    subprocess.run(list(map(str, toys)), check=True, capture_output=True, timeout=300)
    both = {"positive": ["text", 0], "negative": ["no text", 0]}
    sampler = {"seed": 1, "steps": 2, "cfg": 5.0, "sampler_name": "uni_pc", "scheduler": "simple", "denoise": 1.0}
    size = {"width": 48, "height": 32, "length": 5, "batch_size": 1, "strength": 1.0}
    graph = {
        "model": node("UNETLoader", unet_name="toy_vace.safetensors", weight_dtype="default"),
        "vae": node("VAELoader", vae_name="toy_vae.safetensors"),
        "shift": node("ModelSamplingSD3", model=["model", 0], shift=8.0),
        "text": node("ToyText", text="a fox"),
        "no text": node("ToyText", text=""),
        "picture": node("PiyingSampleImage", sample="red triangle"),
        "vace": node("WanVaceToVideo", **both, vae=["vae", 0], **size, reference_image=["picture", 0]),
        "sample": node(
            "KSampler",
            model=["shift", 0],
            positive=["vace", 0],
            negative=["vace", 1],
            latent_image=["vace", 2],
            **sampler,
        ),
        "trim": node("TrimVideoLatent", samples=["sample", 0], trim_amount=["vace", 3]),
        "decode": node("VAEDecode", samples=["trim", 0], vae=["vae", 0]),
        "frames": node("SaveImage", images=["decode", 0], filename_prefix="frame"),
        "video": node("CreateVideo", images=["decode", 0], fps=16.0),
        "save": node("SaveVideo", video=["video", 0], filename_prefix="video/core", format="auto", codec="auto"),
    }
    events = run(checkout, tmp_path, graph, "--custom-nodes", packs, "--models", base / "models")
    assert [path.name for path in saved(events)] == [f"frame_0000{i}_.png" for i in range(1, 6)] + ["core_00001_.mp4"]
    assert all(path.stat().st_size > 0 for path in saved(events))
    steps = [each["value"] for each in events if each["event"] == "progress" and each["node"] == "sample"]
    assert steps == [1, 2]
    with running_server(base) as server:
        entry = server.run(graph)
        assert entry["status"]["status_str"] == "success", entry["status"]
        assert_same_frames(read_frames(tmp_path / "output", "frame"), read_frames(server.output_dir, "frame"))


FIVE = (
    "ComfyUI-KJNodes",
    "ComfyUI-VideoHelperSuite",
    "rgthree-comfy",
    "ComfyUI_essentials",
    "ComfyUI-Custom-Scripts",
)


def test_five_popular_packs_in_one_graph_with_ours(checkout, tmp_path):
    folder = os.environ.get("COMFYUI_PACKS")
    if not folder:
        pytest.skip("COMFYUI_PACKS does not name a folder of packs")
    if missing := [name for name in FIVE if not (Path(folder) / name).is_dir()]:
        pytest.skip(f"COMFYUI_PACKS lacks {', '.join(missing)}")
    video = {"format": "video/h264-mp4", "pix_fmt": "yuv420p", "crf": 19, "frame_rate": 8, "loop_count": 0}
    graph = {
        "picture": node("PiyingSampleImage", sample="red triangle"),
        "flip": node("ImageFlip+", image=["picture", 0], axis="x"),
        "batch": node(
            "ImageBatchMulti", inputcount=3, image_1=["picture", 0], image_2=["flip", 0], image_3=["picture", 0]
        ),
        "any": node("Any Switch (rgthree)", any_02=["batch", 0], any_05=["picture", 0]),
        "gray": node("PiyingControlGray", frames=["any", 0], weights="as VACE"),
        "video": node(
            "VHS_VideoCombine",
            images=["gray", 0],
            filename_prefix="mixed",
            **video,
            save_metadata=True,
            pingpong=False,
            save_output=True,
        ),
        "count": node("GetImageSizeAndCount", image=["any", 0]),
        "math": node("MathExpression|pysssss", expression="a * 2 + 1", a=["count", 3]),
        "more": node("SimpleMath+", value="a + 10", a=["math", 0]),
        "display": node("Display Any (rgthree)", source=["more", 0]),
        "text": node("SomethingToString", input=["more", 0], prefix="n=", suffix="!"),
        "show": node("ShowText|pysssss", text=["text", 0]),
        "small": node(
            "ConstrainImage|pysssss",
            images=["flip", 0],
            max_width=32,
            max_height=32,
            min_width=0,
            min_height=0,
            crop_if_required="no",
        ),
        "save": node("SaveImage", images=["small", 0], filename_prefix="small"),
        "load": node(
            "VHS_LoadVideoPath",
            video=str(tmp_path / "output" / "mixed_00001.mp4"),
            **dict.fromkeys(("force_rate", "custom_width", "custom_height", "frame_load_cap"), 0),
            skip_first_frames=1,
            select_every_nth=1,
        ),
    }
    loaded = {"load": graph.pop("load"), "again": node("PreviewAny", source=["load", 1])}
    options = [option for name in FIVE for option in ("--custom-nodes", Path(folder) / name)]
    events = run(checkout, tmp_path, graph, *options)
    assert not [each["text"] for each in events if each["event"] == "message" and "The pack" in each["text"]]
    shown = texts(events)
    assert (shown["display"], shown["show"]) == (["17"], ["n=17!"])
    assert sorted(path.name for path in saved(events)) == ["mixed_00001.mp4", "small_00001_.png"]
    assert read_frames(tmp_path / "output", "small")[0].shape == (32, 32, 3)
    assert texts(run(checkout, tmp_path, loaded, *options))["again"] == ["2"]
