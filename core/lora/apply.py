"""LoRAs on a loaded model: several at once, each with a strength, removed without loading again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import PiyingError
from ..files.dtypes import torch_dtype
from ..quantization.casting import is_linear
from .additions import Addition, add, take_off
from .catalog import LoraFile
from .file import Change, Target, Targets, read_lora, unplaced


class AppliedLora:
    """One LoRA on one model."""

    def __init__(self, path: Path, scale: float, dtype: torch.dtype | None = None) -> None:
        self.path, self.scale, self.dtype = path, scale, dtype
        self.layers = 0
        self._undo: list[Callable[[], None]] = []

    def remove(self) -> None:
        """Take it off: the model is as if it had never been on. May be called once, in any order with others."""
        while self._undo:
            self._undo.pop()()

    def addition(self, down: torch.Tensor, up: torch.Tensor | None = None) -> Addition:
        """Return factors as they go beside a layer's weights."""
        up = None if up is None else up.to(self.dtype or up.dtype)
        return Addition(down.to(self.dtype or down.dtype), up, self.scale)

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

    Args:
        model: a transformer from `load_component`, in host memory.
        path: a safetensors file, in the spelling of the original code, of diffusers or of kohya.
        scale: strength; 1 is what it was made for.
        dtype: what the factors are brought to; None leaves them as they are in the file.

    Returns:
        What takes it off again.

    Raises:
        PiyingError: the file is damaged, no LoRA, or made for another model; the model is then unchanged.
    """
    path = Path(path)
    changes = read_lora(path)
    targets = Targets(model, changes)
    missing = unplaced(changes, targets)
    if missing:
        raise PiyingError(
            f"{path}: {len(missing)} of its {len(changes)} layers are not in a {type(model).__name__}, "
            f"{missing[0][:80]} first. It was made for another model; choose another LoRA."
        )
    applied = AppliedLora(path, scale, dtype)
    try:
        for name, change in changes.items():
            for target in targets.find(name):
                _apply(model, target, change, applied)
    except (RuntimeError, ValueError, KeyError, IndexError, AttributeError) as error:
        applied.remove()
        reason = " ".join(str(error).split())[:200]
        raise PiyingError(f"{path}: does not fit a {type(model).__name__} of this size ({reason}).") from error
    return applied


def _apply(model: nn.Module, target: Target, change: Change, applied: AppliedLora) -> None:
    if target.is_parameter:  # of no layer, such as a modulation table
        _shift(model, target.name, target.rows(change.parts["weight"].read()), applied)
        return
    if not change.is_low_rank and not change.parts.keys() & {"weight", "bias"}:
        raise ValueError(f"{target.name} has a factor or alpha alone")
    layer = model.get_submodule(target.name)
    linear = is_linear(layer)
    if change.is_low_rank:
        down, up = change.factors()
        up = target.rows(up)
        if linear:
            _beside(model, target.name, applied.addition(down, up), applied)
        else:
            product = up.float() @ down.flatten(1).float()
            _shift(model, f"{target.name}.weight", product.view(_shape(model, target.name)), applied)
    if "weight" in change.parts:
        whole = target.rows(change.parts["weight"].read())
        if linear:
            _beside(model, target.name, applied.addition(whole), applied)
        else:
            _shift(model, f"{target.name}.weight", whole, applied)
    if "bias" in change.parts:
        _shift(model, f"{target.name}.bias", target.rows(change.parts["bias"].read()), applied)


def _shape(model: nn.Module, layer: str) -> torch.Size:
    return model.get_parameter(f"{layer}.weight").shape


def _beside(model: nn.Module, name: str, addition: Addition, applied: AppliedLora) -> None:
    layer: Any = model.get_submodule(name)  # a Linear layer, or that of a weight format
    out, into = layer.out_features, layer.in_features
    shape = tuple(addition.down.shape) if addition.up is None else (addition.up.shape[0], addition.down.shape[1])
    if shape != (out, into):
        raise ValueError(f"{name} is {out} × {into}, the LoRA {' × '.join(map(str, shape))}")
    if not bool(torch.any(addition.down if addition.up is None else addition.up)):
        return  # files of differences name every layer, most of them with zeros
    add(layer, addition)
    # By name, since casting puts another layer in its place.
    applied.undo_with(lambda: take_off(model.get_submodule(name), addition))


@dataclass
class _Shifted:
    """A parameter as it was loaded, and what is added to it."""

    original: torch.Tensor
    differences: list[torch.Tensor] = field(default_factory=list)


def _shift(model: nn.Module, name: str, difference: torch.Tensor, applied: AppliedLora) -> None:
    """Add a difference to a small parameter, in a copy."""
    if not bool(torch.any(difference)):
        return
    shifted: dict[str, _Shifted] = model.__dict__.setdefault("_shifted_by_lora", {})
    entry = shifted.setdefault(name, _Shifted(model.get_parameter(name).detach()))
    if difference.shape != entry.original.shape:
        raise ValueError(f"{name} is of shape {list(entry.original.shape)}, the LoRA's {list(difference.shape)}")
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


def set_loras(model: nn.Module, wanted: Sequence[LoraFile], compute: str) -> None:
    """Have exactly `wanted` on a model, in that order: sums of the same files are then the same to the bit.

    Args:
        model: in host memory.
        wanted: may be empty.
        compute: the number type of the arithmetic, which their factors are brought to.

    Raises:
        PiyingError: a file is damaged, or made for another model.
    """
    on: list[tuple[Key, AppliedLora]] = model.__dict__.setdefault(ON, [])
    keys = [(lora.identity, compute) for lora in wanted]
    if [key for key, _ in on] == keys:
        return
    while on:
        on.pop()[1].remove()
    for key, lora in zip(keys, wanted, strict=True):
        on.append((key, apply_lora(model, lora.path, lora.strength, torch_dtype(compute))))
