"""Memory plans of Upscale Video and Interpolate Frames: the choices and figures of the run, without a run."""

from __future__ import annotations

import json

import piying
import pytest
import torch
from piying.core.errors import PiyingError
from piying.core.host.current import set_host
from piying.core.host.headless import HeadlessHost
from piying.core.planner.plan_types import Rates
from piying.core.postprocessing import places
from piying.nodes import routes
from piying.runner.errors import InvalidGraph
from piying.runner.plan import as_json, as_text
from piying.runner.session import Session
from piying.tests.core import test_upscale
from piying.tests.core.test_interpolate import weights as rife_weights
from piying.tests.core.test_upscale import Enlarger, enlarger
from safetensors.torch import save_file

from .hosts import current_host

__all__ = ["enlarger"]  # a fixture
GB = 2**30
SCALE = {"model": "a.safetensors", "scale": 2.0, "width": 0, "height": 0, "method": "lanczos", "tile": 0}
RATE = {"model": "auto", "multiplier": 2, "to_fps": 0.0, "scene_cut": 0.4}
SAMPLER = {
    "1": {"class_type": "PiyingLoadWanVACE", "inputs": {"model": "built-in", "precision": "auto"}},
    "2": {
        "class_type": "PiyingVACESample",
        "inputs": {"model": ["1", 0], "prompt": "x", "negative_prompt": "", "width": 320, "height": 192}
        | {"num_frames": 17, "steps": 4, "cfg": 5.0, "shift": 16.0, "seed": 1},
    },
}


def node(kind, frames, **inputs):
    return {"class_type": f"Piying{kind}", "inputs": {"frames": frames, **inputs}}


def chain(upscale=(), interpolate=(), before=SAMPLER, frames=("2", 0)):
    """A sampler, or what stands for it, then both nodes, then Save Image."""
    return {
        **before,
        "3": node("InterpolateFrames", list(frames), **{"fps": 16.0, **RATE, **dict(interpolate)}),
        "4": node("UpscaleVideo", ["3", 0], **SCALE | dict(upscale)),
        "9": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "x"}},
    }


@pytest.fixture
def models(tmp_path, enlarger):
    (tmp_path / "upscale_models").mkdir()
    (tmp_path / "frame_interpolation").mkdir()
    save_file(enlarger, tmp_path / "upscale_models" / "a.safetensors")
    return tmp_path


def planned(graph, models, tmp_path, **options):
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(graph))
    session = Session(imagined=True, models=[models], **{"device": "cpu", **options})
    try:
        checked, roots, _ = session.check(session.prepare(str(path)))
        plans = session.plan(checked, roots)
        return as_json(plans), as_text(plans)
    finally:
        session.close()


def by_class(plan):
    return {one["class_type"].removeprefix("Piying"): one for one in plan["nodes"]}


def question(graph, number):
    """A node as the page describes it: its wires lead to such questions."""
    inputs = {
        name: {**question(graph, value[0]), "slot": value[1]} if isinstance(value, list) else value
        for name, value in graph[number]["inputs"].items()
    }
    return {"class_type": graph[number]["class_type"], "inputs": inputs}


def test_sizes_are_followed_from_the_sampler_on_and_the_page_says_the_same(models, tmp_path):
    graph = chain(interpolate={"multiplier": 3}, upscale={"width": 480})
    plan, text = planned(graph, models, tmp_path)
    nodes = by_class(plan)
    assert "interpolate: 49 frames of 320×192 are made from 17 frames of 320×192." in text
    assert "upscale: 49 frames of 480×288 are made from 49 frames of 320×192." in text
    assert nodes["UpscaleVideo"]["model"] == "a" and nodes["InterpolateFrames"]["model"] == "optical flow"
    assert plan["seconds"] == pytest.approx(sum(one["seconds"] for one in plan["nodes"]), abs=0.2)
    assert plan["peak_ram_gb"] == max(one["peak_ram_gb"] for one in plan["nodes"])
    with current_host(models=[models], ram=HeadlessHost().memory_rules().ram, imagined=True):
        for number, name in (("3", "InterpolateFrames"), ("4", "UpscaleVideo")):
            found = routes.plan(question(graph, number))
            assert found["verdict"] == "cpu"
            for key in ("model", "fits", "peak_vram_gb", "seconds", "components", "reasons"):
                assert found[key] == nodes[name][key], key


