"""Add LoRA: from the node to the frames, chained, taken off again, planned for, and refused."""

from __future__ import annotations

import hashlib
import logging

import piying
import pytest
import torch
from piying.core.catalog.selection import ChosenLora, ModelHandle
from piying.core.checkpoints import apply_lora, load, load_component
from piying.core.download.manifest import ListedFile, ListedModel
from piying.core.errors import PiyingError
from piying.core.executor import model_cache
from piying.core.executor.streaming import streamed
from piying.core.families.diffusion_model import estimate
from piying.core.host.current import set_host
from piying.core.host.headless import HeadlessHost
from piying.core.hunyuan_dit.family import HUNYUAN_DIT
from piying.core.hunyuan_dit.request import ImageRequest
from piying.core.hunyuan_dit.run import load_model as image_model
from piying.core.hunyuan_dit.run import sample as draw
from piying.core.lora import catalog as loras
from piying.core.wan.family import WAN_VACE
from piying.core.wan.model import load as load_model
from piying.core.wan.phases import VideoWork
from piying.core.wan.request import WanRequest
from piying.core.wan.run import sample

from .formats import models, writers

REQUEST = WanRequest("the red cat", width=32, height=32, num_frames=5, steps=2, seed=3)
HANDLE = ModelHandle(WAN_VACE, "built-in")
SMALL = WanRequest("", width=32, height=32, num_frames=5)
WORK = VideoWork.of(SMALL)
NODES = piying.NODE_CLASS_MAPPINGS
RANK = 4


@pytest.fixture
def host(tmp_path):
    (tmp_path / "loras" / "style").mkdir(parents=True)
    host = HeadlessHost(models=[tmp_path], chosen_device="cpu")
    set_host(host)
    yield host
    set_host(None)
    model_cache.evict_models()


@pytest.fixture(scope="module")
def layers():
    """The shapes of the built-in transformer's query and feed-forward layers."""
    model = load_model(HANDLE, HeadlessHost(chosen_device="cpu")).parts
    state = load_component("transformer", model.found.place("transformer")).state_dict()
    return {
        name.removesuffix(".weight"): tuple(tensor.shape)
        for name, tensor in state.items()
        if name.endswith(("attn1.to_q.weight", "ffn.net.2.weight"))
    }


def write(path, layers, seed=0, size=0.3, metadata=None):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (out, into) in layers.items():
        tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, into, generator=generator) * size
        tensors[f"{name}.lora_B.weight"] = torch.randn(out, RANK, generator=generator) * size
    return writers.save(tensors, path, metadata)


def add(handle, name, strength=1.0):
    return NODES["PiyingLoRA"]().add(handle, name, strength)[0]


def frames_of(handle, host):
    return sample(handle, REQUEST, host)[0]


# Through the node


def test_the_list_is_what_lies_in_the_folder(host, layers, tmp_path):
    write(tmp_path / "loras" / "a.safetensors", layers)
    write(tmp_path / "loras" / "style" / "b.safetensors", layers)
    writers.save(models.tensors(models.wan_vae()), tmp_path / "loras" / "a vae.safetensors")
    choices, options = NODES["PiyingLoRA"].INPUT_TYPES()["required"]["lora"]
    assert choices == ["none", "a.safetensors", "style/b.safetensors"]
    assert "a.safetensors: LoRA" in options["tooltip"]


def test_a_lora_changes_the_video_and_comes_off_without_reading_the_model_again(host, layers, tmp_path, monkeypatch):
    write(tmp_path / "loras" / "a.safetensors", layers)
    plain = frames_of(HANDLE, host)
    monkeypatch.setattr(load, "load_component", None)
    with_one = add(HANDLE, "a.safetensors", 0.8)
    changed, record = sample(with_one, REQUEST, host)
    assert (changed - plain).abs().max() > 0.02
    assert record["loras"] == [{"name": "a.safetensors", "strength": 0.8}]
    assert not torch.equal(frames_of(add(HANDLE, "a.safetensors", 0.4), host), changed)
    assert torch.equal(frames_of(with_one, host), changed)
    forget_latents(tmp_path)
    again, record = sample(HANDLE, REQUEST, host)
    assert torch.equal(again, plain)
    assert "loras" not in record


def forget_latents(tmp_path):
    """Results of a run before must not stand in for this one's."""
    for file in (tmp_path / "cache").rglob("*.safetensors"):
        file.unlink()


