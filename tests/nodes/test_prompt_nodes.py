"""Expand Prompt and Prompt Server as both hosts call them."""

from __future__ import annotations

import pytest
from piying.core.catalog.selection import ModelHandle
from piying.core.errors import PiyingError
from piying.core.host.current import set_host
from piying.core.host.headless import HeadlessHost
from piying.core.prompting.family import PROMPT
from piying.nodes.prompt import PiyingExpandPrompt, PiyingLoadPromptModel, PiyingPromptServer

OLD = {"prompt": "a red circle", "preset": "text_to_video", "max_new_tokens": 64, "temperature": 0.7, "seed": 1}


@pytest.fixture(autouse=True)
def models(tmp_path):
    set_host(HeadlessHost(models=[tmp_path / "models"], chosen_device="cpu", cache=tmp_path / "cache"))
    yield tmp_path / "models"
    set_host(None)


def test_a_workflow_from_before_still_runs():
    extra = {}
    shown = PiyingExpandPrompt().expand(ModelHandle(PROMPT, "built-in"), extra_pnginfo=extra, unique_id="7", **OLD)
    text, negative = shown["result"]
    assert "red" in text
    assert "overexposed" in negative
    assert shown["ui"]["text"] == [text]
    record = extra["piying"]["7"]
    assert (record["prompt"], record["expanded"], record["model"]) == ("a red circle", text, "built-in")


def test_compiling_is_off_unless_asked_for():
    handles = [
        PiyingLoadPromptModel().load("built-in", "auto", "auto", *asked)[0] for asked in ((), (False,), (True,))
    ]
    assert [handle.compile_step for handle in handles] == [False, False, True]


def test_a_run_that_fell_back_is_run_again():
    node, handle = PiyingExpandPrompt(), ModelHandle(PROMPT, "gone")
    before = PiyingExpandPrompt.IS_CHANGED(preset="text_to_video", unique_id="8")
    assert node.expand(handle, unique_id="8", **OLD)["result"][0] == "a red circle"
    assert PiyingExpandPrompt.IS_CHANGED(preset="text_to_video", unique_id="8") != before
    assert PiyingExpandPrompt.IS_CHANGED(preset="text_to_video", unique_id="9") == before


def test_a_preset_that_was_edited_is_run_again(models):
    (models / "LLM" / "prompts").mkdir(parents=True)
    mine = models / "LLM" / "prompts" / "mine.txt"
    mine.write_text("Write.")
    assert "mine" in PiyingExpandPrompt.INPUT_TYPES()["required"]["preset"][0]
    before = PiyingExpandPrompt.IS_CHANGED(preset="mine")
    assert PiyingExpandPrompt.IS_CHANGED(preset="mine") == before
    mine.write_text("Write better.")
    assert PiyingExpandPrompt.IS_CHANGED(preset="mine") != before
    mine.unlink()
    assert PiyingExpandPrompt.IS_CHANGED(preset="mine") != before


def test_strict_fails_with_a_sentence():
    with pytest.raises(PiyingError, match="is not installed"):
        PiyingExpandPrompt().expand(ModelHandle(PROMPT, "gone"), **OLD, strict=True)


def test_a_server_is_a_model_with_another_behind_it():
    (fallback,) = (ModelHandle(PROMPT, "built-in"),)
    (handle,) = PiyingPromptServer().choose("http://127.0.0.1:9/v1", "qwen3:4b", 2, fallback)
    extra = {}
    shown = PiyingExpandPrompt().expand(handle, extra_pnginfo=extra, unique_id="1", **OLD)
    assert shown["result"][0] != "a red circle"
    assert extra["piying"]["1"]["model"] == "built-in"
    assert "cannot be reached" in extra["piying"]["1"]["server_problem"]


def test_an_address_is_checked_before_anything_runs(monkeypatch):
    monkeypatch.delenv("PIYING_ALLOW_SERVERS", raising=False)
    assert PiyingPromptServer.VALIDATE_INPUTS("http://127.0.0.1:11434/v1") is True
    assert PiyingPromptServer.VALIDATE_INPUTS(None) is True
    assert "PIYING_ALLOW_SERVERS=evil.example.com" in PiyingPromptServer.VALIDATE_INPUTS("https://evil.example.com")


def test_no_widget_takes_a_key():
    for node in (PiyingExpandPrompt, PiyingPromptServer):
        names = {name for group in node.INPUT_TYPES().values() for name in group}
        assert not any(
            "key" in name or "token" in name.removeprefix("max_new_").replace("tokens", "") for name in names
        )