@pytest.mark.parametrize(("size", "side"), [((100, 60), 0), ((300, 200), 128), ((300, 120), 192)])
def test_the_plan_has_the_tiles_of_the_run(models, tmp_path, monkeypatch, caplog, size, side):
    """A card would do; here it is the time of a piece that decides, on a processor that is slow."""
    rates = Rates(flops={"fp32": 1e9, "bf16": 1e9}, convolution={"fp32": 1e6}, bandwidth=1e9, unpacking={})
    monkeypatch.setattr("piying.core.planner.measured.measure_rates", lambda device: rates)
    monkeypatch.setattr("piying.core.planner.measured._measured", {})
    monkeypatch.setattr(places, "WORTH_MEASURING", 0.0)
    width, height = size
    upscaler = piying.NODE_CLASS_MAPPINGS["PiyingUpscaleVideo"]()
    with current_host(models=[models], cache=tmp_path / "cache"):
        with caplog.at_level("INFO", "piying"):
            shown = upscaler.upscale(torch.rand(2, height, width, 3), **SCALE)
        answer = upscaler.plan_memory(frames=piying.core.image_sizes.VideoSize(width, height, 2), **SCALE)
    (line,) = [one for one in caplog.messages if f"{width}×{height}" in one]
    place = shown["ui"]["piying"][0]["place"]
    assert place == (f"tiles of {side}×{side} on cpu" if side else "whole frames on cpu")
    text = answer.to_text()
    assert (f"tiles of {side}×{side}." in text) is bool(side)
    assert line.endswith(f"about {piying.core.planner.report.duration(answer.plan.seconds)}.")
    reasons = [one.reason for one in answer.plan.rejected]
    assert len(reasons) == bool(side)
    assert all("a frame, in which a run cannot be cancelled" in one for one in reasons)


@pytest.mark.parametrize("vram", [1, 8])
def test_a_card_is_planned_for(models, tmp_path, monkeypatch, vram):
    monkeypatch.setattr(places.Cost, "bytes", lambda self, pixels: pixels * 16384)
    plan, text = planned(chain(before=LONG), models, tmp_path, vram=vram * GB, ram=32 * GB)
    (part,) = by_class(plan)["UpscaleVideo"]["components"]
    assert (part["placement"], part["compute"]) == ("resident", "fp32")
    assert part["variant"] == ("tiled" if vram == 1 else "whole")
    assert 0 < part["peak_vram_gb"] < vram
    if vram == 1:
        (rejected,) = by_class(plan)["UpscaleVideo"]["rejected"]
        assert "of the card" in rejected["reason"] and "upscale: done in pieces, because" in text


LONG = {**SAMPLER, "2": {**SAMPLER["2"], "inputs": SAMPLER["2"]["inputs"] | {"width": 480, "height": 288}}}


def test_frames_that_no_memory_holds_do_not_fit(models, tmp_path):
    plan, text = planned(chain(upscale={"scale": 8.0}), models, tmp_path, ram=4 * GB)
    assert plan["fits"] is False
    node = by_class(plan)["UpscaleVideo"]
    assert node["fits"] is False and node["peak_ram_gb"] > 2
    assert "upscale does not fit CPU: it needs at least" in text


def test_what_only_the_run_knows_is_told_in_a_line(models, tmp_path, monkeypatch):
    wide = {"1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}}}
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path)
    from PIL import Image

    Image.new("RGB", (32, 32)).save(tmp_path / "in" / "x.png")
    plan, text = planned(chain(before=wide, frames=("1", 0)), models, tmp_path, input=tmp_path / "in")
    assert text.count("Memory and time are unknown until it runs: frames will only be known in the run.") == 2
    assert "planned with the defaults" not in text
    assert plan["fits"] is None and plan["seconds"] is None and plan["components"] == []
    # Beside a sampler its own figures count.
    both = {**chain(before=wide, frames=("1", 0)), **{k: SAMPLER[k] for k in "2"}, "7": SAMPLER["1"]}
    both["2"] = {**SAMPLER["2"], "inputs": SAMPLER["2"]["inputs"] | {"model": ["7", 0]}}
    both["8"] = {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "y"}}
    plan, _ = planned(both, models, tmp_path, input=tmp_path / "in")
    assert plan["fits"] is True and plan["seconds"] > 0
    set_host(HeadlessHost(models=[models]))
    found = routes.plan({"class_type": "PiyingUpscaleVideo", "inputs": {"frames": None, **SCALE}})
    assert (found["verdict"], found["unknown"]) == ("unknown", ["frames"])
    set_host(None)


