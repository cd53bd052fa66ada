"""What writing a prompt would need, asked before anything is loaded."""

from __future__ import annotations

from ..catalog.component_sizes import wanted_components
from ..catalog.selection import ModelHandle
from ..host.base import Host
from ..planner.machine import read_machine
from ..planner.plan import plan
from ..planner.report import Estimate
from .phases import BLOCK_LISTS, FP8_KEEP, work


def ask(handle: ModelHandle, host: Host, max_new_tokens: int = 256) -> Estimate:
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
    return Estimate(name, made, machine)
