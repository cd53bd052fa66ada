"""Workflows of other packs: what is missing, what does its job here, and workflows written anew in our nodes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from piying.core.host.current import set_host
from piying.runner.errors import UnknownClassesError, WorkflowError
from piying.runner.session import Session
from piying.runner.ui_format import to_api
from safetensors.torch import save_file

CASES = Path(__file__).parent / "conversion"
NAMES = sorted(path.stem for path in CASES.glob("*.json"))


def case(name):
    return json.loads((CASES / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conversion")
    session = Session(input=folder, output=folder / "output", device="cpu")
    yield session
    session.close()
    set_host(None)


def by_class(api):
    found = {}
    for node_id, node in api.items():
        found.setdefault(node["class_type"], []).append((node_id, node["inputs"]))
    return found


@pytest.fixture
def convert(session, write):
    """A function: a workflow → the API form of what is written for it, and the notes."""

    def convert(workflow, **settings):
        ui, notes = session.convert(write(workflow), **settings)
        return to_api(ui, session.definitions()), notes

    return convert


# What is missing


def test_a_workflow_of_our_own_nodes_is_not_converted(command, tmp_path):
    out = tmp_path / "converted.json"
    ran = command("workflows/t2v.json", "--convert-to-piying", out)
    assert ran.returncode == 2
    assert "there is nothing to convert" in ran.stderr
    assert not out.exists()


def test_all_missing_classes_are_named_at_once(session):
    with pytest.raises(UnknownClassesError) as refused:
        session.check(session.prepare(case("core_t2v_api")))
    text = str(refused.value)
    assert text.startswith("8 node classes are not known here:")
    assert "CLIPTextEncode (node 4), CLIPTextEncode (node 5): the node class 'CLIPTextEncode'" in text
    assert "'UNETLoader' is not known here. Here that is done by Load Wan VACE." in text
    assert "'KSampler' is not known here. Here that is done by VACE Sample." in text
    assert "VACE: Reference or VACE: Repaint or VACE: Inpaint" in text
    for words in ("--custom-nodes DIR", "--comfyui DIR", "--convert-to-piying FILE"):
        assert words in text
    assert len(refused.value.nodes) == 9


def test_missing_classes_of_a_ui_form(command, write):
    nodes = [
        {"id": 1, "type": "SetNode", "widgets_values": ["a"]},
        {"id": 2, "type": "Label (rgthree)"},
        {"id": 3, "type": "WanVideoVACEEncode", "properties": {"cnr_id": "ComfyUI-WanVideoWrapper"}, "title": "Mine"},
        {"id": 4, "type": "KSampler", "properties": {"cnr_id": "comfy-core"}, "title": "第二次采样"},
        {"id": 5, "type": "SomethingElse", "properties": {"aux_id": "me/pack"}},
    ]
    ran = command(write({"nodes": nodes, "links": []}), "--check")
    assert ran.returncode == 2
    assert "3 node classes are not known here" in ran.stderr, "those of the browser alone are not missing"
    assert "- Mine (node 3): the node class 'WanVideoVACEEncode'" in ran.stderr
    assert "It belongs to the pack 'ComfyUI-WanVideoWrapper'." in ran.stderr
    assert (
        "- 第二次采样 (node 4): the node class 'KSampler' is not known here. It belongs to ComfyUI itself."
        in ran.stderr
    )
    assert "'SomethingElse' is not known here. It belongs to the pack 'me/pack'.\n" in ran.stderr


@pytest.mark.parametrize(
    ("file", "by"),
    [
        ("hunyuan_dit_1.2.safetensors", "Load Hunyuan-DiT"),
        ("sd_xl_base_1.0.safetensors", None),
    ],
)
def test_what_loads_any_model_is_replaced_by_the_family_of_the_file(session, file, by):
    graph = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": file}}}
    with pytest.raises(UnknownClassesError) as refused:
        session.check(session.prepare(graph))
    assert (by in str(refused.value)) if by else ("Here that is done by" not in str(refused.value))


def test_a_thousand_missing_classes_are_a_short_message(session):
    graph = {str(n): {"class_type": f"Missing{n % 500}", "inputs": {}} for n in range(10_000)}
    with pytest.raises(UnknownClassesError) as refused:
        session.check(session.prepare(graph))
    assert "500 node classes" in str(refused.value)
    assert "and 460 more classes" in str(refused.value)
    assert len(str(refused.value)) < 20_000
    assert len(refused.value.nodes) == 10_000


# Conversion


def test_text_to_video(convert):
    api, notes = convert(case("core_t2v_api"))
    found = by_class(api)
    assert set(found) == {"PiyingLoadWanVACE", "PiyingVACESample", "CreateVideo", "SaveVideo"}
    [(sampler, inputs)] = found["PiyingVACESample"]
    chosen = {key: inputs[key] for key in ("width", "height", "num_frames", "steps", "cfg", "shift", "seed")}
    assert chosen == {"width": 832, "height": 480, "num_frames": 81, "steps": 20, "cfg": 5.0, "shift": 8.0, "seed": 1}
    assert (inputs["prompt"], inputs["negative_prompt"]) == ("a fox", "")
    assert "task" not in inputs
    assert found["CreateVideo"][0][1] == {"images": [sampler, 0], "fps": 16}
    assert found["SaveVideo"][0][1]["filename_prefix"] == "video/x"
    assert any("'wan2.1_vace_1.3B_fp16.safetensors' is not among the models here" in note for note in notes)


def test_a_strength_and_a_trim_that_count_for_nothing_here_are_named(convert):
    workflow = changed(changed(case("core_t2v_api"), "6", strength=0.3), "8", trim_amount=3)
    _, notes = convert(workflow)
    assert any("strength 0.3 is not carried over: a prompt alone has none." in note for note in notes)
    assert any("trim_amount 3 is not carried over" in note for note in notes)
    _, notes = convert(case("core_t2v_api"))
    assert not any("strength" in note or "trim_amount" in note for note in notes)


def test_values_that_are_not_taken_here_are_replaced_and_named(session, convert):
    workflow = case("core_t2v_api")
    by_name = {node["class_type"]: node["inputs"] for node in workflow.values()}
    by_name["SaveVideo"] |= {"format": "mkv", "codec": "vp9"}
    by_name["KSampler"] |= {"steps": 100_000, "cfg": 1e9}
    api, notes = convert(workflow)
    found = by_class(api)
    save, sampler = found["SaveVideo"][0][1], found["PiyingVACESample"][0][1]
    limits = session.definitions()["PiyingVACESample"]["input"]["required"]
    assert (save["format"], save["codec"]) == ("auto", "auto")
    assert (sampler["steps"], sampler["cfg"]) == (limits["steps"][1]["max"], limits["cfg"][1]["max"])
    said = " ".join(notes)
    assert "format is 'mkv', which is not taken here; it becomes 'auto'." in said
    assert "codec is 'vp9', which is not taken here; it becomes 'auto'." in said
    assert "steps is 100000, which is not taken here; it becomes" in said
    assert "cfg is 1000000000.0, which is not taken here; it becomes" in said
    session.check(session.prepare(api))


@pytest.mark.parametrize("name", ["core_inpaint_api", "core_inpaint_ui"])
def test_control_mask_and_reference(convert, name):
    api, notes = convert(case(name))
    found = by_class(api)
    [(_, sampler)] = found["PiyingVACESample"]
    assert sampler["prompt"] == ("a red circle on a {blue|blue} background" if name.endswith("api") else
                                 "a red circle on a blue background")  # fmt: skip
    assert (sampler["shift"], sampler["seed"], api[sampler["width"][0]]["inputs"]["value"]) == (5.0, 7, 96)
    assert sampler["sampler"] == "euler"
    [(repaint, control)] = found["PiyingVACERepaint"]
    [(inpaint, kept)] = found["PiyingVACEInpaint"]
    [(reference, _)] = found["PiyingVACEReference"]
    assert (sampler["task"], control["task"], kept["task"]) == ([repaint, 0], [inpaint, 0], [reference, 0])
    assert (control["strength"], control["fit"], control["length"], kept["keep"]) == (0.8, "crop", "continue", False)
    assert control["mask"] == kept["mask"] and control["control"] == kept["video"]
    [(cut, first)] = found["ImageFromBatch"]
    numbers = {node_id: inputs["value"] for node_id, inputs in found["PrimitiveInt"]}
    assert control["control"] == [cut, 0]
    assert first["length"] == sampler["num_frames"], "the number of frames is in one place"
    assert numbers[first["length"][0]] == 17
    for scaled in (inputs for _, inputs in found["ImageScale"]):
        assert (scaled["width"], scaled["height"]) == (sampler["width"], sampler["height"])
        assert (scaled["upscale_method"], scaled["crop"]) == ("bilinear", "center")
    assert len(found["ImageScale"]) == 2, "frames and mask may be of two sizes"
    assert "RepeatImageBatch" not in found, "one mask is enough for all frames"
    [(_, lora)] = found["PiyingLoRA"]
    assert (lora["lora"], lora["strength"]) == ("none", 0.3)
    assert len(found["PreviewImage"]) == 1
    said = "\n".join(notes)
    for words in ("'causvid.safetensors' is not in models/loras", "Canny (node 20)", "weight_dtype"):
        assert words in said


@pytest.mark.parametrize(
    ("scheduler", "steps", "becomes", "says"),
    [
        ("unipc", 20, ("uni_pc", "auto", ""), ""),
        ("dpm++_sde/beta", 20, ("dpmpp_2m_sde", "auto", ""), "the schedule dpm++_sde/beta is not carried over"),
        ("flowmatch_causvid", 9, ("euler", "causvid", ""), ""),
        ("flowmatch_causvid", 2, ("euler", "auto", "0.999, 0.934"), ""),
        ("flowmatch_distill", 4, ("euler", "distill", ""), ""),
        ("er_sde", 20, ("auto", "auto", ""), "the scheduler er_sde is not carried over: VACE Sample has uni_pc"),
    ],
)
def test_schedulers_of_the_wrapper(convert, scheduler, steps, becomes, says):
    given = case("wrapper_ends_api")
    (node,) = (node for node in given.values() if node["class_type"] == "WanVideoSampler")
    node["inputs"] |= {"scheduler": scheduler, "steps": steps}
    api, notes = convert(given)
    [(_, made)] = by_class(api)["PiyingVACESample"]
    assert tuple(made[name] for name in ("sampler", "scheduler", "sigmas")) == becomes
    assert says in "\n".join(notes) and (says or "not carried over: VACE" not in "\n".join(notes))


@pytest.mark.parametrize(
    ("name", "scheduler", "becomes", "says"),
    [
        ("uni_pc_bh2", "simple", "uni_pc", ""),
        ("dpmpp_2m", "beta", "dpmpp_2m", ""),
        ("dpmpp_2m", "normal", "dpmpp_2m", "scheduler normal is not carried over"),
        ("heun", "simple", "auto", "sampler heun is not carried over: VACE Sample has uni_pc"),
        (["3", 0], "simple", "auto", "sampler ['3', 0] is not carried over: VACE Sample has uni_pc"),
        ({}, {}, "auto", "scheduler {} is not carried over"),
    ],
)
def test_samplers_of_the_core(convert, name, scheduler, becomes, says):
    given = case("core_inpaint_api")
    (node,) = (node for node in given.values() if node["class_type"] == "KSampler")
    node["inputs"] |= {"sampler_name": name, "scheduler": scheduler}
    api, notes = convert(given)
    [(_, made)] = by_class(api)["PiyingVACESample"]
    assert made["sampler"] == becomes
    assert made["scheduler"] == ("beta" if scheduler == "beta" else "auto")
    assert says in "\n".join(notes)


def test_first_and_last_frame_of_the_wrapper(convert):
    api, notes = convert(case("wrapper_ends_api"))
    found = by_class(api)
    [(_, sampler)] = found["PiyingVACESample"]
    assert (sampler["prompt"], sampler["negative_prompt"], sampler["seed"]) == ("a fox in the snow", "static", 11)
    assert (sampler["cfg"], sampler["shift"], sampler["width"]) == (6.0, 8.0, 96)
    [(extend, ends)] = found["PiyingVACEExtend"]
    assert sampler["task"] == [extend, 0]
    assert ends["first"] == ends["last"] == found["PiyingVACEReference"][0][1]["image"]
    strengths = [inputs["strength"] for _, inputs in found["PiyingLoRA"]]
    assert strengths == [1.0, 0.5], "the first LoRA stands next to the loader"
    assert found["CreateVideo"][0][1]["fps"] == 16
    assert found["SaveVideo"][0][1]["filename_prefix"] == "wrapper"
    said = "\n".join(notes)
    for words in ("width 100 becomes 96", "cache_args is not carried over", "quantization is not carried over"):
        assert words in said


def test_widgets_of_the_wrapper_and_sizes_that_were_measured(convert):
    api, notes = convert(case("wrapper_depth_ui"))
    found = by_class(api)
    [(_, sampler)] = found["PiyingVACESample"]
    chosen = [sampler[name] for name in ("prompt", "negative_prompt", "steps", "cfg", "shift", "seed")]
    assert chosen == ["a cat // walks", "bad", 6, 1.0, 8.0, 42]
    [(repaint, control)] = found["PiyingVACERepaint"]
    assert [sampler[name] for name in ("task", "width", "height", "num_frames")] == [[repaint, n] for n in range(4)]
    assert (control["strength"], control["start_percent"], control["end_percent"]) == (0.7, 0.1, 0.9)
    assert control["length"] == "trim"
    [(depth, _)] = found["PiyingControlDepth"]
    assert control["control"] == [depth, 0]
    [(_, cut)] = found["ImageFromBatch"]
    assert (cut["batch_index"], cut["length"]) == (3, 81)
    [(_, scaled)] = found["ImageScale"]
    assert (scaled["width"], scaled["height"], scaled["crop"]) == (96, 64, "center")
    [(components, loaded)] = found["GetVideoComponents"]
    assert found["LoadVideo"] == [(loaded["video"][0], {"file": "clip.mp4"})]
    assert found["CreateVideo"][0][1]["audio"] == [components, 1]
    said = "\n".join(notes)
    for words in (
        "force_rate is not carried over",
        "Control: Depth takes its place",
        "'lightx2v.safetensors' is not in",
    ):
        assert words in said


def without(workflow, node_id, *names):
    return {**workflow, node_id: {**workflow[node_id], "inputs": {
        key: value for key, value in workflow[node_id]["inputs"].items() if key not in names
    }}}  # fmt: skip


def changed(workflow, node_id, **inputs):
    return {**workflow, node_id: {**workflow[node_id], "inputs": {**workflow[node_id]["inputs"], **inputs}}}


@pytest.mark.parametrize(
    ("workflow", "words"),
    [
        (changed(case("core_t2v_api"), "6", length=321), "321 frames, VACE Sample makes up to 241"),
        (changed(case("core_t2v_api"), "7", latent_image=["4", 0]), "begins with a latent"),
        (changed(case("core_t2v_api"), "7", positive=["4", 0]), "takes its prompts past"),
        (without(case("core_t2v_api"), "7", "model"), "comes from no loader that is known"),
        (without(case("core_t2v_api"), "6", "positive"), "a prompt is missing"),
        (changed(case("core_t2v_api"), "9", samples=["6", 2]), "that is not VACE's sampling"),
        (changed(case("core_inpaint_api"), "14", control_video=["99", 0]), "linked to a node that is not there"),
        (changed(case("wrapper_ends_api"), "12", denoise_strength=0.5), "VACE Sample begins with noise"),
        (changed(case("wrapper_ends_api"), "10", start_index=4), "Use VACE: Extend"),
        (changed(case("core_t2v_api"), "6", width="x"), "width is 'x'; it has to be a whole number, or linked"),
        (changed(case("core_t2v_api"), "6", length=[1]), "length is [1]; it has to be a whole number"),
        (changed(case("core_t2v_api"), "6", height=None), "height is None; it has to be a whole number"),
        ({"1": {"class_type": "PreviewAny", "inputs": {"source": "x"}}}, "No node of it shows or saves"),
        ({"1": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
          "2": {"class_type": "FancyUpscale", "inputs": {}}}, "FancyUpscale, has no counterpart here"),
        ({"1": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
          "2": {"class_type": "RebatchImages", "inputs": {"images": ["2", 0]}}}, "in a circle"),
        (changed(case("core_t2v_api"), "8", samples=["8", 0]), "(node 8) depends on itself"),
        ({**changed(case("core_t2v_api"), "7", model=["20", 0]),
          "20": {"class_type": "LoraLoaderModelOnly", "inputs": {"model": ["20", 0]}}}, "(node 20) depends on itself"),
    ],
)  # fmt: skip
def test_what_is_not_clear_is_refused(convert, workflow, words):
    with pytest.raises(WorkflowError, match="cannot be converted") as refused:
        convert(workflow)
    assert words in str(refused.value)


@pytest.mark.parametrize("slot", [7, -1, 10**30])
def test_a_link_to_an_output_that_is_not_there_is_refused(convert, slot):
    with pytest.raises(WorkflowError, match="is linked to an output that GetVideoComponents does not have"):
        convert(changed(case("core_inpaint_api"), "18", audio=["9", slot]))


def test_one_output_may_be_left_out(convert):
    workflow = case("core_t2v_api") | {
        "20": {"class_type": "FancyUpscale", "inputs": {"images": ["9", 0]}},
        "21": {"class_type": "PreviewImage", "inputs": {"images": ["20", 0]}},
    }
    api, notes = convert(workflow)
    assert "PreviewImage" not in by_class(api)
    assert any(note.startswith("PreviewImage (node 21) is left out: FancyUpscale") for note in notes)


def test_installed_files_are_chosen(tmp_path, write):
    (tmp_path / "loras/wan").mkdir(parents=True)
    layer = "diffusion_model.blocks.0.self_attn.q"
    factors = {f"{layer}.lora_A.weight": torch.ones(4, 1536), f"{layer}.lora_B.weight": torch.ones(1536, 4)}
    save_file(factors, tmp_path / "loras/wan/causvid.safetensors")
    session = Session(input=tmp_path, output=tmp_path / "output", models=[tmp_path], device="cpu")
    try:
        ui, notes = session.convert(write(case("core_inpaint_api")))
        [(_, lora)] = by_class(to_api(ui, session.definitions()))["PiyingLoRA"]
    finally:
        session.close()
        set_host(None)
    assert lora["lora"] == "wan/causvid.safetensors"
    assert not any("causvid" in note for note in notes)


def test_values_of_the_command_line_come_first(convert):
    api, _ = convert(case("core_t2v_api"), set={"6.width": 64, "KSampler.steps": 3}, seed=5)
    [(_, inputs)] = by_class(api)["PiyingVACESample"]
    assert (inputs["width"], inputs["steps"], inputs["seed"]) == (64, 3, 5)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_what_was_meant(session, convert, write, name):
    ui, _ = session.convert(write(case(name)))
    assert len({tuple(node["pos"]) for node in ui["nodes"]}) == len(ui["nodes"]), "no node lies on another"
    linked = {link[0] for link in ui["links"]}
    listed = [key for node in ui["nodes"] for output in node["outputs"] for key in output["links"]]
    assert sorted(listed) == sorted(linked)


def test_the_written_file_runs(command, write, tmp_path):
    workflow = changed(case("core_t2v_api"), "6", width=64, height=32, length=5)
    ran = command(write(workflow), "--convert-to-piying", tmp_path / "piying.json", "--set", "7.steps=1")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [str(tmp_path / "piying.json")]
    assert "'wan2.1_vace_1.3B_fp16.safetensors' is not among the models here" in ran.stderr
    ran = command(tmp_path / "piying.json")
    assert ran.returncode == 0, ran.stderr
    assert [path.suffix for path in command.files()] == [".mp4"]
