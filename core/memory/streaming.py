"""A model that is larger than the device: its blocks visit the device one after the other.

While a block computes in one slot of device memory, the next is copied into another. The weights
stay where they are in host memory, mapped files included, and are never changed or pinned.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from .flat import Flat, Tensors
from .lanes import Lane, Traffic, lane


@contextmanager
def streamed(
    module: torch.nn.Module,
    order: Sequence[torch.nn.Module],
    device: str | torch.device,
    *,
    slots: int = 2,
    on_host: Collection[torch.nn.Module] = (),
) -> Iterator[Traffic]:
    """Hold `module` ready to run on `device` inside the block, with room for `slots` of its blocks.

    What is outside the blocks is on the device throughout. On the way out, after an error or a
    cancelled run too, the module holds the very parameters and buffers it held before. For
    inference: what a block writes into its own buffers is lost, and no gradients are made.

    Device memory: `slots` times the largest block, and what is outside the blocks. Page-locked host
    memory on a CUDA card: one largest block and two chunks of 32 MiB.

    Args:
        module: in host memory; run it on tensors that are on `device`.
        order: blocks of `module` in the order in which they run, once through; after the last comes
            the first. A block may be called several times in a row (for several prompts). One that
            runs out of turn is fetched then, at the cost of waiting for it.
        device: a torch device; on the CPU the slots are ordinary memory, so that everything but the
            overlap can be tried without a card.
        slots: blocks on the device at a time, 2 or more.
        on_host: modules outside the blocks that stay in host memory and run there, such as an
            embedding table of gigabytes of which a prompt reads a few rows.

    Raises:
        ValueError: `slots` is below 2, `order` is empty, or a block is not inside `module`, is inside
            another block or not in host memory.
        TypeError: a block holds tensors of a class whose memory is not the numbers themselves.
    """
    device, traffic = _full(device), Traffic()
    blocks = list(dict.fromkeys(order))
    _check(module, blocks, slots)
    outside = _outside(module, set(blocks))
    with ExitStack() as undo:
        stays = {id(tensor) for each in on_host for tensor in [*each.parameters(), *each.buffers()]}
        flats = {block: Flat(_apart(block, outside)) for block in blocks}
        _move(Tensors(outside, leave=stays), device, traffic, undo)
        path = lane(device, max(flat.size for flat in flats.values()), min(slots, len(blocks)), traffic)
        undo.callback(path.close)
        _Visits([flats[block] for block in order], path).begin(undo, list(order))
        for each in on_host:
            _run_on_host(each, device, undo)
        kept = undo.pop_all()
    with kept:
        yield traffic


def _full(device: str | torch.device) -> torch.device:
    """Return the device with its index, so that streams and tensors agree."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _check(module: torch.nn.Module, blocks: list[torch.nn.Module], slots: int) -> None:
    if slots < 2:
        raise ValueError(f"slots is {slots}; one block computes while another arrives, so 2 is the least.")
    if not blocks:
        raise ValueError("order names no block.")
    if not set(blocks) <= set(module.modules()):
        raise ValueError("order names a block that is not inside the module.")
    inner = {child for block in blocks for child in block.modules() if child is not block}
    if inner & set(blocks):
        raise ValueError("order names a block that is inside another.")


def _outside(module: torch.nn.Module, blocks: set[torch.nn.Module]) -> dict[torch.nn.Module, None]:
    """Return the modules that can be reached without entering a block."""
    found: dict[torch.nn.Module, None] = {}
    waiting = [module]
    while waiting:
        each = waiting.pop()
        if each not in blocks and each not in found:
            found[each] = None
            waiting += each.children()
    return found


def _apart(block: torch.nn.Module, outside: Collection[torch.nn.Module]) -> list[torch.nn.Module]:
    """Return the modules of a block that are not used outside of the blocks too."""
    return [module for module in block.modules() if module not in outside]


def _move(root: Tensors, device: torch.device, traffic: Traffic, undo: ExitStack) -> None:
    """Have copies on the device stand in for `root` until `undo`."""
    moved = [tensor.detach().to(device) for tensor in root.originals]
    traffic.device_bytes += sum(tensor.nbytes for tensor in moved)
    undo.callback(root.restore)
    root.bind(moved)


