"""What an image would need, asked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping

from ..catalog.component_sizes import wanted_components
from ..catalog.selection import ModelHandle
from ..host.base import Host
from ..planner.machine import Machine, read_machine
from ..planner.phases import Component
from ..planner.plan import plan
from ..planner.report import Estimate
from .phases import BLOCK_LISTS, FP8_KEEP, work
from .request import DEFAULT_CFG, DEFAULT_HEIGHT, DEFAULT_STEPS, DEFAULT_WIDTH, SIZES


def ask(
    handle: ModelHandle,
    host: Host,
    width: int = DEFAULT_WIDTH,
    height: int = DEFAULT_HEIGHT,
    cfg: float = DEFAULT_CFG,
    steps: int = DEFAULT_STEPS,
) -> Estimate:
    """Return the plan of an image; see `memory.work` for the arguments.

    Raises:
        PiyingError: the model is neither installed nor listed with its sizes, or the device cannot be used.
    """
    name, components = wanted_components(handle, host, BLOCK_LISTS, FP8_KEEP)
    machine = read_machine(host)
    made = plan(
        work(components, width, height, cfg, steps),
        machine,
        precision=handle.precision,
        memory=handle.memory,
        advise=lambda: what_fits(components, machine, handle, cfg),
    )
    return Estimate(name, made, machine)


def what_fits(
    components: Mapping[str, Component], machine: Machine, handle: ModelHandle, cfg: float = DEFAULT_CFG
) -> str:
    """Return a sentence on the largest size that fits."""

    def fits(size: tuple[int, int]) -> bool:
        return plan(work(components, *size, cfg), machine, precision=handle.precision, memory=handle.memory).fits

    fitting = [size for size in SIZES if fits(size)]
    if not fitting:
        return "No size fits."
    width, height = max(fitting, key=lambda size: size[0] * size[1])
    return f"What would fit: {width}×{height}."
