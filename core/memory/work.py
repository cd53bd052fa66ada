"""What a run has to do, phase by phase, as numbers the planner can weigh."""

from __future__ import annotations

from dataclasses import dataclass, field

from .components import ELEMENT_BYTES, Component


@dataclass(frozen=True)
class Variant:
    """One way of running a phase.

    Attributes:
        name: `whole`, or `tiled` where the picture is worked on in pieces.
        activations: peak bytes beside the weights when computing in a 16-bit type.
        time_factor: arithmetic compared with `whole`.
        fixed: further peak bytes, which do not depend on the number type.
    """

    name: str
    activations: int
    time_factor: float = 1.0
    fixed: int = 0

    def peak(self, compute: str) -> int:
        """Return the peak bytes beside the weights."""
        return self.activations * ELEMENT_BYTES[compute] // 2 + self.fixed


@dataclass(frozen=True)
class Phase:
    """One phase of a run: one component at work.

    Attributes:
        name: `expand`, `encode`, `encode_2`, `condition`, `sample` or `decode`.
        component: whose weights it needs.
        computes: number types it may compute in, best first; a later one is taken only where no
            earlier one fits.
        storages: number types its weights may be stored in, best first; `fp8` is the one that
            differs from the type computed in.
        flops: floating point operations of one pass.
        linear_share: the share of them in Linear layers, which FP8 arithmetic could do; 0..1.
        passes: passes over the weights. Conditional and unconditional predictions share one.
        variants: ways of running it, best first.
        streamable: whether its blocks can be streamed.
        host: bytes of main memory it holds beside weights, such as the frames.
        fp8_inputs: peak bytes of bringing a layer's input to FP8, where layers multiply in it.
        patient: whether FP8 is taken only where nothing else fits, however long that takes; for short phases.
        on_cpu: what stands in place of `computes` on a CPU, of a phase whose types are chosen apart from the
            user's `precision`; empty where that decides.
        why: a sentence on the first of `computes`, for the plan's text where that is taken.
        notes: further sentences on how it runs, for the plan's text.
    """

    name: str
    component: Component
    computes: tuple[str, ...]
    storages: tuple[str, ...]
    flops: float
    linear_share: float
    passes: int
    variants: tuple[Variant, ...]
    streamable: bool
    host: int = 0
    fp8_inputs: int = 0
    patient: bool = False
    on_cpu: tuple[str, ...] = ()
    # Not a part of what tells one work from another.
    why: str = field(default="", repr=False, compare=False)
    notes: tuple[str, ...] = field(default=(), repr=False, compare=False)
