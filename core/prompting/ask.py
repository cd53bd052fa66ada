"""What writing a prompt would need, asked before anything is loaded."""

from __future__ import annotations

from ..checkpoints.choose import ModelHandle
from ..checkpoints.wanted import wanted_components
from ..host import Host
from ..memory.answer import Answer
from ..memory.machine import read_machine
from ..memory.plan import plan
from .memory import BLOCK_LISTS, FP8_KEEP, work


def ask(handle: ModelHandle, host: Host, max_new_tokens: int = 256) -> Answer:
    """Return the plan of expanding a prompt.

    Raises:
        PiyingError: the model is neither installed nor listed with its sizes, or the device cannot be used.
    """
    name, components = wanted_components(handle, host, BLOCK_LISTS, FP8_KEEP)
    machine = read_machine(host)
    phases = work(components["prompt_model"], max_new_tokens=max_new_tokens, fixed_cache=handle.compile_step)
    made = plan(
        phases,
        machine,
        precision=handle.precision,
        memory=handle.memory,
        advise=lambda: "Choose a smaller model.",
    )
    return Answer(name, made, machine)
