"""Benchmark of prompt expansion: tokens per second beside plain `generate`, time to the first token, memory.

    python benchmarks/prompting.py [--models DIR --model NAME | --random] [--device DEVICE] [--static] [--compile]
                                   [--tokens N] [--rounds N] [--lines N] [--json FILE]
    python benchmarks/prompting.py --real DIR [--model NAME] [--preset NAME] [--ways WAY …] [--published CHECKOUT]
                                   [--threads N] [--lines N] [--json FILE]

The same chats with the same seeds go through the pack and through transformers' `generate` alone, in turn;
on a CPU both must give the same tokens. Each figure is the best of several rounds; on a CPU seconds are those of the
processor, so that other programs on a busy machine do not count. `--static` adds `generate` with a static cache, not
compiled; `--compile` adds the pack with `compile_step`, whose first answer is timed by the clock on the wall, for
compilers run as programs of their own. `--random` measures a model of the size of Qwen3-0.6B whose weights are random
numbers and whose vocabulary is the built-in model's.

`--real` scores the answers of a real model, see prompt_score.py: ours, those to the preset and the line alone, and
those to the prompts published with Wan2.1, which are read from a checkout of its repository.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import prompt_score
from machine import ROOT, write_json
from published_models import sizes

LINES = (
    "a red ball",
    "一只红色的球",
    "green square moving left",
    "蓝色背景,白色三角形向上",
    "a small fox in snow, 雪",
)
MEGABYTE = 1e6


class Timed:
    """Progress that notes when tokens come."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.times: list[float] = []
        self.clock = clock

    def step(self, done: int, preview: Any = None) -> None:
        """Note the time."""
        self.times.append(self.clock())

    def text(self, text: str) -> None:
        """Show nothing."""


def load_pack() -> Callable[[str], Any]:
    """Return a function that imports the pack's modules by name."""
    sys.path.insert(0, str(ROOT / "tests"))
    importlib.import_module("conftest")
    sys.path.pop(0)
    return lambda name: importlib.import_module(f"piying.{name}")


def make_random(models: Path) -> str:
    """Write a model of random numbers under a models folder; return its name."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    built_in, folder = ROOT / "builtin_models" / "prompt", models / "LLM" / "random"
    shutil.copytree(built_in, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.manual_seed(0)
    published = sizes("qwen3-0.6b")
    # With the vocabulary of the built-in model, whose tokenizer it has.
    for name in ("vocab_size", "eos_token_id", "max_position_embeddings"):
        del published[name]
    layers = {"layer_types": ["full_attention"] * published["num_hidden_layers"]}
    config = Qwen3Config.from_pretrained(built_in, **published, **layers, dtype=torch.float32)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return "LLM/random"


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return all figures."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    pack = load_pack()
    from transformers import AutoTokenizer, Qwen3ForCausalLM  # noqa: F401  their own memory is not the model's

    on_cpu = options.device == "cpu" or pack("core.accelerator").best_device() == "cpu"
    timed = Timed(time.process_time if on_cpu else time.perf_counter)
    host = pack("core.host.headless").HeadlessHost(
        models=[options.models] if options.models else [],
        chosen_device=options.device,
        on_progress=lambda phase, total: timed,
    )
    handle = pack("core.catalog.selection").ModelHandle(
        pack("core.prompting.family").PROMPT, options.model, options.precision
    )
    memory = {"before": resident_bytes()}
    model = pack("core.prompting.local_model").LocalModel(handle, host)
    begun = timed.clock()
    model.run(lambda write: "", options.tokens)
    seconds_to_load = timed.clock() - begun
    memory["loaded"] = resident_bytes()
    quick = pack("core.prompting.local_model").LocalModel(replace(handle, compile_step=True), host)
    rows = compare(pack, {"ours": model, **({"compiled": quick} if options.compile else {})}, host, timed, options)
    memory["after"] = resident_bytes()
    pack("core.executor.model_cache").evict_models()
    return {"model": model.name, **model.record(), "load_seconds": seconds_to_load, "memory": memory, **rows}


def compare(
    pack: Any, writers: dict[str, Any], host: Any, timed: Timed, options: argparse.Namespace
) -> dict[str, Any]:
    """Return tokens per second of all ways, the pack's time to the first token, and that of compiling."""
    model = writers["ours"]
    lines = LINES[: options.lines]
    chats = [chat_of(pack, model, line, options, index) for index, line in enumerate(lines)]
    begun = time.perf_counter()
    if "compiled" in writers:
        ours(writers["compiled"], chats[:1], timed)
    compiling = time.perf_counter() - begun
    bare = ["plain", "static"] if options.static else ["plain"]
    rates: dict[str, list[float]] = {name: [] for name in [*writers, *bare]}
    firsts: list[float] = []
    for _ in range(options.rounds):
        counts = {}
        for name, writer in writers.items():
            counts[name], seconds, first = ours(writer, chats, timed)
            rates[name].append(counts[name] / seconds)
            firsts += [first] if name == "ours" else []
        for name in bare:
            counts[name], seconds = plain(pack, model, host, chats, name == "static", timed.clock)
            rates[name].append(counts[name] / seconds)
        # On a card products round by their shape, and what is drawn from nearly equal chances may differ; so it may
        # where the pack keeps a file's weights packed, which transformers unpacks.
        is_alike = timed.clock is time.process_time and not model.found.parts
        if len(set(counts.values())) > 1 and is_alike:
            raise RuntimeError(f"not all wrote as many tokens: {counts}")
    return {
        "tokens": counts["ours"],
        "tokens_of_each": counts,
        "tokens_per_second": {name: max(found) for name, found in rates.items()},
        "median_tokens_per_second": {name: statistics.median(found) for name, found in rates.items()},
        "first_token_seconds": min(firsts),
        "first_token_with_examples": first_with_examples(pack, model, timed, options),
        "first_compiled_answer_seconds": compiling if "compiled" in writers else None,
    }


