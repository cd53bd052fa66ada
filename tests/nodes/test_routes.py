"""What the browser may ask: plans, models, fetching; and what it may not."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import piying
import pytest
from piying.core.download.jobs import Downloader
from piying.core.download.manifest import listed_models
from piying.core.errors import PiyingError
from piying.core.host import comfy_server
from piying.core.host.comfy_server import MAX_TABS, Tabs, parse, refusal
from piying.core.host.current import set_host
from piying.core.host.headless import HeadlessHost
from piying.nodes import routes

ROOT = Path(__file__).resolve().parents[2]
GB = 2**30
JSON = {"Content-Type": "application/json", "Host": "127.0.0.1:8188"}
SIZE = {"width": 832, "height": 480, "num_frames": 81, "steps": 20, "cfg": 5.0}


@pytest.fixture(autouse=True)
def host(tmp_path):
    """A card of 8 GB that is not there, so that models of the manifest can be planned for."""
    set_host(HeadlessHost(models=[tmp_path], chosen_device="cpu", vram=8 * GB, ram=32 * GB, imagined=True))
    yield
    set_host(None)


def loader(model="wan2.1-vace-14b", **more):
    inputs = {"model": model, "precision": "auto", "memory": "auto", **more}
    return {"class_type": "PiyingLoadWanVACE", "inputs": inputs, "slot": 0}


def asked(**inputs):
    return {"class_type": "PiyingVACESample", "inputs": {"model": loader(), **SIZE, **inputs}}


def refused(question, pattern):
    with pytest.raises(PiyingError, match=pattern):
        routes.plan(question)


def test_a_plan_says_what_a_run_needs():
    found = routes.plan(asked())
    assert found["verdict"] == "streams"
    assert 0 < found["peak_vram_gb"] < 8
    assert found["text"].startswith("wan2.1-vace-14b\n")
    assert [832, 480] in [list(size) for size in found["sizes"]]
    assert found["toy"] is False


def test_it_changes_with_size_length_model_and_precision():
    first = routes.plan(asked())
    for question in (
        asked(width=1280, height=720),
        asked(num_frames=17),
        asked(model=loader("wan2.1-vace-1.3b")),
        asked(model=loader(memory="fp8")),
    ):
        assert routes.plan(question)["peak_vram_gb"] != first["peak_vram_gb"]


def test_large_cards_hold_everything_and_small_ones_not_every_size():
    set_host(HeadlessHost(chosen_device="cpu", vram=80 * GB, ram=128 * GB, imagined=True))
    assert routes.plan(asked(model=loader("wan2.1-vace-1.3b")))["verdict"] == "fits"
    set_host(HeadlessHost(chosen_device="cpu", vram=6 * GB, ram=32 * GB, imagined=True))
    large = {"width": 2048, "height": 2048, "num_frames": 241}
    found = routes.plan(asked(**large))
    assert found["verdict"] == "too big"
    assert found["fits"] is False
    assert len(found["fitting"]) == 2
    for smaller in found["fitting"]:
        assert smaller != large
        assert routes.plan(asked(**smaller))["fits"], "what is offered fits"


def test_what_is_too_big_on_a_cpu_is_told_in_main_memory():
    set_host(HeadlessHost(chosen_device="cpu", ram=3 * GB, imagined=True))
    found = routes.plan(asked(width=2048, height=2048, num_frames=241))
    assert found["verdict"] == "too big"
    assert found["machine"]["vram_gb"] == 0
    assert found["peak_ram_gb"] > found["machine"]["ram_gb"]


def test_the_time_of_a_toy_is_told_where_a_plan_counts_most_of_it():
    set_host(HeadlessHost(chosen_device="cpu"))
    toy = {"model": loader("built-in")}
    tiny = routes.plan(asked(**toy, width=64, height=64, num_frames=5, steps=4))
    assert tiny["seconds"] is None
    assert "overhead" in tiny["text"]
    real = routes.plan(asked(**toy, width=832, height=480, num_frames=81, steps=50))
    assert real["seconds"] > 60
    assert "overhead" not in real["text"]


def test_what_only_the_run_knows_is_named():
    """A plan for other sizes than the run's would call a small run too big, or a large one fitting."""
    found = routes.plan(asked(width=None, height=None, task=None))
    assert (found["verdict"], found["unknown"]) == ("unknown", ["width", "height", "num_frames"])
    found = routes.plan(asked(width=None, height=None, task=None, size_from="widgets"))
    assert (found["verdict"], found["unknown"]) == ("unknown", ["width", "height"])
    assert "text" not in found and "seconds" not in found
    found = routes.plan(asked(cfg=None))
    assert (found["verdict"], found["unknown"]) == ("streams", ["cfg"])


