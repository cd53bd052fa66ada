"""What every layout says of itself, and how tables of names are applied."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ...errors import PiyingError, clipped

Shapes = Mapping[str, tuple[int, ...]]
ShapeTable = dict[str, tuple[int, ...]]  # one that is being made
Config = dict[str, Any]
TOKENIZER_TENSOR = "spiece_model"  # under which ComfyUI's files carry a SentencePiece model, as bytes
# The embeddings of text encoders and language models, by the names of their classes.
EMBEDDINGS = re.compile(r"shared\.weight|(model\.)?embed_tokens\.weight|embeddings\.word_embeddings\.weight")
Names = Mapping[str, object]  # the names of a component's tensors


class HasShape(Protocol):
    """What a header tells of a tensor."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sides."""


TensorTable = Mapping[str, HasShape]
Metadata = Mapping[str, str | int | float | bool]  # what a file says beside its tensors


@dataclass(frozen=True)
class Whole:
    """A tensor that only changes its name; `squeeze` drops the trailing dimensions of size 1."""

    name: str
    squeeze: bool = False


@dataclass(frozen=True)
class Split:
    """A tensor whose rows are several tensors of equal size, one below the other."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class SwapHalves:
    """A tensor whose upper and lower half change places."""

    name: str


@dataclass(frozen=True)
class LeftOut:
    """A tensor that repeats another one."""


Place = Whole | Split | SwapHalves | LeftOut


@dataclass(frozen=True)
class Tensors:
    """The tensors that a class has for one configuration, by their names in it.

    Attributes:
        needed: {name: shape}.
        optional: {name: shape} of those that repeat a needed one.
        prefix: what larger models put before the names of this part of theirs; "" where none does.
        ignored: regular expressions of parts of names that the class passes over.
    """

    needed: Shapes
    optional: Shapes = field(default_factory=dict)
    prefix: str = ""
    ignored: tuple[str, ...] = ()


# What says which tensors a class has; None where the configuration has options that it does not know.
Description = Callable[[Config], Tensors | None]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way in which one component lies in files.

    Attributes:
        kind: "transformer", "vae", "text_encoder" or "prompt_model".
        style: "diffusers", "transformers", "original" or "llama.cpp".
        title: for people.
        marks: names that are all in such a file, each a regular expression of a whole name.
        place: where a tensor goes; None for a name of no tensor of this layout. It sees all shapes.
        config: the configuration of the class, from the shapes under the class's names.
        class_name: the class of diffusers or transformers; "" where the configuration's model_type says.
        spare: patterns of tensors that are left out.
        layers: names of the original layers, "{}" for a block's number: kohya's LoRA files write them
            with underscores only, so that they must be known to be found.
        variants: {title: test of the tensors}: what a component of this layout is called in place of `title` where
            its tensors, by their names in the file, pass the test; the first one that does.
        needs: what it does not run without and its file does not bring, in a few words each, from its names and the
            number of components of each kind in the same file.
        settings: what the metadata of a file says of the configuration, before what the shapes say.
        gguf: what GGUF files of it name as their architecture; "" where there is no such name.
        part: the tensors of a file that is whole only together with another one, from its shapes; None for others.
        family: the key of the family that lists it; "" where several share it. The registry fills it in.
    """

    kind: str
    style: Literal["diffusers", "transformers", "original", "llama.cpp"]
    title: str
    marks: tuple[str, ...]
    place: Callable[[str, Shapes], Place | None]
    config: Callable[[Shapes], Config]
    class_name: str = ""
    spare: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    variants: Mapping[str, Callable[[TensorTable], bool]] = field(default_factory=dict)
    needs: Callable[[Names, Mapping[str, int]], list[str]] = lambda names, together: []
    settings: Callable[[Metadata], Config] = lambda metadata: {}
    gguf: str = ""
    part: Callable[[Shapes], Tensors | None] = lambda shapes: None
    family: str = ""

    def title_of(self, tensors: TensorTable) -> str:
        """Return what a component with these tensors is called."""
        return next((title for title, test in self.variants.items() if test(tensors)), self.title)

    def matches(self, names: Names) -> bool:
        """Return whether all marks are among the names."""
        for mark in self.marks:
            # Most marks are plain names. Only a pattern has to be tried on each of the thousands of names.
            is_plain = re.escape(mark) == mark.replace(".", r"\.")
            if not (mark in names if is_plain else any(map(re.compile(mark).fullmatch, names))):
                return False
        return True


