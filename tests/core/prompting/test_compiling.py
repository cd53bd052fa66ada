"""The language model's step compiled: the same tokens, once for all lengths, with a fallback for every failure."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from piying.core.catalog.installed_model import built_in as built_in_model
from piying.core.catalog.selection import ModelHandle
from piying.core.executor.model_cache import evict_models
from piying.core.executor.packed_tensors import ModuleTensors
from piying.core.families.diffusion_model import estimate
from piying.core.planner.phases import Block, Component
from piying.core.prompting.compile import compiled_step, log_not_compiled, unsupported_reason
from piying.core.prompting.expand import ExpandRequest, expand
from piying.core.prompting.family import PROMPT
from piying.core.prompting.generation import generate, load_model, load_processor
from piying.core.prompting.local_model import LocalModel
from piying.core.prompting.messages import Chat
from piying.core.prompting.phases import KEY_VALUE_WIDTH, PromptWork, fixed_cache_tokens, phases

from .test_models import TEXT_MODELS, folder_of

BACKEND = "piying.core.prompting.compile.BACKEND"
CHATS = [
    Chat("Rewrite.", "a red ball"),
    Chat("Rewrite the line as a long prompt.", "a small fox in snow, 雪, " * 9),
]


@pytest.fixture(autouse=True)
def forgotten():
    """Neither code nor models of the test before."""
    torch.compiler.reset()
    evict_models()
    yield
    torch.compiler.reset()
    evict_models()


@pytest.fixture
def graphs(monkeypatch):
    """A compiler that changes nothing; what it was given."""
    given = []

    def keep(graph, inputs):
        given.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(BACKEND, keep)
    return given


def answers(model, request):
    """Return a model's answers to the chats, asked while it is held once."""
    found = []
    model.run(lambda write: found.extend(write(chat, None, request) for chat in CHATS) or "", request.max_new_tokens)
    return found


def test_an_expanded_prompt_is_the_same_and_the_record_says_how(host, built_in, graphs):
    request = ExpandRequest("a red circle on blue", seed=1)
    with torch.inference_mode():  # as ComfyUI runs nodes
        plain, before = expand(built_in, request, host)
        text, record = expand(replace(built_in, compile_step=True), request, host)
    assert text == plain
    assert (record["source"], record["compiled"]) == ("model", True)  # not the answer that was cached without
    assert "compiled" not in before
    assert len(graphs) == 1
    assert expand(replace(built_in, compile_step=True), request, host)[1]["source"] == "cache"


def test_prompts_of_all_lengths_run_by_one_code(host, built_in, graphs):
    for temperature in (0.0, 0.7):  # every prompt of a queue holds the model anew
        request = ExpandRequest("x", seed=5, temperature=temperature, max_new_tokens=40)
        plain = answers(LocalModel(built_in, host), request)
        assert answers(LocalModel(replace(built_in, compile_step=True), host), request) == plain
    assert len(graphs) == 1


@pytest.mark.parametrize("family", sorted(set(TEXT_MODELS) - {"Qwen3"}))  # the built-in model is one
def test_every_family_compiles(family, tmp_path, graphs):
    host = folder_of(tmp_path, family)
    request = ExpandRequest("x", seed=3, max_new_tokens=12)
    model = LocalModel(ModelHandle(PROMPT, compile_step=True), host)
    assert answers(model, request) == answers(LocalModel(ModelHandle(PROMPT), host), request)
    assert model.record()["compiled"] is True
    assert len(graphs) == 1


def broken(graph, inputs):
    raise RuntimeError("cl.exe is not here")


@pytest.mark.parametrize(("backend", "said"), [(broken, "cl.exe is not here"), ("no such", "InvalidBackend")])
def test_what_cannot_be_compiled_is_written_without_and_said_once(backend, said, host, built_in, monkeypatch, caplog):
    caplog.set_level("INFO", logger="piying")
    monkeypatch.setattr(BACKEND, backend)
    requests = [ExpandRequest("a red circle on blue", seed=seed) for seed in (1, 2)]
    plain = [expand(built_in, request, host)[0] for request in requests]
    found = [expand(replace(built_in, compile_step=True), request, host) for request in requests]
    assert [text for text, _ in found] == plain
    assert all(record["compiled"] is False and said in record["not_compiled"] for _, record in found)
    (warning,) = (line.getMessage() for line in caplog.records if line.levelname == "WARNING")
    assert said in warning
    assert "compile_step is left out: it failed before" in caplog.text


def recorded(model, calls):
    """Return what generates with a model, and lists with which arguments it was called."""

    def run(**further):
        # Before transformers 5.24 the cache had another name.
        calls.append({"cache" if name == "past_key_values" else name for name in further})
        return model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False, **further)

    return run


COMPILED = {"cache", "compile_config"}


