"""Assembly: tensors put into an empty module, each in its final type; all cores read and convert them."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from ..errors import PiyingError, clipped
from ..files.dtypes import all_finite, convert_into, safetensors_names
from ..files.stored_tensor import PIECE, PLAIN_PIECE, StoredTensor, TransformedTensor
from ..quantization.base import WeightFormat
from ..quantization.casting import complete_rules, replace_layer
from ..quantization.policy import CastRules, held_types
from ..quantization.registry import FORMATS, weight_format
from .fitness import fitting, is_same_shape, misfit

if TYPE_CHECKING:
    from pathlib import Path

    from ..quantization.base import Packed

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
POLL = 0.1  # seconds between two looks at whether the user has cancelled


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
        check: called often, in this thread, to stop where the user has cancelled.
        on_read: called after each tensor with the bytes that are read, and all of them.

    Raises:
        PiyingError: a tensor is missing, too many, of another shape or not finite. The module is then
            half filled and of no use.
    """
    tensors = _fitting(module, tensors, source)
    described = {}
    for name, stored in tensors.items():
        # What a format of ours holds counts as that; anything else as what it is unpacked to.
        packed = next((one for one in FORMATS.values() if one.holds(stored)), None)
        type_name = safetensors_names()[stored.read_dtype] if packed is None else packed.number_types[0]
        described[name] = _Described(tuple(stored.shape), type_name)
    held = held_types(
        described,
        complete_rules(module, rules or CastRules()),
        compute="",
        storage=storage,
        linear=_linear_weights(module),
    )
    packed_as = {name: found for name, one in held.items() if (found := weight_format(one.type)) is not None}
    stopped = threading.Event()

    def read(name: str) -> torch.Tensor | Packed:
        reader = _Reader(tensors[name], f"{source}: {name}", stopped)
        if name in packed_as:
            return reader.packed(packed_as[name])
        return reader.converted(_island(module, name, dtype) or dtype)

    # Handing a small one to another thread takes longer than reading it.
    large = [name for name, stored in tensors.items() if math.prod(stored.shape) >= PIECE]
    sizes = {name: math.prod(stored.shape) * stored.dtype.itemsize for name, stored in tensors.items()}
    done, total = 0, sum(sizes.values())
    with _threads(min(torch.get_num_threads(), len(large)), stopped) as pool:
        futures = {name: pool.submit(read, name) for name in large}
        for name in tensors:
            check()
            made = _result(futures[name], check) if name in futures else read(name)
            if isinstance(made, torch.Tensor):
                _put(module, name, made)
            else:
                _put_packed(module, name, made, packed_as=packed_as[name], compute=_island(module, name, dtype))
            done += sizes[name]
            on_read(done, total)
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


def _fitting(module: nn.Module, tensors: Mapping[str, StoredTensor], source: str) -> dict[str, StoredTensor]:
    """Return the tensors under the module's names and in its shapes, without those that its class says to ignore."""
    prefix = getattr(module, "base_model_prefix", "")
    ignored = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    places = _places(module)
    fitted = {place: tensors[name] for place, name in fitting(tensors, places, prefix, ignored).items()}
    unexpected = [name for name in fitted if name not in places]
    if unexpected:
        raise _misfit(module, source, f"{len(unexpected)} tensors have no place in it, {clipped(unexpected[0])} first")
    for name, stored in fitted.items():
        shape = tuple(places[name].shape)
        if not is_same_shape(stored.shape, shape):
            raise _misfit(module, source, f"{name} is of shape {list(stored.shape)}, not {list(shape)}")
        if tuple(stored.shape) != shape:
            fitted[name] = TransformedTensor(stored, shape, partial(torch.reshape, shape=shape))
    return fitted


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


@contextmanager
def _threads(count: int, stopped: threading.Event) -> Iterator[ThreadPoolExecutor]:
    """Start threads in which torch works on one core each; on the way out what is not done is dropped.

    One tensor for each core takes less of the processors' time than one after the other on all: pieces stay in the
    cache that they are in, and no core waits for another.
    """
    threads, started = torch.get_num_threads(), threading.Barrier(count + 1)

    def begin() -> None:
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(max(1, count), "reading", begin)
    try:
        for _ in range(count):
            pool.submit(int)  # each starts a thread, as none is idle
        started.wait()
        # torch's setting is of one thread, and the default of those that begin with torch later.
        torch.set_num_threads(threads)
        yield pool
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # an interrupt may have come before it was


def _result(future: Future[Any], check: Callable[[], None]) -> Any:
    while not future.done():
        wait([future], POLL)
        check()
    return future.result()


class _Reader:
    """Reads one tensor, in any thread."""

    def __init__(self, stored: StoredTensor, source: str, stopped: threading.Event) -> None:
        self._stored, self._source, self._stopped = stored, source, stopped

    def converted(self, dtype: torch.dtype | None) -> torch.Tensor:
        """Return the tensor in a type where it is a floating one: a view of the file, or a copy made in pieces."""
        stored, wanted = self._stored, self._stored.read_dtype
        if dtype is not None and wanted.is_floating_point:
            wanted = dtype
        if wanted in FLOAT8:
            wanted = torch.float32  # torch computes nothing in float8
        if stored.is_view and wanted == stored.read_dtype:
            return self._checked(stored.read())
        tensor = torch.empty(stored.shape, dtype=wanted)
        left = tensor.view(-1)
        for piece in stored.pieces():
            target, left = left[: len(piece)], left[len(piece) :]
            is_wider = wanted.itemsize > piece.dtype.itemsize
            if is_wider:
                self._check(piece)
            convert_into(target, piece)
            if not is_wider:  # a number may be too large for the type
                self._check(target)
        return tensor

    def packed(self, packed_as: WeightFormat) -> Packed:
        """Return the tensors of a layer of a format."""
        if packed_as.holds(self._stored):
            packed = packed_as.from_stored(self._stored)
        else:
            packed = packed_as.to_stored(self._stored.read())
            self._stored.release()
        for numbers in packed_as.numbers(packed):
            self._check(numbers)
        return packed

    def _checked(self, tensor: torch.Tensor) -> torch.Tensor:
        for piece in tensor.view(-1).split(PLAIN_PIECE) if tensor.is_contiguous() else [tensor]:
            self._check(piece)
        return tensor

    def _check(self, numbers: torch.Tensor) -> None:
        if self._stopped.is_set():
            raise CancelledError
        require_finite(numbers, self._source)


def _put_packed(
    module: nn.Module, name: str, packed: Packed, *, packed_as: WeightFormat, compute: torch.dtype | None
) -> None:
    """Put a layer of a format in the place of the Linear layer whose weight has that name."""
    owner = name.rpartition(".")[0]
    linear: Any = module.get_submodule(owner)
    replace_layer(module, owner, packed_as.layer(packed, linear.bias, compute))


def _put(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    owner, _, own = name.rpartition(".")
    layer = module.get_submodule(owner)
    if own in layer._buffers:
        layer._buffers[own] = tensor
    else:
        layer._parameters[own] = nn.Parameter(tensor, requires_grad=False)


def require_finite(numbers: torch.Tensor, source: str) -> None:
    """Accept weights without NaN and infinity. Raises PiyingError for others."""
    if not all_finite(numbers):
        raise PiyingError(f"{source} holds values that are no numbers. The file is damaged; fetch it again.")


def require_finite_weights(module: nn.Module, path: Path) -> None:
    """Accept a module read from a file or folder whose weights are without NaN and infinity. Raises PiyingError."""
    for name, weight in module.named_parameters():
        require_finite(weight.detach(), f"{path.as_posix()}: {name}")