def test_sizes_that_only_the_run_knows_are_those_of_the_last_run():
    last = {"width": 96, "height": 64, "num_frames": 17}
    wired = asked(width=None, height=None, num_frames=None, task=None)
    planned, known = routes.plan({**wired, "last": last}), routes.plan(asked(**last, task=None, size_from="widgets"))
    assert (planned["verdict"], planned["unknown"]) == ("streams", [])
    assert planned["peak_vram_gb"] == known["peak_vram_gb"]
    assert routes.plan({**asked(), "last": {**last, "width": 832}}) == routes.plan(asked()), "a widget counts first"
    assert routes.plan({**wired, "last": {"width": 0}})["verdict"] == "wrong"
    assert routes.plan({**wired, "last": "none"})["verdict"] == "unknown"


def task_node(name="PiyingVACEInpaint", **inputs):
    return {"class_type": name, "inputs": {"video": None, "mask": None, "fit": "refuse", "length": "refuse", **inputs}}


@pytest.mark.parametrize(
    ("task", "more", "unknown"),
    [
        (task_node(), {}, ["width", "height", "num_frames"]),
        (task_node(fit="crop", length="trim"), {}, []),
        (task_node(fit="crop", length="trim"), {"size_from": "task"}, ["width", "height", "num_frames"]),
        (task_node(fit="crop"), {}, ["num_frames"]),
        (task_node(), {"size_from": "widgets"}, []),
        (task_node("PiyingVACEReference"), {"size_from": "task"}, []),
        (task_node(fit="crop", length="trim", task=task_node()), {}, ["width", "height", "num_frames"]),
        (task_node("PiyingVACEExtend", fit="crop", num_frames=49, count="new"), {}, ["num_frames"]),
    ],
)
def test_sizes_that_a_run_takes_from_its_task_are_not_those_of_the_widgets(task, more, unknown):
    found = routes.plan(asked(task=task, **more))
    assert [name for name in found["unknown"] if name != "task"] == unknown
    assert (found["verdict"] == "unknown") == bool(unknown)


def test_a_length_that_a_task_sets_is_planned_with():
    given = task_node("PiyingVACEExtend", fit="crop", num_frames=17, count="in all")
    found = routes.plan(asked(task=given))
    assert found["from_task"] == {"num_frames": 17}
    assert found["peak_vram_gb"] == routes.plan(asked(num_frames=17, task=None, size_from="widgets"))["peak_vram_gb"]


def test_a_wired_size_counts_before_the_tasks():
    """The value of a primitive is known, and comes over a wire all the same."""
    found = routes.plan({**asked(task=task_node()), "wired": ["width", "height", "num_frames"]})
    assert (found["verdict"], found["from_task"]) == ("streams", {})


ONE_EXPERT = {"boundary": 0.0, "cfg_2": 0.0}
WAN_SETTINGS = {"width": 832, "height": 480, "num_frames": 81, "steps": 50, "cfg": 5.0, "shift": 16.0, **ONE_EXPERT}
TOY_SETTINGS = {"width": 96, "height": 64, "num_frames": 17, "steps": 20, "cfg": 3.0, "shift": 16.0, **ONE_EXPERT}


