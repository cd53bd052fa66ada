"""`--plan`: what a workflow would need, before anything is downloaded or loaded."""

from __future__ import annotations

import json
import shutil

import pytest
from piying.core.catalog.installed_model import BUILT_IN_ROOT, InstalledModel
from piying.core.checkpoints.quantized_file import quantize_file
from piying.core.errors import PiyingError
from piying.core.host.headless import HeadlessHost
from piying.core.parallel.cards import Cards
from piying.core.parallel.ranks import ranks_of
from piying.runner.errors import WorkflowError
from piying.runner.plan import as_json, formats_as_json, plan_graph
from piying.runner.session import Session
from piying.tests.runner.ranks_driver import filled, node

GB = 2**30
RANK = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
RANK |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
T2V, T2I = "workflows/t2v.json", "workflows/t2i.json"
VIDEO_720P = [
    "--set=PiyingLoadWanVACE.model=wan2.1-vace-14b",
    "--set=PiyingVACESample.width=1280",
    "--set=PiyingVACESample.height=720",
    "--set=PiyingVACESample.num_frames=81",
]


def planned(command, *arguments):
    ran = command(*arguments, "--plan", "--json")
    assert ran.returncode == 0, ran.stderr
    (line,) = ran.stdout.splitlines()
    return json.loads(line)


def test_asking_before_downloading(command):
    """The sentence of the documentation: will 14B at 720p run on a card of 16 GB?"""
    plan = planned(command, T2V, "--vram-gb", 16, "--ram-gb", 32, *VIDEO_720P)
    assert plan["fits"] is True
    assert 8 < plan["peak_vram_gb"] < 16
    assert 0 < plan["peak_ram_gb"] < 32
    assert plan["seconds"] > 0
    assert plan["reasons"]
    assert plan["rejected"]
    parts = {part["name"]: part for part in plan["components"]}
    assert set(parts) == {"text_encoder", "transformer", "vae"}
    assert parts["transformer"]["placement"] == "streamed"
    assert parts["transformer"]["gb"] > 16
    (node,) = plan["nodes"]
    assert (node["class_type"], node["model"]) == ("PiyingVACESample", "wan2.1-vace-14b")
    assert node["machine"]["vram_gb"] == 16
    assert not command.output.exists()


def test_what_does_not_fit_says_what_would(command):
    plan = planned(command, T2V, "--vram-gb", 6, "--ram-gb", 32, *VIDEO_720P)
    assert plan["fits"] is False
    assert plan["reasons"][-1].startswith("What would fit: num_frames ")


def test_the_plan_as_a_table(command):
    ran = command(T2I, "--plan", "--vram-gb", 6, "--ram-gb", 16, "--set=PiyingLoadHunyuanDiT.model=hunyuan-dit-v1.2")
    assert ran.returncode == 0, ran.stderr
    assert "Hunyuan-DiT Text to Image" in ran.stdout
    assert "\nphase" in ran.stdout
    assert "\nsample" in ran.stdout


# Sizes in each weight format


def both(sizes=(), **options):
    """Return the plan of workflows/t2v.json, and the rows of the table of formats by their names."""
    session = Session(imagined=True, **options)
    try:
        workflow = session.prepare(T2V, set=dict(sizes))
        graph, roots, _ = session.check(workflow)
        (table,) = formats_as_json(session.plan(graph, roots, formats=True))["nodes"]
        return as_json(session.plan(graph, roots)), {row["format"]: row for row in table["formats"]}
    finally:
        session.close()


