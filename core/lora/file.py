"""LoRA files: what they change, judged by their headers, and the numbers of each change."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from ..errors import PiyingError, clipped
from ..families.base import LORA_COMPONENT
from ..families.registry import component_specs, lora_model
from ..files.dtypes import WHOLE_NUMBERS, all_finite, largest_number, safetensors_names
from ..files.json_file import parse_json, read_json_or_empty
from ..files.open import open_tensors, read_header
from ..files.stored_tensor import StoredTensor
from ..quantization.registry import FORMATS
from ..quantization.stored_formats import describes, join_scales
from .names import (
    FOREIGN_ROLE,
    MAGNITUDES,
    OF_TEXT_ENCODER,
    PEFT_MAGNITUDE,
    Placement,
    Target,
    layer_names,
    lora_names,
    transformer_classes,
)

READABLE = "LoRA, DoRA, LoHa, LoKr, and whole differences (diff, diff_b)"
PEFT_METADATA = "lora_adapter_metadata"  # under which diffusers writes peft's configuration, as JSON
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # as peft's save_pretrained names them
SHOWN, SHOWN_REASONS = 3, 6  # names and reasons in a sentence
# Types of whole numbers in which no weight format holds weights.
NO_WEIGHTS = frozenset(WHOLE_NUMBERS) - {name for one in FORMATS.values() for name in one.number_types}
NO_PART = "no part of a LoRA"
OF_KIND, NOT_READ, ALPHA_ALONE = "of the kind ", ", which is not read", "an alpha alone"
# Attention multiplies the outputs of two layers with each other: beyond this, the root of float32's largest number,
# no type holds the result.
LARGEST_CHANGE = 2.0**64


class Shaped(Protocol):
    """A tensor in a header or in a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""

    @property
    def dtype(self) -> Any:
        """Its type: the name in a header, or torch's."""


Tensor = TypeVar("Tensor", bound=Shaped)


