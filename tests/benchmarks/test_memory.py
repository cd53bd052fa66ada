"""The memory benchmark measures what it says: all contenders run the same model and agree."""

from __future__ import annotations

import pytest
import torch
from piying.core.catalog.selection import ModelHandle, choose_model
from piying.core.host.headless import HeadlessHost
from piying.core.wan.family import WAN_VACE


@pytest.fixture(scope="module")
def modules(module):
    names = ("measuring", "published_models", "wan_models", "wan_steps", "wan_phases", "wan_comfyui")
    return {name: module(name) for name in names}


@pytest.fixture(scope="module")
def case(modules):
    state = modules["wan_models"].weights("toy", torch.float32, "cpu")
    shape = modules["wan_models"].Shape("toy", "toy run")
    return modules["wan_steps"].Case(shape, "cpu", torch.float32, state)


def test_contenders_agree(modules, case):
    rows = {
        contender.name: case.measure(contender, steps=1)
        for contender in modules["wan_steps"].CONTENDERS
        if contender.runs_on("cpu")
    }
    assert not any("error" in row for row in rows.values())
    exact = {name for name, row in rows.items() if row["error_rms"] == 0}
    assert exact == {"diffusers, resident", "Piying, resident", "Piying, streamed", "diffusers, group offload"}
    assert 0 < rows["Piying, fp8"]["error_rms"] < rows["diffusers, layerwise casting"]["error_rms"] < 0.1
    streamed = sum(tensor.nbytes for name, tensor in case.state.items() if "blocks." in name)
    assert streamed <= rows["Piying, streamed"]["moved_per_step"] <= 1.5 * streamed
    assert all(row["peak"] > 0 and row["seconds"][0] > 0 for row in rows.values())


def test_a_written_model_is_found_by_the_name_that_whole_runs_ask_for(modules, tmp_path, monkeypatch):
    phases = modules["wan_phases"]
    monkeypatch.setitem(modules["wan_models"].CONFIGS, "mini", modules["wan_models"].CONFIGS["toy"])
    monkeypatch.setattr(phases, "vae_of", lambda _, toy=phases.vae_of: toy("toy"))
    for name, size in {"num_layers": 1, "num_heads": 1, "d_ff": 64, "vocab_size": 512}.items():
        monkeypatch.setitem(modules["published_models"].CONFIGURATIONS["umt5-xxl"], name, size)
    path = phases.write_pipeline("mini", tmp_path, "cpu")
    host = HeadlessHost(models=[tmp_path], chosen_device="cpu", cache=tmp_path / "cache")
    found = choose_model(ModelHandle(WAN_VACE, phases.model_name("mini")), host)
    assert found.path == path
    written = {file: file.stat().st_mtime_ns for file in path.rglob("*.safetensors")}
    assert len(written) == 3
    phases.write_pipeline("mini", tmp_path, "cpu")  # for another cap: the same files
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*.safetensors")} == written


def test_a_whole_name_asks_for_one_contender_and_a_part_for_all_that_have_it(modules):
    names = ["ComfyUI", "ComfyUI, fp8", "Piying, streamed", "Piying, fp8 streamed"]
    wanted = modules["wan_steps"].wanted
    assert wanted(names, ["ComfyUI", "streamed"]) == ["ComfyUI", "Piying, streamed", "Piying, fp8 streamed"]
    assert wanted(names, ["fp8"]) == ["ComfyUI, fp8", "Piying, fp8 streamed"]
    assert wanted(names, [""]) == names


def test_an_error_of_ours_is_not_swallowed(modules, case):
    """Only what other people's code cannot do, and memory that ran out, become rows of the table."""
    steps = modules["wan_steps"]

    def broken(*_):
        raise ValueError("cannot")

    assert case.measure(steps.Contender("theirs", broken), 1) == {"error": "ValueError: cannot"}
    with pytest.raises(ValueError, match="cannot"):
        case.measure(steps.Contender("ours", broken, ("bf16", "resident")), 1)


def test_names_are_those_of_the_original_checkpoints(modules):
    name = modules["wan_comfyui"].original_name
    assert name("blocks.3.attn1.to_out.0.weight") == "blocks.3.self_attn.o.weight"
    assert name("blocks.3.attn2.norm_q.weight") == "blocks.3.cross_attn.norm_q.weight"
    assert name("vace_blocks.0.proj_in.bias") == "vace_blocks.0.before_proj.bias"
    assert name("vace_blocks.0.scale_shift_table") == "vace_blocks.0.modulation"
    assert name("scale_shift_table") == "head.modulation"
    assert name("proj_out.weight") == "head.head.weight"
    assert name("blocks.0.norm2.weight") == "blocks.0.norm3.weight"
    assert name("blocks.0.ffn.net.0.proj.weight") == "blocks.0.ffn.0.weight"


def test_the_peak_counts_what_a_call_makes(modules):
    given = torch.zeros(1000)

    def call():
        first = given + 1
        second = first * 2
        del first
        return second.view(10, 100) - 1

    assert modules["measuring"].peak(call, "cpu") == 2 * 4000


def test_weights_depend_on_their_names_alone(modules):
    numbers = modules["wan_models"].numbers
    first = numbers("blocks.0.attn1.to_q.weight", (4, 8), torch.float32, "cpu")
    assert torch.equal(first, numbers("blocks.0.attn1.to_q.weight", (4, 8), torch.float32, "cpu"))
    assert not torch.equal(first, numbers("blocks.1.attn1.to_q.weight", (4, 8), torch.float32, "cpu"))