@pytest.mark.parametrize("stored", ["bf16", "fp8"])
def test_a_row_of_the_table_is_the_plan_of_files_in_that_format(stored):
    """The fp8 files that are listed, and those that the table imagines of the bf16 ones."""
    sizes = dict(argument.removeprefix("--set=").split("=") for argument in VIDEO_720P)
    card = {"vram": 16 * 2**30, "ram": 64 * 2**30}
    listed = {} if stored == "bf16" else {"PiyingLoadWanVACE.model": "wan2.1-vace-14b-fp8"}
    (plan, own), (_, rows) = both(sizes | listed, **card), both(sizes, **card)
    parts, own = {part["name"]: part for part in plan["components"]}, own[stored]
    for name in ("fits", "peak_vram_gb", "peak_ram_gb", "seconds"):
        assert own[name] == plan[name], name
    assert own["placement"] == parts["transformer"]["placement"] == "streamed"
    assert own["streamed"] == {"fits": True, "peak_vram_gb": parts["transformer"]["peak_vram_gb"]}
    assert own["resident"]["fits"] is False
    for part in ("transformer", "text_encoder"):
        assert rows[stored]["components"][part] == own["components"][part]
    assert rows[stored]["streamed"] == own["streamed"]
    assert list(rows) == sorted(rows, key=lambda name: -rows[name]["gb"])
    assert list(rows)[:2] == ["fp32", "bf16"]
    assert {"fp8", "int8", "mxfp8", "nvfp4", "gguf Q8_0", "gguf Q4_K"} < set(rows)
    assert 3.3 < rows["bf16"]["components"]["transformer"] / rows["gguf Q4_K"]["components"]["transformer"] < 3.6


@pytest.mark.parametrize("vram", [None, 2])
def test_the_table_of_what_is_installed(tmp_path, vram):
    """A folder of the built-in model, its transformer quantized, on this processor and on a card."""
    model = shutil.copytree(BUILT_IN_ROOT / "wan_vace", tmp_path / "diffusers" / "toy")
    (original,) = (model / "transformer").glob("*.safetensors")
    device = {"device": "cpu"} if vram is None else {"vram": vram * 2**30, "ram": 8 * 2**30}
    sizes = {"PiyingLoadWanVACE.model": "diffusers/toy"}
    before = both(sizes, models=[tmp_path], **device)[1]
    assert "gguf Q4_K" not in before, "no row of 128 weights is whole blocks of 256"
    quantize_file(original, "q8_0")
    original.unlink()
    plan, now = both(sizes | {"PiyingLoadWanVACE.memory": "gguf"}, models=[tmp_path], **device)
    imagined, now = before["gguf Q8_0"], now["gguf Q8_0"]
    in_file = imagined["components"]["transformer"], now["components"]["transformer"]
    assert in_file[0] == pytest.approx(in_file[1], rel=1e-3)
    for name in ("peak_ram_gb", "peak_vram_gb"):
        assert imagined[name] == pytest.approx(plan[name], rel=1e-3), name
    assert {row["placement"] for row in before.values()} == ({"cpu"} if vram is None else {"resident"})


def test_the_table_for_people(command):
    ran = command(T2I, "--plan", "--table", "--vram-gb", 4, "--set=PiyingLoadHunyuanDiT.model=hunyuan-dit-v1.2")
    assert ran.returncode == 0, ran.stderr
    head, line = [text for text in ran.stdout.splitlines() if text.startswith(("format", "nvfp4"))]
    parts = ["text_encoder", "text_encoder_2", "transformer", "vae"]
    assert head.split() == ["format", "loses", *parts, "resident", "streamed", "best", "card", "memory", "time"]
    assert line.split()[:2] == ["nvfp4", "9.5%"]
    assert " GB fits " in line
    assert "--table goes with --plan" in command(T2V, "--table").stderr


def test_this_machine_is_planned_for_without_numbers(command):
    plan = planned(command, T2V, "--device", "cpu")
    assert plan["fits"] is True
    assert plan["peak_vram_gb"] == 0
    assert {part["placement"] for part in plan["components"]} == {"cpu"}


def test_a_run_wants_the_model_installed(command):
    ran = command(T2V, "--set=PiyingLoadWanVACE.model=wan2.1-vace-14b")
    assert ran.returncode == 2
    assert "python install.py --models wan2.1-vace-14b" in ran.stderr


def test_mistakes_are_still_told(command):
    ran = command(T2V, "--plan", "--json", "--set=PiyingVACESample.num_frames=10")
    assert ran.returncode == 2
    assert json.loads(ran.stdout)["event"] == "error"
    assert "use 9 or 13" in ran.stdout


@pytest.mark.parametrize("size", ["0", "-1", "much", "inf", "1e30"])
def test_sizes_are_numbers_above_zero(command, size):
    ran = command(T2V, "--plan", f"--vram-gb={size}")
    assert ran.returncode == 2
    assert "is no number of GB above 0" in ran.stderr


