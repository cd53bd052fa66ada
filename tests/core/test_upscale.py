"""Upscale Video: sizes, model files of all kinds, tiles, and what happens where there is no model or no spandrel."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import types

import piying
import pytest
import torch
from piying.core.errors import PiyingError
from piying.core.planner.plan_types import Rates
from safetensors.torch import save_file
from torch import nn

from .hosts import current_host

ROOT = piying.__path__[0]


class Cancelled(Exception):
    pass


class Enlarger(nn.Module):
    """Twice as large, from 3×3 pixels around each."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)

    def forward(self, x):
        return nn.functional.pixel_shuffle(torch.sigmoid(self.conv(x)), 2)


class Descriptor:
    """What of spandrel's descriptor is used."""

    scale, input_channels = 2, 3
    tiling = types.SimpleNamespace(name="SUPPORTED")
    architecture = types.SimpleNamespace(name="Enlarger")

    def __init__(self, weights):
        self.model = Enlarger()
        self.model.load_state_dict(weights)

    def __call__(self, picture):
        return self.model(picture)


class Loader:
    def __init__(self, device):
        assert device in ("cpu", "meta")

    load_from_state_dict = staticmethod(Descriptor)


@pytest.fixture
def enlarger(monkeypatch):
    """Have a package stand in for spandrel, with one network that it knows; its weights."""
    standing_in = types.ModuleType("spandrel")
    standing_in.__spec__ = types.SimpleNamespace(name="spandrel")
    standing_in.ModelLoader, standing_in.ImageModelDescriptor = Loader, Descriptor
    standing_in.UnsupportedModelError = type("UnsupportedModelError", (Exception,), {})
    monkeypatch.setitem(sys.modules, "spandrel", standing_in)
    torch.manual_seed(0)
    return Enlarger().state_dict()


@pytest.fixture
def host(tmp_path):
    (tmp_path / "upscale_models").mkdir()
    with current_host(models=[tmp_path], cache=tmp_path / "cache") as made:
        yield made


@pytest.fixture
def folder(host, tmp_path):
    return tmp_path / "upscale_models"


def upscale(frames, **given):
    widgets = {"model": "none", "scale": 2.0, "width": 0, "height": 0, "method": "lanczos", "tile": 0, **given}
    accepted = piying.NODE_CLASS_MAPPINGS["PiyingUpscaleVideo"].VALIDATE_INPUTS(model=widgets["model"])
    if accepted is not True:
        raise PiyingError(accepted)
    shown = piying.NODE_CLASS_MAPPINGS["PiyingUpscaleVideo"]().upscale(frames, **widgets)
    return shown["result"][0], shown["ui"]["piying"][0]


def expected(weights, frames):
    network = Enlarger()
    network.load_state_dict(weights)
    with torch.no_grad():
        return network(frames.movedim(-1, 1)).movedim(1, -1)


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({"scale": 2.0}, (80, 120)),
        ({"scale": 1.5}, (60, 90)),
        ({"scale": 0.33}, (14, 20)),
        ({"width": 91}, (60, 91)),  # a side that is asked for stays odd
        ({"height": 100}, (100, 150)),
        ({"width": 80, "height": 80}, (80, 80)),
        ({"method": "bicubic"}, (80, 120)),
    ],
)
def test_sizes_without_a_model(host, given, size):
    frames = torch.rand(3, 40, 60, 4)  # alpha is dropped
    larger, record = upscale(frames, **given)
    assert larger.shape == (3, *size, 3)
    assert larger.min() >= 0 and larger.max() <= 1
    assert record["model"] == "none"


def test_resampling_keeps_more_than_eight_bits_and_the_middle(host):
    ramp = torch.linspace(0, 0.01, 64).expand(1, 32, 64)[..., None].repeat(1, 1, 1, 3)
    larger, _ = upscale(ramp)
    assert len(larger[0, 0, :, 0].unique()) > 100
    marked = torch.zeros(1, 40, 80, 3)
    marked[:, :, 20:60] = 1
    square, _ = upscale(marked, width=80, height=80)
    assert square.mean() > 0.999, "what is left and right of the middle is cut away"