def test_a_rate_that_only_the_run_knows(models, tmp_path):
    """Twice the rate is twice the frames whatever it is; a rate by its number is not."""
    clip = {"1": {"class_type": "PiyingSampleClip", "inputs": {"sample": "moving circle"}}}
    graph = chain(before=clip, frames=("1", 0), interpolate={"fps": ["1", 2]})
    _, text = planned(graph, models, tmp_path)
    assert "interpolate: 33 frames of 64×64 are made from 17 frames of 64×64." in text
    graph = chain(before=clip, frames=("1", 0), interpolate={"fps": ["1", 2], "to_fps": 24.0})
    _, text = planned(graph, models, tmp_path)
    assert "fps will only be known in the run." in text and "frames will only be known in the run." in text


def test_loops_have_three_frames_more_and_given_frames_another_shape(models, tmp_path):
    loop = {"class_type": "PiyingContextWindows", "inputs": {"window": 0, "overlap": 0, "free_noise": False}}
    loop["inputs"] |= {"riflex": 0, "loop": True}
    before = {**SAMPLER, "5": loop}
    before["2"] = {**SAMPLER["2"], "inputs": SAMPLER["2"]["inputs"] | {"context": ["5", 0]}}
    _, text = planned(chain(before=before), models, tmp_path)
    assert "interpolate: 39 frames of 320×192 are made from 20 frames of 320×192." in text


@pytest.mark.parametrize(("model", "side"), [("built-in", 240), ("wan2.2-ti2v-5b", 224)])
def test_a_given_frame_shapes_the_video_and_what_is_made_of_it(models, tmp_path, model, side):
    """The clip is square, and the video has 320×192 pixels at most; TI2V-5B takes multiples of 32."""
    before = {
        "1": {"class_type": "PiyingLoadWanVideo", "inputs": {"model": model, "precision": "auto"}},
        "2": {"class_type": "PiyingWanSample", "inputs": {**SAMPLER["2"]["inputs"], "first_frame": ["6", 0]}},
        "6": {"class_type": "PiyingSampleClip", "inputs": {"sample": "moving circle"}},
    }
    _, text = planned(chain(before=before), models, tmp_path)
    assert f"interpolate: 33 frames of {side}×{side} are made from 17 frames of {side}×{side}." in text
    wan = piying.NODE_CLASS_MAPPINGS["PiyingWanSample"]
    known = {"width": 320, "height": 192, "num_frames": 17}
    assert wan.frames_before_run(known, {}) == (320, 192, 17)
    assert wan.frames_before_run(known, {"first_frame": None}) is None
    assert wan.frames_before_run(known | {"size_from": "widgets"}, {"first_frame": None}) == (320, 192, 17)


def test_only_the_header_is_read(models, tmp_path):
    """Weights that a run refuses do not matter to a plan, which is the one that the run's network gives."""
    save_file(rife_weights(), models / "frame_interpolation" / "good.safetensors")
    broken = rife_weights()
    broken["block0.lastconv.0.bias"][0] = float("nan")
    save_file(broken, models / "frame_interpolation" / "broken.safetensors")
    found = []
    for name in ("good", "broken"):
        plan, _ = planned(chain(interpolate={"model": f"{name}.safetensors"}), models, tmp_path)
        found.append(by_class(plan)["InterpolateFrames"])
        assert found[-1]["model"] == name and found[-1]["seconds"] > 0
    assert found[0]["peak_ram_gb"] == found[1]["peak_ram_gb"]
    from piying.core.postprocessing.upscale import UpscalerTraits, load_upscaler, upscaler_traits

    path = models / "upscale_models" / "a.safetensors"
    with current_host(models=[models]) as host:
        assert upscaler_traits(path) == UpscalerTraits.of(load_upscaler(path, host))