def test_several_in_a_chain_add_up_whatever_was_on_before(host, layers, tmp_path):
    write(tmp_path / "loras" / "a.safetensors", layers, 1)
    write(tmp_path / "loras" / "b.safetensors", layers, 2)
    both = add(add(HANDLE, "a.safetensors"), "b.safetensors", -0.5)
    assert both.loras == (ChosenLora("a.safetensors", 1.0), ChosenLora("b.safetensors", -0.5))
    first = frames_of(both, host)
    assert not torch.equal(first, frames_of(add(HANDLE, "a.safetensors"), host))
    forget_latents(tmp_path)
    assert torch.equal(frames_of(both, host), first)


def test_a_file_that_changed_is_read_again(host, layers, tmp_path):
    path = write(tmp_path / "loras" / "a.safetensors", layers, 1)
    first = frames_of(add(HANDLE, path.name), host)
    write(path, layers, 5, size=0.4)
    assert not torch.equal(frames_of(add(HANDLE, path.name), host), first)


@pytest.mark.parametrize(("name", "strength"), [("none", 1.0), ("a.safetensors", 0.0)])
def test_nothing_to_add_leaves_the_handle(host, layers, tmp_path, name, strength):
    write(tmp_path / "loras" / "a.safetensors", layers)
    assert add(HANDLE, name, strength) is HANDLE


def test_it_goes_with_fp8_and_with_streaming(host, layers, tmp_path):
    """In FP8 the LoRA stays in full precision beside the weights, and goes where a block goes."""
    write(tmp_path / "loras" / "a.safetensors", layers)
    model = load_model(add(HANDLE, "a.safetensors"), host)
    choice = _choice(storage="fp8")
    transformer = model.transformer(choice)
    assert any(name.endswith("additions.0.down") for name, _ in transformer.named_parameters())
    assert any(type(layer).__name__ == "Fp8Linear" for layer in transformer.modules())
    inputs = {
        "hidden_states": torch.randn(1, transformer.config.in_channels, 1, 4, 4),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 8, transformer.config.text_dim),
        "control_hidden_states": torch.randn(1, transformer.config.vace_in_channels, 1, 4, 4),
    }
    with torch.no_grad():
        here = transformer(**inputs)[0]
        blocks = [*transformer.vace_blocks, *transformer.blocks]
        with streamed(transformer, blocks, "cpu"):
            assert torch.equal(transformer(**inputs)[0], here)
        bare = load_model(HANDLE, host).transformer(choice)
        assert bare is transformer
        assert not torch.equal(bare(**inputs)[0], here)
        assert not any("additions" in name for name, _ in bare.named_parameters())


def _choice(storage):
    from piying.core.planner.plan_types import PhasePlan

    return PhasePlan("sample", "transformer", "fp32", storage, "resident", "whole", False, 0, 0, 0, 0.0)


def test_hunyuan_dit_takes_them_too(host, tmp_path):
    model = image_model(model_handle(), host)
    names = {f"blocks.{number}.attn1.to_q" for number in range(2)}
    state = load_component("transformer", model.found.place("transformer")).state_dict()
    write(tmp_path / "loras" / "a.safetensors", {name: tuple(state[f"{name}.weight"].shape) for name in names})
    handle, steps, cfg = NODES["PiyingHunyuanDiTLoRA"]().add(model_handle(), "a.safetensors", 1.0)
    assert (steps, cfg) == (50, 5.0)
    request = ImageRequest("a red circle", width=64, height=64, steps=2, seed=1)
    plain, _ = draw(model_handle(), request, host)
    changed, record = draw(handle, request, host)
    assert (changed - plain).abs().max() > 0.01
    assert record["loras"] == [{"name": "a.safetensors", "strength": 1.0}]


def model_handle():
    return ModelHandle(HUNYUAN_DIT, "built-in")


# The plan


def test_the_plan_counts_what_is_kept_beside_the_weights(host, layers, tmp_path):
    write(tmp_path / "loras" / "a.safetensors", layers)
    handle = add(HANDLE, "a.safetensors")
    plain, heavier = (load_model(one, host).components()["transformer"] for one in (HANDLE, handle))
    added = sum(RANK * (out + into) for out, into in layers.values())
    assert heavier.parameters - plain.parameters == added
    model = load_model(handle, host)
    transformer = model.transformer(_choice(storage="fp32"))
    assert sum(parameter.numel() for parameter in transformer.parameters()) == heavier.parameters
    largest = max(sum(p.numel() for p in block.parameters()) for block in transformer.blocks)
    assert heavier.largest_block("fp32", "fp32") >= 4 * largest
    assert (
        estimate(handle, host, WORK).plan.phase("sample").weights
        > estimate(HANDLE, host, WORK).plan.phase("sample").weights
    )