def _run_on_host(module: torch.nn.Module, device: torch.device, undo: ExitStack) -> None:
    """Bring a module's tensor inputs to host memory and its result to the device, until `undo`."""

    def fetch(_module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(each.to("cpu") if isinstance(each, torch.Tensor) else each for each in args)

    def deliver(_module: torch.nn.Module, _args: tuple[Any, ...], result: torch.Tensor) -> torch.Tensor:
        return result.to(device)

    undo.callback(module.register_forward_pre_hook(fetch).remove)
    undo.callback(module.register_forward_hook(deliver).remove)


class _Visits:
    """Which block is in which slot, and which comes next.

    At most one block's tensors are bound to its slot at a time: the running one's.
    """

    def __init__(self, order: list[Flat], path: Lane) -> None:
        self._order = order
        self._lane = path
        self._in_slot: list[Flat | None] = [None] * len(path.slots)
        self._views: dict[tuple[Flat, int], list[torch.Tensor]] = {}
        self._at = -1  # where in the order the running block is
        self._running: int | None = None  # its slot

    def begin(self, undo: ExitStack, order: list[torch.nn.Module]) -> None:
        """Watch the blocks until `undo`, and send the first ones on their way."""
        undo.callback(self._end)
        places: dict[torch.nn.Module, Flat] = dict(zip(order, self._order, strict=True))
        for block, flat in places.items():
            undo.callback(block.register_forward_pre_hook(self._before(flat), prepend=True).remove)
            undo.callback(block.register_forward_hook(self._after).remove)
        self._send_ahead()

    def _before(self, flat: Flat) -> Callable[[torch.nn.Module, Any], None]:
        def hook(_block: torch.nn.Module, _args: Any) -> None:
            if self._running is None or self._in_slot[self._running] is not flat:
                self._retire()
                self._enter(flat)

        return hook

    def _after(self, _block: torch.nn.Module, _args: Any, _result: Any) -> None:
        # Here, not before the block: its kernels are queued, so that the device has work while the
        # host fills the chunks for the next block.
        self._send_ahead()

    def _enter(self, flat: Flat) -> None:
        self._at = self._place(flat)
        if flat not in self._in_slot:
            self._lane.traffic.late += 1
            self._send(flat, self._next())
        slot = self._in_slot.index(flat)
        self._lane.arrive(slot)
        flat.bind(self._bound(flat, slot))
        self._running = slot

    def _place(self, flat: Flat) -> int:
        """Return where the order stands when `flat` runs now: at its turn, or else at its first place."""
        turn = (self._at + 1) % len(self._order)
        return turn if self._order[turn] is flat else self._order.index(flat)

    def _bound(self, flat: Flat, slot: int) -> list[torch.Tensor]:
        """Return the block's tensors in a slot; they are made once, since there are dozens per block."""
        if (flat, slot) not in self._views:
            self._views[flat, slot] = flat.views(self._lane.slots[slot])
        return self._views[flat, slot]

    def _next(self) -> list[Flat]:
        """Return the running block and the ones to come, as many as there are slots."""
        begin = max(self._at, 0)
        return [self._order[(begin + ahead) % len(self._order)] for ahead in range(len(self._in_slot))]

    def _send_ahead(self) -> None:
        wanted = self._next()
        for flat in wanted:
            if flat not in self._in_slot:
                self._send(flat, wanted)

    def _send(self, flat: Flat, wanted: list[Flat]) -> None:
        """Copy a block into a slot that holds none of the wanted ones."""
        slot = next(index for index, held in enumerate(self._in_slot) if held not in wanted)
        self._in_slot[slot] = None  # an error on the way leaves half a block there
        self._lane.send(flat, slot)
        self._in_slot[slot] = flat
        self._lane.traffic.copies += 1
        self._lane.traffic.bytes += flat.size

    def _retire(self) -> None:
        """Give the running block its own tensors back; its slot is free behind what is queued."""
        if self._running is not None:
            held = self._in_slot[self._running]
            assert held is not None
            held.restore()
            self._lane.leave(self._running)
            self._running = None

    def _end(self) -> None:
        self._retire()
        self._views.clear()
