"""Places of post-processing: what a network needs for a picture, where and in what pieces it runs, and what if not.

A plan and a run choose by the same `places`, from the same numbers.
"""

from __future__ import annotations

import copy
import logging
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ..errors import PiyingError
from ..executor.execute_plan import compact_allocation, memory_limit, thread_limit
from ..executor.packed_tensors import ModuleTensors
from ..executor.placement import resident
from ..executor.retry import PhaseOutOfMemoryError, catch_out_of_memory, free_memory
from ..host.base import Host
from ..planner.cost import FP32_SLOWDOWN
from ..planner.machine import CPU_FLOPS, Machine, read_machine
from ..planner.measured import WORTH_MEASURING, with_rates
from ..planner.plan_types import amount
from ..planner.report import duration

log = logging.getLogger("piying")

Run = Callable[[torch.nn.Module, tuple[int, int]], Any]  # calls a network with pictures of a height and width

PROBES = (128, 256)  # sides of the pictures that are traced; what grows with them is a multiple of the pixels
# What libraries of convolutions take beside the tensors, as a share of them; more is out of memory, and a retry.
LIBRARIES = 0.3
RAM_SHARE = 0.5  # of what is free in main memory: a processor also holds the frames, and other programs go on
# Where tracing fails: ComfyUI's own estimate for the networks of its upscaler, per pixel of the picture.
UNTRACED_BYTES = 384 * 3 * 4 * 4
SIDES = (1024, 768, 512, 384, 256, 192, 128, 64)
PIECE_SECONDS = 15.0  # a run can be cancelled after each piece


@dataclass(frozen=True)
class Cost:
    """What a network needs for a picture beside its weights.

    Attributes:
        fixed: bytes for any picture.
        pixel: bytes for each pixel of it.
        operations: for each pixel of it; 0 where they are not known.
    """

    fixed: float
    pixel: float
    operations: float

    def bytes(self, pixels: int) -> int:
        """Return the bytes for a picture of so many pixels."""
        return int((self.fixed + self.pixel * pixels) * (1 + LIBRARIES))


def traced_cost(network: torch.nn.Module, run: Run) -> Cost:
    """Return what a network needs, from running it on torch's meta device, which computes nothing.

    Args:
        network: in main memory.
        run: gives a network pictures on the meta device.
    """
    tensors = ModuleTensors(network.modules())
    tensors.bind([tensor.detach().to("meta") for tensor in tensors.originals])
    try:
        # A copy: some networks keep tensors of the last picture's device as plain attributes.
        copied = copy.deepcopy(network)
    finally:
        tensors.restore()
    peaks = []
    try:
        for side in PROBES:
            with _LiveBytes() as live, FlopCounterMode(display=False) as counted:
                run(copied, (side, side))
            peaks.append(live.peak)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        # Some networks look at the values of tensors, which there are none of.
        log.debug("%s cannot be traced: %s", type(network).__name__, error)
        return Cost(0, UNTRACED_BYTES, 0)
    small, large = (side * side for side in PROBES)
    pixel = (peaks[1] - peaks[0]) / (large - small)
    return Cost(max(0.0, peaks[0] - pixel * small), pixel, counted.get_total_flops() / large)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside the block, and of those the most that live at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0
        self._users: Counter[int] = Counter()  # tensors of each storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and count what it makes."""
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if not self._users[storage._cdata]:
                    self._now += storage.nbytes()
                self._users[storage._cdata] += 1
                weakref.finalize(tensor, self._gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self._now)
        return made

    def _gone(self, storage: int, size: int) -> None:
        self._users[storage] -= 1
        if not self._users[storage]:
            del self._users[storage]
            self._now -= size


@dataclass(frozen=True)
class Place:
    """Where a network runs, and the pictures that it is given.

    Attributes:
        device: of torch.
        side: of the square pieces; 0 for whole pictures.
        bytes: that a piece and the weights are expected to take.
    """

    device: str
    side: int
    bytes: int

    def __str__(self) -> str:
        pieces = f"tiles of {self.side}×{self.side}" if self.side else "whole frames"
        return f"{pieces} on {self.device}"


