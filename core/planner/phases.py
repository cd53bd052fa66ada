"""Phases of a run: what each has to do and to hold, as numbers the planner can weigh."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from ..files.dtypes import BYTES_BY_SHORT_NAME
from ..parallel.cards import ONE_CARD, CardSplit
from ..quantization.registry import FORMATS, weight_format
from .plan_types import Compute, PhaseName, Storage, VariantName


class InFp32(NamedTuple):
    """Weights that a class holds in fp32 where it computes in a 16-bit type: how many of those of a block.

    Attributes:
        compute: that type.
        linear, kept: their number; see `Block`.
        packed_linear, packed_kept: those of them that the file has in a format; see `InFile`.
    """

    compute: str
    linear: int
    kept: int
    packed_linear: int = 0
    packed_kept: int = 0


@dataclass(frozen=True)
class InFile:
    """Weights of the Linear layers of one block that its file has in a format, and that stay so where it is planned.

    Attributes:
        format: the name of the format.
        weights: their number.
        bytes: what they take as they are held.
        castable: those of them that may be cast to a format.
        castable_rows: output channels of those layers.
        largest: weights of the largest layer.
    """

    format: Storage = ""
    weights: int = 0
    bytes: int = 0
    castable: int = 0
    castable_rows: int = 0
    largest: int = 0


@dataclass(frozen=True)
class Block:
    """Parameters of one block, the unit that is streamed.

    Attributes:
        linear: weights of the Linear layers that may be stored in a format.
        kept: all other parameters: biases, norms, embeddings, Linear layers on the keep-list.
        rows: output channels of the `linear` layers together.
        largest: weights of the largest of the `linear` layers; one is unpacked at a time.
        in_fp32: those of both kinds that are held in fp32 beside 16-bit types.
        in_file: what its file has in a format already, castable or not.
    """

    linear: int
    kept: int
    rows: int = 0
    largest: int = 0
    in_fp32: tuple[InFp32, ...] = ()
    in_file: InFile = InFile()

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
        stored, each = weight_format(storage), BYTES_BY_SHORT_NAME[compute]
        wider = BYTES_BY_SHORT_NAME["fp32"] - each
        held = [one for one in self.in_fp32 if one.compute == compute]
        if stored is None:
            return self.parameters * each + sum(one.linear + one.kept for one in held) * wider
        in_file = self.in_file if self.in_file.format == storage else InFile()
        cast = self.linear - in_file.castable if stored.can_cast else 0
        size = in_file.bytes + (stored.bytes(cast, self.rows - in_file.castable_rows) if cast else 0)
        wide = 0
        for one in held:
            packed = (one.packed_linear, one.packed_kept) if in_file.format else (0, 0)
            wide += one.kept - packed[1] + (0 if stored.can_cast else one.linear - packed[0])
        return size + (self.parameters - in_file.weights - cast) * each + wide * wider

    def unpacked(self, compute: Compute, storage: Storage) -> int:
        """Return the peak that unpacking its largest layer adds; see `bytes`."""
        stored = weight_format(storage)
        if stored is None:
            return 0
        in_file = self.in_file.largest if self.in_file.format == storage else 0
        largest = max(self.largest if stored.can_cast else 0, in_file)
        wider = any(one.compute == compute and (one.linear or one.packed_kept) for one in self.in_fp32)
        return stored.unpacked_bytes(largest, "fp32" if wider else compute) if largest else 0


@dataclass(frozen=True)
class StoredWeights:
    """Weights that the files of a component hold in one type, and that are held in one type once they are read.

    Attributes:
        type: what they count as: a `Compute`, or the name of a format.
        weights: their number.
        file_bytes: what they take in the files.
        rows: output channels of Linear layers.
        linear: whether they are of Linear layers, which stay in a format that the file has them in.
        castable: whether they are of Linear layers that may be cast to a format.
        in_fp32: the 16-bit types beside which they are held in fp32.
    """

    type: Storage
    weights: int
    file_bytes: int
    rows: int = 0
    linear: bool = False
    castable: bool = False
    in_fp32: tuple[str, ...] = ()

    def copied(self, compute: Compute, storage: Storage) -> int | None:
        """Return the bytes of main memory that they take beside their file; None where they stay in it, mapped."""
        in_file, wanted = weight_format(self.type), weight_format(storage)
        if in_file is not None and self.linear and wanted is in_file:
            return None
        if self.castable and wanted is not None and wanted.can_cast:
            return wanted.bytes(self.weights, self.rows)
        held = "fp32" if compute in self.in_fp32 else compute
        if self.type == held:
            return None
        return self.weights * BYTES_BY_SHORT_NAME[held]


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
        files: all its weights as its files hold them. Without files they are what `stored` says, and in bf16 what a
            format does not store.
    """

    name: str
    root: Block
    blocks: tuple[Block, ...]
    stored: Storage
    hidden: int = 0
    inner: int = 0
    files: tuple[StoredWeights, ...] = ()

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.root.parameters + sum(block.parameters for block in self.blocks)

    def bytes(self, compute: Compute, storage: Storage) -> int:
        """Return the bytes of all parameters; see `Block.bytes`. The root has nothing to cast."""
        return self.root.bytes(compute, storage) + sum(block.bytes(compute, storage) for block in self.blocks)

    def streamed_bytes(self, compute: Compute, storage: Storage) -> int:
        """Return the bytes that one pass over the blocks moves to the device."""
        return sum(block.bytes(compute, storage) for block in self.blocks)

    def largest_block(self, compute: Compute, storage: Storage) -> int:
        """Return the bytes of the largest block; 0 without blocks."""
        return max((block.bytes(compute, storage) for block in self.blocks), default=0)

    def unpacked(self, compute: Compute, storage: Storage) -> int:
        """Return the peak that unpacking layers adds: that of the largest, as one is unpacked at a time."""
        return max(block.unpacked(compute, storage) for block in (self.root, *self.blocks))

    def unpacked_weights(self, storage: Storage) -> int:
        """Return how many weights are unpacked in one pass; see `bytes`."""
        stored = weight_format(storage)
        if stored is None:
            return 0
        held = [block.in_file for block in (self.root, *self.blocks) if block.in_file.format == storage]
        cast = sum(block.linear for block in self.blocks) - sum(one.castable for one in held)
        return sum(one.weights for one in held) + (cast if stored.can_cast else 0)

    def contents(self) -> tuple[StoredWeights, ...]:
        """Return `files`, or what stands in for them."""
        if self.files:
            return self.files
        linear, rows = sum(block.linear for block in self.blocks), sum(block.rows for block in self.blocks)
        stored, rest = weight_format(self.stored), self.parameters - linear
        if stored is None:
            each = BYTES_BY_SHORT_NAME[self.stored]
            castable = StoredWeights(self.stored, linear, linear * each, rows, linear=True, castable=True)
            return castable, StoredWeights(self.stored, rest, rest * each)
        castable = StoredWeights(self.stored, linear, stored.bytes(linear, rows), rows, linear=True, castable=True)
        return castable, StoredWeights("bf16", rest, rest * BYTES_BY_SHORT_NAME["bf16"])

    def file_bytes(self) -> int:
        """Return the bytes of the weights on disk."""
        return sum(one.file_bytes for one in self.contents())

    def copied(self, compute: Compute, storage: Storage) -> int:
        """Return the bytes of main memory that the weights take beside what stays in mapped files."""
        added = self.parameters - sum(one.weights for one in self.contents())  # by LoRAs
        copies = sum(one.copied(compute, storage) or 0 for one in self.contents())
        return copies + max(0, added) * BYTES_BY_SHORT_NAME[compute]

    def converted(self, compute: Compute, storage: Storage) -> int:
        """Return how many weights are converted to another type as they are read."""
        return sum(one.weights for one in self.contents() if one.copied(compute, storage) is not None)

    def mapped(self, compute: Compute, storage: Storage) -> int:
        """Return the bytes of the files whose weights stay in them, mapped."""
        return sum(one.file_bytes for one in self.contents() if one.copied(compute, storage) is None)


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
        packed_on_cpu: whether a CPU holds weights that are packed in their file in 8 and 16 bits, whatever it computes
            in; at most 16 bits each, which is what they are read in.
        on_cpu: what stands in place of `computes` on a CPU, of a phase whose types are chosen apart from the
            user's `precision`; empty where that decides.
        exchange: seconds of a pass in which cards exchange what they share, and compute nothing.
        split: how it is shared between cards.
        convolutional: whether its arithmetic is in convolutions, as a VAE's is.
        movable: whether it may run on a second card: what it is given and what it leaves lie in main memory.
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
    packed_on_cpu: bool = False
    on_cpu: tuple[Compute, ...] = ()
    # Not a part of what tells one work from another.
    exchange: float = field(default=0.0, repr=False, compare=False)
    split: CardSplit = field(default=ONE_CARD, repr=False, compare=False)
    convolutional: bool = field(default=False, repr=False, compare=False)
    movable: bool = field(default=False, repr=False, compare=False)
    why: str = field(default="", repr=False, compare=False)
    notes: tuple[str, ...] = field(default=(), repr=False, compare=False)

    @property
    def shards(self) -> int:
        """How many cards may have a share of its weights each: those that run the same blocks in the same order."""
        return self.split.holders if self.component.blocks else 1

    def held_types(self, compute: Compute, storage: Storage, *, is_cpu: bool) -> tuple[Compute, Storage]:
        """Return the number type and the storage by which the weights are counted, see `Block.bytes`."""
        if is_cpu and self.packed_on_cpu and weight_format(storage) is None:
            return "fp16", "fp16"
        return compute, storage


def every_storage(component: Component, plain: Compute = "bf16") -> tuple[Storage, ...]:
    """Return what a component's weights may be stored in.

    First as they are computed with, then in every format that they can be cast to, or that its files have them in.
    """
    formats = (name for name, one in FORMATS.items() if one.can_cast or name == component.stored)
    return (plain, *formats)


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
