"""LoRA files: the spellings of their tensors' names, what they hold, and what they change in a module."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints.layouts import Layout
from ..checkpoints.layouts.base import Split, SwapHalves, Whole
from ..errors import PiyingError
from ..families.registry import component_specs, layouts, lora_model
from ..files.open import open_tensors
from ..files.safetensors_file import TensorEntry
from ..files.stored_tensor import StoredTensor

if TYPE_CHECKING:
    import torch


ENDINGS = {
    "lora_down.weight": "down",
    "lora_A.weight": "down",
    "lora_A.default.weight": "down",
    "lora_up.weight": "up",
    "lora_B.weight": "up",
    "lora_B.default.weight": "up",
    "alpha": "alpha",
    "diff": "weight",
    "diff_b": "bias",
}
TEXT_ENCODER = re.compile(r"lora_te\d?_|text_encoder")


@dataclass(frozen=True)
class LoraShape:
    """What a LoRA file holds.

    Attributes:
        rank: of most of its layers; 0 where it holds whole differences alone.
        widths: numbers of inputs and outputs of its layers, the most common first.
        blocks: {block: numbers kept beside its weights}.
        outside: such numbers outside the blocks.
    """

    rank: int
    widths: tuple[int, ...]
    blocks: Mapping[str, int]
    outside: int

    @property
    def title(self) -> str:
        """Return "a LoRA for MODEL, rank 32"; without the model where no known one has its width."""
        model = lora_model(self.widths[0]) if self.blocks and self.widths else ""
        return "a LoRA" + (f" for {model}, rank {self.rank}" if model and self.rank else "")


def role(name: str) -> str:
    """Return what a tensor is by its name: "down", "up", "alpha", "weight", "bias", or "" for none of a LoRA."""
    return next((role for ending, role in ENDINGS.items() if name.endswith(f".{ending}")), "")


def lora_shape(entries: Mapping[str, TensorEntry]) -> LoraShape:
    """Return what a file holds for a transformer; what it has for text encoders is not counted."""
    ranks: Counter[int] = Counter()
    widths: Counter[int] = Counter()
    numbers: Counter[str] = Counter()
    for name, entry in entries.items():
        kind = role(name)
        if kind not in ("down", "up", "weight") or len(entry.shape) < 2 or TEXT_ENCODER.match(name):
            continue
        block = _blocks().search(name)
        numbers[f"{block[1]}.{block[2]}" if block else ""] += entry.count
        # The rank is the other side of a factor; a whole difference has both widths of its layer.
        inputs, outputs = math.prod(entry.shape[1:]), entry.shape[0]
        if kind == "down":
            ranks[outputs] += 1
        widths.update({"down": (inputs,), "up": (outputs,)}.get(kind, (inputs, outputs)))
    outside = numbers.pop("", 0)
    rank = ranks.most_common(1)[0][0] if ranks else 0
    return LoraShape(rank, tuple(width for width, _ in widths.most_common()), dict(numbers), outside)


@cache
def _blocks() -> re.Pattern[str]:
    """Return what finds the list and the number of a block in a layer's name, with dots or underscores."""
    lists = {name for spec in component_specs("transformer") for name in spec.rules.block_lists}
    longest_first = sorted(lists, key=len, reverse=True)
    return re.compile(rf"({'|'.join(map(re.escape, longest_first))})[._](\d+)[._]")


PREFIXES = re.compile(
    r"(base_model\.model\.|model\.diffusion_model\.|diffusion_model\.|transformer\.|unet\.|module\.)*"
)
KOHYA = re.compile(r"lora_(unet|transformer|dit)_+")
FOREIGN = re.compile(r"\.(lokr_\w+|hada_\w+|dora_scale|lora_mid|oft_\w+|lora_magnitude_vector)")


@dataclass
class Change:
    """What a file has for one layer: factors and alpha of a LoRA, or whole differences of weight and bias."""

    parts: dict[str, StoredTensor] = field(default_factory=dict)

    @property
    def is_low_rank(self) -> bool:
        """Whether there are two factors."""
        return "down" in self.parts and "up" in self.parts

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return down [rank, …] and up [out, rank] with alpha / rank multiplied in."""
        down, up = self.parts["down"].read(), self.parts["up"].read()
        alpha = float(self.parts["alpha"].read().reshape(-1)[0]) if "alpha" in self.parts else down.shape[0]
        return down, up.flatten(1) * (alpha / down.shape[0])


@dataclass(frozen=True)
class Target:
    """A layer, or a parameter of no layer, of the module, and the way a layer's rows go into it."""

    name: str
    rows: Callable[[torch.Tensor], torch.Tensor]
    is_parameter: bool = False


