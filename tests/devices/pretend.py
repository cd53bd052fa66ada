"""Pretend accelerator: a torch device whose memory is limited, separate and asynchronous, on any processor.

It is a backend behind torch's PrivateUse1 key, named `pretend`: `torch.empty(8, device="pretend:0")` is an ordinary
tensor of that device. What is computed on it is put into queues (streams) and done later, with the kernels of the CPU,
on memory that nothing else can reach. New memory and memory that was given back are filled with NaN, in the order of
the stream that they belong to, as another user of that memory would.
"""

from __future__ import annotations

import ctypes
import functools
import random
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .timeline import Marker, Memory, Queue, Timeline

aten = torch.ops.aten
KIND = "pretend"
ALIGNMENT = 512  # of allocations, as on a CUDA card
POISON = 0xFF  # NaN in every floating type of 16 and more bits and in float8_e4m3fn; -1 in whole numbers


@dataclass(eq=False)
class Block(Memory):
    """Memory of a device, or pinned memory of the host; torch sees its address alone."""

    size: int = 0
    buffer: torch.Tensor | None = None  # uint8, on the CPU; the host's own memory belongs to its tensors
    device: Device | None = None
    queue: Queue | None = None  # in whose order it was allocated
    users: list[Queue] = field(default_factory=list)  # other streams, see record_stream


@dataclass
class Device:
    """One device of the machine.

    Attributes:
        total: bytes of memory.
        limit: bytes that this process may have.
        others: bytes that other programs have.
        cached: bytes that were given back here and not to the device: as torch's allocator does, until its cache is
            emptied or they are needed.
        refused: allocations that did not fit.
    """

    index: int
    total: int
    compute: Queue
    current: Queue
    limit: int
    others: int = 0
    allocated: int = 0
    cached: int = 0
    peak: int = 0
    refused: int = 0
    leaving: list[tuple[Marker, Block]] = field(default_factory=list)

    @property
    def free(self) -> int:
        return min(self.limit, self.total - self.others) - self.allocated

    def take(self, size: int) -> None:
        """Count an allocation, for which the cache serves first."""
        self.allocated += size
        self.cached = min(max(0, self.cached - size), self.free)
        self.peak = max(self.peak, self.allocated)

    def give_back(self, size: int) -> None:
        """Count a release."""
        self.allocated -= size
        self.cached += size