# Digits of a word in byte-level BPE, by what llama.cpp calls the way of splitting a text into words (llama-vocab.cpp).
GGUF_DIGITS = {
    "qwen2": 1,
    "llama-bpe": 3,
    "llama3": 3,
    "llama-v3": 3,
    "glm4": 3,
    "chatglm-bpe": 3,
}
# What llama.cpp calls SentencePiece's unigrams and its BPE.
UNIGRAM, PIECE_BPE, BYTE_BPE = "t5", "llama", "gpt2"


def holds_tokenizer(metadata: Metadata) -> bool:
    """Return whether the metadata of a GGUF file hold a tokenizer that is read."""
    model = metadata.get("tokenizer.ggml.model")
    return model in (UNIGRAM, PIECE_BPE) or (model == BYTE_BPE and metadata.get("tokenizer.ggml.pre") in GGUF_DIGITS)


def needs_tokenizer(names: Names, together: Mapping[str, int]) -> list[str]:
    """Return what a text encoder or language model needs beside its file: its tokenizer, where that is not inside."""
    del together
    return [] if TOKENIZER_TENSOR in names else ["its tokenizer"]


def gguf_settings(metadata: Metadata, known: Mapping[str, str]) -> Config:
    """Return settings that the metadata of a GGUF file hold as numbers.

    Args:
        known: {key below that of the architecture: name in the configuration}.

    Raises:
        PiyingError: one is no number above 0.
    """
    architecture = metadata.get("general.architecture")
    found: Config = {}
    for key, name in known.items():
        value = metadata.get(f"{architecture}.{key}")
        if value is not None and (isinstance(value, (str, bool)) or value <= 0):
            raise PiyingError(f"its metadata say {architecture}.{key} is {clipped(str(value), 40)}. Fetch it again.")
        found |= {} if value is None else {name: value}
    return found


def same(name: str, shapes: Shapes) -> Place:
    """Place a tensor under its own name."""
    del shapes
    return Whole(name)


def by_prefix(name: str, table: Mapping[str, str], inside: str = "", squeeze: bool = False) -> Whole | None:
    """Place a tensor under its name with the one prefix that the table has replaced; None where it has none.

    A prefix ends where a part of the name ends: "ffn.0" is none of "ffn.01".

    Args:
        inside: goes before the new name, as a block's name with its dot.
        squeeze: see `Whole`.
    """
    for old, new in table.items():
        if name == old or name.startswith(f"{old}."):
            return Whole(inside + new + name[len(old) :], squeeze)
    return None


def count(shapes: Shapes, prefix: str) -> int:
    """Return how many numbered parts there are below `prefix`, such as "blocks."."""
    numbers = {name[len(prefix) :].partition(".")[0] for name in shapes if name.startswith(prefix)}
    return len({number for number in numbers if number.isdigit()})


def check_latents(channels: int, mean: Any, deviation: Any) -> None:
    """Accept the numbers with which a VAE's latents are normalised, None for none: nothing else looks at them early.

    Raises:
        ValueError: they are not one finite number for each channel, or a divisor is 0.
    """
    for name, values in (("latents_mean", mean), ("latents_std", deviation)):
        if values is None:
            continue
        numbers = values if isinstance(values, (list, tuple)) else ()
        wrong = [one for one in numbers if not isinstance(one, (int, float)) or not math.isfinite(one)]
        if len(numbers) != channels or wrong or (name == "latents_std" and not all(numbers)):
            raise ValueError(f"{name} are not the numbers of {channels} channels")


# Descriptions of classes are made of these.


def linear(name: str, outputs: int, inputs: int, bias: bool = True) -> ShapeTable:
    """Return the tensors of a Linear layer."""
    return {f"{name}.weight": (outputs, inputs), **({f"{name}.bias": (outputs,)} if bias else {})}


def conv(name: str, outputs: int, inputs: int, *kernel: int) -> ShapeTable:
    """Return the tensors of a convolution with a bias."""
    return {f"{name}.weight": (outputs, inputs, *kernel), f"{name}.bias": (outputs,)}


def norm(name: str, width: int, bias: bool = True) -> ShapeTable:
    """Return the tensors of a norm."""
    return {f"{name}.weight": (width,), **({f"{name}.bias": (width,)} if bias else {})}


def below(prefix: str, tensors: Shapes) -> ShapeTable:
    """Return tensors with a prefix before their names."""
    return {f"{prefix}.{name}": shape for name, shape in tensors.items()}