def test_a_limit_without_a_card_is_said_to_have_no_effect(command, write):
    text = write({"1": {"class_type": "PreviewAny", "inputs": {"source": "a"}}})
    ran = command(text, "--vram-gb", 4, "--device", "cpu")
    assert ran.returncode == 0, ran.stderr
    assert "there is no card here to limit" in ran.stderr


@pytest.fixture
def session(tmp_path):
    session = Session(output=tmp_path, device="cpu", vram=16 * 2**30, ram=32 * 2**30, imagined=True)
    yield session
    session.close()


def plans_of(session, api):
    graph, roots, _ = session.check(session.prepare(api))
    return session.plan(graph, roots)


def sampler(**inputs):
    values = {"width": 64, "height": 64, "steps": 4, "cfg": 5.0, "prompt": "", "negative_prompt": "", "seed": 1}
    return {"class_type": "PiyingHunyuanDiT", "inputs": {"model": ["1", 0], **values, **inputs}}


LOADER = {"class_type": "PiyingLoadHunyuanDiT", "inputs": {"model": "hunyuan-dit-v1.2", "precision": "auto"}}
SHOWN = {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}}


def test_values_of_primitives_are_known_before_a_run(session):
    api = {
        "1": LOADER,
        "2": sampler(width=["4", 0], height=["4", 0]),
        "3": SHOWN,
        "4": {"class_type": "PrimitiveInt", "inputs": {"value": 1024}},
    }
    (linked,) = plans_of(session, api)
    (literal,) = plans_of(session, {**api, "2": sampler(width=1024, height=1024)})
    assert linked.unknown == []
    assert linked.answer == literal.answer
    (small,) = plans_of(session, {**api, "2": sampler()})
    assert small.answer.plan.peak_vram < linked.answer.plan.peak_vram


def test_values_that_only_the_run_knows_are_named(session):
    api = {
        "1": LOADER,
        "2": sampler(prompt=["5", 0]),
        "3": SHOWN,
        "4": {"class_type": "PiyingLoadPromptModel", "inputs": {"model": "built-in", "precision": "auto"}},
        "5": {
            "class_type": "PiyingExpandPrompt",
            "inputs": {
                "model": ["4", 0],
                "prompt": "a cat",
                "preset": "text_to_image",
                "max_new_tokens": 4,
                "temperature": 0.0,
                "seed": 1,
            },
        },
    }
    (plan,) = [plan for plan in plans_of(session, api) if plan.node.id == "2"]
    assert plan.unknown == ["prompt"]


def test_a_graph_of_which_no_node_can_tell(session):
    graph, roots, _ = session.check(
        session.prepare({"1": {"class_type": "PreviewAny", "inputs": {"source": "a"}}}),
    )
    with pytest.raises(WorkflowError, match="no node of the workflow can tell"):
        plan_graph(graph, roots, session.classes)


def test_cards_that_are_not_there(command):
    plan = planned(command, T2V, "--cards", 2, "--vram-gb", 24, "--ram-gb", 64, *VIDEO_720P)
    (said,) = (reason for reason in plan["reasons"] if "2 cards" in reason)
    assert "prompt and negative prompt on different cards" in said and "assumed (PCIe)" in said
    refused = command(T2V, "--plan", "--cards", 2, "--parallel", "prompts", "--set=PiyingVACESample.cfg=1")
    assert refused.returncode == 2
    assert "--parallel prompts: cfg is 1, so that a step has one prediction" in refused.stderr
    for options, said in {
        ("--cards", 2): "this machine has no card",
        ("--parallel", "off"): "goes with --cards",
    }.items():
        alone = command(T2V, *options)
        assert alone.returncode == 2 and said in alone.stderr


