"""Assembly: tensors put into an empty module, one at a time, each in its final type."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import PiyingError
from ..files.dtypes import all_finite, safetensors_names
from ..files.stored_tensor import StoredTensor
from ..quantization.base import WeightFormat
from ..quantization.casting import complete_rules, replace_layer
from ..quantization.policy import CastRules, held_types
from ..quantization.registry import FORMATS, weight_format
from .fitness import fitting, misfit

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def assemble(
    module: nn.Module,
    tensors: Mapping[str, StoredTensor],
    source: str,
    *,
    dtype: torch.dtype | None = None,
    storage: str | None = None,
    rules: CastRules | None = None,
    check: Callable[[], None] = lambda: None,
    on_read: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Fill a module that is on the meta device.

    A tensor that keeps its type stays a view of its file.

    Args:
        module: where the tensors go.
        tensors: by the names of the module's class.
        source: where they are from, for messages.
        dtype: of all floating tensors but weights stored in a format and those that the module's class
            keeps in fp32; None leaves every tensor as it is in the file.
        storage: the name of a format to cast layers to; see `quantization.policy.held_types`.
        rules: which layers; None for all Linear layers inside lists of modules.
        check: called between tensors, to stop where the user has cancelled.
        on_read: called after each tensor with the bytes that are read, and all of them.

    Raises:
        PiyingError: a tensor is missing, too many, of another shape or not finite. The module is then
            half filled and of no use.
    """
    tensors, places = _fitting(module, tensors), _places(module)
    unexpected = [name for name in tensors if name not in places]
    if unexpected:
        raise _misfit(module, source, f"{len(unexpected)} tensors have no place in it, {unexpected[0][:80]} first")
    described = {}
    for name, stored in tensors.items():
        if tuple(stored.shape) != tuple(places[name].shape):
            shapes = f"{list(stored.shape)}, not {list(places[name].shape)}"
            raise _misfit(module, source, f"{name} is of shape {shapes}")
        # What a format of ours holds counts as its stored type; anything else as what it is unpacked to.
        packed = any(one.holds(stored) for one in FORMATS.values())
        type_name = safetensors_names()[stored.dtype if packed else stored.read_dtype]
        described[name] = _Described(tuple(stored.shape), type_name)
    held = held_types(
        described,
        complete_rules(module, rules or CastRules()),
        compute="",
        storage=storage,
        linear=_linear_weights(module),
    )
    sizes = {name: math.prod(stored.shape) * stored.dtype.itemsize for name, stored in tensors.items()}
    read = 0
    for name, stored in tensors.items():
        check()
        island, packed_as = _island(module, name, dtype), weight_format(held[name].type)
        if packed_as is None:
            _put(module, name, stored, dtype=island or dtype, source=source)
        else:
            _put_packed(module, name, stored, packed_as=packed_as, compute=island, source=source)
        read += sizes[name]
        on_read(read, sum(sizes.values()))
    if hasattr(module, "tie_weights"):
        # A file holds embeddings once that a model uses twice; transformers ties them.
        absent = {name for name in _places(module) if name not in tensors}
        pretrained: Any = module
        pretrained.tie_weights(missing_keys=absent, recompute_mapping=False)
    missing = [name for name, tensor in _places(module).items() if tensor.is_meta]
    if missing:
        raise _misfit(module, source, f"{len(missing)} tensors are not in it, {missing[0]} first")


class _Described(NamedTuple):
    """A tensor for the policy: its shape, and the safetensors name of its type."""

    shape: tuple[int, ...]
    dtype: str


def _linear_weights(module: nn.Module) -> set[str]:
    """Return the names of the weights that may be held by a layer of another class.

    diffusers lists those that may not: HunyuanDiT's pooler takes the weights out of its layers and multiplies
    by itself.
    """
    spared = getattr(module, "_skip_layerwise_casting_patterns", None) or ()
    return {
        f"{name}.weight"
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and not any(pattern in name for pattern in spared)
    }


def _fitting(module: nn.Module, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the tensors under the module's names, without those that its class says to ignore."""
    prefix = getattr(module, "base_model_prefix", "")
    ignored = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    places = fitting(tensors.keys(), _places(module).keys(), prefix, ignored)
    return {place: tensors[name] for place, name in places.items()}


def _places(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and saved buffers by name, tied ones under each of their names."""
    found: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
    for owner, part in module.named_modules():
        for name, buffer in part._buffers.items():
            if buffer is not None and name not in part._non_persistent_buffers_set:
                found[f"{owner}.{name}" if owner else name] = buffer
    return found


def _misfit(module: nn.Module, source: str, reason: str) -> PiyingError:
    return PiyingError(f"{source}: {misfit(type(module).__name__, reason)}")


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


def _put_packed(
    module: nn.Module,
    name: str,
    stored: StoredTensor,
    *,
    packed_as: WeightFormat,
    compute: torch.dtype | None,
    source: str,
) -> None:
    """Put a layer of a format in the place of the Linear layer whose weight has that name."""
    if packed_as.holds(stored):
        packed = packed_as.from_stored(stored)
    else:
        packed = packed_as.to_stored(stored.read())
        stored.release()
    for tensor in packed.values():
        require_finite(tensor, source, name)
    owner = name.rpartition(".")[0]
    linear: Any = module.get_submodule(owner)
    replace_layer(module, owner, packed_as.layer(packed, linear.bias, compute))


def _put(module: nn.Module, name: str, stored: StoredTensor, *, dtype: torch.dtype | None, source: str) -> None:
    tensor = stored.read()
    wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    if wanted in FLOAT8:
        wanted = torch.float32  # torch computes nothing in float8
    if wanted != tensor.dtype:
        tensor = tensor.to(wanted)
        stored.release()
    require_finite(tensor, source, name)
    owner, _, own = name.rpartition(".")
    layer = module.get_submodule(owner)
    if own in layer._buffers:
        layer._buffers[own] = tensor
    else:
        layer._parameters[own] = nn.Parameter(tensor, requires_grad=False)


def require_finite(tensor: torch.Tensor, source: str, name: str) -> None:
    """Accept weights without NaN and infinity. Raises PiyingError for others."""
    if not all_finite(tensor):
        raise PiyingError(f"{source}: {name} holds values that are no numbers. The file is damaged; fetch it again.")
