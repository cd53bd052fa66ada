"""Table of weight formats: what a model would need on a machine, were its files in each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..files.dtypes import BYTES_BY_SHORT_NAME
from ..quantization.registry import FORMATS, weight_format
from .machine import Limits, Machine
from .phases import Block, Component, InFile, Phase, StoredWeights
from .plan import plan
from .plan_types import PhasePlan, Plan, amount, gigabytes
from .report import columns, duration, place_and_memory

Expected = Callable[[Phase, PhasePlan], tuple[float, float]]
PLACEMENTS = ("resident", "streamed")


@dataclass(frozen=True)
class Placed:
    """The phase of most work, held to one placement: what it needs, and whether that fits."""

    plan: PhasePlan
    fits: bool


@dataclass(frozen=True)
class FormatRow:
    """A model whose files are in one format.

    Attributes:
        title: the format: "bf16", "fp8", "gguf Q4_K".
        parts: {component: bytes of its files}.
        placed: by placement, those that the phase of most work can have.
        plan: of the whole run, the fastest that fits.
        error: the root mean square of what rounding to it loses of Gaussian weights, relative to them.
    """

    title: str
    parts: dict[str, int]
    placed: dict[str, Placed]
    plan: Plan
    error: float


@dataclass(frozen=True)
class FormatTable:
    """A model on a machine, in each format.

    Attributes:
        model: its name.
        machine: what it is planned for.
        phase: the name of the phase of most work.
        rows: most bytes first.
    """

    model: str
    machine: Machine
    phase: str
    rows: tuple[FormatRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it fit for JSON; sizes in GB of 2**30 bytes."""
        return {
            "model": self.model,
            "phase": self.phase,
            "formats": [
                {
                    "format": row.title,
                    "components": {name: gigabytes(size) for name, size in row.parts.items()},
                    "gb": gigabytes(sum(row.parts.values())),
                    "error": row.error,
                    **{
                        name: {"fits": one.fits, "peak_vram_gb": gigabytes(one.plan.vram)}
                        for name, one in row.placed.items()
                    },
                    "fits": row.plan.fits,
                    "placement": row.plan.phase(self.phase).placement,
                    "peak_vram_gb": gigabytes(row.plan.peak_vram),
                    "peak_ram_gb": gigabytes(row.plan.peak_ram),
                    "seconds": round(row.plan.seconds, 1),
                }
                for row in self.rows
            ],
        }

    def to_text(self) -> str:
        """Return it as lines for people."""
        parts = list(self.rows[0].parts)
        placements = [name for name in PLACEMENTS if name in self.rows[0].placed]
        card = [] if self.machine.is_cpu else ["card"]
        head = ("format", "loses", *parts, *placements, "best", *card, "memory", "time")
        lines = [head]
        for row in self.rows:
            best = row.plan.phase(self.phase)
            peaks = [row.plan.peak_vram] * len(card) + [row.plan.peak_ram]
            lines.append(
                (
                    row.title,
                    f"{row.error:.1%}" if row.error else "–",
                    *(amount(size) for size in row.parts.values()),
                    *(_placed(row.placed[name]) for name in placements),
                    best.placement if row.plan.fits else "does not fit",
                    *map(amount, peaks),
                    duration(row.plan.seconds) if row.plan.fits else "–",
                )
            )
        notes = [
            f"- {', '.join(parts)}: files whose Linear layers inside the blocks are in the format, the rest as now."
        ]
        if placements:
            notes.append(f"- {', '.join(placements)}: what {self.phase} needs of the card, and whether that fits.")
        notes.append(f"- {', '.join(head[-2 - len(card) - 1 :])}: of the whole run, in the fastest way that fits.")
        notes.append("- loses: of Gaussian weights, the root mean square of what rounding takes, relative to theirs.")
        title = f"{self.model} on {', '.join(place_and_memory(self.machine))}, in each format:"
        return "\n".join([title, *columns(lines), *notes])


def _placed(one: Placed) -> str:
    return f"{amount(one.plan.vram)} {'fits' if one.fits else 'no'}"