def test_files_of_all_kinds_are_read(host, folder, enlarger):
    frames = torch.rand(2, 20, 30, 3)
    save_file(enlarger, folder / "a.safetensors")
    torch.save({"params": {}, "params_ema": enlarger, "iter": 3}, folder / "b.pth")
    torch.save(enlarger, folder / "c.pth", _use_new_zipfile_serialization=False)
    (folder / "sub").mkdir()
    torch.save({f"module.{name}": one.half() for name, one in enlarger.items()}, folder / "sub" / "d.pth")
    for model, tolerance in (("a.safetensors", 1e-6), ("b.pth", 1e-6), ("c.pth", 1e-6), ("sub\\d.pth", 1e-3)):
        larger, record = upscale(frames, model=model)
        assert (larger - expected(enlarger, frames)).abs().max() < tolerance, model
        assert record["architecture"] == "Enlarger"
    assert upscale(frames, model="auto")[1]["model"] == "a.safetensors"


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("is_archive", [True, False])
def test_no_file_runs_code(host, folder, enlarger, monkeypatch, tmp_path, is_archive):
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Harm()}, folder / "m.pth", _use_new_zipfile_serialization=is_archive)
    with pytest.raises(PiyingError, match=r"m\.pth"):
        upscale(torch.rand(1, 8, 8, 3), model="m.pth")
    (folder / "n.pth").write_bytes(pickle.dumps({"x": Harm()}))
    with pytest.raises(PiyingError, match=r"n\.pth.*neither a safetensors nor a PyTorch file"):
        upscale(torch.rand(1, 8, 8, 3), model="n.pth")
    assert not (tmp_path / "harm").exists()


def test_tiles_make_the_same_picture(host, folder, enlarger, caplog):
    save_file(enlarger, folder / "a.safetensors")
    frames = torch.rand(2, 150, 210, 3)
    with caplog.at_level("INFO", "piying"):
        larger, record = upscale(frames, model="a.safetensors", tile=64, scale=2.0)
    assert record["place"] == "tiles of 64×64 on cpu"
    assert (larger - expected(enlarger, frames)).abs().max() < 1e-5
    line = next(one for one in caplog.messages if one.startswith("Upscaling 2 frames 210×150 → 420×300 with a"))
    assert "tiles of 64×64 on cpu, about" in line and "MB" in line, "tiles and memory before the work"


def test_a_models_result_is_brought_to_the_wanted_size(host, folder, enlarger):
    save_file(enlarger, folder / "a.safetensors")
    larger, _ = upscale(torch.rand(1, 40, 60, 3), model="a.safetensors", scale=1.5)
    assert larger.shape == (1, 60, 90, 3)
    assert upscale(torch.rand(1, 40, 60, 3), model="a.safetensors", scale=3.0)[0].shape == (1, 120, 180, 3)


def test_the_time_is_told_where_it_is_long(host, folder, enlarger, monkeypatch, caplog):
    rates = Rates(flops={"fp32": 1e9, "bf16": 1e9}, convolution={"fp32": 1e6}, bandwidth=1e9, unpacking={})
    monkeypatch.setattr("piying.core.planner.measured.measure_rates", lambda device: rates)
    monkeypatch.setattr("piying.core.planner.measured._measured", {})  # what is kept there must end with this test
    save_file(enlarger, folder / "a.safetensors")
    monkeypatch.setattr("piying.core.postprocessing.places.WORTH_MEASURING", 0.0)
    with caplog.at_level("INFO", "piying"):
        _, record = upscale(torch.rand(2, 200, 300, 3), model="a.safetensors")
    line = next(one for one in caplog.messages if "300×200" in one)
    # 2 frames × 60,000 pixels and what tiles share, 648 operations each, a million of them a second.
    assert line.endswith("about 3 MB, about 2 min.")
    assert record["place"] == "tiles of 128×128 on cpu", "a piece takes no longer than a person waits"


def test_it_can_be_cancelled_after_every_tile(host, folder, enlarger):
    save_file(enlarger, folder / "a.safetensors")
    steps = []

    class Bar:
        def step(self, done, preview=None):
            steps.append(done)
            if done == 3:
                raise Cancelled

    host.on_progress = lambda phase, total: Bar()
    with pytest.raises(Cancelled):
        upscale(torch.rand(2, 100, 100, 3), model="a.safetensors", tile=64)
    assert steps == [1, 2, 3]


def test_frames_that_no_memory_holds_are_refused_before_the_work(host):
    frames = torch.rand(1, 64, 64, 3).expand(4000, -1, -1, -1)
    with pytest.raises(PiyingError, match=r"4000 frames of 16384×16384 take 12000\.0 GB"):
        upscale(frames, width=16384)
    with pytest.raises(PiyingError, match="would become 32768×32768. Sides go up to 16384"):
        upscale(torch.rand(1, 4096, 4096, 3), scale=8.0)


