"""What expanding a prompt costs: tokens per second beside plain `generate`, time to the first token, memory.

    python benchmarks/prompting.py [--models DIR --model NAME] [--device DEVICE] [--static] [--json FILE]

The same chats with the same seeds go through the pack and through transformers' `generate` alone, in turn;
both must give the same tokens. Each figure is the best of several rounds; on a CPU seconds are those of the
processor, so that other programs on a busy machine do not count. `--static` adds a round with a static cache,
which transformers compiles on a card.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LINES = (
    "a red ball",
    "一只红色的球",
    "green square moving left",
    "蓝色背景,白色三角形向上",
    "a small fox in snow, 雪",
)
ROUNDS = 12
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


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return all figures."""
    pack = load_pack()
    from transformers import AutoTokenizer, Qwen3ForCausalLM  # noqa: F401  their own memory is not the model's

    on_cpu = options.device == "cpu" or pack("core.memory.devices").best_device() == "cpu"
    timed = Timed(time.process_time if on_cpu else time.perf_counter)
    host = pack("core.host").HeadlessHost(
        models=[options.models] if options.models else [],
        chosen_device=options.device,
        on_progress=lambda phase, total: timed,
    )
    handle = pack("core.checkpoints.choose").ModelHandle(
        pack("core.checkpoints.choose").PROMPT, options.model, options.precision
    )
    memory = {"before": resident_bytes()}
    model = pack("core.prompting.local").LocalModel(handle, host)
    begun = timed.clock()
    model.hold(lambda write: "", options.tokens)
    seconds_to_load = timed.clock() - begun
    memory["loaded"] = resident_bytes()
    rows = compare(pack, model, host, timed, options)
    memory["after"] = resident_bytes()
    pack("core.memory.kept").forget()
    return {"model": model.name, **model.record(), "load_seconds": seconds_to_load, "memory": memory, **rows}


def compare(pack: Any, model: Any, host: Any, timed: Timed, options: argparse.Namespace) -> dict[str, Any]:
    """Return tokens per second of both, and the pack's time to the first token."""
    chats = [chat_of(pack, model, line, options.tokens, index) for index, line in enumerate(LINES)]
    rates: dict[str, list[float]] = {"ours": [], "plain": [], **({"static": []} if options.static else {})}
    firsts: list[float] = []
    for _ in range(ROUNDS):
        tokens, seconds, first = ours(model, chats, timed)
        firsts.append(first)
        rates["ours"].append(tokens / seconds)
        for name in [name for name in rates if name != "ours"]:
            counted, seconds = plain(pack, model, host, chats, name == "static", timed.clock)
            rates[name].append(counted / seconds)
            if name == "plain" and counted != tokens:
                raise RuntimeError(f"the pack wrote {tokens} tokens, generate {counted}")
    return {
        "tokens": tokens,
        "tokens_per_second": {name: max(found) for name, found in rates.items()},
        "first_token_seconds": min(firsts),
    }


def chat_of(pack: Any, model: Any, line: str, tokens: int, seed: int) -> tuple[Any, Any]:
    """Return a line's chat and request, as the pack would send it."""
    request = pack("core.prompting.request").ExpandRequest(line, max_new_tokens=tokens, seed=seed)
    messages = pack("core.prompting.messages")
    system = pack("core.prompting.presets").preset_text(request.preset)
    return (messages.plain(system, request) if model.plain else messages.compose(system, request, [])), request


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
            tokens += len(timed.times)
        return ""

    model.hold(use, chats[0][1].max_new_tokens)
    return tokens, timed.clock() - begun, waits / len(chats)


def plain(
    pack: Any, model: Any, host: Any, chats: list[Any], static: bool, clock: Callable[[], float]
) -> tuple[int, float]:
    """Return tokens and seconds of `generate` alone, the model moved to the device for each answer as by the pack."""
    import torch

    local = pack("core.prompting.local")
    dtype = pack("core.memory.devices").resolve_dtype("auto", host.device())
    module, reader = local.load(model.found, dtype, host), local.load_reader(model.found)
    tokens, begun = 0, clock()
    for chat, request in chats:
        encoded = pack("core.prompting.chat_format").encode(reader.tokenizer, None, chat, None)
        with pack("core.memory.residency").resident([module], host.device(), host), torch.no_grad():
            torch.manual_seed(request.seed)
            arguments = local.sampling_arguments(request) | ({"cache_implementation": "static"} if static else {})
            answer = module.generate(**encoded.on(host.device(), module.dtype), **arguments)
        reader.tokenizer.decode(answer[0, encoded.length :])
        tokens += answer.shape[1] - encoded.length
    return tokens, clock() - begun


def resident_bytes() -> int:
    """Return the bytes of this process in memory."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def main() -> None:
    """Read the options; measure; print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", type=Path, metavar="DIR", help="a models folder")
    parser.add_argument("--model", default="built-in", metavar="NAME", help="such as LLM/Qwen3-0.6B")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--tokens", type=int, default=128, help="the longest answer")
    parser.add_argument("--static", action="store_true", help="measure a static cache too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    found = measure(options)
    print(f"{found['model']}, {found['dtype']}, {found['device']}; {platform.machine()}, {platform.platform()}")
    for name, rate in found["tokens_per_second"].items():
        print(f"{name:8}{rate:8.1f} tokens/s")
    print(f"first token after {found['first_token_seconds'] * 1e3:.1f} ms; load {found['load_seconds']:.2f} s")
    print(", ".join(f"{name} {size / MEGABYTE:.0f} MB" for name, size in found["memory"].items()))
    if options.json:
        machine = {"machine": platform.platform(), "command": " ".join(sys.argv)}
        options.json.write_text(json.dumps({**machine, **found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