def format_table(
    model: str,
    components: Mapping[str, Component],
    phases: Callable[[Mapping[str, Component]], tuple[Phase, ...]],
    machine: Machine,
    *,
    precision: str = "auto",
    memory: str = "auto",
    expected: Expected | None = None,
) -> FormatTable:
    """Return what a model would need in each format, by the planner that runs are planned by.

    Args:
        model: its name.
        components: as its files are.
        phases: returns the phases of the run from components.
        machine: where.
        precision, memory, expected: see `plan`; a format as `memory` counts as `auto`.
    """
    work = phases(components)
    main = max(range(len(work)), key=lambda place: work[place].passes * work[place].flops)
    chosen_memory = memory if memory in PLACEMENTS else "auto"
    plain = next((one for one in work[main].computes if one != "fp32"), "bf16")
    rows = []
    for storage, number_type in [("fp32", ""), (plain, ""), *_packed_types()]:
        changed = {name: in_format(one, storage, number_type) for name, one in components.items()}
        if all(one.stored != storage for one in changed.values()):
            continue  # its blocks divide the layers of none
        held = tuple(_held_to(phase, storage) for phase in phases(changed))
        types = "fp32" if storage == "fp32" else precision
        whole = plan(held, machine, precision=types, memory=chosen_memory, expected=expected)
        if not whole.phases:
            continue
        stored = weight_format(storage)
        rows.append(
            FormatRow(
                title=storage if stored is None or len(stored.errors) < 2 else f"{storage} {number_type}",
                parts={name: one.file_bytes() for name, one in changed.items()},
                placed={} if machine.is_cpu else _placements(held[main], machine, types),
                plan=whole,
                error=0.0 if stored is None else stored.errors[number_type],
            )
        )
    rows.sort(key=lambda row: -sum(row.parts.values()))
    return FormatTable(model, machine, work[main].name, tuple(rows))


def _packed_types() -> list[tuple[str, str]]:
    """Return (format, number type) of all that files for people's cards are in."""
    return [(name, kind) for name, one in FORMATS.items() for kind in one.errors]


def _placements(phase: Phase, machine: Machine, precision: str) -> dict[str, Placed]:
    limits, found = Limits(machine, machine.vram_budget), dict[str, Placed]()
    for placement in PLACEMENTS:
        # Alone: what the other phases need decides nothing about this one.
        made = plan((phase,), machine, precision=precision, memory=placement)
        if made.phases and made.phases[0].placement == placement:
            found[placement] = Placed(made.phases[0], limits.allow(made.phases[0]))
    return found


def _held_to(phase: Phase, storage: str) -> Phase:
    """Return a phase whose weights stay as they are in a file of that format."""
    if weight_format(storage) is None or phase.component.stored != storage:
        kept = tuple(name for name in phase.storages if weight_format(name) is None)
        return replace(phase, storages=kept or ("bf16",))
    return replace(phase, storages=(storage,))


def in_format(component: Component, storage: str, number_type: str) -> Component:
    """Return a component as its files would be, were the layers that may be cast in a format.

    Args:
        storage: the name of a format, or a plain type that all weights are in. What has no such layers stays as it
            is; of what the format's blocks do not divide, the layers are in 16 bits, as converters write them.
        number_type: of the layers' values, for a format.
    """
    stored = weight_format(storage)
    if not any(block.linear for block in component.blocks):
        return component
    if stored is not None and not all(map(partial(stored.divides, number_type), (component.hidden, component.inner))):
        return in_format(component, "bf16", "")
    files = []
    for one in component.contents():
        if one.castable and stored is not None:
            kind, size = storage, stored.stored_bytes(number_type, one.weights, one.rows)
        else:
            kind = storage if stored is None else "bf16" if weight_format(one.type) else one.type
            same = kind == one.type
            size = one.file_bytes if same else one.weights * BYTES_BY_SHORT_NAME[kind]
        files.append(replace(one, type=kind, file_bytes=size))
    return replace(
        component,
        stored=storage,
        root=_in_file(component.root, storage, number_type),
        blocks=tuple(_in_file(block, storage, number_type) for block in component.blocks),
        files=_merged(files),
    )


def _in_file(block: Block, storage: str, number_type: str) -> Block:
    """Return a block whose `linear` weights, and no others, its file has in a format."""
    stored = weight_format(storage)
    packed = InFile()
    if stored is not None and block.linear:
        size = stored.stored_bytes(number_type, block.linear, block.rows)
        packed = InFile(storage, block.linear, size, block.linear, block.rows, block.largest)
    in_fp32 = tuple(
        one._replace(packed_linear=one.linear if packed.format else 0, packed_kept=0) for one in block.in_fp32
    )
    return replace(block, in_file=packed, in_fp32=in_fp32)


def _merged(files: list[StoredWeights]) -> tuple[StoredWeights, ...]:
    """Return weights with those together that differ in their number alone."""
    groups: dict[tuple[Any, ...], list[StoredWeights]] = {}
    for one in files:
        groups.setdefault((one.type, one.linear, one.castable, one.in_fp32), []).append(one)
    return tuple(
        replace(
            group[0],
            weights=sum(one.weights for one in group),
            file_bytes=sum(one.file_bytes for one in group),
            rows=sum(one.rows for one in group),
        )
        for group in groups.values()
    )