def test_a_second_card_that_is_not_there(command):
    plan = planned(command, T2V, "--second-vram-gb", 8, "--vram-gb", 16, "--ram-gb", 64, *VIDEO_720P)
    places = {part["phase"]: part.get("device") for part in plan["components"]}
    assert places == {"encode": "cuda:1", "condition": None, "sample": None, "decode": "cuda:1"}
    second = plan["nodes"][0]["machine"]["second"]
    assert (second["device"], second["vram_gb"]) == ("cuda:1", 8) and 0 < second["peak_vram_gb"] < 8
    alone = planned(command, T2V, "--vram-gb", 16, "--ram-gb", 64, *VIDEO_720P)
    assert not any("second" in reason for reason in alone["reasons"])
    assert (
        "condition: on the first card, because on the second fp32, resident, tiled takes 85 s instead of 51 s."
        in (plan["reasons"])
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--second-device", "cuda:1"],
            "error: --second-device cuda:1: there is no such card here (cpu). Leave it out.",
        ),
        (["--check", "--second-device", "cpu"], "error: --second-device cpu: the CPU is no card"),
        (["--second-vram-gb", 8], "--second-vram-gb goes with --second-device, or with --plan"),
        (["--plan", "--second-vram-gb", 8], "there is no card here that a second one could stand beside"),
        (["--server", "http://localhost:1", "--second-device", "cuda:1"], "--second-device: not allowed with"),
    ],
)
def test_a_second_card_that_cannot_be_is_refused(command, options, said):
    refused = command(T2V, *options)
    assert refused.returncode == 2 and said in refused.stderr


def test_a_workflows_second_card_that_is_not_here_is_left_out(command):
    named = "--set=PiyingLoadWanVACE.second_device=cuda:7"
    assert command(T2V, "--check", named).returncode == 0
    plan = planned(command, T2V, named)
    said = "second_device cuda:7: there is no such card here (cpu); the run has one card."
    assert plan["fits"] and said in plan["reasons"]


def on_cards(tmp_path, count, asked="auto", **values):
    """Return the plan of 14B at 720p on cards of 24 GB, and the sentence on how they share it."""
    cards = Cards(count, asked) if count > 1 else None
    session = Session(output=tmp_path, input=tmp_path, imagined=True, vram=24 * GB, ram=64 * GB, cards=cards)
    settings = dict(one.removeprefix("--set=").split("=") for one in VIDEO_720P)
    owners = {"memory": "PiyingLoadWanVACE", "precision": "PiyingLoadWanVACE"}
    changed = {f"{owners.get(name, 'PiyingVACESample')}.{name}": value for name, value in values.items()}
    workflow = session.prepare(T2V, set={**settings, **changed})
    graph, roots, _ = session.check(workflow)
    ((plan,),) = ([one.answer.plan for one in session.plan(graph, roots)],)
    session.close()
    return plan, next((reason for reason in plan.reasons if f"{count} cards: " in reason), "")


def test_the_way_that_several_cards_share_a_video(tmp_path):
    """The exact one where it is as fast; each card holds less by sequence, and time follows the cards."""
    one = on_cards(tmp_path, 1)[0].phase("sample")
    wanted = {(2, 5): "prompt and negative", (4, 5): "a share of the tokens", (2, 1): "a share of the tokens"}
    for (count, cfg), words in wanted.items():
        assert words in on_cards(tmp_path, count, cfg=cfg)[1], (count, cfg)
    prompts, by_sequence = (on_cards(tmp_path, 2, way)[0].phase("sample") for way in ("prompts", "sequence"))
    assert 0.45 < prompts.seconds / one.seconds < 0.55 and 0.45 < by_sequence.seconds / one.seconds < 0.6
    assert by_sequence.vram < 0.7 * one.vram and by_sequence.seconds > prompts.seconds
    waits = on_cards(tmp_path, 3, "prompts")[1]
    assert "A step has 2 predictions: 1 of 3 cards wait." in waits
    off, said = on_cards(tmp_path, 2, "off")
    assert off.phase("sample").seconds == pytest.approx(one.seconds) and "all on the first card" in said


def test_weights_that_no_card_holds_are_sharded(tmp_path):
    """14B in bf16 is 32 GB. Where cards share the sequence, each has a part of the weights and copies it once."""
    plan, said = on_cards(tmp_path, 4, precision="bf16")
    sample = plan.phase("sample")
    assert sample.placement == "sharded" and "a share of the tokens" in said
    assert any("each of 4 cards has a share of the weights, because" in reason for reason in plan.reasons)
    assert sample.vram < sample.weights / 2 and sample.moved == pytest.approx(sample.weights / 4, rel=0.1)
    asked, said = on_cards(tmp_path, 2, memory="sharded")
    assert asked.phase("sample").placement == "sharded" and "Not prompts: memory is sharded" in said
    for count, way in ((1, "auto"), (2, "prompts"), (2, "off")):
        whole = on_cards(tmp_path, count, way, memory="sharded")[0]
        assert whole.phase("sample").placement != "sharded"
        assert any("memory is sharded: no cards share the sequence" in reason for reason in whole.reasons)


