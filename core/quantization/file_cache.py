"""Cast files: weights cast to a format, cached beside the file they were cast from, where the user asks for it.

Casting reads every weight of the original each time; the cast file is mapped, as any file of weights is, and
FP8 takes about half the room of one in 16 bits. Off unless PIYING_KEEP_FP8 is 1, and so on for other formats.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import nn

from ..disk_cache import DiskCache
from ..errors import PiyingError
from ..executor.placement import module_bytes
from ..files.dtypes import safetensors_names
from ..files.folder import component_files, component_folder
from ..files.open import read_header
from ..files.safetensors_file import written_header
from .base import WeightFormat
from .registry import FORMATS

log = logging.getLogger("piying")


FORMAT = 2
SPARE_DISK = 2 << 30  # bytes that stay free


def setting(storage: str) -> str:
    """Return the environment variable that asks for cast files of a format."""
    return f"PIYING_KEEP_{storage.upper()}"


def ending(storage: str) -> str:
    """Return the suffix of a format's cast files: none of a file of weights, so lists of models leave them out."""
    return f".{storage}cast"


def is_wanted(storage: str) -> bool:
    """Return whether the user has asked that cast files of a format are cached."""
    return storage in FORMATS and FORMATS[storage].can_cast and os.environ.get(setting(storage), "") == "1"


class CastFile:
    """The cast weights of one component of a model."""

    def __init__(self, part: str, places: Sequence[Path], *, storage: str, identity: str, compute: str) -> None:
        """Name the file, which need not be there.

        Args:
            part: such as "transformer".
            storage: the name of the format.
            places: the files or the folder that hold the part.
            identity: changes with all that decides the cast weights: the original's sizes and times, what is cast.
            compute: the type of all that is not cast.
        """
        self._part, self._places, self._format = part, places, FORMATS[storage]
        self._folder = places[0] if places[0].is_dir() else places[0].parent
        self._stem = f"{places[0].name}.{part}.{compute}."
        self._name = self._stem + hashlib.sha256(f"{FORMAT} {identity}".encode()).hexdigest()[:16]
        self._cache = DiskCache(self._folder, ending(storage))

    def load(self, read: Callable[[Path | None], nn.Module]) -> nn.Module:
        """Return the module: from the cast file, or cast again and then cached where there is room.

        Args:
            read: gives it from a cast file, or from the original for None.
        """
        path = self._cache.path(self._name)
        was_there = path.is_file()
        if self._cache.find(self._name):
            try:
                return read(path)
            except PiyingError as error:  # written by another version
                log.warning("%s The weights are cast again.", error)
                self._cache.delete(self._name)
        elif was_there:
            log.warning("%s: its checksum is wrong. The weights are cast again.", path)
        module = read(None)
        if not self._is_cast_already():
            self._write(module)
        return module

    def _is_cast_already(self) -> bool:
        """Return whether the original has weights in the format, so that nothing needs to be cast."""
        files: list[Path] = []
        for place in self._places:
            files += component_files(component_folder(place, self._part)) if place.is_dir() else [place]
        for file in files:
            types = {name: entry.dtype for name, entry in read_header(file).entries.items()}
            if any(self._format.recognises(name, types) for name in types):
                return True
        return False

    def _write(self, module: nn.Module) -> None:
        """Write the file whole or not at all; what cannot be written costs the next run the time of casting."""
        path = self._cache.path(self._name)
        try:
            if shutil.disk_usage(self._folder).free < module_bytes(module) + SPARE_DISK:
                part, title = self._part.replace("_", " "), self._format.title
                log.info("There is no room on the disk to keep %s cast to %s.", part, title)
                return
            with self._cache.writing(self._name) as unfinished:
                with unfinished.open("wb") as file:
                    write_safetensors(file, dict(_file_tensors(module, self._format)))
                for old in self._folder.glob(f"{self._stem}*{self._cache.suffix}"):
                    old.unlink()  # of the original as it was before
            log.info("Kept cast to %s for the next time: %s", self._format.title, path)
        except OSError as error:
            log.info("%s cannot be written (%s): the weights are cast again next time.", path, error)


def _file_tensors(module: nn.Module, stored: WeightFormat) -> Iterable[tuple[str, torch.Tensor]]:
    """Yield the tensors of a module under the names that files have for them; tied ones once."""
    seen: set[int] = set()
    kind = stored.layer_class()
    layers = {f"{name}." for name, layer in module.named_modules() if isinstance(layer, kind)}
    for name, tensor in module.state_dict().items():
        owner, own = name[: name.rfind(".") + 1], name.rpartition(".")[2]
        if owner in layers:
            own = stored.file_names.get(own, own)
        if not tensor.numel() or tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            yield owner + own, tensor


def write_safetensors(file: BinaryIO, tensors: dict[str, torch.Tensor]) -> None:
    """Write a safetensors file, a tensor at a time: the library's own writer holds a second copy of them all."""
    first, entries = written_header(
        {name: (safetensors_names()[tensor.dtype], tensor.shape) for name, tensor in tensors.items()}, {}
    )
    file.write(first)
    for name in entries:  # in the order in which they lie there
        if tensors[name].numel():
            file.write(tensors[name].detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