def read_lora(path: Path) -> dict[str, Change]:
    """Return what a file changes, by the layers' names as the file spells them.

    Raises:
        PiyingError: the file is damaged, or of another kind than LoRA.
    """
    found: dict[str, Change] = {}
    for name, stored in open_tensors(path).items():
        foreign = FOREIGN.search(name)
        if foreign:
            raise PiyingError(
                f"{path}: is of the kind {foreign[1]}, which this pack cannot read. Readable: LoRA (lora_down and "
                "lora_up, or lora_A and lora_B, with or without alpha), diff and diff_b."
            )
        ending = next((ending for ending in ENDINGS if name.endswith(f".{ending}")), None)
        if ending is None:
            raise PiyingError(f"{path}: {name[:80]} is no part of a LoRA. Choose a LoRA file.")
        if not TEXT_ENCODER.match(name):
            layer = name.removesuffix(f".{ending}")
            found.setdefault(layer, Change()).parts[ENDINGS[ending]] = stored
    if not found:
        raise PiyingError(f"{path}: changes no layer. Choose a LoRA file.")
    return found


class Targets:
    """Finds the layers of a module under the names that one file spells.

    Names that are in both layouts mean different layers ("norm3"): a file is of the original layout
    where any of its names is in that alone.
    """

    def __init__(self, module: torch.nn.Module, spelled: Iterable[str]) -> None:
        self._parameters = {name for name, _ in module.named_parameters()}
        self._own = ({name for name, _ in module.named_modules()} | self._parameters) - {""}
        self._layouts = [
            layout for layout in layouts() if layout.class_name == type(module).__name__ and layout.style == "original"
        ]
        self._flat = {name.replace(".", "_"): name for name in self._own}
        blocks = sorted({int(part) for name in self._own for part in name.split(".") if part.isdigit()})
        for layout in self._layouts:
            for name in _spelled_out(layout.layers, blocks):
                self._flat.setdefault(name.replace(".", "_"), name)
        self._is_own = all(self._dotted(name) in self._own for name in spelled)

    def _dotted(self, spelled: str) -> str:
        """Return a name without the prefixes that tools put before it, and with dots."""
        name = PREFIXES.sub("", spelled, count=1)
        kohya = KOHYA.match(name)
        return self._flat.get(name[kohya.end() :], "") if kohya else name

    def find(self, spelled: str) -> list[Target]:
        """Return the layers that one name of a file stands for: none, one, or the parts of a joined one."""
        name = self._dotted(spelled)
        if self._is_own:
            return [Target(name, _as_it_is, name in self._parameters)]
        for layout in self._layouts:
            found = _original(layout, name)
            if found and all(target.name in self._own for target in found):
                return [replace(target, is_parameter=target.name in self._parameters) for target in found]
        return []


def _spelled_out(layers: Iterable[str], blocks: Iterable[int]) -> list[str]:
    numbers = list(blocks)
    return [layer.format(number) for layer in layers for number in (numbers if "{}" in layer else [0])]


def _original(layout: Layout, name: str) -> list[Target]:
    """Return where the original layout's layer, or parameter of no layer, goes."""
    for ending in (".weight", ""):
        place = layout.place(name + ending, {})
        if isinstance(place, Whole):
            return [Target(place.name.removesuffix(ending), _as_it_is)]
        if isinstance(place, SwapHalves):
            return [Target(place.name.removesuffix(ending), _swapped)]
        if isinstance(place, Split):
            count = len(place.names)
            return [Target(part.removesuffix(ending), _part(index, count)) for index, part in enumerate(place.names)]
    return []


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _swapped(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    upper, lower = tensor.chunk(2)
    return torch.cat([lower, upper])


def _part(index: int, count: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: tensor.chunk(count)[index]


def unplaced(changes: Mapping[str, Change], targets: Targets) -> list[str]:
    """Return the names of a file that no layer of the module has."""
    return [name for name in changes if not targets.find(name)]
