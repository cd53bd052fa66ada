"""Worked examples: files that keep to the rules they teach, given as turns, and kept as keys and values."""

from __future__ import annotations

import re
from functools import wraps

import pytest
from piying.core.catalog.selection import ModelHandle
from piying.core.errors import PiyingError
from piying.core.executor.model_cache import evict_models
from piying.core.host.headless import HeadlessHost
from piying.core.prompting import chat_prefix, sampling
from piying.core.prompting.answers import find_edit_problem, is_repetitive
from piying.core.prompting.chat_template import render
from piying.core.prompting.expand import expand
from piying.core.prompting.facts import contradicted_facts, edit_result, find_facts, missing_facts
from piying.core.prompting.family import PROMPT
from piying.core.prompting.generation import load_processor
from piying.core.prompting.language import is_finished, is_in, word_count
from piying.core.prompting.local_model import LocalModel
from piying.core.prompting.messages import Chat, compose_chat, nearest_examples
from piying.core.prompting.presets import (
    BUILT_IN_PRESETS,
    EXAMPLES,
    is_for_editing,
    is_for_video,
    preset_examples,
    preset_length,
    preset_text,
)
from piying.core.prompting.request import ExpandRequest

SHIPPED = [(preset, language) for preset in BUILT_IN_PRESETS for language in ("zh", "en")]


def test_every_preset_has_examples_in_both_languages():
    assert {path.stem for path in EXAMPLES.glob("*.txt")} == {f"{preset}.{language}" for preset, language in SHIPPED}


@pytest.mark.parametrize(("preset", "language"), SHIPPED)
def test_shipped_examples_keep_to_the_rules(preset, language):
    examples = preset_examples(preset, language)
    assert len(examples) >= 2
    least, most = preset_length(preset_text(preset))
    for line, answer in ((one.line, one.answer) for one in examples):
        shown = edit_result(line) if is_for_editing(preset) else line
        facts = find_facts(shown, is_for_video(preset))
        assert missing_facts(facts, answer, translated=False) == []
        assert contradicted_facts(facts, shown, answer) == []
        assert is_in(re.sub('“.*?”|".*?"', "", answer), language)
        assert is_finished(answer)
        assert not is_repetitive(answer)
        assert 0.7 * least <= word_count(answer) <= 1.3 * most
        assert not is_for_editing(preset) or find_edit_problem(answer, line) is None


def test_the_users_examples_lie_beside_their_presets(models):
    host, folder = HeadlessHost(models=[models]), models / "LLM" / "prompts"
    (folder / "examples").mkdir(parents=True)
    (folder / "haiku.txt").write_text("Write a haiku.")
    assert preset_examples("haiku", "en", host) == ()
    (folder / "examples" / "haiku.en.txt").write_text(
        "\ufeffa frog\nAn old pond.\nA frog.\n\n\nrain\nIt rains.\n", "utf-8"
    )
    assert [(one.line, one.answer) for one in preset_examples("haiku", "en", host)] == [
        ("a frog", "An old pond. A frog."),
        ("rain", "It rains."),
    ]
    # A file of ours is replaced by an empty one: a model that was tuned for the preset wants none.
    (folder / "examples" / "text_to_video.zh.txt").write_text("")
    assert preset_examples("text_to_video", "zh", host) == ()
    assert len(preset_examples("text_to_video", "en", host)) >= 2
    (folder / "text_to_video.txt").write_text("Mine.")
    assert preset_examples("text_to_video", "en", host) == ()
    (folder / "examples" / "haiku.en.txt").write_text("a frog\n\nrain\nIt rains.")
    with pytest.raises(PiyingError, match="'a frog' has no prompt below it"):
        preset_examples("haiku", "en", host)


def test_examples_are_earlier_turns_of_the_chat(models):
    processor = load_processor(LocalModel(ModelHandle(PROMPT), HeadlessHost(models=[models])).found)
    examples = preset_examples("text_to_video", "en")[:2]
    chat = compose_chat("S", ExpandRequest("a red ball"), [], examples=examples, opening="A red ball")
    turns = [("user", f"<text>\n{one.line}\n</text>", "assistant", one.answer) for one in examples]
    messages = [{"role": "system", "content": chat.system}]
    for user, line, assistant, answer in turns:
        messages += [{"role": user, "content": line}, {"role": assistant, "content": answer}]
    messages += [{"role": "user", "content": chat.user}]
    expected = processor.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert render(processor.tokenizer, chat) == f"{expected}A red ball"


def test_where_a_template_knows_no_system_prompt_it_goes_into_the_first_turn(models):
    tokenizer = load_processor(LocalModel(ModelHandle(PROMPT), HeadlessHost(models=[models])).found).tokenizer
    before = tokenizer.chat_template
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "[{{ m.role }}: {{ m.content }}]{% endfor %}"
    )
    try:
        given = render(tokenizer, Chat("Rules.", "line", (("before", "after"),)))
    finally:
        tokenizer.chat_template = before
    assert given == "[user: Rules.\n\nbefore][assistant: after][user: line]"


@pytest.fixture
def real_named(models, tmp_path):
    """A host whose one model is the toy under the name of a real one: it is given examples."""
    yield HeadlessHost(models=[models], chosen_device="cpu", cache=tmp_path / "cache")
    evict_models()


