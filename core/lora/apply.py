"""LoRAs on a loaded model: several at once, each with a strength, removed without loading again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import PiyingError, clipped
from ..files.dtypes import torch_dtype
from ..files.stored_tensor import StoredTensor
from ..main_memory import is_out_of_memory
from ..quantization.casting import dense_weight, is_linear
from .additions import Addition, Axis, Kronecker, LowRank, add, take_off
from .catalog import LoraFile
from .file import NO_MATRIX, Change, check_change, hadamard_rank, read_lora, scale_of, stated_scale, unfitting
from .names import Target

log = logging.getLogger("piying")


class AppliedLora:
    """One LoRA on one model.

    Attributes:
        layers: how many layers and parameters it changes.
        left_out: what of the file is not applied and why, as a part of a sentence; "" where all is.
    """

    def __init__(self, path: Path, scale: float, dtype: torch.dtype | None = None) -> None:
        self.path, self.scale, self.dtype = path, scale, dtype
        self.layers = 0
        self.left_out = ""
        self._undo: list[Callable[[], None]] = []

    def remove(self) -> None:
        """Take it off: the model is as if it had never been on. May be called once, in any order with others."""
        while self._undo:
            self._undo.pop()()

    def undo_with(self, step: Callable[[], None]) -> None:
        """Remember one more step of `remove`."""
        self.layers += 1
        self._undo.append(step)


def apply_lora(
    model: nn.Module, path: str | Path, scale: float = 1.0, dtype: torch.dtype | None = None
) -> AppliedLora:
    """Put a LoRA on a transformer, before or after its layers were cast to a weight format.

    Its factors are kept beside the weights and added to the layers' outputs. What it changes of norms,
    biases and convolutions is added to a copy of theirs; the loaded tensors are kept for `remove`.

    Layers of the file that the model does not have are left out, and named in the log.

    Args:
        model: a transformer from `load_component`, in host memory.
        path: a safetensors file of LoRA, DoRA, LoHa, LoKr or whole differences, in the key layout of the original
            code, of diffusers, peft or kohya.
        scale: strength; 1 is what it was made for.
        dtype: what the factors are brought to; None leaves them as they are in the file.

    Returns:
        What takes it off again.

    Raises:
        PiyingError: the file is damaged, no LoRA, or made for another model; the model is then unchanged.
    """
    path, class_name = Path(path), type(model).__name__
    parameters = frozenset(name for name, _ in model.named_parameters())
    layers = {name for name, module in model.named_modules() if is_linear(module) or any(_own(module))}
    verdict = read_lora(path, class_name, parameters | layers)
    applied = AppliedLora(path, scale, dtype)
    lora = _OneLora(model, parameters, applied, stated_scale(path))
    for change in verdict.changes:
        check_change(change, path, lora.stated_scale)
    try:
        unfit = unfitting(verdict, lambda name: _size_of(model, name))
        verdict.placement.left_out.update(unfit)
        for change in verdict.changes:
            for target in () if change.layer in unfit else verdict.placement.targets[change.layer]:
                lora.put_on(change, target)
    except (RuntimeError, ValueError, KeyError, IndexError, AttributeError, PiyingError) as error:
        applied.remove()
        if isinstance(error, PiyingError) or is_out_of_memory(error):
            raise
        reason = clipped(" ".join(str(error).split()), 200)
        raise PiyingError(f"{path}: does not fit a {class_name} of this size ({reason}).") from error
    applied.left_out = verdict.left_out
    return applied


@dataclass(frozen=True)
class _OneLora:
    """A file on its way onto a model."""

    model: nn.Module
    parameters: frozenset[str]
    applied: AppliedLora
    stated_scale: Callable[[Change[StoredTensor]], float | None]

    def put_on(self, change: Change[StoredTensor], target: Target) -> None:
        """Apply a change to one of the layers it goes to; see `file.unfitting` for those it does not fit."""
        name = target.name
        is_table = name in self.parameters  # of no layer, such as a modulation table
        if change.kind and not is_table and is_linear(self.model.get_submodule(name)):
            self._beside(change, target)
        elif change.kind:
            self._shift_by(change, target, name if is_table else f"{name}.weight")
        for role, factor in (("bias", 1.0), ("up_bias", self._scale(change))):
            # Of a bias alone that the layer does not have; see `unfitting`.
            if role in change.parts and not is_table and f"{name}.bias" in self.parameters:
                self._shift(f"{name}.bias", target.rows(self._read(change, role).reshape(-1)) * factor)

    def _beside(self, change: Change[StoredTensor], target: Target) -> None:
        layer: Any = self.model.get_submodule(target.name)
        addition = self._addition(change, target)
        if change.magnitude:
            self._set_gain(addition, change, target, dense_weight(layer))
        elif not addition.is_anything():
            return  # files of differences name every layer, most of them with zeros
        add(layer, addition)
        # By name, since casting puts another layer in its place.
        self.applied.undo_with(lambda: take_off(self.model.get_submodule(target.name), addition))

    def _shift_by(self, change: Change[StoredTensor], target: Target, name: str) -> None:
        """Apply a change to a parameter that is no weight of a Linear layer."""
        if change.kind == "whole" and not change.magnitude:
            self._shift(name, target.rows(self._read(change, "weight")))
            return
        addition = self._addition(change, target)
        difference, weight = addition.weight(), _loaded(self.model, name)
        if change.magnitude:
            flat = _matrix(weight.float())
            self._set_gain(addition, change, target, flat)
            assert addition.gain is not None  # set in the line before
            gain = addition.gain if addition.axis == "in" else addition.gain[:, None]
            difference = gain * (flat + difference) - flat
        self._shift(name, difference.view(tuple(weight.shape)))

    def _shift(self, name: str, difference: torch.Tensor) -> None:
        """Add a difference to a small parameter, in a copy."""
        if bool(torch.any(difference)):
            _shift(self.model, name, difference, self.applied)

    def _read(self, change: Change[StoredTensor], role: str) -> torch.Tensor:
        tensor = change.parts[role].read()
        return tensor if tensor.dtype in (torch.float32, torch.float16, torch.bfloat16) else tensor.float()

    def _scale(self, change: Change[StoredTensor]) -> float:
        alpha = float(self._read(change, "alpha").reshape(-1)[0]) if "alpha" in change.parts else None
        return scale_of(change, alpha, self.stated_scale)

    def _kept(self, tensor: torch.Tensor, stored: torch.dtype | None = None) -> torch.Tensor:
        """Return a factor in the type in which it is kept, that of the file where no other is wanted."""
        return tensor.to(self.applied.dtype or stored or tensor.dtype).contiguous()

    def _addition(self, change: Change[StoredTensor], target: Target) -> LowRank | Kronecker:
        """Return what is added to a layer, without a DoRA's gain."""
        scale, strength = self._scale(change), self.applied.scale
        parts = {role: self._read(change, role) for role in change.parts if role not in NO_MATRIX}
        if change.kind == "lora":
            down, up = parts["down"], parts["up"]
            if "mid" not in parts:
                scaled = target.rows(up.flatten(1) if scale == 1 else up.flatten(1).float() * scale)
                return LowRank(self._kept(down.flatten(1)), self._kept(scaled, up.dtype), strength)
            core = torch.einsum("mn...,ni->mi...", parts["mid"].float(), down.flatten(1).float())
            whole = up.flatten(1).float() @ core.flatten(1)
        elif change.kind == "loha":
            (up, down), (up_2, down_2) = (_factors(parts, "hada", f"w{number}", f"t{number}") for number in (1, 2))
            rank = hadamard_rank(len(up), down.shape[1], len(down) * len(down_2))
            if rank is not None and "hada_t1" not in parts:
                up = target.rows((up[:, :, None] * up_2[:, None] * scale).flatten(1))
                return LowRank(self._kept((down[:, None] * down_2).flatten(0, 1)), self._kept(up), strength)
            whole = (up @ down) * (up_2 @ down_2)
        elif change.kind == "lokr":
            left, right = (
                parts[f"lokr_{name}"].flatten(1).float()
                if f"lokr_{name}" in parts
                else torch.matmul(*_factors(parts, "lokr", name, core))
                for name, core in (("w1", ""), ("w2", "t2"))
            )
            if target.is_whole:
                return Kronecker(self._kept(left * scale), self._kept(right), strength)
            whole = torch.kron(left, right)
        else:
            return LowRank(self._kept(_matrix(target.rows(parts["weight"]))), None, strength)
        return LowRank(self._kept(target.rows(whole * scale)), None, strength)

    def _set_gain(
        self, addition: Addition, change: Change[StoredTensor], target: Target, weight: torch.Tensor
    ) -> None:
        """Set the gain of a DoRA: its magnitudes over the norms of the changed weight's rows, or of its columns.

        https://arxiv.org/abs/2402.09353; peft's magnitudes are of rows, LyCORIS and OneTrainer have both.
        """
        magnitude = torch.atleast_1d(self._read(change, change.magnitude).float())
        axis: Axis = "out" if change.is_by_rows else "in"
        changed = weight + addition.weight()
        norm = changed.norm(dim=1 if axis == "out" else 0)
        magnitude = target.rows(magnitude.reshape(-1, 1)).reshape(-1) if axis == "out" else magnitude.reshape(-1)
        addition.set_gain(torch.where(norm > 0, magnitude / norm, 1.0), axis)