def test_a_lora_for_a_model_of_another_size_is_refused_before_anything_is_read(host, tmp_path, monkeypatch):
    write(tmp_path / "loras" / "big.safetensors", {"blocks.0.attn1.to_q": (5120, 5120)})
    monkeypatch.setattr(load, "load_component", None)
    with pytest.raises(
        PiyingError, match=r"'big.safetensors' is a LoRA for Wan 14B, rank 4; it does not fit model built-in"
    ):
        sample(add(HANDLE, "big.safetensors"), REQUEST, host)
    with pytest.raises(PiyingError, match="Choose a LoRA made for this model"):
        estimate(add(HANDLE, "big.safetensors"), host, WORK)


def test_one_that_does_not_fit_does_not_stay(host, layers, tmp_path):
    write(tmp_path / "loras" / "a.safetensors", layers)
    width = next(iter(layers.values()))[1]
    write(tmp_path / "loras" / "b.safetensors", {"blocks.77.attn1.to_q": (width, width)})
    plain = frames_of(HANDLE, host)
    with pytest.raises(PiyingError, match="1 of its 1 layers are not in a WanVACETransformer3DModel"):
        frames_of(add(add(HANDLE, "a.safetensors"), "b.safetensors"), host)
    forget_latents(tmp_path)
    assert torch.equal(frames_of(HANDLE, host), plain)


# Refusals


def test_what_is_no_lora_says_what_it_is(host, tmp_path):
    writers.save(models.tensors(models.wan_vae()), tmp_path / "loras" / "v.safetensors")
    said = NODES["PiyingLoRA"].VALIDATE_INPUTS("v.safetensors")
    assert "lora 'v.safetensors' cannot be used: this is a Wan2.1 VAE" in said
    assert "is not installed. Here are: none" in NODES["PiyingLoRA"].VALIDATE_INPUTS("missing.safetensors")
    with pytest.raises(PiyingError, match="is not installed"):
        add(HANDLE, "../x.safetensors")


def test_either_slash_and_the_folders_name_are_understood(host, layers, tmp_path):
    write(tmp_path / "loras" / "style" / "b.safetensors", layers)
    for name in ("style\\b.safetensors", "loras/style/b.safetensors"):
        assert NODES["PiyingLoRA"].VALIDATE_INPUTS(name) is True
        assert add(HANDLE, name).loras == (ChosenLora("style/b.safetensors", 1.0),)


# One verdict

W = 96  # of the toy transformers


def pair(layer, rank=RANK, down="lora_A.weight", up="lora_B.weight", value=0.01):
    return {f"{layer}.{down}": torch.full((rank, W), value), f"{layer}.{up}": torch.full((W, rank), value)}


