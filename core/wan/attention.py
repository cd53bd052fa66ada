"""Attention kernels: of those that are installed, one that the card and the number type can use.

All go through diffusers' attention dispatcher. Without a card, and for the reference path, it is torch's own
`scaled_dot_product_attention` as diffusers calls it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

from ..errors import PiyingError, clipped
from .phases import HEAD
from .request import AUTO_ATTENTION, REFERENCE, SDPA

HALF = ("fp16", "bf16")
QUANTIZED_SPEEDS = ("fast", "draft")  # the speeds that allow attention in eight bits
Capability = tuple[int, int]


@dataclass(frozen=True)
class Kernel:
    """A way to compute attention.

    Attributes:
        name: its name on the widget.
        backend: its name for diffusers' dispatcher.
        package: the Python package it is in; "" is torch itself.
        first, end: compute capabilities of the cards it is for: from `first` up to, not including, `end`.
        quantizes: whether it brings queries and keys to eight bits.
    """

    name: str
    backend: str
    package: str
    first: Capability
    end: Capability = (99, 0)
    quantizes: bool = False


# Best first. One name may stand for several; the first that runs is taken. FlashAttention 3 is for Hopper alone.
KERNELS = (
    Kernel("flash", "_flash_3", "flash_attn_interface", (9, 0), (10, 0)),
    Kernel("cudnn", "_native_cudnn", "", (8, 0)),
    Kernel("flash", "flash", "flash_attn", (8, 0)),
    Kernel("xformers", "xformers", "xformers", (7, 5)),
    Kernel("sage", "sage", "sageattention", (8, 0), quantizes=True),
)
# From Ampere to Ada torch's own attention is FlashAttention 2: packages with the same kernels gain nothing there.
FASTER_FROM = (9, 0)


@dataclass(frozen=True)
class Attention:
    """The kernel that was chosen.

    Attributes:
        kernel: None leaves it to torch.
        why: a sentence for the plan.
    """

    kernel: Kernel | None
    why: str

    @property
    def name(self) -> str:
        """Return its name for the record."""
        return SDPA if self.kernel is None else self.kernel.backend.strip("_")

    @contextmanager
    def enabled(self, compute: str) -> Iterator[None]:
        """Have the models of diffusers compute attention so inside the block, where `compute` allows it."""
        if self.kernel is None or compute not in HALF:
            yield
            return
        from diffusers.models.attention_dispatch import attention_backend

        with attention_backend(self.kernel.backend):
            yield


def choose_attention(
    asked: str,
    speed: str,
    *,
    capability: Capability | None,
    is_installed: Callable[[str], bool],
    test: Callable[[Kernel], str],
) -> Attention:
    """Choose the kernel.

    Args:
        asked: one of `request.ATTENTIONS`.
        speed: one of `request.SPEEDS`: what `auto` may give up.
        capability: the card's compute capability; None without an NVIDIA card.
        is_installed: whether a package is.
        test: runs a kernel on the card; returns what is wrong with it, "" where nothing is.

    Raises:
        PiyingError: what was asked for by name cannot run here.
    """

    def fault(kernel: Kernel) -> str:
        """Return why a kernel cannot be used, "" where it can."""
        if capability is None:
            return "it needs an NVIDIA card"
        if not kernel.first <= capability < kernel.end:
            return f"it is for other cards than this one, whose compute capability is {capability[0]}.{capability[1]}"
        if kernel.package and not is_installed(kernel.package):
            return f"the package {kernel.package} is not installed in this Python"
        return test(kernel)

    if asked == SDPA:
        return Attention(None, "attention by torch, as asked for.")
    if asked != AUTO_ATTENTION:
        named = [kernel for kernel in KERNELS if kernel.name == asked]
        faults = [fault(kernel) for kernel in named]
        for kernel, found in zip(named, faults, strict=True):
            if not found:
                return Attention(kernel, f"attention by {asked}, as asked for.")
        raise PiyingError(f"attention is {asked!r}, and {faults[-1]}. Choose auto or sdpa.")
    return _choose_automatically(speed, capability, fault)


def _choose_automatically(speed: str, capability: Capability | None, fault: Callable[[Kernel], str]) -> Attention:
    if speed == REFERENCE:
        return Attention(None, "attention by torch, as plain diffusers has it: speed is reference.")
    # Kernels of eight bits come first: only speeds that allow them get that far, and they are the faster ones.
    for kernel in sorted(KERNELS, key=lambda kernel: not kernel.quantizes):
        if kernel.quantizes:
            wanted = speed in QUANTIZED_SPEEDS
        else:
            wanted = capability is not None and capability >= FASTER_FROM
        if wanted and not fault(kernel):
            how = "in eight bits" if kernel.quantizes else "the same arithmetic"
            return Attention(kernel, f"attention by {kernel.backend.strip('_')}, {how}: installed, and runs here.")
    return Attention(None, "attention by torch: nothing faster is installed that this device can run.")


def attention_for(asked: str, speed: str, device: str, built_in: bool) -> Attention:
    """Choose the kernel for a device.

    Args:
        asked: one of `request.ATTENTIONS`.
        speed: one of `request.SPEEDS`.
        device: "cpu", "cuda" or "cuda:N".
        built_in: whether it is for the built-in model, whose heads are too narrow for most kernels.

    Raises:
        PiyingError: what was asked for by name cannot run here.
    """
    import torch

    # ROCm calls its cards "cuda" too, and numbers their capabilities in another way.
    card = device.startswith("cuda") and torch.version.hip is None
    chosen = choose_attention(
        asked,
        speed,
        capability=torch.cuda.get_device_capability(device) if card else None,
        is_installed=lambda package: importlib.util.find_spec(package) is not None,
        test=lambda kernel: kernel_fault(kernel.backend, device),
    )
    if built_in and chosen.kernel is not None:
        return Attention(None, "attention by torch: the built-in model's heads are too narrow for other kernels.")
    return chosen


@lru_cache(maxsize=32)
def kernel_fault(backend: str, device: str) -> str:
    """Return what goes wrong when a kernel computes a small attention in bf16; "" where it agrees with torch's.

    A package may be installed and built for another card, another torch or another CUDA: only running it tells.
    """
    import torch
    from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn
    from torch.nn import functional

    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 128, 2, HEAD, generator=draw).to(device, torch.bfloat16) for _ in range(3))
    try:
        with attention_backend(backend):
            found = dispatch_attention_fn(query, key, value)
    except (RuntimeError, ValueError, ImportError, OSError, TypeError, AssertionError) as error:
        return f"it fails here ({clipped(' '.join(str(error).split()), 160)})"
    heads_first = [one.transpose(1, 2) for one in (query, key, value)]
    wanted = functional.scaled_dot_product_attention(heads_first[0], heads_first[1], heads_first[2])
    alike = functional.cosine_similarity(found.float().flatten(), wanted.transpose(1, 2).float().flatten(), dim=0)
    return "" if alike > 0.99 else f"its results here are not those of torch (cosine {float(alike):.2f})"
