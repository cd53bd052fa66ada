"""Simulated card: real code on tensors without numbers, with every byte, operation and copy of a card counted.

torch's FakeTensorMode runs the shapes of a program on a device `cuda` that need not be there. What it cannot do in
a build of torch without CUDA is done here in other words: indexing, scaling pictures up, and the choice of an
attention kernel, which is that of a card (FlashAttention, or the memory-efficient one where there is a mask, fp32 or
a head wider than 256). Numbers that a program asks for are made up: everything is finite and true.

Not counted: what libraries take for themselves beside torch's tensors, first of all workspaces of cuDNN.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from unittest import mock

import torch
from caching_allocator import Event
from piying.core.executor import packed_tensors, streaming
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

CUDA = "cuda:0"
aten = torch.ops.aten
# cuBLAS takes this much of torch's allocator at its first product, on Hopper; 8 MiB on other cards.
CUBLAS_WORKSPACE = 32 * 2**20
PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten._scaled_mm}
FLASH_HEAD = 256  # the widest head of FlashAttention
FEW = 2**20  # so many numbers that come from the card are zeros, and no longer fake: host code may look at them
MASK_ALIGNMENT = 16  # elements; the memory-efficient kernel pads masks to it


@dataclass
class Count:
    """What a piece of work did.

    Attributes:
        trace: the tensors of the card as they begin and end.
        flops: operations in products, convolutions and attention.
        copied: bytes from host memory to the card.
        host: bytes of host memory in tensors without numbers, now; `host_peak` at most.
    """

    trace: list[Event] = field(default_factory=list)
    flops: int = 0
    copied: int = 0
    host: int = 0
    host_peak: int = 0


class SimulatedCard:
    """A card that is not there; one at a time.

    Attributes:
        fake: the mode whose tensors have no numbers.
        count: where the work at hand is counted.
    """

    def __init__(self) -> None:
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.count = Count()
        self._numbers: dict[int, int] = {}  # of the tensors of the card, by their storages
        self._next = 0
        self._workspace = False

    @contextmanager
    def inserted(self) -> Iterator[None]:
        """Have torch find the card inside the block, and count what is done."""
        with ExitStack() as stack:
            stand_ins = {
                "_lazy_init": lambda: None,
                "empty_cache": self._empty_cache,
                "get_device_capability": lambda _device=None: (8, 9),
            }
            for name, value in stand_ins.items():
                stack.enter_context(mock.patch.object(torch.cuda, name, value))
            # A simulated card has no streams: blocks are copied at once, into the same slots.
            stack.enter_context(mock.patch.object(streaming, "card_module", lambda _device: None))
            stack.enter_context(mock.patch.object(packed_tensors, "PLAIN", (*packed_tensors.PLAIN, FakeTensor)))
            stack.enter_context(_Dispatch(self))
            stack.enter_context(_Functions())
            stack.enter_context(torch.no_grad())
            yield

    @contextmanager
    def counting(self) -> Iterator[Count]:
        """Count what is done inside the block apart; the card is expected to be empty before and after it."""
        outer, self.count, self._workspace = self.count, Count(), False
        try:
            yield self.count
        finally:
            self.count = outer

    def _empty_cache(self) -> None:
        self.count.trace.append(Event("empty_cache"))

    def note(self, storage: torch.UntypedStorage, device: str) -> None:
        """Count a storage when it is first seen, and again when it ends."""
        key, size = storage._cdata, storage.nbytes()
        if key in self._numbers:
            return
        self._next += 1
        self._numbers[key] = self._next
        if device == "cuda":
            self.count.trace.append(Event("malloc", self._next, size))
            weakref.finalize(storage, self._ended, key, Event("free", self._next))
        else:
            self.count.host += size
            self.count.host_peak = max(self.count.host_peak, self.count.host)
            weakref.finalize(storage, self._left_host, key, size, self.count)

    def _ended(self, key: int, event: Event) -> None:
        del self._numbers[key]
        self.count.trace.append(event)

    def _left_host(self, key: int, size: int, count: Count) -> None:
        del self._numbers[key]
        count.host -= size

    def work(self, operation: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Count an operation's arithmetic and copying."""
        packet = operation._overloadpacket
        if packet in PRODUCTS and not self._workspace and _is_on_card(result):
            self._workspace = True
            self._next += 1
            self.count.trace.append(Event("malloc", self._next, CUBLAS_WORKSPACE))
        if packet in flop_registry:
            self.count.flops += flop_registry[packet](*args, **kwargs, out_val=result)
        if packet is aten._to_copy and _is_on_card(result) and not _is_on_card(args[0]):
            self.count.copied += result.nbytes
        if packet is aten.copy_ and _is_on_card(args[0]) and not _is_on_card(args[1]):
            self.count.copied += args[0].nbytes


def _is_on_card(thing: Any) -> bool:
    return isinstance(thing, torch.Tensor) and thing.device.type == "cuda"


class _Dispatch(TorchDispatchMode):
    """Runs operations on fake tensors where a card or fake tensors are in them, and counts."""

    def __init__(self, card: SimulatedCard) -> None:
        super().__init__()
        self._card = card

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        kwargs = kwargs or {}
        device = kwargs.get("device")
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        fake = any(isinstance(tensor, FakeTensor) for tensor in given)
        if not fake and (device is None or torch.device(device).type != "cuda"):
            return func(*args, **kwargs)
        if func is aten.equal.default:
            return True
        if func is aten._local_scalar_dense.default:
            return True if args[0].dtype == torch.bool else 1 if not args[0].is_floating_point() else 1.0
        with self._card.fake:
            result = func(*args, **kwargs)
        if func is aten._to_copy.default and result.device.type == "cpu" and result.numel() <= FEW:
            return torch.zeros(result.shape, dtype=result.dtype)
        for tensor in tree_leaves(result):
            if isinstance(tensor, FakeTensor):
                self._card.note(tensor.untyped_storage(), tensor.device.type)
        self._card.work(func, args, kwargs, result)
        return result


