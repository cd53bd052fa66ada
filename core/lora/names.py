"""LoRA names: what a tensor of a LoRA file is by its name, and which layers of a transformer the file means."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from ..checkpoints.layouts import Layout
from ..checkpoints.layouts.base import Split, SwapHalves, Whole
from ..families.base import LORA_COMPONENT
from ..families.registry import component_specs, layouts

if TYPE_CHECKING:
    import torch


class TensorName(NamedTuple):
    """A tensor's name in its parts.

    Attributes:
        layer: as the file spells it, with whatever prefix.
        adapter: the name that peft gives one of several adapters; "" where there is none.
        role: what it is of the layer: "down", "up", "alpha", "weight", "hada_w1_a", …
    """

    layer: str
    adapter: str
    role: str


# peft's adapter may have any name; older diffusers and kohya put the side behind a dot or an underscore.
FACTOR = re.compile(
    r"(?P<layer>.+?)[._]lora(?:_linear_layer)?[._](?P<side>a|b|down|up|mid)"
    r"(?:\.(?P<adapter>(?!(?:weight|bias)$)[^.]+))?(?:\.(?P<own>weight|bias))?",
    re.IGNORECASE,
)
SIDES = {"a": "down", "b": "up"}
PEFT_MAGNITUDE = "lora_magnitude_vector"
MAGNITUDES = ("dora_scale", PEFT_MAGNITUDE)
PRODUCTS = frozenset(
    {
        *(f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
        *(f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    }
)
DIFFERENCES = {"alpha": "alpha", "diff": "weight", "diff_b": "bias", "w_norm": "weight", "b_norm": "bias"}
MODULATION = "diff_m"  # the difference of a block's modulation table, named after the block

# Kinds of adapters that are not read, by the beginning of a part of the name that only they have.
FOREIGN = {
    "oft_": "OFT",
    "boft_": "BOFT",
    "vera_lambda_": "VeRA",
    "ia3_l": "IA3",
    "on_input": "IA3",
    "lora_E": "AdaLoRA",
    "lora_embedding_": "LoRA of an embedding",
    "set_weight": "control LoRA",
    "reshape_weight": "control LoRA",
    "hra_u": "HRA",
    "bone_block": "Bone",
    "miss_block": "MiSS",
    "fourierft_spectrum": "FourierFT",
    "shira_weight": "SHiRA",
    "randlora_": "RandLoRA",
}
FOREIGN_PARTS = tuple(FOREIGN)
FOREIGN_ROLE = "foreign: "
GLORA = (".a1.weight", ".a2.weight", ".b1.weight", ".b2.weight")


def tensor_name(name: str) -> TensorName | None:
    """Return a tensor's name in its parts; None for one that no LoRA has."""
    factor = FACTOR.fullmatch(name) if "lora" in name.lower() else None
    if factor is not None:
        side = factor["side"].lower()
        role = SIDES.get(side, side) + ("_bias" if factor["own"] == "bias" else "")
        return TensorName(factor["layer"], factor["adapter"] or "", role)
    layer, _, own = name.rpartition(".")
    if layer and own in DIFFERENCES:
        return TensorName(layer, "", DIFFERENCES[own])
    if layer and own == MODULATION:
        return TensorName(f"{layer}.modulation" if "." in layer else f"{layer}_modulation", "", "weight")
    # What a layer has beside its weight may have an adapter's name and ".weight" behind its own.
    for parts in range(1, 4):
        layer, *rest = name.rsplit(".", parts)
        if len(rest) < parts:
            return None
        adapter = rest[1] if parts > 1 and rest[1] != "weight" else ""
        if rest[0] in PRODUCTS or rest[0] in MAGNITUDES:
            return TensorName(layer, adapter, rest[0])
        if rest[0].startswith(FOREIGN_PARTS):
            kind = next(kind for part, kind in FOREIGN.items() if rest[0].startswith(part))
            return TensorName(layer, "", FOREIGN_ROLE + kind)
    return None


def lora_names(names: Collection[str]) -> dict[str, TensorName]:
    """Return the tensors of a file that are those of a LoRA, by their names, each in its parts.

    Empty where the file is none: layers of ordinary models have an `alpha` too.
    """
    found = {name: parts for name in names if (parts := tensor_name(name)) is not None}
    for name in names:
        layer = name[: -len(GLORA[0])]
        if name.endswith(GLORA) and all(f"{layer}{ending}" in names for ending in GLORA):
            found[name] = TensorName(layer, "", f"{FOREIGN_ROLE}GLoRA")
    return found if any(parts.role != "alpha" for parts in found.values()) else {}