def _own(module: nn.Module) -> Iterator[bool]:
    """Yield whether each parameter that a module may have of its own is there: a norm may be without any."""
    return (parameter is not None for parameter in module._parameters.values())


def _size_of(model: nn.Module, name: str) -> tuple[int, ...] | None:
    """Return the shape of a parameter, however it is stored; None where there is none of that name."""
    place, _, own = name.rpartition(".")
    try:
        owner: Any = model.get_submodule(place)
    except AttributeError:
        return None
    if own == "weight" and is_linear(owner):
        return owner.out_features, owner.in_features
    parameter = owner._parameters.get(own)
    return None if parameter is None else tuple(parameter.shape)


def _matrix(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor by its rows; those of a vector, such as a norm's weight, have one number each."""
    return tensor.reshape(len(tensor), -1)


def _factors(parts: dict[str, torch.Tensor], kind: str, name: str, core: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the two factors, [out, rank] and [rank, in], of one matrix of a LoHa or LoKr; a core is multiplied in."""
    left, right = parts[f"{kind}_{name}_a"].float(), parts[f"{kind}_{name}_b"].float()
    if f"{kind}_{core}" not in parts:
        return left, right
    return left.t(), torch.einsum("mn...,ni->mi...", parts[f"{kind}_{core}"].float(), right).flatten(1)


@dataclass
class _Shifted:
    """A parameter as it was loaded, and what is added to it."""

    original: torch.Tensor
    differences: list[torch.Tensor] = field(default_factory=list)


def _loaded(model: nn.Module, name: str) -> torch.Tensor:
    """Return a parameter as it was loaded, whatever is added to it now."""
    shifted: dict[str, _Shifted] = model.__dict__.setdefault("_shifted_by_lora", {})
    return shifted[name].original if name in shifted else model.get_parameter(name).detach()


def _shift(model: nn.Module, name: str, difference: torch.Tensor, applied: AppliedLora) -> None:
    shifted: dict[str, _Shifted] = model.__dict__.setdefault("_shifted_by_lora", {})
    entry = shifted.setdefault(name, _Shifted(_loaded(model, name)))
    scaled = difference.float() * applied.scale
    entry.differences.append(scaled)
    _recompute(model, name, entry)

    def undo() -> None:
        entry.differences[:] = [one for one in entry.differences if one is not scaled]
        _recompute(model, name, entry)

    applied.undo_with(undo)


def _recompute(model: nn.Module, name: str, entry: _Shifted) -> None:
    """Set a parameter to its loaded value plus all differences; to the very loaded tensor without any."""
    owner, _, own = name.rpartition(".")
    value = entry.original
    if entry.differences:
        value = torch.stack([value.float(), *entry.differences]).sum(dim=0).to(value.dtype)
    model.get_submodule(owner)._parameters[own] = nn.Parameter(value, requires_grad=False)


Key = tuple[str, str]
ON = "_piying_loras"


def set_loras(
    model: nn.Module, wanted: Sequence[LoraFile], compute: str, told: set[tuple[str, str]] | None = None
) -> None:
    """Have exactly `wanted` on a model, in that order: sums of the same files are then the same to the bit.

    Args:
        model: in host memory.
        wanted: may be empty.
        compute: the number type of the arithmetic, which their factors are brought to.
        told: what was said of LoRAs that leave out layers, which is not said again; grows.

    Raises:
        PiyingError: a file is damaged, or made for another model.
    """
    told = set() if told is None else told
    on: list[tuple[Key, AppliedLora]] = model.__dict__.setdefault(ON, [])
    keys = [(lora.identity, compute) for lora in wanted]
    if [key for key, _ in on] != keys:
        while on:
            on.pop()[1].remove()
        for key, lora in zip(keys, wanted, strict=True):
            applied = apply_lora(model, lora.path, lora.strength, torch_dtype(compute))
            on.append((key, applied))
            if applied.left_out and (lora.name, applied.left_out) not in told:
                told.add((lora.name, applied.left_out))
                log.warning("LoRA %s leaves out %s. The others are on.", lora.name, applied.left_out)