QUERY = "diffusion_model.blocks.0.self_attn.q"
ZOO = {
    "plain": (pair(QUERY), ""),
    "foreign layers besides": ({**pair(QUERY), **pair("diffusion_model.blocks.0.cross_attn.k_audio")}, ""),
    "any adapter": (pair("base_model.model.blocks.0.self_attn.q", 4, "lora_A.mine.weight", "lora_B.mine.weight"), ""),
    "any prefix": (pair("pipe.dit.blocks.0.self_attn.q"), ""),
    "a path as prefix": (pair("checkpoints/wan/blocks.0.self_attn.q"), ""),
    "blocks within blocks": (pair("blocks.3.blocks.0.self_attn.q"), ""),
    "DoRA of columns": ({**pair(QUERY), f"{QUERY}.dora_scale": torch.ones(1, W)}, ""),
    "older diffusers": (pair("transformer.blocks.0.attn1.to_q", 4, "lora.down.weight", "lora.up.weight"), ""),
    "fp8": ({name: tensor.to(torch.float8_e4m3fn) for name, tensor in pair(QUERY).items()}, ""),
    "DoRA": ({**pair(QUERY), f"{QUERY}.dora_scale": torch.ones(W, 1)}, ""),
    "LoKr": ({f"{QUERY}.lokr_w1": torch.ones(8, 8), f"{QUERY}.lokr_w2": torch.full((12, 12), 0.01)}, ""),
    "table": ({f"diffusion_model.blocks.{block}.diff_m": torch.full((1, 6, W), 0.1) for block in range(4)}, ""),
    "OFT": ({f"{QUERY}.oft_blocks": torch.ones(4, 8, 8)}, "is of the kind OFT, which this pack cannot read"),
    "GLoRA": (
        {f"{QUERY}.{part}.weight": torch.ones(4, 4) for part in ("a1", "a2", "b1", "b2")},
        "is of the kind GLoRA, which this pack cannot read",
    ),
    "of another model": (pair("transformer.double_blocks.0.img_attn.qkv"), "1 of its 1 layers are"),
    "of a text encoder": (pair("lora_te1_text_model_encoder_layers_0_mlp_fc1"), "changes text encoders alone"),
    "of a text encoder and another model": (
        {
            **pair("lora_te1_text_model_encoder_layers_0_mlp_fc1"),
            **pair("lora_te1_text_model_encoder_layers_1_mlp_fc1"),
            **pair("lora_unet_down_blocks_1_attentions_0_proj_in"),
        },
        "3 of its 3 layers are",
    ),
    "of another kind and another model": (
        {f"{QUERY}.oft_blocks": torch.ones(4, 8, 8), **pair("double_blocks.0.img_attn.qkv"), **pair("txt_in")},
        "3 of its 3 layers are",
    ),
    "alphas alone": (
        {f"{QUERY}.alpha": torch.tensor(1.0), f"{QUERY}.dora_scale": torch.ones(W, 1)},
        "has layers with an alpha alone",
    ),
    "DoRA of another width": (
        {**pair(QUERY), f"{QUERY}.dora_scale": torch.ones(W + 1, 1)},
        "has parts that do not belong together: dora_scale [97, 1]",
    ),
    "one factor": ({f"{QUERY}.lora_A.weight": torch.ones(4, W)}, "self_attn.q has one factor alone: up is missing"),
    "two ranks": (
        {f"{QUERY}.lora_A.weight": torch.ones(4, W), f"{QUERY}.lora_B.weight": torch.ones(W, 5)},
        "has parts that do not belong together: up [96, 5] and down [4, 96]",
    ),
    "NaN": (pair(QUERY, value=float("nan")), "holds values that are no numbers (NaN or infinity)"),
    "finite, and its product is not": (pair(QUERY, value=1e38), "self_attn.q is changed by about 1e+76"),
    "too large for attention": (
        {**pair(QUERY), f"{QUERY}.alpha": torch.tensor(1e30)},
        "self_attn.q is changed by about",
    ),
    "a difference too large": ({f"{QUERY}.diff_b": torch.full((W,), 1e38)}, "self_attn.q is changed by about 1e+38"),
    "NaN alpha": (
        {**pair(QUERY), f"{QUERY}.alpha": torch.tensor(float("nan"))},
        "self_attn.q.alpha holds values that are no numbers (NaN or infinity)",
    ),
}


def test_what_inspection_list_and_check_accept_runs(host, tmp_path):
    from piying.core.checkpoints.inspect import inspect

    good = {f"{name}.safetensors": tensors for name, (tensors, reason) in ZOO.items() if not reason}
    for name, tensors in good.items():
        found = inspect(writers.save(tensors, tmp_path / "loras" / name), contents=True)
        assert (found.is_lora, found.readable, found.reason) == (True, True, "")
        assert NODES["PiyingLoRA"].VALIDATE_INPUTS(name) is True
    assert NODES["PiyingLoRA"].INPUT_TYPES()["required"]["lora"][0] == ["none", *sorted(good)]
    model, plain = toy(host), frames_of(HANDLE, host)
    for name in good:
        applied = apply_lora(model, tmp_path / "loras" / name)
        assert applied.layers >= 1, name
        applied.remove()
    assert not torch.equal(frames_of(add(HANDLE, "DoRA.safetensors", 20.0), host), plain)