# Prefixes of layers' names that say which model they belong to.
KNOWN_PREFIX = re.compile(
    r"(?:(?:base_model\.model|model\.diffusion_model|diffusion_model|transformer|unet|module|model|dit)\.)*"
    r"(?:(?:lora_(?:unet|transformer|dit)|lycoris|lora)_+)?"
)
TEXT_ENCODER = re.compile(
    r"^lora_te\d?_|^te\d?(?=\.)|(?:^|[._])(?:text_?encoders?(?:_\d)?|text_model|cond_stage_model|conditioner|t5xxl"
    r"|clip_[lgh])(?=[._])"
)
OF_TEXT_ENCODER = "of a text encoder"
# Parts of names that come from wrappers around a layer: torch.compile, FSDP, peft, attention processors.
WRAPPERS = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer", "orig_module", "processor"}
)


@dataclass(frozen=True)
class Target:
    """A layer, or a parameter of no layer, of the module, and the way a layer's rows go into it.

    Attributes:
        rows: what is done to the rows of a joined layer's tensors; the identity where `is_whole`.
        is_whole: whether the layer of the file is this layer, row by row.
    """

    name: str
    rows: Callable[[torch.Tensor], torch.Tensor]
    is_whole: bool = True


class Located(NamedTuple):
    """A layer's name in its parts: "pipe.dit.blocks.3.self_attn.q" is "pipe.dit.", "blocks.{}.self_attn.q" and 3."""

    prefix: str
    pattern: str
    number: int | None  # of the block; None outside of blocks