class Looks(Enlarger):
    """Looks at a number while it is made, as SwinIR does."""

    def __init__(self):
        super().__init__()
        self.rates = [one.item() for one in torch.linspace(0, 1, 2)]


def test_a_network_that_cannot_be_made_without_numbers_is_read(models, tmp_path, monkeypatch):
    plain, _ = planned(chain(), models, tmp_path)
    monkeypatch.setattr(test_upscale, "Enlarger", Looks)
    save_file(Looks().state_dict(), models / "upscale_models" / "a.safetensors")
    plan, _ = planned(chain(), models, tmp_path)
    assert plan["nodes"][2]["components"] == plain["nodes"][2]["components"]


def test_what_the_run_refuses_the_plan_refuses(models):
    graph = chain(upscale={"scale": 8.0}, before=SAMPLER)
    graph["2"] = {**SAMPLER["2"], "inputs": SAMPLER["2"]["inputs"] | {"width": 2048, "height": 2048}}
    graph["5"] = node("UpscaleVideo", ["4", 0], **SCALE)
    with current_host(models=[models]):
        found = routes.plan(question(graph, "5"))
        assert found["verdict"] == "wrong" and "would become 32768×32768" in found["error"]
        found = routes.plan(question(chain(upscale={"model": "gone.pth"}), "4"))
        assert found["verdict"] == "wrong" and "'gone.pth' is not in models/upscale_models" in found["error"]


def refused(graph, models, tmp_path):
    """Return what the check says of a graph that it refuses."""
    session = Session(output=tmp_path, device="cpu", models=[models])
    with session.one_pass(), pytest.raises(InvalidGraph) as error:
        session.check(session.prepare(graph))
    return [str(one) for one in error.value.errors]


def test_the_check_refuses_frames_that_become_too_large_and_a_given_frame_that_is_too_narrow(models, tmp_path):
    large = {**SAMPLER["2"], "inputs": SAMPLER["2"]["inputs"] | {"width": 2048, "height": 2048}}
    graph = chain(upscale={"scale": 8.0}, before={**SAMPLER, "2": large})
    graph["5"] = node("UpscaleVideo", ["4", 0], **SCALE)
    graph["6"] = node("UpscaleVideo", ["5", 0], **SCALE)
    graph["9"]["inputs"]["images"] = ["6", 0]
    # Once, at the node where it is.
    (said,) = refused(graph, models, tmp_path)
    assert said.startswith("Upscale Video (node 5): The frames would become 32768×32768")
    narrow = {**SAMPLER["2"], "inputs": SAMPLER["2"]["inputs"] | {"width": 2048, "height": 16}}
    sampler = {**SAMPLER["2"]["inputs"], "model": ["7", 0], "width": 32, "height": 32, "first_frame": ["2", 0]}
    graph = {
        **SAMPLER,
        "2": narrow,
        "7": {"class_type": "PiyingLoadWanVideo", "inputs": {"model": "built-in", "precision": "auto"}},
        "8": {"class_type": "PiyingWanSample", "inputs": sampler},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "x"}},
    }
    (said,) = refused(graph, models, tmp_path)
    assert said.startswith("Wan Sample (node 8): The given frame is 2048×16")


def test_the_check_reads_model_files(models, tmp_path):
    """Frames to work on may have taken an hour to make."""
    save_file({"a.weight": torch.zeros(3, 3)}, models / "frame_interpolation" / "other.safetensors")
    (said,) = refused(chain(interpolate={"model": "other.safetensors"}), models, tmp_path)
    assert said.startswith("Interpolate Frames (node 3): ") and "is no RIFE model of version 4.7" in said
    (models / "upscale_models" / "a.safetensors").write_bytes(b"")
    (said,) = refused(chain(interpolate={"model": "optical flow"}), models, tmp_path)
    assert said.startswith("Upscale Video (node 4): ") and "The file is cut short or damaged" in said


def test_a_plan_that_fails_names_the_node(models, tmp_path):
    session = Session(output=tmp_path, device="cpu", models=[models])
    with session.one_pass():
        graph, roots, _ = session.check(session.prepare(chain()))
        (models / "upscale_models" / "a.safetensors").write_bytes(b"")
        with pytest.raises(PiyingError, match=r"^Upscale Video \(node 4\): .* cut short or damaged"):
            session.plan(graph, roots)