@dataclass
class Machine:
    """The devices there are while a test runs.

    Attributes:
        link: bytes per second between page-locked memory and a device; half of it for other memory of the host.
        filling: bytes per second at which the host writes page-locked memory.
        operation: seconds for anything computed.
        pinned: bytes of page-locked host memory.
        operations: how many were queued.
    """

    timeline: Timeline
    devices: list[Device]
    link: float = 16e9
    filling: float = 32e9
    operation: float = 1e-5
    blocks: dict[int, Block] = field(default_factory=dict)  # by address
    operations: int = 0
    pinned: int = 0

    def queue(self, device: torch.device) -> Queue:
        return self.devices[device.index or 0].current

    def allocate(self, size: int, device: Device) -> Block:
        """Return memory in the order of the current stream, with what its user before left there."""
        held = -(-max(size, 1) // ALIGNMENT) * ALIGNMENT
        self._settle(device, wait=False)
        if held > device.free:
            self._settle(device, wait=True)
        if held > device.free:
            device.refused += 1
            raise torch.OutOfMemoryError(
                f"{KIND}:{device.index} out of memory. Tried to allocate {held / 2**20:.2f} MiB: "
                f"{device.allocated / 2**20:.2f} MiB of {device.limit / 2**20:.2f} MiB are in use."
            )
        device.take(held)
        buffer = torch.empty(held, dtype=torch.uint8)
        block = Block("a block of device memory", [], held, buffer, device, device.current)
        self.blocks[buffer.data_ptr()] = block
        self._poison(block, "allocation")
        return block

    def free(self, address: int) -> None:
        """Take memory back, as the caching allocator does: for the next user in its stream, at once."""
        block = self.blocks.pop(address)
        if block.device is None or block.queue is None:
            self.pinned -= block.size
            return
        for user in block.users:
            # The allocator does not let the host know, but it waits for the stream before anybody gets the memory.
            block.queue.wait(user.mark())
        self._poison(block, "release")
        if block.users:
            block.device.leaving.append((block.queue.mark(), block))
        else:
            block.device.give_back(block.size)

    def _settle(self, device: Device, wait: bool) -> None:
        for marker, block in [*device.leaving]:
            if wait:
                marker.queue.run(marker.position)
            if marker.passed:
                device.give_back(block.size)
                device.leaving = [pair for pair in device.leaving if pair[1] is not block]

    def _poison(self, block: Block, what: str) -> None:
        assert block.queue is not None and block.buffer is not None
        buffer, whole = block.buffer, (0, block.size)
        self.timeline.begin(block.queue)
        self.timeline.access(block, whole, queue=block.queue, writes=True, what=what)
        block.queue.put(lambda: _run(aten.fill_.Scalar, ([buffer, POISON], {}), []))

    def block_of(self, tensor: torch.Tensor) -> Block | None:
        return self.blocks.get(tensor.untyped_storage().data_ptr())

    def access(self, tensor: torch.Tensor, queue: Queue | None, writes: bool, what: str) -> None:
        block = self.block_of(tensor)
        if block is not None:
            self.timeline.access(block, extent(tensor), queue=queue, writes=writes, what=what)


def extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the bytes of a tensor's storage between which its elements lie."""
    if not tensor.numel():
        return 0, 0
    low = tensor.storage_offset()
    high = low + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    return low * tensor.element_size(), high * tensor.element_size()


_machine: Machine | None = None


def machine() -> Machine:
    if _machine is None:
        raise RuntimeError("No pretend device is attached here.")
    return _machine


@contextmanager
def attached(*sizes: int, chance: random.Random | None = None) -> Iterator[Machine]:
    """Have a machine with devices of so many bytes inside the block.

    Args:
        chance: see `Timeline`.

    Raises:
        AssertionError: there was a race, or something is left on a device.
    """
    global _machine
    timeline = Timeline(chance=chance)
    devices = []
    for index, size in enumerate(sizes):
        queue = timeline.queue(f"the compute stream of device {index}")
        devices.append(Device(index, size, queue, queue, size))
    _machine = here = Machine(timeline, devices)
    try:
        with HostMemory():
            yield here
            synchronize()
    finally:
        _machine = None
    assert not timeline.faults, "\n".join(timeline.faults)


def synchronize(device: Any = None) -> None:
    """Wait for everything that is queued on a device, or on all."""
    for queue in machine().timeline.queues:
        machine().timeline.wait(queue.mark())


# Tensors. torch makes one on a memory of ours from a DLPack capsule (https://dmlc.github.io/dlpack), which also tells
# when the memory is needed no more.


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    ]


EXTENSION_DEVICE = 12  # kDLExtDev, PrivateUse1 to torch
# torch reads a capsule a last time just after its storage is gone.
_capsules: deque[_DLTensor] = deque(maxlen=1000)
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype, _new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def _let_go(owner: Machine, structure: _DLTensor) -> None:
    _capsules.append(structure)
    owner.free(structure.data)


def new_tensor(size: list[int], stride: list[int], dtype: torch.dtype, device: torch.device | None) -> torch.Tensor:
    """Return an uninitialised tensor of the device."""
    here = machine()
    like = torch.empty_strided(size, stride, dtype=dtype, device="meta")
    block = here.allocate(like.untyped_storage().nbytes(), here.devices[(device and device.index) or 0])
    shape = (ctypes.c_int64 * 1)(like.untyped_storage().nbytes())
    structure = _DLTensor(
        block.buffer.data_ptr(), EXTENSION_DEVICE, block.device.index, 1, 1, 8, 1, shape, None, 0, None, None
    )  # fmt: skip
    plain = torch.utils.dlpack.from_dlpack(_new_capsule(ctypes.addressof(structure), b"dltensor", None))
    weakref.finalize(plain.untyped_storage(), _let_go, here, structure)
    return typed(plain, like)