@dataclass(frozen=True)
class Change(Generic[Tensor]):
    """What a file has for one layer, by what each tensor is of it; see `names.TensorName.role`."""

    layer: str
    parts: dict[str, Tensor] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """How the change of the weight is made: "lora", "loha", "lokr" or "whole"; "" where there is none of it."""
        roles = self.parts.keys()
        if roles & {"down", "up", "mid"}:
            return "lora"
        names = {"hada": "loha", "lokr": "lokr"}
        found = next((names[role[:4]] for role in roles if role[:4] in names), "")
        return found or ("whole" if "weight" in roles else "")

    @property
    def magnitude(self) -> str:
        """The role of a DoRA's magnitudes; "" where it is none."""
        return next((role for role in MAGNITUDES if role in self.parts), "")

    @property
    def is_by_rows(self) -> bool:
        """Whether a DoRA's magnitudes are those of the weight's rows, as peft's are, and not of its columns."""
        shape, (out, _) = self._shape(self.magnitude), self.size
        return self.magnitude == PEFT_MAGNITUDE or (math.prod(shape) == out and shape[:1] == (out,))

    @property
    def why_left_out(self) -> str:
        """Why nothing of it can be applied though its layer is there, in a few words; "" where something can."""
        foreign = next((role for role in self.parts if role.startswith(FOREIGN_ROLE)), None)
        if foreign is not None:
            return f"{OF_KIND}{foreign.removeprefix(FOREIGN_ROLE)}{NOT_READ}"
        return "" if self.kind or self.parts.keys() & {"bias", "up_bias"} else ALPHA_ALONE

    def _shape(self, role: str) -> tuple[int, ...]:
        return tuple(self.parts[role].shape)

    @property
    def rank(self) -> int | None:
        """What alpha is divided by; None where alpha counts for nothing."""
        roles = {"lora": ("down",), "loha": ("hada_w1_b",), "lokr": ("lokr_w2_b", "lokr_w1_b")}.get(self.kind, ())
        return next((self._shape(role)[0] for role in roles if role in self.parts), None)

    @property
    def size(self) -> tuple[int, int]:
        """Outputs and inputs of the layer it was made for, those of a convolution times the area of its kernel.

        Raises:
            ValueError: its tensors do not belong together; the text says which.
        """
        if self.kind == "lora":
            (out, rank), (_, inputs) = self._flat("up"), self._flat("down")
            self._check(rank == self._flat("down")[0], "up", "down")
            if "mid" in self.parts:
                self._check(self._flat("mid")[0] == rank and self._shape("mid")[1] == rank, "mid", "down")
                inputs *= math.prod(self._shape("mid")[2:])
            return out, inputs
        if self.kind == "loha":
            first, second = (self._product("hada", f"w{number}", f"t{number}") for number in (1, 2))
            self._check(first == second, "hada_w1_a", "hada_w2_a")
            return first
        if self.kind == "lokr":
            (outer, inner), (rows, columns) = self._product("lokr", "w1", ""), self._product("lokr", "w2", "t2")
            return outer * rows, inner * columns
        shape = self._shape("weight")
        return (shape[0], 0) if len(shape) == 1 else self._flat("weight")

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of the model that its sides are; of tables, norms and convolutions the first and the last."""
        shape = self._shape("weight") if self.kind == "whole" else ()
        return (shape[0], shape[-1]) if shape else self.size

    def _flat(self, role: str) -> tuple[int, int]:
        if role not in self.parts:
            raise ValueError(f"has one factor alone: {role} is missing")
        shape = self._shape(role)
        if len(shape) < 2 or 0 in shape:
            raise ValueError(f"has {role} of shape {list(shape)}")
        return shape[0], math.prod(shape[1:])

    def _check(self, fits: bool, one: str, other: str) -> None:
        if not fits:
            sizes = " and ".join(f"{role} {list(self._shape(role))}" for role in (one, other))
            raise ValueError(f"has parts that do not belong together: {sizes}")

    def _product(self, kind: str, name: str, core: str) -> tuple[int, int]:
        """Return the sides of one matrix of a LoHa or LoKr, which is there whole or as two factors and a core."""
        whole, left, right, core = f"{kind}_{name}", f"{kind}_{name}_a", f"{kind}_{name}_b", f"{kind}_{core}"
        if whole in self.parts:
            return self._flat(whole)
        (rows, rank), (again, columns) = self._flat(left), self._flat(right)
        if core in self.parts:
            # Tucker's core [r, r, …] takes both factors by their ranks: [r, out] and [r, in].
            self._check(self._flat(core)[0] == rows and self._shape(core)[1] == again, left, core)
            return rank, columns * math.prod(self._shape(core)[2:])
        self._check(rank == again, left, right)
        return rows, columns

    @property
    def problem(self) -> str:
        """Why it is damaged, as the end of a sentence on the layer; "" where it is not."""
        for role, tensor in self.parts.items():
            stored = tensor.dtype if isinstance(tensor.dtype, str) else safetensors_names()[tensor.dtype]
            if role != "alpha" and stored in NO_WEIGHTS:
                return f"has whole numbers in {role}, {stored}"
        try:
            if self.kind:
                out, _ = self.size
                if self.magnitude and self._length(self.magnitude) != self.size[0 if self.is_by_rows else 1]:
                    self._check(False, self.magnitude, "up" if "up" in self.parts else next(iter(self.parts)))
                if "up_bias" in self.parts and self._length("up_bias") != out:
                    self._check(False, "up_bias", "up")
        except ValueError as error:
            return str(error)
        if "alpha" in self.parts and self._length("alpha") != 1:
            return f"has an alpha of shape {list(self._shape('alpha'))}"
        return ""

    def _length(self, role: str) -> int:
        return math.prod(self._shape(role))

    def numbers(self, targets: Sequence[Target]) -> int:
        """Return how many numbers are kept beside the weights of the layers it goes to; see `apply`."""
        if not self.kind:
            return 0
        out, inputs = self.size
        kept = out * inputs if self.kind == "whole" and inputs else 0
        if self.kind == "lora":
            kept = (out + len(targets) * inputs) * (self.rank or 0)
        elif self.kind == "loha":
            rank = hadamard_rank(out, inputs, self._flat("hada_w1_b")[0] * self._flat("hada_w2_b")[0])
            kept = out * inputs if rank is None else (out + len(targets) * inputs) * rank
        elif self.kind == "lokr":
            left, right = self._product("lokr", "w1", ""), self._product("lokr", "w2", "t2")
            kept = (
                out * inputs if not all(target.is_whole for target in targets) else math.prod(left) + math.prod(right)
            )
        return kept + (self._length(self.magnitude) if self.magnitude else 0)


def hadamard_rank(out: int, inputs: int, rank: int) -> int | None:
    """Return the rank at which a LoHa is kept as two factors; None where it is smaller as a whole matrix.

    The product, element by element, of matrices of ranks r and s is a matrix of rank r · s.
    """
    return rank if rank * (out + inputs) < out * inputs else None


def grouped(tensors: Mapping[str, Tensor]) -> tuple[list[Change[Tensor]], dict[str, str]]:
    """Return the changes that tensors make up, one for each layer and adapter, and why each other tensor is in none.

    What has no adapter's name, such as alpha, counts for all adapters of its layer.
    """
    named = lora_names(tensors.keys())
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    others = {name: NO_PART for name in tensors if name not in named}
    for name, parts in named.items():
        roles = found.setdefault((parts.layer, parts.adapter), {})
        if parts.role in roles:
            others[name] = "of a part that has another tensor too"
        roles.setdefault(parts.role, tensors[name])
    adapters = Counter(layer for layer, adapter in found if adapter)
    changes = [
        Change(layer, {**found.get((layer, ""), {}), **roles})
        for (layer, adapter), roles in found.items()
        if adapter or not adapters[layer]
    ]
    return changes, others


# Judged by the header


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


class Summary(NamedTuple):
    """What a verdict says of a file, without its tensors; see `Verdict`."""

    shape: LoraShape
    left_out: str
    reason: str


@dataclass(frozen=True)
class Verdict(Generic[Tensor]):
    """What is to be done with a file, for a class of transformers.

    Attributes:
        class_name: the class.
        changes: those that are applied, with their places.
        placement: where their layers go, and what is left out.
        count: how many layers the file has.
        reason: why the file cannot be used, as sentences; "" where it can.
    """

    class_name: str
    changes: list[Change[Tensor]]
    placement: Placement
    count: int
    reason: str

    @property
    def summary(self) -> Summary:
        """What it says, without the tensors."""
        return Summary(self.shape, self.left_out, self.reason)

    @property
    def left_out(self) -> str:
        """What is left out and why, as a part of a sentence; "" where nothing is."""
        if not self.placement.left_out:
            return ""
        groups: dict[str, list[str]] = {}
        for name, why in self.placement.left_out.items():
            groups.setdefault(why, []).append(name)
        largest_first = sorted(groups.items(), key=lambda group: -len(group[1]))
        said = ", ".join(f"{len(names)} {why} ({_first(names)})" for why, names in largest_first[:SHOWN_REASONS])
        if rest := largest_first[SHOWN_REASONS:]:  # it is saved with every picture
            said += f", {sum(len(names) for _, names in rest)} for {len(rest)} other reasons"
        return f"{len(self.placement.left_out)} of its {self.count} layers: {said}"

    @property
    def shape(self) -> LoraShape:
        """What is kept beside a transformer's weights."""
        ranks: Counter[int] = Counter()
        widths: Counter[int] = Counter()
        numbers: Counter[str] = Counter()
        for change in self.changes:
            targets = self.placement.targets[change.layer]
            if not change.kind or change.problem:
                continue
            ranks.update([change.rank] if change.rank else [])
            widths.update(side for side in change.widths if side > 1)
            block = next((block for target in targets if (block := block_of(self.class_name, target.name))), "")
            numbers[block] += change.numbers(targets)
        outside = numbers.pop("", 0)
        rank = ranks.most_common(1)[0][0] if ranks else 0
        return LoraShape(rank, tuple(width for width, _ in widths.most_common()), dict(numbers), outside)


