"""PyTorch files (.pth, .pt, .ckpt, .bin): headers and tensors, read without torch's unpickler.

The pickle in such a file is a program. It is not run: the few operations that `torch.save` writes for a table of
tensors are interpreted, names of functions and classes stay names, and everything else is refused. The format:
torch/serialization.py and torch/_utils.py.
"""

from __future__ import annotations

import errno
import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import PiyingError, clipped
from .dtypes import NUMBER_TYPES, torch_dtype
from .safetensors_file import (
    MAX_DIMENSIONS,
    MAX_HEADER_BYTES,
    FileHeader,
    MappedFile,
    TensorEntry,
    damaged,
    open_regular,
)
from .stored_tensor import StoredTensor

if TYPE_CHECKING:
    import torch

# Under which training scripts put the weights.
WRAPPERS = ("ema", "module", "model_state_dict", "state_dict", "params_ema", "params-ema", "params", "model", "net")
MAX_OPERATIONS = 1 << 18  # of the pickle; a tensor takes about 30 of them
LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip member: signature, lengths of name and extra field

STORAGES = {
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "DoubleStorage": "F64",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "UntypedStorage": "U8",
}
CONSTANTS = frozenset(
    {
        *("INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    }
)
MORE = "it holds more than tensors, and what else it holds is not run here"
VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, type] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Global(NamedTuple):
    """A function or class that the pickle names; it is never imported."""

    module: str
    name: str


class _Storage(NamedTuple):
    """The bytes of one or several tensors: the member of the archive that holds them, and what they are."""

    key: str
    dtype: str


class _Tensor(NamedTuple):
    """A tensor as the pickle describes it; offset and strides count elements of `dtype`."""

    storage: _Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Refused(Exception):
    """The pickle is damaged, or does what a table of tensors needs not."""


class _Pickle:
    """Interprets a pickle: a stack of values, marks in it, and values remembered by number."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks below each mark
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """Return the value that the pickle describes.

        Raises:
            _Refused: see there.
        """
        try:
            for number, (operation, argument, _) in enumerate(pickletools.genops(data)):
                if operation.name == "STOP":
                    return self._stack.pop()
                if number > MAX_OPERATIONS:
                    raise _Refused("its table is longer than that of any model")
                self._step(operation.name, argument)
        except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
            raise _Refused(f"its table cannot be read ({clipped(str(error), 60)})") from error
        raise _Refused("its table has no end")

    def _step(self, name: str, argument: Any) -> None:
        if name in CONSTANTS:
            self._stack.append(argument)
        elif name in VALUES:
            self._stack.append(VALUES[name])
        elif name in EMPTY:
            self._stack.append(EMPTY[name]())
        elif name in TUPLES:
            self._stack[-TUPLES[name] :] = [tuple(self._stack[-TUPLES[name] :])]
        elif name in ("MARK", "TUPLE", "LIST", "DICT", "APPEND", "APPENDS", "SETITEM", "SETITEMS"):
            self._collect(name)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            self._memo[len(self._memo) if name == "MEMOIZE" else argument] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self._stack.append(self._memo[argument])
        elif name not in ("PROTO", "FRAME"):
            self._build(name, argument)

    def _collect(self, name: str) -> None:
        """Put values into a list, a tuple or a table."""
        if name == "MARK":
            self._below.append(self._stack)
            self._stack = []
        elif name == "APPEND":
            value = self._stack.pop()
            _add(self._stack[-1], [value])
        elif name == "SETITEM":
            value, key = self._stack.pop(), self._stack.pop()
            _add(self._stack[-1], [key, value])
        else:
            items, self._stack = self._stack, self._below.pop()
            if name in ("APPENDS", "SETITEMS"):
                _add(self._stack[-1], items)
            elif name == "DICT":
                self._stack.append(_set({}, zip(items[::2], items[1::2], strict=True)))
            else:
                self._stack.append(tuple(items) if name == "TUPLE" else items)

    def _build(self, name: str, argument: Any) -> None:
        """Make storages and tensors of what the pickle names and calls."""
        stack = self._stack
        if name == "GLOBAL":
            stack.append(_Global(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            own, module = stack.pop(), stack.pop()
            stack.append(_Global(str(module), str(own)))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_called(function, arguments))
        elif name == "BUILD" and isinstance(stack[-2], dict):
            stack.pop()  # attributes of a table of tensors: versions of modules
        else:
            raise _Refused(MORE)


def _set(table: dict[Any, Any], pairs: Any) -> dict[Any, Any]:
    for key, value in pairs:
        # Hashing a tuple of tuples may take for ever.
        if not isinstance(key, (str, int, bytes)):
            raise _Refused("its table has keys that are no names")
        table[key] = value
    return table


def _add(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif isinstance(target, dict):
        _set(target, zip(items[::2], items[1::2], strict=True))
    else:
        raise _Refused("its table cannot be read")


def _storage(described: Any) -> _Storage:
    kind, storage, key, *_ = described
    dtype = STORAGES.get(storage.name) if isinstance(storage, _Global) and storage.module == "torch" else None
    if isinstance(storage, _Global) and storage == ("torch.storage", "UntypedStorage"):
        dtype = "U8"
    if kind != "storage" or not isinstance(key, str):
        raise _Refused("its table cannot be read")
    if dtype is None:
        raise _Refused(f"it has tensors of {getattr(storage, 'name', 'an unknown kind')[:40]}, which is not read here")
    return _Storage(key, dtype)


def _called(function: Any, arguments: Any) -> Any:
    """Return what a call means, for the functions that rebuild tables of tensors; no other is called."""
    if function == ("collections", "OrderedDict"):
        return _set({}, arguments[0]) if arguments else {}
    if function == ("torch", "Size"):
        return tuple(arguments[0])
    if function in (("torch._utils", "_rebuild_parameter"), ("torch._utils", "_rebuild_parameter_with_state")):
        return arguments[0]
    if function == ("torch._utils", "_rebuild_tensor_v2"):
        return _tensor(arguments, None)
    if function == ("torch._utils", "_rebuild_tensor_v3"):
        return _tensor(arguments, arguments[6])
    named = ".".join(function)[:60] if isinstance(function, _Global) else "an object"
    raise _Refused(f"{MORE} ({named})")


def _tensor(arguments: Any, dtype: Any) -> _Tensor:
    """Return the tensor that a call describes; without a type it has that of its storage."""
    storage, offset, shape, strides = arguments[:4]
    sizes = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or len(shape) != len(strides) or not all(map(is_size, sizes)):
        raise _Refused("its table cannot be read")
    name = storage.dtype
    if dtype is not None:
        known = {one.torch_name: one.name for one in NUMBER_TYPES.values() if one.torch_name}
        if not isinstance(dtype, _Global) or dtype.name not in known:
            raise _Refused(f"it has tensors of {clipped(str(dtype), 60)}, which is not read here")
        name = known[dtype.name]
    return _Tensor(storage, name, offset, tuple(shape), tuple(strides))


def is_size(value: object) -> bool:
    """Return whether a value from a file is a number of elements or bytes that a tensor may have."""
    return type(value) is int and 0 <= value < 1 << 62


class _Archive:
    """The members of a PyTorch file: places in it, since nothing is compressed.

    Raises:
        PiyingError: it is no archive as PyTorch writes it.
    """

    def __init__(self, path: Path) -> None:
        self._path, self.size = path, path.stat().st_size
        try:
            with open_regular(path) as file, zipfile.ZipFile(_Limited(file.raw)) as archive:
                members = archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, struct.error) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOMEM:
                raise
            raise damaged(path, "it is no PyTorch file of version 1.6 or later") from error
        self._members = {member.filename: member for member in members}
        plain = all(member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1 for member in members)
        tables = [name for name in self._members if name.endswith("/data.pkl")]
        if not plain or len(self._members) != len(members) or len(tables) != 1:
            raise damaged(path, "its archive is not as PyTorch writes it")
        self._folder = tables[0].removesuffix("data.pkl")

    def place(self, name: str) -> tuple[int, int]:
        """Return where a member begins and ends in the file."""
        member = self._members.get(self._folder + name)
        if member is None:
            raise damaged(self._path, f"it has no member {clipped(name, 60)!r}")
        if not 0 <= member.header_offset < self.size:
            raise damaged(self._path, f"its member {clipped(name, 60)!r} lies outside of it")
        with open_regular(self._path) as file:
            file.seek(member.header_offset)
            head = file.read(LOCAL_HEADER.size)
        if len(head) < LOCAL_HEADER.size or not head.startswith(b"PK\x03\x04"):
            raise damaged(self._path, "its archive is not as PyTorch writes it")
        _, name_length, extra_length = LOCAL_HEADER.unpack(head)
        start = member.header_offset + LOCAL_HEADER.size + name_length + extra_length
        if start + member.file_size > self.size:
            raise damaged(self._path, f"its member {clipped(name, 60)!r} goes on past the end of the file")
        return start, start + member.file_size

    def read(self, name: str, otherwise: bytes | None = None) -> bytes:
        """Return a short member, or `otherwise` where there is none."""
        if otherwise is not None and self._folder + name not in self._members:
            return otherwise
        start, end = self.place(name)
        if end - start > MAX_HEADER_BYTES:
            raise damaged(self._path, f"its table of tensors claims {end - start} bytes")
        with open_regular(self._path) as file:
            file.seek(start)
            return file.read(end - start)


class _Limited(io.BufferedReader):
    """A file of which no more than a header is read at once: a list of members may claim the whole file."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Return so many bytes, or fewer."""
        return super().read(MAX_HEADER_BYTES if size is None or not 0 <= size <= MAX_HEADER_BYTES else size)


class _Place(NamedTuple):
    """Where a tensor's storage lies in the file, and which of its elements it has."""

    storage: TensorEntry
    tensor: _Tensor


@dataclass(frozen=True)
class PthHeader(FileHeader):
    """The header of a PyTorch file, with the place of each tensor in it: `entries` cannot say where strides lead."""

    places: Mapping[str, _Place] = field(default_factory=dict)


def read_pth_header(path: Path) -> PthHeader:
    """Return the header of a PyTorch file; neither torch nor anything the file names is imported.

    Raises:
        PiyingError: it is damaged, of the format before PyTorch 1.6, or holds anything but tensors.
    """
    archive = _Archive(path)
    if archive.read("byteorder", b"little") != b"little":
        raise PiyingError(f"{path}: was written on a machine of another byte order. Choose a safetensors file.")
    try:
        loaded = _Pickle().run(archive.read("data.pkl"))
    except _Refused as error:
        raise PiyingError(f"{path}: {error}. Choose a safetensors file.") from error
    for wrapper in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping):
        raise PiyingError(f"{path}: holds no table of tensors. Choose another file.")
    storages: dict[str, tuple[int, int]] = {}
    entries, places = {}, {}
    for name, tensor in loaded.items():
        if not isinstance(tensor, _Tensor):
            continue
        if not isinstance(name, str):
            raise PiyingError(f"{path}: the name of a tensor is {clipped(str(name), 40)!r}. Choose another file.")
        start, end = storages.get(tensor.storage.key) or archive.place(f"data/{tensor.storage.key}")
        storages[tensor.storage.key] = start, end
        entries[name] = _entry(path, name, tensor, (start, end))
        size = NUMBER_TYPES[tensor.dtype].bytes
        whole = TensorEntry(tensor.dtype, ((end - start) // size,), start, start + (end - start) // size * size)
        places[name] = _Place(whole, tensor)
    return PthHeader(path, "pth", entries, places=places)


def _entry(path: Path, name: str, tensor: _Tensor, place: tuple[int, int]) -> TensorEntry:
    """Return a tensor's entry, checked against the bytes of its storage."""
    start, end = place
    if len(tensor.shape) > MAX_DIMENSIONS:
        raise damaged(path, f"tensor {clipped(name)!r} has {len(tensor.shape)} dimensions")
    size = NUMBER_TYPES[tensor.dtype].bytes
    count = math.prod(tensor.shape)
    steps = sum((side - 1) * stride for side, stride in zip(tensor.shape, tensor.strides, strict=True))
    last = tensor.offset + (steps if count else -1)
    # A view that repeats its storage would grow beyond the file as soon as it is converted.
    if count * size > end - start or (last + 1) * size > end - start:
        raise damaged(path, f"tensor {clipped(name)!r} is larger than its bytes")
    first = start + tensor.offset * size
    return TensorEntry(tensor.dtype, tensor.shape, first, first + count * size)


class PthTensor(StoredTensor):
    """One tensor of a mapped PyTorch file."""

    def __init__(self, file: MappedFile, place: _Place) -> None:
        self._file, self._place = file, place
        self.shape, self.dtype = place.tensor.shape, torch_dtype(place.tensor.dtype)

    @property
    def is_view(self) -> bool:
        """Whether its storage's place in the file allows that."""
        return self._place.storage.start % self.dtype.itemsize == 0

    def read(self) -> torch.Tensor:
        """Return a view of the file."""
        _, _, offset, shape, strides = self._place.tensor
        storage = self._file.tensor(self._place.storage)
        if not math.prod(shape):
            return storage[:0].reshape(shape)
        return storage.as_strided(shape, strides, storage.storage_offset() + offset)

    def release(self) -> None:
        """Give the pages of its storage back to the system."""
        self._file.release(self._place.storage)


def pth_tensors(header: PthHeader) -> dict[str, StoredTensor]:
    """Return the tensors of a PyTorch file by name; they are mapped, not read."""
    file = MappedFile(header.path)
    return {name: PthTensor(file, place) for name, place in header.places.items()}