def typed(plain: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a tensor of `like`'s type and shape on the memory of `plain`."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    bits = aten.view.dtype.redispatch(keys, plain, like.dtype) if like.dtype != torch.uint8 else plain
    return aten.as_strided.default.redispatch(keys, bits, like.shape, like.stride(), 0)


def on_host(tensor: torch.Tensor) -> torch.Tensor:
    """Return a CPU tensor on the memory of a device's tensor."""
    block = machine().block_of(tensor)
    assert block is not None and block.buffer is not None, "a tensor of a machine that is gone"
    with torch._C._DisableTorchDispatch():
        storage = block.buffer.untyped_storage()
        return torch.empty(0, dtype=tensor.dtype).set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


@contextmanager
def below_autograd() -> Iterator[None]:
    with torch._C._DisableTorchDispatch(), torch._C._AutoDispatchBelowADInplaceOrView():
        yield


# Operations.


@dataclass(frozen=True)
class Signature:
    """What an operation does with its arguments.

    Attributes:
        written: positions and names of arguments that it writes into.
        is_view: whether its result lies in the memory of an argument.
        tensors: whether all its results are tensors.
    """

    written: frozenset[int | str]
    is_view: bool
    tensors: bool


_signatures: dict[Any, Signature] = {}


def signature(operation: Any) -> Signature:
    if operation not in _signatures:
        schema, written = operation._schema, set()
        for position, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written |= {argument.name} if argument.kwarg_only else {position, argument.name}
        views = any(each.alias_info is not None and not each.alias_info.is_write for each in schema.returns)
        tensors = all(str(each.type) in ("Tensor", "List[Tensor]") for each in schema.returns)
        _signatures[operation] = Signature(frozenset(written), views, tensors)
    return _signatures[operation]


def mapped(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """Return an argument with its tensors changed, and with no device in place of a device."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(mapped(each, change) for each in value)
    return torch.device("cpu") if isinstance(value, torch.device) else value


def compute(operation: Any, *arguments: Any, **named: Any) -> Any:
    """Queue an operation on the current stream: the fallback of the backend."""
    here, how = machine(), signature(operation)
    found: list[tuple[torch.Tensor, bool]] = []
    for place, value in [*enumerate(arguments), *named.items()]:
        mapped(value, lambda tensor, written=place in how.written: found.append((tensor, written)))  # type: ignore[misc]
    devices = {tensor.device for tensor, _ in found if tensor.device.type == KIND}
    strays = [tensor for tensor, _ in found if tensor.device.type != KIND and tensor.dim()]
    if strays or len(devices) > 1:
        places = ", ".join(sorted({str(tensor.device) for tensor, _ in found}))
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {places}! ({operation})"
        )
    if how.is_view:
        return operation.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *arguments, **named)
    (device,) = devices
    if any(written and not tensor.numel() for tensor, written in found):
        _grow(operation, arguments, named)
    queue = here.queue(device)
    here.operations += 1
    here.timeline.begin(queue)
    for tensor, written in found:
        here.access(tensor, queue, written, str(operation))
    inputs = (
        [mapped(value, _snapshot) for value in arguments],
        {name: mapped(value, _snapshot) for name, value in named.items()},
    )
    if not how.tensors:
        here.timeline.wait(queue.mark())
        with below_autograd():
            return operation(*inputs[0], **inputs[1])
    if how.written:
        queue.put(lambda: _run(operation, inputs, []), here.operation)
        results = [tensor for tensor, written in found if written]
        return results[0] if len(results) == 1 else tuple(results)
    try:
        likes = shapes(operation, arguments, named)
    except NotImplementedError:
        # The shape is in the numbers: the host waits for them.
        here.timeline.wait(queue.mark())
        with below_autograd():
            likes = operation(*inputs[0], **inputs[1])
    listed = [likes] if isinstance(likes, torch.Tensor) else list(likes)
    made = [new_tensor(list(like.shape), list(like.stride()), like.dtype, device) for like in listed]
    for tensor in made:
        here.access(tensor, queue, True, str(operation))
    targets = [on_host(tensor) for tensor in made]
    queue.put(lambda: _run(operation, inputs, targets), here.operation)
    return made[0] if isinstance(likes, torch.Tensor) else type(likes)(made)


_shapes: dict[str, Any] = {}


def shapes(operation: Any, arguments: Any, named: Any) -> Any:
    """Return an operation's results as tensors without memory."""
    key = repr((operation, mapped([arguments, list(named.items())], _description)))
    if key not in _shapes:
        with below_autograd():
            _shapes[key] = operation(
                *[mapped(value, _as_meta) for value in arguments],
                **{name: _meta_device(value) for name, value in named.items()},
            )
    return _shapes[key]


def _description(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype


def _grow(operation: Any, arguments: Any, named: Any) -> None:
    """Give results that the caller left empty the shape that the operation makes."""
    empty = {name: value for name, value in named.items() if isinstance(value, torch.Tensor) and not value.numel()}
    likes = {name: _as_meta(value) for name, value in empty.items()}
    with below_autograd():
        operation(
            *[mapped(value, _as_meta) for value in arguments],
            **{name: likes.get(name, _meta_device(value)) for name, value in named.items()},
        )
    for name, tensor in empty.items():
        if likes[name].numel():
            made = new_tensor(list(likes[name].shape), list(likes[name].stride()), tensor.dtype, tensor.device)
            keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
            storage = made.untyped_storage()
            aten.set_.source_Storage_storage_offset.redispatch(keys, tensor, storage, 0, made.shape, made.stride())


def _snapshot(tensor: torch.Tensor) -> torch.Tensor:
    """Return what an operation reads: the device's memory when it runs, or a number of the host as it is now."""
    return on_host(tensor) if tensor.device.type == KIND else tensor.clone()


def _as_meta(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.dim() and tensor.device.type != KIND:
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _meta_device(value: Any) -> Any:
    return torch.device("meta") if isinstance(value, torch.device) else mapped(value, _as_meta)


def _run(operation: Any, inputs: tuple[list[Any], dict[str, Any]], targets: list[torch.Tensor]) -> None:
    with below_autograd():
        results = operation(*inputs[0], **inputs[1])
        listed = [results] if isinstance(results, torch.Tensor) else results
        for target, result in zip(targets, listed, strict=False):
            target.copy_(result)


def copy(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """Copy as `Tensor.copy_` does, between the host and a device, within one or between two."""
    here = machine()
    ours = [tensor for tensor in (source, target) if tensor.device.type == KIND]
    queue = here.queue(ours[0].device)
    if len(ours) == 2 and source.device != target.device:
        # On the stream of the source, between what came before and what comes after on both.
        queue.wait(here.queue(target.device).mark())
    here.timeline.begin(queue)
    what = f"a copy from {source.device} to {target.device}"
    given = on_host(source) if source.device.type == KIND else source
    into = on_host(target) if target.device.type == KIND else target
    here.access(source, queue, False, what)
    here.access(target, queue, True, what)
    # The device reaches no other memory of the host by itself: such a copy takes a detour, and is done when the call
    # returns.
    locked = all(tensor.device.type == KIND or here.block_of(tensor) is not None for tensor in (source, target))
    seconds = here.operation
    if len(ours) == 1:
        seconds = target.numel() * target.element_size() / here.link * (1 if locked else 2)
    queue.put(lambda: _run(aten.copy_.default, ([into, given], {}), []), seconds)
    if len(ours) == 2 and source.device != target.device:
        here.queue(target.device).wait(queue.mark())
    if len(ours) == 1 and not (non_blocking and locked):
        here.timeline.wait(queue.mark())
    return target


def item(tensor: torch.Tensor) -> Any:
    """Return the number in a tensor when everything that was queued before is done."""
    here = machine()
    queue = here.queue(tensor.device)
    here.timeline.begin(queue)
    here.access(tensor, queue, False, "reading a number")
    here.timeline.wait(queue.mark())
    with below_autograd():
        return aten._local_scalar_dense(on_host(tensor))


def empty(
    size: list[int], *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None,
    memory_format: Any = None,
) -> torch.Tensor:  # fmt: skip
    dtype = dtype or torch.get_default_dtype()
    like = torch.empty(size, dtype=dtype, device="meta", memory_format=memory_format or torch.contiguous_format)
    return new_tensor(list(like.shape), list(like.stride()), dtype, device)


def empty_strided(
    size: list[int], stride: list[int], *, dtype: Any = None, layout: Any = None, device: Any = None,
    pin_memory: Any = None,
) -> torch.Tensor:  # fmt: skip
    return new_tensor(size, stride, dtype or torch.get_default_dtype(), device)


def record_stream(tensor: torch.Tensor, stream: torch.Stream) -> None:
    block = machine().block_of(tensor)
    if block is not None:
        block.users.append(machine().timeline.queues[stream.stream_id])


class HostMemory(TorchDispatchMode):
    """Makes page-locked memory, and sees what the host does with it while copies are queued."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named, here = kwargs or {}, machine()
        if named.get("pin_memory"):
            return pinned(func(*args, **{**named, "pin_memory": False}))
        if func is aten._to_copy.default and args[0].device.type == KIND and named.get("non_blocking"):
            # torch has such a copy arrive in page-locked memory.
            like = torch.empty_like(args[0], device="cpu", dtype=named.get("dtype"))
            return (pinned(like) if named.get("device") == torch.device("cpu") else like).copy_(args[0], True)
        how, found = signature(func), []
        for place, value in [*enumerate(args), *named.items()] if here.pinned and not how.is_view else ():
            written = place in how.written
            mapped(value, lambda tensor, written=written: found.append((tensor, written)))  # type: ignore[misc]
        if all(tensor.device.type != KIND for tensor, _ in found):
            for tensor, written in found:
                here.access(tensor, None, written, str(func))
                if written and here.block_of(tensor) is not None:
                    here.timeline.seconds += tensor.numel() * tensor.element_size() / here.filling
        return func(*args, **named)


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    """Return memory of the host that the device may read and write while the host goes on."""
    here, storage = machine(), tensor.untyped_storage()
    here.blocks[storage.data_ptr()] = Block("page-locked host memory", [], storage.nbytes())
    here.pinned += storage.nbytes()
    weakref.finalize(storage, here.free, storage.data_ptr())
    return tensor


# The module `torch.pretend`, which is to the device what torch.cuda is to a CUDA card.


class Stream(torch.Stream):
    """A queue of a device."""

    def __new__(cls, device: Any = None, priority: int = 0, queue: Queue | None = None) -> Stream:
        index = index_of(device)
        if queue is None:
            queue = machine().timeline.queue(f"a side stream of device {index}")
        kind = torch._C._autograd.DeviceType.PrivateUse1.value
        made = super().__new__(cls, stream_id=queue.number, device_index=index, device_type=kind)
        made.queue = queue
        return made

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    queue: Queue

    def wait_stream(self, stream: Stream) -> None:
        self.queue.wait(stream.queue.mark())

    def wait_event(self, event: Event) -> None:
        self.queue.wait(event.marker)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        machine().timeline.wait(self.queue.mark())

    def query(self) -> bool:
        return self.queue.mark().passed


class Event:
    """A point in a stream that others can wait for."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        self.marker: Marker | None = None
        self.enable_timing = enable_timing

    def record(self, stream: Stream | None = None) -> None:
        self.marker = (stream or current_stream()).queue.mark()

    def wait(self, stream: Stream | None = None) -> None:
        (stream or current_stream()).wait_event(self)

    def query(self) -> bool:
        if self.marker is not None and self.marker.passed:
            machine().timeline.wait(self.marker)
        return self.marker is None or self.marker.passed

    def synchronize(self) -> None:
        machine().timeline.wait(self.marker)

    def elapsed_time(self, end: Event) -> float:
        if not (self.enable_timing and end.enable_timing):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        if self.marker is None or end.marker is None or not (self.query() and end.query()):
            raise RuntimeError("Both events must be recorded and done before their times can be compared.")
        return (end.marker.seconds - self.marker.seconds) * 1000


def index_of(device: Any) -> int:
    return torch.device(device).index or 0 if device is not None and not isinstance(device, int) else device or 0


def device_of(device: Any) -> Device:
    return machine().devices[index_of(device)]


def current_stream(device: Any = None) -> Stream:
    return Stream(device, queue=device_of(device).current)


@contextmanager
def stream(stream: Stream) -> Iterator[None]:
    device = machine().devices[stream.device_index]
    before, device.current = device.current, stream.queue
    try:
        yield
    finally:
        device.current = before


def sleep(seconds: float, device: Any = None) -> None:
    """Have the current stream do nothing for so long, as torch.cuda._sleep does."""
    device_of(device).current.put(lambda: None, seconds)


@dataclass(frozen=True)
class Properties:
    """What `get_device_properties` tells."""

    name: str
    total_memory: int


def set_limit(share: float, device: Any = None) -> None:
    one = device_of(device)
    one.limit = int(share * one.total)


def memory_info(device: Any = None) -> tuple[int, int]:
    one = device_of(device)
    return max(0, one.total - one.others - one.allocated - one.cached), one.total


def empty_cache() -> None:
    """Give what is cached back to the devices when their work is done."""
    synchronize()
    for one in machine().devices:
        one.cached = 0


def reset_peak(device: Any = None) -> None:
    device_of(device).peak = device_of(device).allocated


def module() -> types.ModuleType:
    """Return the module that torch finds under the device's name."""
    made = types.ModuleType(f"torch.{KIND}")
    entries: dict[str, Any] = {
        "is_available": lambda: _machine is not None,
        "is_initialized": lambda: True,
        "_is_in_bad_fork": lambda: False,
        "device_count": lambda: 0 if _machine is None else len(_machine.devices),
        "current_device": lambda: 0,
        "manual_seed_all": lambda seed: None,
        "Stream": Stream,
        "Event": Event,
        "stream": stream,
        "current_stream": current_stream,
        "synchronize": synchronize,
        "_sleep": sleep,
        "mem_get_info": memory_info,
        "memory_allocated": lambda device=None: device_of(device).allocated,
        "memory_reserved": lambda device=None: device_of(device).allocated + device_of(device).cached,
        "max_memory_allocated": lambda device=None: device_of(device).peak,
        "reset_peak_memory_stats": reset_peak,
        "empty_cache": empty_cache,
        "get_device_properties": lambda device=None: Properties("Pretend", device_of(device).total),
        "get_per_process_memory_fraction": lambda device=None: device_of(device).limit / device_of(device).total,
        "set_per_process_memory_fraction": set_limit,
    }
    for name, entry in entries.items():
        setattr(made, name, entry)
    return made


# Operations whose kernels the CPU has, and that torch would take apart for a backend that it does not know.
WHOLE = ("convolution", "scaled_dot_product_attention", "native_layer_norm", "native_group_norm", "linear")


def register() -> None:
    """Tell torch of the device, for the life of the process."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(KIND, backend_module=module())
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(compute, "PrivateUse1")
    own = torch.library.Library("aten", "IMPL", "PrivateUse1")
    for name, function in {
        "empty.memory_format": empty,
        "empty_strided": empty_strided,
        "copy_": copy,
        "_local_scalar_dense": item,
        "record_stream": record_stream,
    }.items():
        own.impl(name, function)
    for name in WHOLE:
        packet, _, overload = name.partition(".")
        own.impl(name, functools.partial(compute, getattr(getattr(aten, packet), overload or "default")))
    _registered.extend([everything, own])


_registered: list[torch.library.Library] = []  # they undo themselves when nothing holds them
