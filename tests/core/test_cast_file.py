"""What was cast to FP8 is kept beside its original where the user asks for it, whole or not at all."""

from __future__ import annotations

import random
import shutil
from collections import namedtuple

import pytest
import torch
from piying.core.atomic_write import UNFINISHED
from piying.core.catalog.discovery import installed_models
from piying.core.catalog.installed_model import BUILT_IN_ROOT
from piying.core.catalog.selection import ModelHandle, model_choices
from piying.core.executor import model_cache
from piying.core.families.registry import family_named
from piying.core.host.headless import HeadlessHost
from piying.core.planner.plan_types import PhasePlan
from piying.core.quantization import file_cache as cast_file
from piying.core.quantization.fp8 import Fp8
from piying.core.wan.family import WAN_VACE
from piying.core.wan.model import load
from safetensors.torch import save_file

PARTS = ("transformer", "text_encoder")


@pytest.fixture
def host(tmp_path):
    """A models folder with the toy model under the name of a real one."""
    shutil.copytree(BUILT_IN_ROOT / "wan_vace", tmp_path / "diffusers" / "model")
    yield HeadlessHost(models=[tmp_path], chosen_device="cpu")
    model_cache.evict_models()


@pytest.fixture
def wanted(monkeypatch):
    monkeypatch.setenv("PIYING_KEEP_FP8", "1")


def read(host, part="transformer", compute="fp32"):
    """Return a part as it is read when nothing is kept in memory."""
    model_cache.evict_models()
    choice = PhasePlan("sample", part, compute, "fp8", "resident", "whole", False, 0, 0, 0, 0.0)
    return load(ModelHandle(WAN_VACE, "diffusers/model"), host).parts.load(part, choice)


def cast_files(host):
    return sorted(path for root in host.models for path in root.rglob("*.fp8cast"))


def leftovers(host):
    return [path for root in host.models for path in root.rglob(f"*{UNFINISHED}")]


def test_nothing_is_kept_unless_it_is_asked_for(host):
    read(host)
    assert cast_files(host) == []


@pytest.mark.parametrize("part", PARTS)
def test_the_second_reading_casts_nothing_and_is_the_same_to_the_bit(host, wanted, monkeypatch, part):
    first = {name: tensor.clone() for name, tensor in read(host, part).state_dict().items()}
    (path,) = cast_files(host)
    monkeypatch.setattr(Fp8, "to_stored", None)
    second = read(host, part).state_dict()
    assert second.keys() == first.keys()
    for name, tensor in first.items():
        assert second[name].dtype == tensor.dtype, name
        assert torch.equal(second[name].view(torch.uint8), tensor.view(torch.uint8)), name
    assert path.parent.name == part
    assert leftovers(host) == []


def test_it_is_no_model_of_its_own(host, wanted):
    before = installed_models(family_named("wan_vace"), host)
    read(host)
    assert installed_models(family_named("wan_vace"), host) == before
    assert model_choices(WAN_VACE, host) == ["auto", "diffusers/model", "built-in"]


def test_an_original_that_changed_is_cast_anew(host, wanted):
    read(host)
    (old,) = cast_files(host)
    original = old.parent / "diffusion_pytorch_model.safetensors"
    content = bytearray(original.read_bytes())
    content[-200:] = bytes(200)
    original.write_bytes(content)
    changed = read(host).state_dict()
    (new,) = cast_files(host)
    assert new != old
    model_cache.evict_models()
    assert all(torch.equal(changed[name].float(), t.float()) for name, t in read(host).state_dict().items())


def test_each_type_of_the_rest_has_its_own(host, wanted):
    read(host)
    read(host, compute="bf16")
    assert len(cast_files(host)) == 2


def test_a_damaged_one_is_made_anew(host, wanted, caplog):
    expected = {name: tensor.clone() for name, tensor in read(host).state_dict().items()}
    (path,) = cast_files(host)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    found = read(host).state_dict()
    assert all(torch.equal(found[name].float(), tensor.float()) for name, tensor in expected.items())
    assert "its checksum is wrong. The weights are cast again" in caplog.text
    assert path.read_bytes() == whole


def test_no_flipped_bit_of_a_cast_file_is_used(tmp_path):
    original = tmp_path / "model.safetensors"
    save_file({"weight": torch.randn(16, 16)}, original)
    module = torch.nn.Linear(16, 16)
    file = cast_file.CastFile("vae", [original], storage="fp8", identity="it", compute="fp32")
    sources = []

    def read(path):
        sources.append(path)
        return module

    file.load(read)
    (path,) = tmp_path.glob("*.fp8cast")
    whole, draw = path.read_bytes(), random.Random(0)
    file.load(read)
    assert sources == [None, path]
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        del sources[:]
        file.load(read)
        assert sources == [None] and path.read_bytes() == whole


def test_a_full_disk_costs_nothing_but_time(host, wanted, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(cast_file.shutil, "disk_usage", lambda path: usage(1, 1, 1 << 20))
    read(host)
    assert cast_files(host) == leftovers(host) == []


def test_a_write_that_fails_leaves_nothing(host, wanted, monkeypatch):
    def fail(file, tensors):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cast_file, "write_safetensors", fail)
    read(host)
    assert cast_files(host) == leftovers(host) == []


def test_an_original_in_fp8_is_left_alone(host, wanted):
    read(host)
    (path,) = cast_files(host)
    shutil.move(path, path.parent / "diffusion_pytorch_model.safetensors")
    read(host)
    assert cast_files(host) == []
