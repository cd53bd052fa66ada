"""Expand Prompt on a real ComfyUI: its text appears while it is written, and is shown when it is done."""

from __future__ import annotations

import pytest
from piying.tests.comfyui.events import TEXT, EventStream

pytestmark = pytest.mark.comfyui

BINARY, PROGRESS_TEXT = 2, 3  # a websocket opcode; protocol.BinaryEventTypes.TEXT of ComfyUI
GRAPH = {
    "1": {"class_type": "PiyingLoadPromptModel", "inputs": {"model": "built-in", "precision": "auto"}},
    "2": {
        "class_type": "PiyingExpandPrompt",
        "inputs": {
            "model": ["1", 0],
            "prompt": "a red circle",
            "preset": "text_to_video",
            "max_new_tokens": 64,
            "temperature": 0.7,
            "seed": 1,
        },
    },
    "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
}


def test_the_text_grows_on_the_node_and_stays(comfyui):
    with EventStream(comfyui.url, "prompts") as events:
        status, body = comfyui.post(GRAPH, {"extra_pnginfo": {}}, "prompts")
        assert status == 200, body
        texts = []
        while True:
            opcode, data = events._frame()
            if opcode == BINARY and int.from_bytes(data[:4], "big") == PROGRESS_TEXT:
                size = int.from_bytes(data[4:8], "big")
                texts.append((data[8 : 8 + size].decode(), data[8 + size :].decode()))
            if opcode == TEXT and b'"execution_success"' in data:
                break
    entry = comfyui.wait(body["prompt_id"])
    (shown,) = entry["outputs"]["2"]["text"]
    assert "red" in shown
    assert texts[-1] == ("2", shown)
    assert entry["outputs"]["3"]["text"] == [shown]