@pytest.mark.parametrize("name", [name for name, (_, reason) in ZOO.items() if reason])
def test_inspection_list_check_and_run_refuse_in_the_same_words(host, tmp_path, name):
    from piying.core.checkpoints.inspect import as_text, inspect

    tensors, reason = ZOO[name]
    path = writers.save(tensors, tmp_path / "loras" / "x.safetensors")
    found = inspect(path, contents=True)
    accepted = NODES["PiyingLoRA"].VALIDATE_INPUTS("x.safetensors")
    choices = NODES["PiyingLoRA"].INPUT_TYPES()["required"]["lora"][0]
    assert found.is_lora
    assert reason in found.reason
    assert f"read     no: {found.reason}" in as_text(found)
    # Only an open file tells of its numbers; a list looks at headers.
    assert choices == (
        ["none", "x.safetensors"] if "holds values" in reason or "is changed by" in reason else ["none"]
    )
    assert f"lora 'x.safetensors' cannot be used: {found.reason.rstrip('.')}. Here are: none." in accepted
    with pytest.raises(PiyingError) as caught:
        add(HANDLE, "x.safetensors")
    assert str(caught.value) == accepted
    with pytest.raises(PiyingError) as caught:
        apply_lora(toy(host), path)
    assert reason in str(caught.value)


def toy(host):
    return load_component("transformer", load_model(HANDLE, host).parts.found.place("transformer"))


def test_layers_left_out_are_in_inspection_log_and_record(host, tmp_path, caplog):
    from piying.core.checkpoints.inspect import as_text, inspect

    path = writers.save(ZOO["foreign layers besides"][0], tmp_path / "loras" / "x.safetensors")
    words = "1 of its 2 layers: 1 in no WanVACETransformer3DModel (diffusion_model.blocks.0.cross_attn.k_audio)"
    assert f"left out {words}" in as_text(inspect(path))
    _, record = sample(add(HANDLE, "x.safetensors"), REQUEST, host)
    assert record["loras"] == [{"name": "x.safetensors", "strength": 1.0, "left_out": words}]
    assert caplog.messages.count(f"LoRA x.safetensors leaves out {words}. The others are on.") == 1


def test_a_lora_of_another_family_is_not_offered(host, tmp_path):
    writers.save(pair("diffusion_model.layers.0.attention.to_q"), tmp_path / "loras" / "x.safetensors")
    assert NODES["PiyingLoRA"].INPUT_TYPES()["required"]["lora"][0] == ["none"]
    assert NODES["PiyingZImageLoRA"].INPUT_TYPES()["required"]["lora"][0] == ["none", "x.safetensors"]
    said = NODES["PiyingLoRA"].VALIDATE_INPUTS("x.safetensors")
    assert "1 of its 1 layers are not in a WanVACETransformer3DModel, diffusion_model.layers.0.attention.to_q" in said


def test_a_strength_that_is_no_number_is_refused(host, layers, tmp_path):
    write(tmp_path / "loras" / "a.safetensors", layers)
    with pytest.raises(PiyingError, match="strength of lora 'a.safetensors' is nan. Give a number"):
        add(HANDLE, "a.safetensors", float("nan"))


# Settings


def listed(path, settings):
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    file = ListedFile("loras/four steps.safetensors", path.stat().st_size, sha256, {})
    return (ListedModel("four", "wan_vace", "lora", "", "", None, (file,), (), settings),)


MADE_FOR = {"steps": 4, "cfg": 1.0, "shift": 5.0, "strength": 0.7}


@pytest.mark.parametrize("name", ["four steps.safetensors", "renamed.safetensors"])
def test_a_step_distilled_one_brings_its_settings(host, layers, tmp_path, monkeypatch, name):
    path = write(tmp_path / "loras" / name, layers)
    monkeypatch.setattr(loras, "listed_models", lambda: listed(path, MADE_FOR))
    other = write(tmp_path / "loras" / "other.safetensors", layers, 9)
    handle, steps, cfg, shift = NODES["PiyingLoRA"]().add(HANDLE, name, 1.0)
    assert (steps, cfg, shift) == (4, 1.0, 5.0)
    assert NODES["PiyingLoRA"]().add(handle, other.name, 1.0)[1:] == (4, 1.0, 5.0), "the chain's, not the last one's"
    assert NODES["PiyingLoRA"]().add(HANDLE, other.name, 1.0)[1:] == (50, 5.0, 16.0)


def test_its_tooltip_says_the_strength_too(host, layers, tmp_path, monkeypatch):
    path = write(tmp_path / "loras" / "four steps.safetensors", layers)
    monkeypatch.setattr(loras, "listed_models", lambda: listed(path, MADE_FOR))
    tooltip = NODES["PiyingLoRA"].INPUT_TYPES()["required"]["lora"][1]["tooltip"]
    assert "four steps.safetensors: LoRA; made for 4 steps, cfg 1, shift 5, strength 0.7" in tooltip


