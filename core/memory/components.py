"""What a model's parts weigh: parameter counts, block by block, and the bytes they come to."""

from __future__ import annotations

from dataclasses import dataclass

ELEMENT_BYTES = {"fp8": 1, "bf16": 2, "fp16": 2, "fp32": 4}
SCALE_BYTES = 4  # one float32 per output channel of an FP8 layer


@dataclass(frozen=True)
class Block:
    """Parameters of one block, the unit that is streamed.

    Attributes:
        linear: weights of the Linear layers that FP8 may hold.
        kept: all other parameters: biases, norms, embeddings, Linear layers on the keep-list.
        rows: output channels of the `linear` layers together; each has a scale in FP8.
        largest: weights of the largest of the `linear` layers; what FP8 is unpacked into.
    """

    linear: int
    kept: int
    rows: int = 0
    largest: int = 0

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.linear + self.kept

    def bytes(self, compute: str, storage: str) -> int:
        """Return the bytes of the block.

        Args:
            compute: number type of the arithmetic: `bf16`, `fp16` or `fp32`.
            storage: `fp8`, or the same as `compute`.
        """
        if storage != "fp8":
            return self.parameters * ELEMENT_BYTES[compute]
        return self.linear + self.rows * SCALE_BYTES + self.kept * ELEMENT_BYTES[compute]


@dataclass(frozen=True)
class Component:
    """One part of a model, such as its transformer.

    Attributes:
        name: `transformer`, `text_encoder`, `text_encoder_2`, `vae` or `prompt_model`.
        root: what lies outside the block lists; on the device for the whole phase.
        blocks: the blocks; their order makes no difference to sizes.
        stored: the number type on disk: `bf16`, `fp16`, `fp32` or `fp8`.
        hidden: width of the activations that go from block to block; channels at full size in a VAE.
        inner: width of the widest layer inside a block.
    """

    name: str
    root: Block
    blocks: tuple[Block, ...]
    stored: str
    hidden: int = 0
    inner: int = 0

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.root.parameters + sum(block.parameters for block in self.blocks)

    def bytes(self, compute: str, storage: str) -> int:
        """Return the bytes of all parameters; see `Block.bytes`. The root is never stored as FP8."""
        return self.root.bytes(compute, compute) + sum(block.bytes(compute, storage) for block in self.blocks)

    def streamed_bytes(self, compute: str, storage: str) -> int:
        """Return the bytes that one pass over the blocks moves to the device."""
        return sum(block.bytes(compute, storage) for block in self.blocks)

    def largest_block(self, compute: str, storage: str) -> int:
        """Return the bytes of the largest block; 0 without blocks."""
        return max((block.bytes(compute, storage) for block in self.blocks), default=0)

    def unpacked(self, compute: str) -> int:
        """Return the bytes of the largest FP8 layer unpacked into `compute`; one is alive at a time."""
        return max((block.largest for block in self.blocks), default=0) * ELEMENT_BYTES[compute]

    def file_bytes(self) -> int:
        """Return the bytes of the weights on disk."""
        if self.stored == "fp8":
            return self.bytes("bf16", "fp8")
        return self.parameters * ELEMENT_BYTES[self.stored]
