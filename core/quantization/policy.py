"""Policy of number types: which layer of a component is held in which type, and why.

One answer for what casts weights, what plans memory, what is cached on disk, and what tells people. It
needs names, shapes and the types in the file alone: no weights, no module, no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import NamedTuple, Protocol

WEIGHT = ".weight"
CAST = "Linear layers inside the blocks"
STORED = "stored so in the file"
OUTSIDE = "outside the blocks"
NO_BLOCKS = "has no blocks to cast"
NO_LINEAR = "norms, biases and tables"
IN_FP32 = "held in fp32 by its class"
# The last part of the name of a table that is looked up: a matrix that no Linear layer multiplies with.
EMBEDDINGS = ("shared", "embed_tokens", "word_embeddings", "token_embedding", "token_embd")
PLAIN = "not to be cast"


@dataclass(frozen=True)
class CastRules:
    """Which layers of one component may be stored in fewer bits.

    Attributes:
        block_lists: dotted names of its lists of blocks, such as ("blocks", "vace_blocks"); layers outside them
            are left alone.
        keep: {pattern (fnmatch) of the names of layers inside them that are left alone: why}.
        spared: parts of the names of layers, inside and outside, that are never held in a format, as the code of the
            model works with their weights (diffusers' `_skip_layerwise_casting_patterns`).
        fp32_modules: {16-bit type: names of modules that the classes hold in fp32 where they compute in it}: what
            diffusers and transformers call `_keep_in_fp32_modules`.
    """

    block_lists: tuple[str, ...] = ()
    keep: Mapping[str, str] = field(default_factory=dict)
    spared: tuple[str, ...] = ()
    fp32_modules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def block_of(self, name: str) -> str:
        """Return "blocks.7" for a tensor or layer of that block, "" for one outside all lists.

        Some files put the name of the model class before every name: "bert.encoder.layer.0.…".
        """
        for blocks in self.block_lists:
            index = f".{name}".partition(f".{blocks}.")[2].partition(".")[0]
            if index.isdigit():
                return f"{blocks}.{index}"
        return ""

    def why_dense(self, name: str, shape: tuple[int, ...]) -> str:
        """Return why a tensor may not be stored in fewer bits; "" where it may."""
        if not self.block_of(name):
            return OUTSIDE if self.block_lists else NO_BLOCKS
        if len(shape) != 2 or not name.endswith(WEIGHT):
            return NO_LINEAR
        layer = name.removesuffix(WEIGHT)
        return next((f"kept: {why}" for pattern, why in self.keep.items() if fnmatchcase(layer, pattern)), "")

    def is_linear(self, name: str, shape: tuple[int, ...]) -> bool:
        """Return whether a tensor looks like the weight of a Linear layer that a format may hold, without a module."""
        layer = name.removesuffix(WEIGHT)
        is_matrix = len(shape) == 2 and layer != name and not layer.endswith(EMBEDDINGS)
        return is_matrix and not any(part in name for part in self.spared)

    def in_fp32(self, name: str) -> tuple[str, ...]:
        """Return the 16-bit types beside which a tensor is held in fp32."""
        parts = set(name.split("."))
        return tuple(compute for compute, modules in self.fp32_modules.items() if parts & set(modules))

    @property
    def identity(self) -> str:
        """A text that changes with the layers that are cast."""
        # Without the reasons: better words must not cost anybody a cast file.
        return f"{self.block_lists} {tuple(self.keep)}"


NOTHING_CAST = CastRules()


class Tensor(Protocol):
    """What is known of a tensor that has not been read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""

    @property
    def dtype(self) -> str:
        """Its type, by its safetensors or GGUF name."""


class Held(NamedTuple):
    """The type a tensor is held in.

    Attributes:
        type: a number type such as "bf16", or the name of a format.
        why: a few words.
    """

    type: str
    why: str


def held_types(
    tensors: Mapping[str, Tensor],
    rules: CastRules,
    *,
    compute: str,
    storage: str | None,
    linear: Collection[str] | None = None,
) -> dict[str, Held]:
    """Return what each tensor of a component is held in.

    Args:
        tensors: by the names that the module's own state has.
        compute: the type of all that is not stored in fewer bits.
        storage: the name of a format: Linear layers inside the blocks are cast to it, where that can be, and all
            stay in it that the file has in it. None: every layer stays in the format that the file has it in. Any
            other name: all formats are unpacked.
        linear: the names of the weights of Linear layers, where the module is known; else see `CastRules.is_linear`.
    """
    # Not at the top: nodes are declared with a family's rules, and their start needs no format.
    from .registry import stored_type, weight_format

    wanted = weight_format(storage)
    found = {}
    for name, tensor in tensors.items():
        # What a file has in the format already is not rounded again, wherever it lies.
        in_file = weight_format(stored_type(tensor.dtype))
        is_linear = name in linear if linear is not None else rules.is_linear(name, tensor.shape)
        why_dense = rules.why_dense(name, tensor.shape if is_linear else ())
        if in_file is not None and is_linear and (storage is None or in_file is wanted):
            found[name] = Held(in_file.name, STORED)
        elif wanted is not None and wanted.can_cast and not why_dense:
            found[name] = Held(wanted.name, CAST)
        elif compute in rules.in_fp32(name):
            found[name] = Held("fp32", IN_FP32)
        else:
            found[name] = Held(compute, why_dense or PLAIN)
    return found