def first_with_examples(pack: Any, model: Any, timed: Timed, options: argparse.Namespace) -> dict[str, float] | None:
    """Return the seconds until the first token of a chat with worked examples: their keys and values new, and kept.

    None for a model that is given no examples.
    """
    if not model.examples or model.plain_chats:
        return None
    request = pack("core.prompting.request").ExpandRequest(LINES[0], max_new_tokens=1)
    presets, messages = pack("core.prompting.presets"), pack("core.prompting.messages")
    examples = presets.preset_examples(request.preset, "en")[: model.examples]
    system = presets.preset_text(request.preset)
    found: dict[str, float] = {}

    def use(write: Any) -> str:
        for name, line in (("new", LINES[0]), ("kept", LINES[2])):
            asked = replace(request, prompt=line)
            chat = messages.compose_chat(system, asked, [], examples=examples)
            timed.times.clear()
            begun = timed.clock()
            write(chat, None, asked)
            found[name] = timed.times[0] - begun
        return ""

    model.run(use, 1)
    return found


def chat_of(pack: Any, model: Any, line: str, options: argparse.Namespace, seed: int) -> tuple[Any, Any]:
    """Return a line's chat and request, as the pack would send it; to random numbers, as to the built-in model."""
    request = pack("core.prompting.request").ExpandRequest(line, max_new_tokens=options.tokens, seed=seed)
    messages = pack("core.prompting.messages")
    system = pack("core.prompting.presets").preset_text(request.preset)
    if model.plain_chats or options.random:
        return messages.plain_chat(system, request), request
    return messages.compose_chat(system, request, []), request


def ours(model: Any, chats: list[Any], timed: Timed) -> tuple[int, float, float]:
    """Return tokens, seconds, and the mean seconds until the first token of an answer is there."""
    tokens, waits, begun = 0, 0.0, 0.0

    def use(write: Any) -> str:
        nonlocal tokens, waits, begun
        begun = timed.clock()
        for chat, request in chats:
            timed.times.clear()
            asked = timed.clock()
            write(chat, None, request)
            waits += timed.times[0] - asked
            tokens += len(timed.times) - 1  # the last step says that the answer is over
        return ""

    model.run(use, chats[0][1].max_new_tokens)
    return tokens, timed.clock() - begun, waits / len(chats)