IMAGES = [
    ("PiyingLoadHunyuanDiT", "hunyuan-dit-v1.2", "PiyingHunyuanDiT"),
    ("PiyingLoadZImage", "z-image-turbo-bf16", "PiyingZImage"),
]


@pytest.mark.parametrize(("loader", "model", "sampler"), IMAGES)
def test_the_way_that_several_cards_share_an_image(tmp_path, loader, model, sampler):
    """Each card takes one of two prompts, or a share of the tokens; without guidance there is one prediction."""

    def sampling(count, asked="auto", **values):
        cards = Cards(count, asked, link=100 * GB) if count > 1 else None
        session = Session(output=tmp_path, input=tmp_path, imagined=True, vram=48 * GB, ram=96 * GB, cards=cards)
        # So many steps that reading the weights takes no part of the time.
        given = {"width": 1024, "height": 1024, "steps": 100, "cfg": 5.0, **values}
        sample = node(sampler, model=["load", 0], **given)
        shown = node("PreviewImage", images=["sample", 0])
        workflow = filled(session, {"load": node(loader, model=model), "sample": sample, "shown": shown})
        graph, roots, _ = session.check(session.prepare(workflow))
        ((plan,),) = ([one.answer.plan for one in session.plan(graph, roots)],)
        session.close()
        said = next((reason for reason in plan.reasons if f"{count} cards: " in reason), "")
        return plan.phase("sample"), said

    one, prompts = sampling(1)[0], sampling(2, "prompts")
    assert 0.45 < prompts[0].seconds / one.seconds < 0.6 and prompts[0].vram < one.vram
    assert "prompt and negative prompt on different cards" in prompts[1]
    assert "One card takes both in one batch, which has other last bits." in prompts[1]
    for count in (2, 4, 8):
        share, said = sampling(count, "sequence")
        assert 0.9 / count < share.seconds / one.seconds < 1.3 / count and share.vram < one.vram
        assert "each card a share of the tokens" in said
    assert "each card a share of the tokens" in sampling(4)[1]
    assert "Not prompts: cfg is 1, so that a step has one prediction" in sampling(2, cfg=1.0)[1]
    with pytest.raises(PiyingError, match="--parallel prompts: cfg is 1.*Choose off or sequence, or auto"):
        sampling(2, "prompts", cfg=1.0)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, "LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT is not set"),
        ({**RANK, "RANK": "2"}, "RANK is 2 of WORLD_SIZE 2"),
        ({**RANK, "MASTER_PORT": "any"}, "invalid literal"),
        ({**RANK, "PIYING_RANK_TIMEOUT": "0"}, "PIYING_RANK_TIMEOUT is '0'"),
    ],
)
def test_an_environment_that_is_not_torchruns_is_refused(environment, said):
    with pytest.raises(PiyingError, match=said):
        ranks_of(environment)
    assert ranks_of({}) is None and ranks_of({**RANK, "WORLD_SIZE": "1"}) is None
    assert ranks_of(RANK).rank == 1


def test_a_rank_whose_files_are_others_is_refused(tmp_path):
    from piying.core.families.diffusion_model import ModelParts
    from piying.core.families.shared_sampling import files_digest
    from piying.core.wan.family import WAN_VACE

    host, digests = HeadlessHost(), []
    for name in ("a", "b"):
        shutil.copytree(BUILT_IN_ROOT / "wan_vace" / "transformer", tmp_path / name / "transformer")
        parts = ModelParts(WAN_VACE, InstalledModel("model", tmp_path / name, 0), host)
        digests.append(files_digest(parts, "transformer"))
    assert digests[0] == digests[1], "the same files elsewhere are the same"
    (weights,) = (tmp_path / "b" / "transformer").glob("*.safetensors")
    with weights.open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"else")
    assert files_digest(parts, "transformer") != digests[0]
