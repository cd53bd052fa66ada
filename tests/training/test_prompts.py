"""The prompt model's lines and answers, for every preset, and how it learns them."""

from __future__ import annotations

import random
import sys
from dataclasses import replace

import pytest
import torch
from piying.core.prompting.facts import edit_result
from piying.core.prompting.presets import BUILT_IN_PRESETS
from piying.training import prompts
from piying.training.evaluate import BUILT_IN
from piying.training.prompt_score import judge, unseen
from piying.training.short_prompts import ORDERED, OTHERS, PRESETS, as_given, draw_facts, example
from transformers import Qwen3ForCausalLM


def test_every_preset_is_learned():
    assert sorted({*PRESETS, *OTHERS}) == sorted(BUILT_IN_PRESETS)
    draw = random.Random(0)
    assert {prompts.training_example(draw).preset for _ in range(200)} == set(BUILT_IN_PRESETS)


@pytest.mark.parametrize("presets", [PRESETS, OTHERS], ids=["made", "given"])
def test_the_answers_of_the_data_are_good_ones(presets):
    for item in unseen(200, 0, presets):
        assert all(judge(item, item.answer).values()), item


def test_an_order_leads_to_its_result_alone():
    draw = random.Random(1)
    items = [example(draw, ORDERED) for _ in range(300)]
    orders = [item for item in items if edit_result(item.line) != item.line]
    assert len(orders) > 50
    for item in orders:
        text = edit_result(item.line).lower()
        words = [word.lower().removesuffix("色") for name, word in item.said.items() if name != "motion"]
        assert all(word in text for word in words), item


def test_what_a_picture_shows_is_not_made_up():
    facts = draw_facts("en", strange=False, draw=random.Random(2))
    facts = as_given(replace(facts, said=frozenset({"shape"})), "image_to_video")
    assert (facts.colour, facts.background) == ("", "")
    assert facts.motion, "but it moves"
    assert not as_given(facts, "vace_repaint").motion, "the old video gives it"


def test_made_up_looks_are_found():
    item = next(item for item in unseen(200, 3, OTHERS) if item.said.keys() == {"shape", "colour"})
    other = item.answer.replace(item.said["colour"], "golden 金色")
    assert not judge(item, f"{item.answer} {other}")["no_looks_made_up"]


def test_the_loss_is_the_models_own():
    model, tokenizer = prompts.start(BUILT_IN / "prompt")
    tokens, labels = prompts.batch(tokenizer, 0.05, random.Random(4), size=3)
    with torch.no_grad():
        expected = model(input_ids=tokens, labels=labels).loss
        torch.testing.assert_close(prompts.answer_loss(model, tokens, labels), expected)


def test_training_begins_with_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(prompts, "BATCH", 1)
    steps = ["--steps", "1", "--muon", "1e-9", "--adamw", "1e-9", "--runs", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["training", "--from", str(BUILT_IN / "prompt"), *steps])
    prompts.main()
    state = torch.load(tmp_path / "prompts.pt", weights_only=True)["modules"]["model"]
    for key, expected in (
        Qwen3ForCausalLM.from_pretrained(BUILT_IN / "prompt", dtype=torch.float32).state_dict().items()
    ):
        assert torch.allclose(state[key], expected, atol=1e-6), key