@dataclass(frozen=True)
class Placement:
    """Where the layers of one file go.

    Attributes:
        targets: {layer as the file spells it: the layers of the class it stands for}.
        left_out: {layer as the file spells it: why it goes nowhere, in a few words}.
    """

    targets: dict[str, list[Target]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


class LayerNames:
    """The names that LoRA files have for the layers of one class of transformers: diffusers', and the original ones.

    They are known from the layouts of its files, so that a file can be judged by its header.
    """

    def __init__(self, class_name: str) -> None:
        self.class_name = class_name
        known = [one for one in layouts() if one.class_name == class_name and one.style == "original"]
        rules = [spec.rules for spec in component_specs(LORA_COMPONENT) if class_name in spec.classes]
        lists = sorted({name for one in rules for name in one.block_lists}, key=len, reverse=True)
        either = "|".join(map(re.escape, lists)) or r"(?!)"
        # Of blocks right within blocks, as some wrappers number what they hold, the innermost.
        self._dotted = re.compile(rf"(?:^|(?<=\.))(?:(?:{either})\.\d+\.)*({either})\.(\d{{1,9}})\.")
        self._flat = re.compile(rf"(?:^|(?<=[._]))(?:(?:{either})_\d+_)*({either})_(\d{{1,9}})_")
        first = re.compile(rf"({either})\.0\.")
        # Patterns have "{}" for the number of a block.
        self._original: dict[str, tuple[Target, ...]] = {}
        for layout in known:
            for layer in layout.layers:
                placed = [
                    replace(one, name=first.sub(r"\1.{}.", one.name, 1)) for one in _place(layout, layer.format(0))
                ]
                self._original.setdefault(layer, tuple(placed))
        own = {one.name for targets in self._original.values() for one in targets}
        self._own = {name: (Target(name, _as_it_is),) for name in sorted(own)}
        # A name from a stranger may be megabytes; nothing longer than this is tried on it.
        self._longest = max(map(len, (*self._own, *self._original)), default=0) + 1
        self._with_underscores: dict[str, str] = {}
        for pattern in (*self._own, *self._original):
            self._with_underscores.setdefault(pattern.replace(".", "_"), pattern)

    def place(self, spelled: Collection[str], present: Collection[str] | None = None) -> Placement:
        """Return where layers go.

        A prefix that is not known counts where layers of blocks have it: what stands before the list of blocks
        says nothing of the layer. Names that are in both layouts mean different layers ("norm3"): they are of the
        layout that more of the file's other names are in.

        Args:
            spelled: the layers' names in one file.
            present: the names of the layers and parameters that a module has; None where there is only a header.
        """
        located = {name: found for name in spelled if (found := self._locate(name)) is not None}
        prefixes = {one.prefix for one in located.values() if one.number is not None}
        located = {
            name: one
            for name, one in located.items()
            if one.number is not None or one.prefix in prefixes or KNOWN_PREFIX.fullmatch(one.prefix)
        }
        patterns = {one.pattern for one in located.values()}
        is_original = len(patterns - self._own.keys()) > len(patterns - self._original.keys())
        placement = Placement()
        for name in spelled:
            one = located.get(name)
            if TEXT_ENCODER.search(name if one is None else one.prefix):
                placement.left_out[name] = OF_TEXT_ENCODER
                continue
            targets = [] if one is None else self._targets(one, is_original)
            if not targets or (present is not None and any(target.name not in present for target in targets)):
                placement.left_out[name] = f"in no {self.class_name}"
            else:
                placement.targets[name] = targets
        self._leave_out_second_models(placement, located)
        return placement

    def _locate(self, spelled: str) -> Located | None:
        """Return a layer's name in its parts; None where no layer of the class ends it."""
        name = ".".join(part for part in spelled.replace("/", ".").split(".") if part not in WRAPPERS)
        block = self._dotted.search(name)
        if block is not None:
            rest = name[block.end() :]
            for pattern in (f"{block[1]}.{{}}.{rest}", f"{block[1]}.{{}}.{rest}.0"):
                if pattern in self._own or pattern in self._original:
                    return Located(name[: block.start(1)], pattern, int(block[2]))
            return None
        block = self._flat.search(name)
        if block is not None:
            pattern = self._with_underscores.get(f"{block[1]}_{{}}_{name[block.end() :]}", "")
            return Located(name[: block.start(1)], pattern, int(block[2])) if pattern else None
        # Outside of blocks: the longest end of the name that is one of a layer.
        cut = max(0, len(name) - self._longest)
        ends = [match.end() for match in re.compile(r"[._]").finditer(name, cut)]
        for start in (*([0] if cut == 0 else []), *ends):
            rest = name[start:]
            if (rest in self._own or rest in self._original) and not name[:start].endswith("_"):
                return Located(name[:start], rest, None)
            if "." not in rest and rest in self._with_underscores:
                return Located(name[:start], self._with_underscores[rest], None)
        return None

    def _targets(self, one: Located, is_original: bool) -> list[Target]:
        tables = (self._original, self._own) if is_original else (self._own, self._original)
        targets = next(table[one.pattern] for table in tables if one.pattern in table)
        return [replace(target, name=target.name.replace("{}", str(one.number))) for target in targets]

    def _leave_out_second_models(self, placement: Placement, located: dict[str, Located]) -> None:
        """Keep one of several sets of the same layers: a file may hold those of two transformers."""
        sets: dict[str, list[str]] = {}
        for name in placement.targets:
            sets.setdefault(located[name].prefix, []).append(name)
        claimed: dict[str, str] = {}
        # The set whose prefix is that of a model itself, then the largest.
        order = sorted(sets, key=lambda prefix: (KNOWN_PREFIX.fullmatch(prefix) is None, -len(sets[prefix]), prefix))
        for prefix in order:
            layers = {target.name for name in sets[prefix] for target in placement.targets[name]}
            taken = Counter(claimed[layer] for layer in layers if layer in claimed)
            if taken:
                for name in sets[prefix]:
                    del placement.targets[name]
                    placement.left_out[name] = f"also there as {taken.most_common(1)[0][0][:80] or 'plain names'}*"
            else:
                claimed |= dict.fromkeys(layers, prefix)


@cache
def layer_names(class_name: str) -> LayerNames:
    """Return the names of the layers of one class."""
    return LayerNames(class_name)


@cache
def transformer_classes() -> tuple[str, ...]:
    """Return the classes of transformers that LoRAs can be put on, in the order of their families."""
    return tuple(dict.fromkeys(name for spec in component_specs(LORA_COMPONENT) for name in spec.classes))


def _place(layout: Layout, name: str) -> Iterator[Target]:
    """Yield where the original layout's layer, or parameter of no layer, goes."""
    for ending in (".weight", ""):
        place = layout.place(name + ending, {})
        if isinstance(place, Whole):
            yield Target(place.name.removesuffix(ending), _as_it_is)
        elif isinstance(place, SwapHalves):
            yield Target(place.name.removesuffix(ending), _swapped, is_whole=False)
        elif isinstance(place, Split):
            for index, part in enumerate(place.names):
                yield Target(part.removesuffix(ending), _part(index, len(place.names)), is_whole=False)
        if place is not None:
            return


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _swapped(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    upper, lower = tensor.chunk(2)
    return torch.cat([lower, upper])


def _part(index: int, count: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: tensor.chunk(count)[index]