def plain(
    pack: Any, model: Any, host: Any, chats: list[Any], static: bool, clock: Callable[[], float]
) -> tuple[int, float]:
    """Return tokens and seconds of `generate` alone, the model moved to the device for each answer as by the pack.

    A GGUF file is read by transformers, which unpacks it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    generation = pack("core.prompting.generation")
    dtype = pack("core.planner.machine").resolve_dtype("auto", host.device())
    if model.found.parts:
        file = model.found.path
        read = partial(AutoModelForCausalLM.from_pretrained, file.parent, gguf_file=file.name, dtype=dtype)
        module = pack("core.executor.model_cache").cached_model("plain", (file, dtype), read, host)
    else:
        module = generation.load_model(model.found, dtype, host)
    tokenizer = generation.load_processor(model.found).tokenizer
    tokens, begun = 0, clock()
    for chat, request in chats:
        encoded = pack("core.prompting.chat_template").encode(tokenizer, None, chat, None)
        with pack("core.executor.placement").resident([module], host.device(), host), torch.no_grad():
            torch.manual_seed(request.seed)
            fixed = {"cache_implementation": "static", "disable_compile": True} if static else {}
            arguments = pack("core.prompting.sampling").sampling_arguments(request) | fixed
            answer = module.generate(**encoded.on(host.device(), module.dtype), **arguments)
        tokenizer.decode(answer[0, encoded.length :])
        tokens += answer.shape[1] - encoded.length
    return tokens, clock() - begun


def resident_bytes() -> int:
    """Return the bytes of this process in memory."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def read_options() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", type=Path, metavar="DIR", help="a models folder")
    parser.add_argument("--model", default="built-in", metavar="NAME", help="such as LLM/Qwen3-0.6B")
    parser.add_argument("--random", action="store_true", help="a model of random numbers, of Qwen3-0.6B's size")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--tokens", type=int, default=128, help="the longest answer")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--lines", type=int, default=30, help="how many prompts; of each language with --real")
    parser.add_argument("--real", type=Path, metavar="DIR", help="a models folder: score the answers of a real model")
    parser.add_argument("--preset", default="text_to_video")
    parser.add_argument("--ways", nargs="+", default=["ours", "plain"], choices=["ours", "plain", "published"])
    parser.add_argument("--published", type=Path, metavar="CHECKOUT", help="of Wan-Video/Wan2.1")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--static", action="store_true", help="measure a static cache too")
    parser.add_argument("--compile", action="store_true", help="measure compile_step too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    return parser.parse_args()


def score_real(options: argparse.Namespace) -> None:
    """Score a real model's answers; print."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    pack = load_pack()
    with tempfile.TemporaryDirectory() as cache:
        host = pack("core.host.headless").HeadlessHost(
            models=[options.real], chosen_device=options.device, cache=Path(cache)
        )
        family = pack("core.prompting.family").PROMPT
        model = "auto" if options.model == "built-in" else options.model
        handle = pack("core.catalog.selection").ModelHandle(family, model, options.precision)
        found = prompt_score.measure(pack, handle, host, options)
    print(f"{model}, preset {options.preset}, {options.lines} lines of each language")
    print(prompt_score.table(found))
    if options.json:
        write_json(options.json, {"machine": platform.platform(), "command": " ".join(sys.argv), **found})


def main() -> None:
    """Measure; print."""
    options = read_options()
    if options.real:
        score_real(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.random:
            options.models, options.model = Path(folder), make_random(Path(folder))
        found = measure(options)
    print(f"{found['model']}, {found['dtype']}, {found['device']}; {platform.machine()}, {platform.platform()}")
    for name, rate in found["tokens_per_second"].items():
        print(f"{name:8}{rate:8.1f} tokens/s, median {found['median_tokens_per_second'][name]:.1f}")
    if found["first_compiled_answer_seconds"] is not None:
        print(f"first compiled answer after {found['first_compiled_answer_seconds']:.1f} s")
    if (examples := found["first_token_with_examples"]) is not None:
        print(f"with examples the first token after {examples['new']:.2f} s, and {examples['kept']:.2f} s once kept")
    print(f"first token after {found['first_token_seconds'] * 1e3:.1f} ms; load {found['load_seconds']:.2f} s")
    print(", ".join(f"{name} {size / MEGABYTE:.0f} MB" for name, size in found["memory"].items()))
    if options.json:
        write_json(options.json, {"machine": platform.platform(), "command": " ".join(sys.argv), **found})


if __name__ == "__main__":
    main()
