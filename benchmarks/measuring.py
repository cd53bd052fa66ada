"""Time and peak memory of a call, on a card or on the CPU."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GB = 2**30  # a card's, as the planner and --vram-gb count
# What CUDA's context takes of a card beside torch's allocator, which alone can be held to a limit: the planner's.
CONTEXT = 300 * 2**20


def is_card(device: str) -> bool:
    """Whether the device has memory of its own that torch counts."""
    return device.startswith("cuda")


def settle(device: str) -> None:
    """Let go of what is garbage, wait for the device, and count the peak from here on."""
    gc.collect()
    if is_card(device):
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def hold_to(gigabytes: float | None, device: str) -> None:
    """Let torch have as much as a card of that size would; None takes the limit away."""
    if is_card(device):
        total = torch.cuda.get_device_properties(device).total_memory
        share = 1.0 if gigabytes is None else (gigabytes * GB - CONTEXT) / total
        torch.cuda.set_per_process_memory_fraction(min(1.0, share), device)


def host_bytes() -> int:
    """Return what the process holds of main memory, pinned and mapped pages included."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def clock(device: str) -> float:
    """Return a time to take differences of, with the card's queued work done.

    Without a card it is processor time: other programs on a busy machine do not count.
    """
    if not is_card(device):
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(call: Callable[[], Any], device: str) -> float:
    """Return how long a call and the work it queued take."""
    begun = clock(device)
    call()
    return clock(device) - begun


def peak(call: Callable[[], Any], device: str) -> int:
    """Return peak bytes: on a card all that torch had allocated since `settle`, on the CPU what the call made."""
    if is_card(device):
        return torch.cuda.max_memory_allocated(device)
    with _Alive() as alive:
        call()
    return alive.peak


class _Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, of those made inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if _is_tensor(tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in filter(_is_tensor, tree_leaves(result)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known and storage._cdata not in given:
                self._known[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._forget, storage._cdata)
        return result

    def _forget(self, key: int) -> None:
        self.now -= self._known.pop(key)


def _is_tensor(thing: Any) -> bool:
    return isinstance(thing, torch.Tensor)