@pytest.mark.parametrize(("model", "settings"), [("wan2.1-vace-14b", WAN_SETTINGS), ("built-in", TOY_SETTINGS)])
@pytest.mark.parametrize("more", [{}, {"num_frames": 10}, {"width": None}])
def test_the_settings_of_the_model_are_told_whatever_the_widgets_say(model, settings, more):
    assert routes.plan(asked(model=loader(model), **more))["settings"] == settings


def test_the_settings_of_a_long_video_are_those_of_a_window():
    joined = {"window": 81, "overlap": 13}
    found = routes.plan({**asked(**joined), "class_type": "PiyingVACELongVideo"})["settings"]
    assert {**found, "num_frames": 81} == {**WAN_SETTINGS, **joined}
    found = routes.plan({**asked(model=loader("built-in"), **joined), "class_type": "PiyingVACELongVideo"})["settings"]
    assert (found["window"], found["overlap"], found["width"]) == (17, 5, 96)


@pytest.mark.parametrize(
    ("model", "size", "sentence"),
    [
        ("wan2.1-vace-14b", {"width": 96, "height": 64}, "96×64 is far below what wan2.1-vace-14b was trained on"),
        ("built-in", {}, "832×480 is far above what the built-in toy model was trained on (96×64, 17 frames)"),
        ("wan2.1-vace-1.3b", {"num_frames": 121}, "num_frames is 121, and wan2.1-vace-1.3b was trained on 81"),
        ("wan2.1-vace-14b", {}, None),
        ("built-in", {"width": 64, "height": 64, "num_frames": 33}, None),
    ],
)
def test_a_size_that_the_model_was_not_trained_on_is_warned_of_with_the_time(model, size, sentence):
    found = routes.plan(asked(model=loader(model), **size))
    if sentence is None:
        assert found["caution"] == ""
        return
    caution = found["caution"]
    assert caution.startswith(sentence)
    assert re.search(r"\. The run takes about [\d.]+ (s|min|h)\.$", caution), caution
    assert f"- {caution}" in found["text"].splitlines()


def test_images_too():
    question = {
        "class_type": "PiyingHunyuanDiT",
        "inputs": {
            "model": {"class_type": "PiyingLoadHunyuanDiT", "inputs": {"model": "built-in", "precision": "auto"}},
            **{name: SIZE[name] for name in ("steps", "cfg")},
            "width": 64,
            "height": 64,
        },
    }
    found = routes.plan(question)
    assert found["toy"] is True
    assert found["offer"] == "hunyuan-dit-v1.2"


def test_a_model_that_is_not_here_says_what_to_fetch():
    set_host(HeadlessHost(chosen_device="cpu"))
    found = routes.plan(asked())
    assert (found["verdict"], found["offer"]) == ("missing", "wan2.1-vace-14b")
    assert "not installed" in found["error"]
    assert routes.plan(asked(model=loader("nobody's")))["offer"] == "wan2.1-vace-1.3b"


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"num_frames": 10}, "num_frames is 10"),
        ({"width": 100}, "width is 100"),
        ({"height": None, "width": 90}, "width is 90"),
        ({"width": 0}, "width is 0. It goes from 16 to 2048"),
        ({"cfg": float("nan")}, "cfg is nan"),
    ],
)
def test_values_that_a_run_would_refuse_get_its_sentence(value, sentence):
    found = routes.plan(asked(**value))
    assert set(found) - {"settings"} == {"verdict", "error", "sizes"}
    assert found["verdict"] == "wrong"
    assert sentence in found["error"]


def test_what_a_node_on_the_way_refuses_is_said():
    widgets = piying.NODE_CLASS_MAPPINGS["PiyingGuidance"].INPUT_TYPES()["required"]
    values = {name: options["default"] for name, (_, options) in widgets.items() if "default" in options}
    guided = {"class_type": "PiyingGuidance", "inputs": {**values, "method": "cfg", "cfg_steps": "high"}}
    found = routes.plan(asked(guidance=guided))
    assert (found["verdict"], found["error"][:23]) == ("wrong", "cfg_steps holds 'high'.")


