"""Which kernel computes attention: of those that are installed, one that the card and the number type can do.

All go through diffusers' attention dispatcher. Without a card, and for the reference path, it is torch's own
`scaled_dot_product_attention` as diffusers calls it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

from ..errors import PiyingError
from .phases import HEAD
from .request import AUTO_ATTENTION, REFERENCE, SDPA

HALF = ("fp16", "bf16")
ROUNDING_SPEEDS = ("fast", "draft")  # the words that allow attention in eight bits


@dataclass(frozen=True)
class Kernel:
    """A way to compute attention.

    Attributes:
        word: its name on the widget.
        backend: its name for diffusers' dispatcher.
        package: the Python package it is in; "" is torch itself.
        least, behind: compute capabilities of the cards it is for, from `least` up to, not including, `behind`.
        rounds: whether it brings queries and keys to eight bits.
    """

    word: str
    backend: str
    package: str
    least: tuple[int, int]
    behind: tuple[int, int] = (99, 0)
    rounds: bool = False

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """Return whether it is made for cards of this compute capability."""
        return self.least <= capability < self.behind


# Best first. One word may stand for several; the first that runs is taken. FlashAttention 3 is for Hopper alone.
KERNELS = (
    Kernel("flash", "_flash_3", "flash_attn_interface", (9, 0), (10, 0)),
    Kernel("cudnn", "_native_cudnn", "", (8, 0)),
    Kernel("flash", "flash", "flash_attn", (8, 0)),
    Kernel("xformers", "xformers", "xformers", (7, 5)),
    Kernel("sage", "sage", "sageattention", (8, 0), rounds=True),
)
# From Ampere to Ada torch's own attention is FlashAttention 2: packages with the same kernels gain nothing there.
NEWER = (9, 0)


@dataclass(frozen=True)
class Attention:
    """What was chosen.

    Attributes:
        kernel: None leaves it to torch.
        why: a sentence for the plan.
    """

    kernel: Kernel | None
    why: str

    @property
    def name(self) -> str:
        """Return the word for the record."""
        return SDPA if self.kernel is None else self.kernel.backend.strip("_")

    @contextmanager
    def used(self, compute: str) -> Iterator[None]:
        """Have the models of diffusers compute attention so inside the block, where `compute` allows it."""
        if self.kernel is None or compute not in HALF:
            yield
            return
        from diffusers.models.attention_dispatch import attention_backend

        with attention_backend(self.kernel.backend):
            yield


Installed = Callable[[str], bool]
Works = Callable[[Kernel], str]


def choose_attention(
    asked: str, speed: str, capability: tuple[int, int] | None, installed: Installed, works: Works
) -> Attention:
    """Choose the kernel.

    Args:
        asked: one of `request.ATTENTIONS`.
        speed: one of `request.SPEEDS`: what `auto` may give up.
        capability: the card's compute capability; None without an NVIDIA card.
        installed: whether a package is.
        works: tries a kernel on the card; what is wrong with it, "" where nothing is.

    Raises:
        PiyingError: what was asked for by name cannot run here.
    """
    if asked == AUTO_ATTENTION:
        return _chosen_freely(speed, capability, installed, works)
    if asked == SDPA:
        return Attention(None, "attention by torch, as asked for.")
    named = [kernel for kernel in KERNELS if kernel.word == asked]
    faults = [_fault(kernel, capability, installed, works) for kernel in named]
    for kernel, fault in zip(named, faults, strict=True):
        if not fault:
            return Attention(kernel, f"attention by {asked}, as asked for.")
    raise PiyingError(f"attention is {asked!r}, and {faults[-1]}. Choose auto or sdpa.")


def _chosen_freely(speed: str, capability: tuple[int, int] | None, installed: Installed, works: Works) -> Attention:
    if speed == REFERENCE:
        return Attention(None, "attention by torch, as plain diffusers has it: speed is reference.")
    for kernel in sorted(KERNELS, key=lambda kernel: not kernel.rounds):
        wanted = speed in ROUNDING_SPEEDS if kernel.rounds else capability is not None and capability >= NEWER
        if wanted and not _fault(kernel, capability, installed, works):
            how = "in eight bits" if kernel.rounds else "the same arithmetic"
            return Attention(kernel, f"attention by {kernel.backend.strip('_')}, {how}: installed, and runs here.")
    return Attention(None, "attention by torch: nothing faster is installed that this device can run.")


def _fault(kernel: Kernel, capability: tuple[int, int] | None, installed: Installed, works: Works) -> str:
    """Return why a kernel cannot be used, "" where it can."""
    if capability is None:
        return "it needs an NVIDIA card"
    if not kernel.runs_on(capability):
        return f"it is for other cards than this one, whose compute capability is {capability[0]}.{capability[1]}"
    if kernel.package and not installed(kernel.package):
        return f"the package {kernel.package} is not installed in this Python"
    return works(kernel)


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

    card = device.startswith("cuda") and torch.version.hip is None
    capability = torch.cuda.get_device_capability(device) if card else None
    chosen = choose_attention(
        asked,
        speed,
        capability,
        lambda package: importlib.util.find_spec(package) is not None,
        lambda kernel: tried(kernel.backend, device),
    )
    if built_in and chosen.kernel is not None:
        return Attention(None, "attention by torch: the built-in model's heads are too narrow for other kernels.")
    return chosen


@lru_cache(maxsize=32)
def tried(backend: str, device: str) -> str:
    """Return what goes wrong when a kernel computes a small attention in bf16; "" where it agrees with torch's.

    A package may be installed and built for another card, another torch or another CUDA: only trying it tells.
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
        return f"it fails here ({' '.join(str(error).split())[:160]})"
    wanted = functional.scaled_dot_product_attention(*(one.transpose(1, 2) for one in (query, key, value)))
    alike = functional.cosine_similarity(found.float().flatten(), wanted.transpose(1, 2).float().flatten(), dim=0)
    return "" if alike > 0.99 else f"its results here are not those of torch (cosine {float(alike):.2f})"