def test_other_settings_are_said(host, layers, tmp_path, monkeypatch, caplog):
    path = write(tmp_path / "loras" / "four steps.safetensors", layers)
    monkeypatch.setattr(loras, "listed_models", lambda: listed(path, MADE_FOR))
    with caplog.at_level(logging.WARNING, "piying"):
        frames_of(add(HANDLE, path.name), host)
    assert "was made for 4 steps, cfg 1, shift 5; this run has 2 steps, cfg 5, shift 16" in caplog.text


def test_those_of_the_manifest_are_known_by_name():
    for model in loras.listed_models():
        if model.kind == "lora":
            assert loras._listed_by_name(model.files[0].path.rpartition("/")[2]) == model
            assert {"steps", "cfg", "shift", "strength"} <= set(model.settings)


# The other door


def test_a_workflow_of_the_runner(host, layers, tmp_path):
    from piying.runner.errors import InvalidGraph
    from piying.runner.session import Session

    write(tmp_path / "loras" / "a.safetensors", layers)
    write(tmp_path / "loras" / "wide.safetensors", {name: (2 * out, 2 * into) for name, (out, into) in layers.items()})
    graph = {
        "1": {"class_type": "PiyingLoadWanVACE", "inputs": {"model": "built-in", "precision": "auto"}},
        "2": {"class_type": "PiyingLoRA", "inputs": {"model": ["1", 0], "lora": "a.safetensors", "strength": 1.0}},
        "3": {
            "class_type": "PiyingVACESample",
            "inputs": {
                "model": ["2", 0],
                "prompt": "the red cat",
                "negative_prompt": "",
                "width": 32,
                "height": 32,
                "num_frames": 5,
                "steps": 1,
                "cfg": ["2", 2],
                "shift": ["2", 3],
                "seed": 1,
            },
        },
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
    }
    session = Session(input=tmp_path, output=tmp_path, models=[tmp_path], device="cpu")
    try:
        checked, roots, _ = session.check(session.prepare(graph))
        (plan,) = session.plan(checked, roots)
        assert plan.unknown == []
        with pytest.raises(InvalidGraph, match=r"^Add LoRA \(node 2\): lora 'wide.safetensors' .* does not fit model"):
            session.check(session.prepare(graph, set={"2.lora": "wide.safetensors"}))
        record = session.run(graph).results["3"].ui["piying"][0]
    finally:
        session.close()
    assert record["loras"] == [{"name": "a.safetensors", "strength": 1.0}]
    assert (record["cfg"], record["shift"]) == (5.0, 16.0)


def test_a_lora_of_another_size_is_refused_at_its_node(host, tmp_path, layers):
    write(tmp_path / "loras" / "wide.safetensors", {name: (2 * out, 2 * into) for name, (out, into) in layers.items()})
    with pytest.raises(PiyingError, match=r"fit model built-in \(.* is 96 × .*, the LoRA 192 × "):
        add(HANDLE, "wide.safetensors")
    assert add(HANDLE, "wide.safetensors", 0.0) == HANDLE  # not used
    assert loras.lora_choices(host, WAN_VACE) == ["none", "wide.safetensors"]  # another model may take it


def test_that_no_model_is_installed_is_left_to_what_loads_it(host, tmp_path, layers, caplog):
    write(tmp_path / "loras" / "a.safetensors", layers)
    auto = ModelHandle(WAN_VACE)
    handle = add(add(auto, "a.safetensors"), "a.safetensors")
    assert caplog.records == []
    assert load_model(handle, host).parts.found.name == "built-in"
    assert [record.getMessage()[:31] for record in caplog.records] == ["No Wan VACE model is installed:"]


@pytest.mark.parametrize("outside", [False, True])
def test_what_the_node_accepts_is_what_the_model_takes(host, tmp_path, layers, outside):
    """Variants of one model differ outside of blocks: such a layer alone is left out."""
    wanted = {**layers, "patch_embedding": (7, 7)} if outside else layers
    write(tmp_path / "loras" / "good.safetensors", wanted)
    handle = add(HANDLE, "good.safetensors")
    parts = load_model(HANDLE, host).parts
    [file] = loras.lora_files(handle, host, parts.found)
    module = load_component("transformer", parts.found.place("transformer"))
    assert ("patch_embedding" in file.left_out) == outside
    assert apply_lora(module, file.path).left_out == file.left_out