@pytest.mark.parametrize(
    ("question", "pattern"),
    [
        ({"class_type": "os.system"}, "no node of Piying"),
        ({"class_type": ["x"]}, "no node of Piying"),
        ({"class_type": "PiyingFrameRate"}, "Connect a loader"),
        ({"class_type": "PiyingVACESample"}, "Connect a loader"),
        ({"class_type": "PiyingVACESample", "inputs": []}, "no JSON object"),
        (asked(width="wide"), "width is no number"),
        (asked(width=True), "width is no number"),
        (asked(model={"class_type": "PiyingLoadWanVACE"}), "model of PiyingLoadWanVACE is missing"),
        (asked(model="Wan"), "model takes WAN_VACE, which another node gives"),
        (asked(model={**loader(), "slot": 7}), "no output 7"),
        (asked(model={**loader(), "slot": -1}), "no output -1"),
        (asked(model=loader(["x"])), "model is no text"),
        (asked(model=loader("x" * 3000)), "model is no text of up to 2000"),
    ],
)
def test_a_wrong_question_gets_a_sentence(question, pattern):
    refused(question, pattern)


def test_a_model_is_a_name_and_no_path(tmp_path):
    set_host(HeadlessHost(models=[tmp_path / "models"], chosen_device="cpu"))
    for name in ("../../etc/passwd", "/etc", "..\\..\\windows"):
        assert routes.plan(asked(model=loader(name)))["verdict"] == "missing"


def test_nodes_that_do_work_are_not_run():
    """Only loaders are; what a video or a server would give stays unknown."""
    server = {"class_type": "PiyingPromptServer", "inputs": {"url": "http://127.0.0.1:1", "model": "x", "timeout": 1}}
    refused(asked(model=server), "Connect a loader")


def test_every_node_tells_the_words_it_is_found_by():
    words = routes.aliases({})
    assert list(words) == list(piying.NODE_CLASS_MAPPINGS)
    assert {"image to video", "first frame", "首帧", "首尾帧"} <= set(words["PiyingVACEExtend"])


@pytest.fixture
def dialog(tmp_path, monkeypatch):
    """What the models dialog is told on a card of so many GB."""
    monkeypatch.setattr(comfy_server, "models_root", lambda: tmp_path / "not made yet")

    def tell(loader, vram=8, **more):
        set_host(HeadlessHost(models=[tmp_path], chosen_device="cpu", vram=vram * GB, ram=32 * GB, imagined=True))
        return routes.models({"class_type": loader, **more}, Downloader())

    return tell


@pytest.mark.parametrize(
    ("loader", "vram", "recommended"),
    [
        ("PiyingLoadWanVACE", 4, "wan2.1-vace-1.3b-fp16"),
        ("PiyingLoadHunyuanDiT", 8, "hunyuan-dit-v1.2"),
        ("PiyingLoadZImage", 8, "z-image-turbo-bf16"),
        ("PiyingLoadPromptModel", 8, None),
    ],
)
def test_a_model_is_recommended_for_the_card(dialog, loader, vram, recommended):
    assert dialog(loader, vram, advice=True)["recommended"] == recommended


def test_what_does_not_fit_is_not_recommended(dialog):
    plans = dialog("PiyingLoadWanVACE", 4, advice=True)["plans"]
    assert plans["wan2.1-vace-1.3b"]["fits"] and not plans["wan2.1-vace-14b"]["fits"]
    assert plans["wan2.1-vace-1.3b"]["words"] == "832×480, 81 frames"
    assert "plans" not in dialog("PiyingLoadWanVACE", 4), "planned for once, and not with every look at a download"


