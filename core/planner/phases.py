"""Phases of a run: what each has to do and to hold, as numbers the planner can weigh."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..files.dtypes import BYTES_BY_SHORT_NAME
from ..quantization.registry import FORMATS, weight_format
from .plan_types import Compute, PhaseName, Storage, VariantName


@dataclass(frozen=True)
class Block:
    """Parameters of one block, the unit that is streamed.

    Attributes:
        linear: weights of the Linear layers that may be stored in a format.
        kept: all other parameters: biases, norms, embeddings, Linear layers on the keep-list.
        rows: output channels of the `linear` layers together.
        largest: weights of the largest of the `linear` layers; one is unpacked at a time.
    """

    linear: int
    kept: int
    rows: int = 0
    largest: int = 0

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.linear + self.kept

    def bytes(self, compute: Compute, storage: Storage) -> int:
        """Return the bytes of the block.

        Args:
            compute: number type of the arithmetic.
            storage: the name of a format, or the same as `compute`.
        """
        stored = weight_format(storage)
        if stored is None:
            return self.parameters * BYTES_BY_SHORT_NAME[compute]
        return stored.bytes(self.linear, self.rows) + self.kept * BYTES_BY_SHORT_NAME[compute]


@dataclass(frozen=True)
class Component:
    """One part of a model, such as its transformer.

    Attributes:
        name: `transformer`, `text_encoder`, `text_encoder_2`, `vae` or `prompt_model`.
        root: what lies outside the block lists; on the device for the whole phase.
        blocks: the blocks; their order makes no difference to sizes.
        stored: what the weights on disk are: a `Compute`, or the name of a format.
        hidden: width of the activations that go from block to block; channels at full size in a VAE.
        inner: width of the widest layer inside a block.
    """

    name: str
    root: Block
    blocks: tuple[Block, ...]
    stored: Storage
    hidden: int = 0
    inner: int = 0

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.root.parameters + sum(block.parameters for block in self.blocks)

    def bytes(self, compute: Compute, storage: Storage) -> int:
        """Return the bytes of all parameters; see `Block.bytes`. The root is never cast."""
        return self.root.bytes(compute, compute) + sum(block.bytes(compute, storage) for block in self.blocks)

    def streamed_bytes(self, compute: Compute, storage: Storage) -> int:
        """Return the bytes that one pass over the blocks moves to the device."""
        return sum(block.bytes(compute, storage) for block in self.blocks)

    def largest_block(self, compute: Compute, storage: Storage) -> int:
        """Return the bytes of the largest block; 0 without blocks."""
        return max((block.bytes(compute, storage) for block in self.blocks), default=0)

    def unpacked(self, compute: Compute, storage: Storage) -> int:
        """Return the peak that unpacking layers adds: that of the largest, as one is unpacked at a time."""
        stored, largest = weight_format(storage), max((block.largest for block in self.blocks), default=0)
        return 0 if stored is None else stored.unpacked_bytes(largest, compute)

    def file_bytes(self) -> int:
        """Return the bytes of the weights on disk."""
        if weight_format(self.stored) is not None:
            return self.bytes("bf16", self.stored)
        return self.parameters * BYTES_BY_SHORT_NAME[self.stored]


@dataclass(frozen=True)
class Variant:
    """One way of running a phase.

    Attributes:
        name: `whole`, `batched` where both prompts go through together, or `tiled` where the picture is
            worked on in pieces.
        activations: peak bytes beside the weights when computing in a 16-bit type.
        time_factor: arithmetic compared with `whole`.
        fixed: further peak bytes, which do not depend on the number type.
        words: how it is done, for people; it stands where another variant is the first choice.
    """

    name: VariantName
    activations: int
    time_factor: float = 1.0
    fixed: int = 0
    # Not a part of what tells one work from another.
    words: str = field(default="", repr=False, compare=False)

    def peak(self, compute: Compute) -> int:
        """Return the peak bytes beside the weights."""
        return self.activations * BYTES_BY_SHORT_NAME[compute] // 2 + self.fixed


@dataclass(frozen=True)
class Phase:
    """One phase of a run: one component at work.

    Attributes:
        name: which phase.
        component: whose weights it needs.
        computes: number types it may compute in, best first; a later one is taken only where no
            earlier one fits.
        storages: what its weights may be stored in, best first: names of formats, any other name standing for
            the type computed in; see `every_storage`.
        flops: floating point operations of one pass.
        linear_share: the share of them in Linear layers, which kernels for a format could do; 0..1.
        passes: passes over the weights. Conditional and unconditional predictions share one.
        variants: ways of running it, best first.
        streamable: whether its blocks can be streamed.
        host: bytes of main memory it holds beside weights, such as the frames.
        rounded_inputs: peak bytes of rounding a layer's input, where layers multiply in the format they are
            stored in.
        cast_last_resort: whether weights are cast only where nothing else fits, however long that takes; for
            short phases.
        on_cpu: what stands in place of `computes` on a CPU, of a phase whose types are chosen apart from the
            user's `precision`; empty where that decides.
        convolutional: whether its arithmetic is in convolutions, as a VAE's is.
        why: a sentence on the first of `computes`, for the plan's text where that is taken.
        notes: further sentences on how it runs, for the plan's text.
    """

    name: PhaseName
    component: Component
    computes: tuple[Compute, ...]
    storages: tuple[Storage, ...]
    flops: float
    linear_share: float
    passes: int
    variants: tuple[Variant, ...]
    streamable: bool
    host: int = 0
    rounded_inputs: int = 0
    cast_last_resort: bool = False
    on_cpu: tuple[Compute, ...] = ()
    # Not a part of what tells one work from another.
    convolutional: bool = field(default=False, repr=False, compare=False)
    why: str = field(default="", repr=False, compare=False)
    notes: tuple[str, ...] = field(default=(), repr=False, compare=False)


def every_storage(plain: Compute = "bf16") -> tuple[Storage, ...]:
    """Return what the weights of a phase may be stored in: as they are computed with, then every format there is."""
    return (plain, *FORMATS)


HEAD = 64  # width of an attention head in T5 and BERT

# Peaks of one forward pass in a 16-bit type, by the width between blocks and the tokens, from live tensors of
# UMT5-XXL, mT5-XL and BERT (benchmarks/simulate.py): activations, and the bias that T5 adds to attention, twice.
ACTIVATION_BYTES = 28
SCORE_BYTES = 4


def encoding(component: Component, tokens: int) -> tuple[float, Variant]:
    """Return the operations of one pass over `tokens` tokens, and its memory."""
    weights = sum(block.linear for block in component.blocks)
    attention = 4 * tokens**2 * component.hidden * len(component.blocks)
    scores = SCORE_BYTES * (component.hidden // HEAD) * tokens**2
    held = ACTIVATION_BYTES * tokens * component.hidden
    return 2.0 * weights * tokens + attention, Variant("whole", held + scores)