@dataclass(frozen=True)
class Work:
    """What a network is to do.

    Attributes:
        weights: its bytes.
        cost: what it needs beside them.
        height, width: of a picture.
        can_tile: whether pieces of a picture may be given to it one by one.
        prefers_whole: whether pieces are for want of memory alone: what it makes depends on all of a picture.
        tile: the side that the user chose; 0 to choose one.
    """

    weights: int
    cost: Cost
    height: int
    width: int
    can_tile: bool = True
    prefers_whole: bool = False
    tile: int = 0

    @property
    def sides(self) -> Sequence[int]:
        """The pieces to try, the largest first; 0 stands for the whole picture."""
        longest = max(self.height, self.width)
        if not self.can_tile:
            return (0,)
        if self.tile:
            tile = max(self.tile, SIDES[-1])
            return [0 if tile >= longest else tile, *(one for one in SIDES if one < min(tile, longest))]
        return [0, *(one for one in SIDES if one < longest)]

    def pixels(self, side: int) -> int:
        """Return the pixels of a piece."""
        return min(side or self.height, self.height) * min(side or self.width, self.width)

    def place(self, device: str, side: int) -> Place:
        """Return the place for pieces of a size."""
        return Place(device, side, self.cost.bytes(self.pixels(side)) + self.weights)


def operations_per_second(machine: Machine, device: str) -> float:
    """Return how fast convolutions in fp32 are: as measured there, else as plans count."""
    if device != machine.device:
        return CPU_FLOPS  # the machine's own rates are those of its card
    if machine.rates is not None:
        return machine.rates.convolution["fp32"]
    return machine.bf16_flops / (1 if machine.is_cpu else FP32_SLOWDOWN)


def places(work: Work, machine: Machine) -> list[Place]:
    """Return where work can run, the best place first.

    Each place after the first is for when those before it ran out of memory: smaller pieces, then the CPU.
    """
    found: list[Place] = []
    if not machine.is_cpu:
        found += _fitting(work, machine.device, machine.vram_budget, machine)
    return [*found, *_fitting(work, "cpu", int(machine.ram_free * RAM_SHARE), machine)]


def _fitting(work: Work, device: str, room: int, machine: Machine) -> Iterator[Place]:
    """Yield the places on a device in whose room a piece fits; the smallest is tried in any case."""
    sides = list(work.sides)
    for side in sides:
        place = work.place(device, side)
        seconds = work.cost.operations * work.pixels(side) / operations_per_second(machine, device)
        may_last = work.prefers_whole or (bool(work.tile) and side == sides[0])
        if side == sides[-1] or (place.bytes <= room and (seconds <= PIECE_SECONDS or may_last)):
            yield place


def _measured_machine(host: Host, operations: float) -> Machine:
    """Return the machine, with rates that are measured now where so many operations are worth it."""
    machine = with_rates(read_machine(host), host.cache_folder(), measure=False)
    if machine.rates is None and operations > WORTH_MEASURING * machine.bf16_flops:
        with thread_limit(machine.device):
            machine = with_rates(machine, host.cache_folder(), measure=True)
    return machine


def carry_out(
    work: Work,
    network: torch.nn.Module,
    host: Host,
    what: str,
    *,
    passes: Callable[[Place], float],
    do: Callable[[Place, float], None],
) -> Place:
    """Do work in the best place, and go on in the next one after each that runs out of memory.

    Args:
        work: what to do.
        network: what does it, in main memory.
        host: has the memory, and is asked to make room.
        what: the work, for people.
        passes: gives how many pixels go through the network in a place.
        do: does what is left to do in a place, where the network then is, in an estimated time (0: not known).

    Returns:
        the place where it was finished.

    Raises:
        PiyingError: it ran out of memory everywhere.
    """
    machine = _measured_machine(host, work.cost.operations * passes(work.place(host.device(), 0)))
    tried = places(work, machine)
    limit = host.memory_rules().vram
    for place in tried:
        seconds = work.cost.operations * passes(place) / operations_per_second(machine, place.device)
        time = f", about {duration(seconds)}" if seconds else ""
        log.info("%s: %s, about %s%s.", what, place, amount(place.bytes), time)
        try:
            with (
                catch_out_of_memory(str(place)),
                memory_limit(place.device, limit),
                compact_allocation(place.device),
                thread_limit(place.device),
                resident([network], place.device, host, room=place.bytes),
            ):
                do(place, seconds)
            return place
        except PhaseOutOfMemoryError as error:
            log.warning("%s ran out of memory (%s).", what, error)
        free_memory()
    raise PiyingError(
        f"{what}: ran out of memory even with {tried[-1]}. Close other programs, or choose a smaller model or size."
    )
