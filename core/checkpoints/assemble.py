"""Puts tensors into an empty module, one at a time, each in its final type."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import PiyingError
from ..files.stored_tensor import StoredTensor
from ..quantization.fp8 import FLOAT8, Fp8Linear, ScaledTensor, castable, quantize, replace

Check = Callable[[], None]


@dataclass(frozen=True)
class Types:
    """In which types a module is to be held.

    Attributes:
        dtype: of all floating tensors but FP8 weights and those that the module's class keeps in
            fp32; None leaves every tensor as it is in the file.
        storage: "fp8" casts the Linear layers inside `block_lists` whose names match no pattern of
            `keep`; None leaves FP8 weights of the file as they are; any other unpacks them.
        block_lists, keep: see `core.quantization.fp8.castable`.
    """

    dtype: torch.dtype | None = None
    storage: str | None = None
    block_lists: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()


def assemble(
    module: nn.Module, tensors: Mapping[str, StoredTensor], types: Types, source: str, check: Check = lambda: None
) -> None:
    """Fill a module that is on the meta device.

    A tensor that keeps its type stays a view of its file. `check` is called between tensors, to stop
    where the user has cancelled.

    Raises:
        PiyingError: a tensor is missing, too many, of another shape or not finite. The module is then
            half filled and of no use.
    """
    tensors = _fitting(module, tensors)
    _check_shapes(module, tensors, source)
    packed = {name for name, _ in castable(module, types.block_lists, types.keep)} if types.storage == "fp8" else set()
    for name, stored in tensors.items():
        check()
        owner, _, own = name.rpartition(".")
        layer = module.get_submodule(owner)
        if own == "weight" and isinstance(layer, nn.Linear) and _holds_fp8(module, owner, stored, types, packed):
            _put_fp8(module, owner, layer, stored, _island(module, name, types.dtype), source)
        else:
            _put(layer, own, stored, _island(module, name, types.dtype) or types.dtype, source, name)
    _tie(module, set(tensors))
    _check_filled(module, source)


def _fitting(module: nn.Module, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the tensors under the module's names, without those that its class says to ignore.

    Larger models add their name for this part to all its tensors: "bert.", "model.".
    """
    import re

    wanted = set(_places(module))
    prefix = f"{getattr(module, 'base_model_prefix', '')}."
    ignored = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    found = {}
    for name, stored in tensors.items():
        short = name.removeprefix(prefix)
        place = short if name not in wanted and short in wanted else name
        if place in wanted or not any(re.search(pattern, name) for pattern in ignored):
            found[place] = stored
    return found


def _places(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and saved buffers by name, tied ones under each of their names."""
    found = dict(module.named_parameters(remove_duplicate=False))
    for owner, part in module.named_modules():
        for name, buffer in part._buffers.items():
            if buffer is not None and name not in part._non_persistent_buffers_set:
                found[f"{owner}.{name}" if owner else name] = buffer
    return found


def _check_shapes(module: nn.Module, tensors: Mapping[str, StoredTensor], source: str) -> None:
    places = _places(module)
    unexpected = [name for name in tensors if name not in places]
    if unexpected:
        raise _misfit(module, source, f"{len(unexpected)} tensors have no place in it, {unexpected[0][:80]} first")
    for name, stored in tensors.items():
        if tuple(stored.shape) != tuple(places[name].shape):
            shapes = f"{list(stored.shape)}, not {list(places[name].shape)}"
            raise _misfit(module, source, f"{name} is of shape {shapes}")


def _misfit(module: nn.Module, source: str, reason: str) -> PiyingError:
    return PiyingError(
        f"{source}: cannot be read as a {type(module).__name__} ({reason}). Fetch it again, or choose another model."
    )


def _holds_fp8(module: nn.Module, owner: str, stored: StoredTensor, types: Types, packed: Collection[str]) -> bool:
    """Whether a Linear layer's weight is to be held in FP8: cast to it, or left as the file has it."""
    if owner in packed:
        return True
    spared = getattr(module, "_skip_layerwise_casting_patterns", None) or ()
    # diffusers' list of what cannot be a layer of another class: HunyuanDiT's pooler takes the
    # weights out of its layers and multiplies by itself.
    kept = types.storage in (None, "fp8") and not any(pattern in owner for pattern in spared)
    return kept and (stored.dtype in FLOAT8)


def _island(module: nn.Module, name: str, dtype: torch.dtype | None) -> torch.dtype | None:
    """Return fp32 for the tensors that the module's class never holds in less, else None.

    diffusers keeps `_keep_in_fp32_modules` out of both 16-bit types, transformers out of fp16, and
    `_keep_in_fp32_modules_strict` out of both.
    """
    from diffusers import ModelMixin

    if dtype not in (torch.float16, torch.bfloat16):
        return None
    names = set(getattr(module, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16 or isinstance(module, ModelMixin):
        names |= set(getattr(module, "_keep_in_fp32_modules", None) or ())
    return torch.float32 if names & set(name.split(".")) else None


def _put_fp8(
    module: nn.Module, owner: str, layer: nn.Linear, stored: StoredTensor, island: torch.dtype | None, source: str
) -> None:
    if isinstance(stored, ScaledTensor):
        values, scale = stored.values.read(), stored.scale_blocks()
    elif stored.dtype in FLOAT8:
        values = stored.read()
        scale = torch.ones(values.shape[0], 1)
    else:
        values, scale = quantize(stored.read())
        stored.release()
    for part in (values, scale):
        _check_finite(part, source, f"{owner}.weight")
    replace(module, owner, Fp8Linear(values, scale, layer.bias, compute=island))


def _put(layer: nn.Module, own: str, stored: StoredTensor, dtype: torch.dtype | None, source: str, name: str) -> None:
    tensor = stored.read()
    wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    if wanted in FLOAT8:
        wanted = torch.float32
    if wanted != tensor.dtype:
        tensor = tensor.to(wanted)
        stored.release()
    _check_finite(tensor, source, name)
    if own in layer._buffers:
        layer._buffers[own] = tensor
    else:
        layer._parameters[own] = nn.Parameter(tensor, requires_grad=False)


def _check_finite(tensor: torch.Tensor, source: str, name: str) -> None:
    if not tensor.numel() or not tensor.is_floating_point() or _is_finite(tensor):
        return
    raise PiyingError(f"{source}: {name} holds values that are no numbers. The file is damaged; fetch it again.")


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether no element is infinite or NaN, without a copy of the tensor."""
    if tensor.dtype == torch.float8_e4m3fn:  # its two NaNs are the bytes 0x7f and 0xff
        return bool(tensor.view(torch.int8).amax() < 0x7F and tensor.view(torch.uint8).amax() < 0xFF)
    if tensor.dtype == torch.float8_e5m2:
        tensor = tensor.to(torch.float16)
    least, most = torch.aminmax(tensor)
    return bool(torch.isfinite(least) and torch.isfinite(most))


def _tie(module: nn.Module, read: set[str]) -> None:
    """Let transformers tie embeddings that a file holds once and a model uses twice."""
    if hasattr(module, "tie_weights"):
        missing = {name for name in _places(module) if name not in read}
        module.tie_weights(missing_keys=missing, recompute_mapping=False)


def _check_filled(module: nn.Module, source: str) -> None:
    missing = [name for name, tensor in _places(module).items() if tensor.is_meta]
    if missing:
        raise _misfit(module, source, f"{len(missing)} tensors are not in it, {missing[0]} first")
