"""Which number types the VAE may compute in, best first."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VAETypes:
    """The types of both VAE phases.

    fp16 comes before bf16 in either order: it takes the same memory, has three more bits, and older cards
    have it too (benchmarks/vae_types.py, docs/speed.md). Where it overflows, what follows it is taken.

    Attributes:
        computes: on a card; a later one only where no earlier one fits or holds.
        on_cpu: on a CPU, where 16-bit products are emulated.
        why: a sentence on the first of `computes`.
    """

    computes: tuple[str, ...]
    on_cpu: tuple[str, ...] = ("fp32",)
    why: str = ""


EXACT = VAETypes(("fp32", "fp16", "bf16"))
HALF = ("fp16", "fp32", "bf16")
