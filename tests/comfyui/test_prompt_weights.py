"""Weights in a prompt are those that ComfyUI's own text encoders read in it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import pytest
from piying.core.families.prompt_tokens import weighted_segments
from piying.tests.comfyui.server import named_checkout

pytestmark = pytest.mark.comfyui

THEIRS = """
import json, sys
sys.path.insert(0, sys.argv.pop(1))
import comfy.options
comfy.options.enable_args_parsing()
from comfy.sd1_clip import escape_important, token_weights, unescape_important
read = [token_weights(escape_important(text), 1.0) for text in json.load(sys.stdin)]
print(json.dumps([[[unescape_important(text), weight] for text, weight in pieces] for pieces in read]))
"""


def prompt(chance: random.Random, depth: int = 0) -> str:
    """Return words in brackets, each of which has its other one."""
    text = ""
    for _ in range(chance.randint(1, 4)):
        kind = chance.random()
        inside = prompt(chance, depth + 1) if kind >= 0.45 and depth < 4 else None
        number = chance.choice(["", ":1.2", ":0.5", ":-1", ":1", ":.8", ":2 ", ": 1.3", ":abc"])
        text += (
            f"({inside}{number})" if inside is not None else chance.choice(["red ", "a", "circle, ", "x:y ", "红 "])
        )
    return text + chance.choice(["", "\\(b\\)"])


def by_character(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    return [(character, pytest.approx(weight)) for text, weight in pieces for character in text]


def test_weights_are_comfyui_s():
    checkout = named_checkout()
    chance = random.Random(5)
    prompts = [prompt(chance) for _ in range(300)]
    command = [os.environ.get("COMFYUI_PYTHON", sys.executable), "-c", THEIRS, checkout, "--cpu"]
    done = subprocess.run(command, input=json.dumps(prompts), capture_output=True, text=True, check=True)
    for text, theirs in zip(prompts, json.loads(done.stdout.splitlines()[-1]), strict=True):
        assert by_character(theirs) == [
            (character, weight) for piece, weight in weighted_segments(text) for character in piece
        ], text