def test_without_spandrel_it_says_how_to_install_it_and_keep_torch(host, folder, enlarger, monkeypatch):
    save_file(enlarger, folder / "a.safetensors")
    monkeypatch.delitem(sys.modules, "spandrel")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = piying.NODE_CLASS_MAPPINGS["PiyingUpscaleVideo"].VALIDATE_INPUTS(model="a.safetensors")
    assert "pip install spandrel torchvision" in said and f'"torch=={torch.__version__.partition("+")[0]}"' in said
    assert piying.NODE_CLASS_MAPPINGS["PiyingUpscaleVideo"].VALIDATE_INPUTS(model="none") is True
    said = piying.NODE_CLASS_MAPPINGS["PiyingUpscaleVideo"].VALIDATE_INPUTS(model="b.pth")
    assert "'b.pth' is not in models/upscale_models. Here are: auto, none, a.safetensors" in said


def python_with_spandrel():
    for python in (sys.executable, os.environ.get("COMFYUI_PYTHON")):
        if python and subprocess.run([python, "-c", "import spandrel"], capture_output=True).returncode == 0:
            return python
    pytest.skip("spandrel is not installed, and COMFYUI_PYTHON names no Python that has it")


def test_real_networks_on_the_command_line(tmp_path):
    """Whole pictures are spandrel's own, bit for bit; the networks are its own too, with random weights."""
    python = python_with_spandrel()
    (tmp_path / "models" / "upscale_models").mkdir(parents=True)
    make = f"""
import torch
from spandrel import ModelLoader
from spandrel.architectures.Compact.__arch.SRVGG import SRVGGNetCompact
from spandrel.architectures.ESRGAN.__arch.RRDB import RRDBNet
torch.manual_seed(0)
folder = {str(tmp_path / "models/upscale_models")!r}
torch.save({{"params": SRVGGNetCompact(num_conv=2, num_feat=8, upscale=2).state_dict()}}, folder + "/compact.pth")
torch.save(RRDBNet(num_filters=8, num_blocks=1, scale=2).state_dict(), folder + "/esrgan.pth",
           _use_new_zipfile_serialization=False)
"""
    graph = {
        "1": {"class_type": "PiyingSampleClip", "inputs": {"sample": "moving circle"}},
        "2": {
            "class_type": "PiyingUpscaleVideo",
            "inputs": {"frames": ["1", 0], "model": "compact.pth", "scale": 2.0, "width": 0, "height": 0}
            | {"method": "lanczos", "tile": 0},
        },
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}},
    }
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    subprocess.run([python, "-c", make], check=True, timeout=300)
    check = f"""
import sys; sys.path.insert(0, {ROOT + "/tests"!r}); import conftest
import torch, spandrel, piying.runner
from pathlib import Path
for model in ("compact.pth", "esrgan.pth"):
    done = piying.runner.run({str(tmp_path / "graph.json")!r}, set={{"2.model": model}}, output={str(tmp_path)!r},
                             models=[{str(tmp_path / "models")!r}], device="cpu")
    (larger,), (frames, *_) = done.outputs("2")[0], done.outputs("1")[0]
    own = spandrel.ModelLoader().load_from_file(Path({str(tmp_path / "models/upscale_models")!r}) / model)
    for frame, one in zip(frames, larger, strict=True):
        assert torch.equal(own(frame.movedim(-1, 0)[None])[0].movedim(0, -1), one), model
print("the same")
"""
    ran = subprocess.run([python, "-W", "ignore", "-c", check], capture_output=True, text=True, timeout=300)
    assert ran.stdout.endswith("the same\n"), ran.stderr[-2000:]


@pytest.mark.parametrize(
    ("node", "widgets"),
    [
        ("PiyingUpscaleVideo", {"scale": 2.0, "width": 0, "height": 0, "method": "lanczos", "tile": 0}),
        ("PiyingInterpolateFrames", {"fps": 16.0, "multiplier": 2, "to_fps": 0.0, "scene_cut": 0.4}),
    ],
)
def test_frames_that_are_no_numbers_are_refused(host, node, widgets):
    made = piying.NODE_CLASS_MAPPINGS[node]()
    frames = torch.zeros(2, 16, 16, 3)
    frames[1, 0, 0, 0] = torch.nan
    with pytest.raises(PiyingError, match="frames holds values that are no numbers"):
        getattr(made, made.FUNCTION)(frames=frames, model="none" if "method" in widgets else "optical flow", **widgets)