# Methods whose Python bindings look for CUDA before anything else can stand in for it.
GUARDED: dict[Any, Callable[..., Any]] = {
    torch.Tensor.copy_: aten.copy_.default,
    torch.Tensor.__invert__: aten.bitwise_not.default,
    torch.Tensor.__float__: lambda _tensor: 1.0,
    torch.Tensor.nonzero: lambda tensor, as_tuple=False: _nonzero(tensor, as_tuple),
}


class _Functions(TorchFunctionMode):
    """Replaces what a build of torch without CUDA cannot do with its tensors, fake ones included."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") is not None:
            return _made(args[0], **kwargs)
        if any(map(_is_on_card, (*args[:1], *kwargs.values()))):
            if func is torch.Tensor.__getitem__:
                return _indexed(args[0], args[1])
            if func is torch.Tensor.__setitem__:
                return _assign(*args)
            if func in GUARDED:
                return GUARDED[func](*args, **kwargs)
            if func is torch.Tensor.contiguous:
                order = kwargs.get("memory_format", torch.contiguous_format)
                kept = args[0].is_contiguous(memory_format=order)
                return args[0] if kept else aten.clone.default(args[0], memory_format=order)
            if func is torch.nn.functional.scaled_dot_product_attention:
                return attention(*args, **kwargs)
            if func is torch.nn.functional.interpolate:
                return _scaled_up(*args, **kwargs)
        return func(*args, **kwargs)


def _made(numbers: Any, *, device: Any, **options: Any) -> torch.Tensor:
    """Return a tensor of numbers, some of which may be tensors of the card."""
    if isinstance(numbers, Sequence) and any(map(_is_on_card, numbers)):
        return torch.empty(len(numbers), dtype=options.get("dtype") or numbers[0].dtype, device=device)
    return torch.tensor(numbers, **options).to(device)


def _nonzero(tensor: torch.Tensor, as_tuple: bool) -> Any:
    """Return that only the first element is not zero."""
    places = torch.zeros(1, tensor.ndim, dtype=torch.long, device=tensor.device)
    return places.unbind(1) if as_tuple else places


def _parts(tensor: torch.Tensor, index: Any) -> Iterator[tuple[int, Any]]:
    """Yield (axis, part) of an index with its ellipsis spelled out; the axis counts those of the result so far."""
    parts = list(index) if isinstance(index, tuple) else [index]
    given = sum(part is not None and part is not Ellipsis for part in parts)
    where = next((place for place, part in enumerate(parts) if part is Ellipsis), len(parts))
    parts[where : where + 1] = [slice(None)] * (tensor.ndim - given)
    axis = 0
    for part in parts:
        yield axis, part
        axis += 0 if isinstance(part, int) else 1


def _indexed(tensor: torch.Tensor, index: Any) -> torch.Tensor:
    """Return `tensor[index]`."""
    places: list[torch.Tensor | None] = []
    for axis, part in _parts(tensor, index):
        if part is None:
            tensor = tensor.unsqueeze(axis)
        elif isinstance(part, int):
            tensor = aten.select.int(tensor, axis, part)
        elif isinstance(part, slice):
            ends = (None if end is None else int(end) for end in (part.start, part.stop))
            tensor = aten.slice.Tensor(tensor, axis, *ends, part.step or 1)
        if isinstance(part, (torch.Tensor, Sequence)):
            places += [None] * (axis - len(places))
            where = part if isinstance(part, torch.Tensor) else torch.tensor(part).to(tensor.device)
            # A mask is true everywhere.
            kept = where.dtype == torch.bool
            places += [torch.arange(side, device=tensor.device) for side in where.shape] if kept else [where]
    return aten.index.Tensor(tensor, places) if places else tensor


def _assign(tensor: torch.Tensor, index: Any, value: Any) -> None:
    """Do `tensor[index] = value`, for an index without tensors."""
    target = _indexed(tensor, index)
    if isinstance(value, torch.Tensor):
        aten.copy_.default(target, value)
    else:
        target.fill_(value)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Return what torch's attention on a card returns, and allocate what its kernels do."""
    half = query.dtype in (torch.bfloat16, torch.float16)
    if attn_mask is None and half and query.shape[-1] <= FLASH_HEAD:
        return cast(torch.Tensor, aten._scaled_dot_product_flash_attention.default(query, key, value)[0])
    if enable_gqa:
        key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], 1) for one in (key, value))
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            inverse, attn_mask = aten.logical_not.default(attn_mask), torch.zeros_like(attn_mask, dtype=query.dtype)
            del inverse
        missing = -attn_mask.shape[-1] % MASK_ALIGNMENT
        if missing:
            wide = aten.constant_pad_nd.default(attn_mask, [0, missing])
            attn_mask = wide.narrow(-1, 0, attn_mask.shape[-1])
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    efficient = aten._scaled_dot_product_efficient_attention.default
    return cast(torch.Tensor, efficient(query, key, value, attn_mask, False)[0])


def _scaled_up(picture: torch.Tensor, size: Any = None, scale_factor: Any = None, **_options: Any) -> torch.Tensor:
    """Return a picture of the size that it is scaled to."""
    sides = picture.shape[2:]
    if size is None:
        factors = scale_factor if isinstance(scale_factor, Sequence) else [scale_factor] * len(sides)
        size = [int(side * factor) for side, factor in zip(sides, factors, strict=True)]
    return picture.new_empty(*picture.shape[:2], *size)