def answers(host, lines):
    model, found = LocalModel(ModelHandle(PROMPT), host), []
    examples = preset_examples("text_to_image", "en")

    def use(generate):
        for line in lines:
            request = ExpandRequest(line, max_new_tokens=12, seed=5)
            found.append(generate(compose_chat("S", request, [], examples=examples), None, request).text)
        return ""

    model.run(use, 12)
    return found


def test_the_examples_are_read_once(real_named, monkeypatch):
    from transformers import Qwen3ForCausalLM

    read, forward = [], Qwen3ForCausalLM.forward

    @wraps(forward)
    def counting(self, input_ids=None, **options):
        read.append(input_ids.shape[1])
        return forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(Qwen3ForCausalLM, "forward", counting)
    together = answers(real_named, ["a red ball", "a blue square"])
    long = [count for count in read if count > 1]
    assert len(long) == 3  # the prefix, and the end of each chat
    assert long[0] > 10 * max(long[1:])
    # An answer is the same whether the prefix was kept or is read again.
    evict_models()
    assert [answers(real_named, [line])[0] for line in ("a red ball", "a blue square")] == together


@pytest.mark.parametrize(("length", "counted"), [("short", 39), ("long", 60), ("auto", 60)])
def test_progress_counts_to_the_length_that_is_asked_for(real_named, monkeypatch, length, counted):
    """The answer of random numbers goes on to the longest one, at one below the end until it is over."""
    shown = []

    class Bar:
        def step(self, done, preview=None):
            shown[-1].append(done)

        def text(self, text):
            pass

    def progress(phase, total, *, seconds=0.0):
        shown.append([total, seconds])
        return Bar()

    monkeypatch.setattr(real_named, "progress", progress)
    monkeypatch.setattr(sampling, "ends_in_loop", lambda _: False)
    request = ExpandRequest("a red ball", preset="text_to_video", length=length, max_new_tokens=60, seed=5)
    expand(ModelHandle(PROMPT), request, real_named)
    total, seconds, *steps = shown[0]
    assert total == counted
    assert seconds > 0
    assert steps == [*range(1, len(steps))[: total - 1], *[total - 1] * (len(steps) - total), total]


def test_there_are_never_too_many_prefixes(real_named):
    model = LocalModel(ModelHandle(PROMPT), real_named)

    def use(generate):
        for number in range(chat_prefix.MOST_PREFIXES + 2):
            generate(Chat(f"System {number}", "a ball"), None, ExpandRequest("a ball", max_new_tokens=1))
        return ""

    model.run(use, 1)
    (kept,) = chat_prefix._prefixes.values()
    assert len(kept) == chat_prefix.MOST_PREFIXES
    assert all(layer.keys.device.type == "cpu" for cache in kept.values() for layer in cache.layers)


def test_the_answer_of_a_small_model_begins_with_the_line(real_named, monkeypatch):
    from piying.core.prompting import local_model

    real, chats = local_model.generate, []

    def generate(model, processor, chat, **options):
        chats.append(chat)
        return real(model, processor, chat, **options)

    monkeypatch.setattr(local_model, "generate", generate)
    text, record = expand(ModelHandle(PROMPT), ExpandRequest("a red ball rolls, zoom in.", seed=1), real_named)
    assert [chat.opening for chat in chats] == ["A red ball rolls, zoom in"] * 2
    # What the answer begins with need not be asked for.
    assert "These must be in your answer" not in chats[0].user
    assert [chat.length for chat in chats] == [(80, 100)] * 2
    assert [len(chat.examples) for chat in chats] == [2, len(preset_examples("text_to_video", "en"))]
    # The toy has learned other prompts and writes too little: what the record says is shown on the node.
    assert (text, record["source"]) == ("a red ball rolls, zoom in.", "original")
    assert "gave nothing to use" in record["problem"]
    assert isinstance(record["missing"], list)


@pytest.mark.parametrize(
    ("line", "chosen"),
    [
        ("a cat on a roof", ["two white cranes", "a girl named"]),
        ("a cat, zoom in", ["an old carpenter", "red sports car"]),
        ('a cat by a sign that says "HI"', ["two white cranes", "an old carpenter"]),
        ("a red kite, slow motion", ["two white cranes", "red sports car"]),
        ("a boy named Tom on a hill", ["two white cranes", "a girl named"]),
    ],
)
def test_the_examples_nearest_to_a_line_have_no_facts_that_it_has_not(line, chosen):
    examples = preset_examples("text_to_video", "en")
    found = nearest_examples(examples, find_facts(line), 2)
    assert [any(one.line.startswith(start) for start in chosen) for one in found] == [True, True]
    assert nearest_examples(examples, find_facts(line), 0) == ()
    assert nearest_examples(examples, find_facts(line), 9) == examples


def test_a_larger_model_is_given_fewer_examples(real_named, monkeypatch):
    model = LocalModel(ModelHandle(PROMPT), real_named)
    assert model.examples == 2
    monkeypatch.setattr("piying.core.prompting.local_model.EXAMPLES_BY_SIZE", ((1000, 2), (10**9, 1)))
    assert model.examples == 1