def test_the_models_dialog_tells_loras_disk_hubs_and_commands(dialog, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://hf-mirror.com")
    found = dialog("PiyingLoadWanVACE")
    kinds = {offer["id"]: offer["kind"] for offer in found["offers"]}
    assert (kinds["wan2.1-vace-14b"], kinds["wan2.1-lora-lightx2v-14b"]) == ("model", "lora")
    assert found["free"] == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)
    assert found["hubs"]["huggingface"] == "https://hf-mirror.com"
    words = shlex.split(found["commands"]["here"])
    assert words[0] == sys.executable
    assert words[2:] == ["--no-dependencies", "--models", "MODEL", "--to", str(tmp_path / "not made yet")]
    assert Path(words[1]).is_file()


def test_every_model_has_a_line_in_both_languages():
    for language in ("en", "zh"):
        texts = json.loads((ROOT / "locales" / language / "main.json").read_text(encoding="utf-8"))["piying"]["models"]
        shown = {model.id for model in listed_models() if model.kind in ("model", "lora")}
        shown -= {model.id for model in listed_models() if model.family in ("depth", "pose", "detector")}
        assert set(texts) == shown
        assert all(set(text) == {"title", "about"} and all(text.values()) for text in texts.values())
        assert len({text["about"] for text in texts.values()}) == len(texts), "the lines tell versions apart"


def test_endless_questions_end():
    question = asked()
    for _ in range(30):
        question = asked(task=question)
    refused(question, "More than 8 nodes")


# Who may ask


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://proxy.example"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "none"}, False),
        ({"Origin": "http://127.0.0.1:8188"}, True),
        ({"Origin": "http://127.0.0.1:9999"}, False),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Content-Type": "text/plain"}, False),
        ({"Content-Type": "application/x-www-form-urlencoded"}, False),
        ({"Content-Type": "Application/JSON; charset=utf-8"}, True),
    ],
)
def test_only_comfyuis_own_pages_may_ask(headers, allowed):
    assert (refusal({**JSON, **headers}) is None) is allowed


@pytest.mark.parametrize("data", [b"", b"[1]", b"{", b"\xff", b"null", b"[" * 5000])
def test_what_is_no_question_is_refused(data):
    with pytest.raises(PiyingError, match="no JSON"):
        parse(data)


# News


def test_tabs_that_asked_hear_of_their_own_runs(monkeypatch):
    sent = []

    class Server:
        client_id, last_node_id = "a", "7"

        def send_sync(self, kind, news, client):
            sent.append((kind, news, client))

    monkeypatch.setattr(comfy_server, "comfy_server", Server)
    tabs = Tabs()
    tabs.send("piying.progress", {"done": 1})
    assert sent == []
    tabs.join("b", True)
    tabs.send("piying.progress", {"done": 1})
    assert sent == []
    tabs.join("a", False)
    tabs.send("piying.progress", {"done": 1})
    assert sent == [("piying.progress", {"node": "7", "done": 1}, "a")]
    assert not tabs.wants_motion()
    tabs.join("a", True)
    assert tabs.wants_motion() and tabs.has_page()
    tabs.join("a", False, is_page=False)
    tabs.send("piying.progress", {"done": 2})
    assert sent[1:] == [("piying.progress", {"node": "7", "done": 2}, "a")]
    assert not tabs.has_page(), "a program would be made sheets that it does not show"
    tabs.join("a", False)
    assert tabs.has_page()


def test_tabs_are_forgotten_in_time():
    tabs = Tabs()
    for number in range(3 * MAX_TABS):
        tabs.join(str(number), True)
    assert len(tabs._moving) == MAX_TABS


@pytest.mark.parametrize(
    "question",
    [
        {},
        {"client": ""},
        {"client": "x" * 101, "moving": True},
        {"client": "x"},
        {"client": "x", "moving": True, "page": 1},
    ],
)
def test_a_tab_says_who_it_is(question):
    with pytest.raises(PiyingError, match="client is a text"):
        routes.watch(question)


def test_nothing_is_registered_without_comfyui():
    assert comfy_server.comfy_server() is None
    routes.offer_routes()