def _first(names: Sequence[str]) -> str:
    return ", ".join(clipped(name) for name in names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


@cache
def block_of(class_name: str, layer: str) -> str:
    """Return the block of a class that a layer is in; "" for one outside of blocks."""
    specs = [spec for spec in component_specs(LORA_COMPONENT) if class_name in spec.classes]
    return next((block for spec in specs if (block := spec.rules.block_of(f"{layer}."))), "")


def judge(
    tensors: Mapping[str, Tensor], class_name: str | None = None, present: Collection[str] | None = None
) -> Verdict[Tensor]:
    """Return what is to be done with a file. Inspection, lists, checks and runs all ask this.

    Args:
        tensors: those of its header, or of the file; scales are no tensors of their own.
        class_name: the class of the transformer; None for the one that most of its layers are in.
        present: the names of the layers and parameters a module has; None where there is none yet.
    """
    changes, others = grouped({name: tensor for name, tensor in tensors.items() if not describes(name)})
    if class_name is not None:
        return _judged(class_name, changes, others, present, nowhere=f"not in a {class_name}")
    nowhere = "in no transformer that this pack reads"
    verdicts = [_judged(one, changes, others, present, nowhere=nowhere) for one in transformer_classes()]
    return max(verdicts, key=lambda verdict: (len(verdict.changes), not verdict.reason))


CHOOSE = "choose another LoRA."


def _judged(
    class_name: str,
    changes: list[Change[Tensor]],
    others: dict[str, str],
    present: Collection[str] | None,
    *,
    nowhere: str,
) -> Verdict[Tensor]:
    names = list(dict.fromkeys(change.layer for change in changes))
    placement = layer_names(class_name).place(names, present)
    for change in changes:
        if change.layer in placement.targets and change.why_left_out:
            del placement.targets[change.layer]
            placement.left_out[change.layer] = change.why_left_out
    placed = [change for change in changes if change.layer in placement.targets]
    reason = next((f"{clipped(change.layer)} {change.problem}. {DAMAGED}" for change in placed if change.problem), "")
    if not changes:
        reason = (
            f"has no layer of a LoRA{f' ({clipped(next(iter(others)))} first)' if others else ''}. Choose a LoRA file."
        )
    elif not placed:
        reason = _nothing_placed(placement.left_out, nowhere)
    placement.left_out.update(others)
    seconds = [f"{change.layer}.diff" for change in placed if change.kind != "whole" and "weight" in change.parts]
    placement.left_out.update(dict.fromkeys(seconds, "a second change of a layer that has factors"))
    return Verdict(class_name, placed, placement, len(names) + len(others) + len(seconds), reason)


DAMAGED = "The file is damaged; fetch it again."


def _nothing_placed(left_out: Mapping[str, str], nowhere: str) -> str:
    """Return why a file none of whose layers is applied cannot be used, going by most of them.

    Args:
        left_out: the reasons by layer.
        nowhere: what layers are that no class has: "not in a Transformer".
    """
    whys = Counter(why for why in left_out.values() if why != OF_TEXT_ENCODER)
    why = whys.most_common(1)[0][0] if whys else OF_TEXT_ENCODER
    first = next(name for name, one in left_out.items() if one == why)[:80]
    if why.startswith(OF_KIND):
        return f"is {why.removesuffix(NOT_READ)}, which this pack cannot read. Readable: {READABLE}."
    if why == OF_TEXT_ENCODER:
        return f"changes text encoders alone ({first} first), which take no LoRA here; {CHOOSE}"
    if why == ALPHA_ALONE:
        return f"has layers with {ALPHA_ALONE}, {first} first. {DAMAGED}"
    count = len(left_out)
    return f"{count} of its {count} layers are {nowhere}, {first} first. It was made for another model; {CHOOSE}"


# Judged by the sizes of a model

SizeOf = Callable[[str], tuple[int, ...] | None]


def unfitting(verdict: Verdict[Tensor], size_of: SizeOf) -> dict[str, str]:
    """Return why layers of a file, or biases of them alone, are left out of a model, by their names in the file.

    Variants of one model differ outside of blocks: such a layer is left out where it does not fit. Inside of them
    the size is the model's own.

    Args:
        verdict: on the file, for the model's class.
        size_of: the shape of a parameter, of a Linear layer's weight [out, in] however it is stored; None where
            the model has none of that name.

    Raises:
        ValueError: a layer in a block is of another size, or no layer fits; the text says which.
    """
    found: dict[str, str] = {}
    for change in verdict.changes:
        targets = verdict.placement.targets[change.layer]
        for target in targets:
            why = _misfit(change, target, len(targets), size_of)
            if why == NO_BIAS and change.kind and size_of(target.name) is None:
                # The change of its weight is applied all the same.
                found[f"{change.layer}.diff_b"] = NO_BIAS
                continue
            if why.startswith(OF_ANOTHER_SIZE) and block_of(verdict.class_name, target.name):
                raise ValueError(why.removeprefix(OF_ANOTHER_SIZE))
            if why:
                found[change.layer] = why
    layers = {change.layer for change in verdict.changes}
    if layers and layers <= found.keys():
        raise ValueError(next(iter(found.values())).removeprefix(OF_ANOTHER_SIZE))
    return found


OF_ANOTHER_SIZE, NO_BIAS = "of another size: ", "with a bias that the layer does not have"


def _misfit(change: Change[Tensor], target: Target, count: int, size_of: SizeOf) -> str:
    """Return why a change cannot go to one of `count` layers that share its rows; "" where it can."""

    def share(shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0] // count, *shape[1:]) if shape and shape[0] % count == 0 else shape

    def matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
        return *shape[:1], math.prod(shape[1:])

    table = size_of(target.name)  # a parameter of no layer, such as a modulation table
    weight = size_of(f"{target.name}.weight") if table is None else table
    if change.kind:
        if weight is None:
            return "with a weight that the layer does not have"
        if change.magnitude and not change.is_by_rows and not target.is_whole:
            return "a DoRA over the inputs of a joined layer"
        own = share(tuple(change.parts["weight"].shape) if change.kind == "whole" else change.size)
        # Factors make a matrix, and a difference of a Linear layer may be stored as that of a convolution of size 1.
        as_matrix = change.kind != "whole" or len(weight) == 2
        if (matrix(own) != matrix(weight)) if as_matrix else (own != weight):
            return _other_size(target.name if table or len(weight) == 2 else f"{target.name}.weight", weight, own)
    biases = [math.prod(change.parts[role].shape) for role in ("bias", "up_bias") if role in change.parts]
    if not biases:
        return ""
    bias = None if table is not None else size_of(f"{target.name}.bias")
    if bias is None:
        return NO_BIAS
    other = next((own for length in biases if (own := share((length,))) != bias), None)
    return _other_size(f"{target.name}.bias", bias, other) if other else ""


def _other_size(name: str, shape: tuple[int, ...], own: tuple[int, ...]) -> str:
    model, lora = (" × ".join(map(str, sides)) for sides in (shape, own))
    return f"{OF_ANOTHER_SIZE}{name} is {model}, the LoRA {lora}"


# Read


def read_lora(path: Path, class_name: str, present: Collection[str]) -> Verdict[StoredTensor]:
    """Return what is to be done with a file on a module; none of its numbers is read yet.

    Raises:
        PiyingError: the file is damaged, no LoRA, or made for another model.
    """
    tensors = open_tensors(path)
    verdict = judge(join_scales(tensors), class_name, present)
    if verdict.reason:
        raise PiyingError(f"{path}: {verdict.reason}")
    return verdict


def check_numbers(path: Path, class_name: str | None = None) -> None:
    """Accept a file all of whose numbers that a run would use are finite, and stay so; it is read once.

    Raises:
        PiyingError: some are not, or it is damaged.
    """
    stated = stated_scale(path)
    for change in judge(join_scales(open_tensors(path)), class_name).changes:
        check_change(change, path, stated)


def check_change(
    change: Change[StoredTensor], path: Path, stated: Callable[[Change[StoredTensor]], float | None]
) -> None:
    """Accept a change whose numbers are finite, and so are those that they make.

    Args:
        path: of the file, for messages.
        stated: see `stated_scale`.

    Raises:
        PiyingError: they are not.
    """
    largest = {}
    for role, stored in change.parts.items():
        tensor = stored.read()
        if not all_finite(tensor):
            raise PiyingError(
                f"{path}: {clipped(change.layer)}.{role} holds values that are no numbers (NaN or infinity). {DAMAGED}"
            )
        largest[role] = largest_number(tensor)
        stored.release()
    # Each number of the change is a sum of products of the factors' numbers, one of each.
    product = math.prod(number for role, number in largest.items() if role not in NO_MATRIX)
    alone = [number for role, number in largest.items() if role in ("bias", *MAGNITUDES)]
    factor = scale_of(change, largest.get("alpha"), stated)
    size = max(abs(factor) * max(product, largest.get("up_bias", 0.0)), *alone, 0.0)
    if size > LARGEST_CHANGE:
        raise PiyingError(
            f"{path}: {clipped(change.layer)} is changed by about {size:.0e}, with which no model computes. {DAMAGED}"
        )


NO_MATRIX = frozenset({"alpha", "bias", "up_bias", *MAGNITUDES})


def scale_of(
    change: Change[StoredTensor], alpha: float | None, stated: Callable[[Change[StoredTensor]], float | None]
) -> float:
    """Return alpha / rank, with which the product of a layer's factors is multiplied.

    Args:
        alpha: of the layer; None where it has none.
        stated: see `stated_scale`.
    """
    if alpha is not None:
        return alpha / change.rank if change.rank else 1.0
    said = stated(change) if change.kind != "whole" else None
    return 1.0 if said is None else said


def stated_scale(path: Path) -> Callable[[Change[StoredTensor]], float | None]:
    """Return what is said beside a file's tensors of the scale of a layer that has no alpha of its own.

    diffusers keeps peft's configuration in the file's metadata, peft in a file of its own. peft multiplies by
    alpha / rank, or by alpha / √rank where `use_rslora` is set; None where nothing is said.
    """
    try:
        table = parse_json(str(read_header(path).metadata.get(PEFT_METADATA, "")))
    except ValueError:
        table = read_json_or_empty(path.with_name(PEFT_CONFIG)) if path.name == PEFT_FILE else None
    said = table if isinstance(table, dict) else {}
    said = {name.removeprefix(f"{LORA_COMPONENT}."): value for name, value in said.items()}
    patterns = said.get("alpha_pattern")
    by_layer = patterns if isinstance(patterns, dict) else {}

    def scale(change: Change[StoredTensor]) -> float | None:
        # Names, and no regular expressions, which a file from strangers could make endless.
        own = next((value for name, value in by_layer.items() if f".{change.layer}".endswith(f".{name}")), None)
        stated: Any = said.get("lora_alpha", said.get("alpha")) if own is None else own
        # A LoKr of whole matrices has a rank in the configuration alone.
        rank: Any = said.get("r") if change.rank is None else change.rank
        if not _is_number(stated) or not _is_number(rank) or rank <= 0:
            return None
        return float(stated) / (math.sqrt(rank) if said.get("use_rslora") is True else rank)

    return scale


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