def test_compiling_that_fails_is_written_again_and_off_from_then_on(host, monkeypatch, caplog):
    monkeypatch.setattr(BACKEND, broken)
    model, calls, record = load_model(built_in_model("prompt"), torch.float32, host), [], {}
    run = recorded(model, calls)
    with torch.no_grad(), compiled_step(model, record) as step:
        failed = step.generate(run, 3, 4)
        assert calls == [COMPILED, set()]
        assert "cl.exe is not here" in caplog.text
        assert step._cache is None
    calls.clear()
    caplog.clear()
    recorded_before = dict(record)
    with torch.no_grad(), compiled_step(model, record) as step:
        off = step.generate(run, 3, 4)
    assert calls == [set()]
    assert caplog.text == ""
    assert record == recorded_before
    assert record["compiled"] is False
    assert torch.equal(failed, off)


def test_a_compiled_step_is_written_once_and_overrules_an_earlier_plan(host, graphs):
    model, calls = load_model(built_in_model("prompt"), torch.float32, host), []
    record = log_not_compiled("the weights were streamed")
    with torch.no_grad(), compiled_step(model, record) as step:
        step.generate(recorded(model, calls), 3, 4)
    assert calls == [COMPILED]
    assert record == {"compiled": True}


def test_what_is_streamed_or_not_known_to_compile_is_left_out(host, monkeypatch):
    model = load_model(built_in_model("prompt"), torch.float32, host)
    assert [unsupported_reason(model, placement) for placement in ("cpu", "resident")] == ["", ""]
    assert "streaming swaps them" in unsupported_reason(model, "streamed")
    monkeypatch.setattr(type(model), "_can_compile_fullgraph", False)
    assert unsupported_reason(model, "resident") == "transformers cannot compile Qwen3ForCausalLM"


def test_a_model_with_eyes_is_left_out_and_said(tmp_path, graphs, caplog):
    caplog.set_level("INFO", logger="piying")
    model = LocalModel(ModelHandle(PROMPT, compile_step=True), folder_of(tmp_path, "Qwen3-VL"))
    answers(model, ExpandRequest("x", max_new_tokens=4))
    assert model.record()["compiled"] is False
    assert "compile_step is left out: vision-language models are not compiled." in caplog.text
    assert not graphs


def test_weights_that_come_anew_run_by_the_same_code_and_nothing_of_them_stays(host, graphs):
    """As on a card, where every run has the weights at other places."""
    found = built_in_model("prompt")
    model, processor = load_model(found, torch.float32, host), load_processor(found)
    request = ExpandRequest("x", seed=5, max_new_tokens=20)
    for _ in range(3):
        tensors = ModuleTensors(model.modules())
        tensors.bind([tensor.detach().clone() for tensor in tensors.originals])
        with torch.no_grad(), compiled_step(model, {}) as step:
            generate(model, processor, CHATS[0], picture=None, request=request, host=host, step=step)
            held = [weakref.ref(model.lm_head.weight), weakref.ref(step._cache.layers[0].keys)]
        tensors.restore()
        del tensors
        assert [reference() for reference in held] == [None, None]
    assert len(graphs) == 1
    gone = weakref.ref(model)
    evict_models()
    del model, step
    gc.collect()
    assert gone() is None


def test_the_room_of_a_cache():
    assert [fixed_cache_tokens(length, 200) for length in (1, 400, 1024)] == [1224] * 3
    assert [fixed_cache_tokens(length, 200) for length in (1025, 2048, 2049)] == [2248, 2248, 4296]


def test_the_plan_counts_the_cache(host, built_in):
    from transformers import Qwen3Config, StaticCache

    layers, config = 3, Qwen3Config(num_hidden_layers=3)
    cache = StaticCache(config, max_cache_len=fixed_cache_tokens(500, 300))
    cache.early_initialization(1, 8, KEY_VALUE_WIDTH // 8, torch.bfloat16, "cpu")
    bytes_of_cache = sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))

    def activations(blocks, fixed_cache):
        component = Component("prompt_model", Block(0, 10), (Block(5, 5),) * blocks, "bf16", hidden=64)
        (phase,) = phases({"prompt_model": component}, PromptWork(500, 300, fixed_cache=fixed_cache))
        return phase.variants[0].activations

    assert activations(layers, True) - activations(0, True) == bytes_of_cache
    assert activations(layers, False) - activations(0, False) == bytes_of_cache * 800 / 1324

    def planned_ram(compile_step):
        handle = replace(built_in, compile_step=compile_step)
        work = replace(PROMPT.work({}, handle), prompt_tokens=700)  # of which a fixed cache makes 1024
        return estimate(handle, host, work).plan.phases[0].ram

    assert planned_ram(True) > planned_ram(False)
