"""Weights cast to FP8, kept beside the file they were cast from: off unless PIYING_KEEP_FP8 is 1.

Casting reads every weight of the original each time; the cast file is mapped, as any file of weights is, and takes
about half the room of one in 16 bits.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import torch
from torch import nn

from ..errors import PiyingError
from ..executor.placement import module_bytes
from ..files.dtypes import safetensors_names
from ..files.folder import component_files, component_folder
from ..files.open import read_header
from .fp8 import Fp8Linear

log = logging.getLogger("piying")


SETTING = "PIYING_KEEP_FP8"
ENDING = ".fp8cast"  # none of a file of weights: lists of models leave it out
UNFINISHED = ".writing"  # not `.part`, which marks a model that is being fetched
FORMAT = 1
SPARE_DISK = 2 << 30  # bytes that stay free
ALIGNMENT = 8  # of the header of a safetensors file


def is_wanted() -> bool:
    """Return whether the user has asked that cast files are kept."""
    return os.environ.get(SETTING, "") == "1"


class CastFile:
    """The cast weights of one part of a model."""

    def __init__(self, part: str, places: Sequence[Path], identity: str, compute: str) -> None:
        """Name the file, which need not be there.

        Args:
            part: such as "transformer".
            places: the files or the folder that hold the part.
            identity: changes with all that decides the cast weights: the original's sizes and times, what is cast.
            compute: the type of all that is not cast.
        """
        self._part, self._places = part, places
        self._folder = places[0] if places[0].is_dir() else places[0].parent
        self._stem = f"{places[0].name}.{part}.{compute}."
        digest = hashlib.sha256(f"{FORMAT} {identity}".encode()).hexdigest()[:16]
        self.path = self._folder / f"{self._stem}{digest}{ENDING}"

    def load(self, read: Callable[[Path | None], nn.Module]) -> nn.Module:
        """Return the module: from the cast file, or cast anew and then kept where there is room.

        Args:
            read: gives it from a cast file, or from the original for None.
        """
        if self.path.is_file():
            try:
                return read(self.path)
            except PiyingError as error:
                log.warning("%s It is made anew.", error)
                self.path.unlink(missing_ok=True)
        module = read(None)
        if not self._is_fp8_already():
            self._keep(module)
        return module

    def _is_fp8_already(self) -> bool:
        """Return whether the original has FP8 weights, of which nothing needs to be cast."""
        files: list[Path] = []
        for place in self._places:
            files += component_files(component_folder(place, self._part)) if place.is_dir() else [place]
        return any(entry.dtype.startswith("F8") for file in files for entry in read_header(file).entries.values())

    def _keep(self, module: nn.Module) -> None:
        """Write the file whole or not at all; what cannot be written costs the next run the time of casting."""
        beside = self.path.with_suffix(f".{os.getpid()}{UNFINISHED}")
        try:
            if shutil.disk_usage(self._folder).free < module_bytes(module) + SPARE_DISK:
                log.info("There is no room on the disk to keep %s cast to FP8.", self._part.replace("_", " "))
                return
            with beside.open("wb") as file:
                _write(file, dict(_stored(module)))
            for old in self._folder.glob(f"{self._stem}*{ENDING}"):
                old.unlink()  # of the original as it was before
            beside.replace(self.path)
            log.info("Kept cast to FP8 for the next time: %s", self.path)
        except OSError as error:
            log.info("%s cannot be written (%s): the weights are cast again next time.", self.path, error)
        finally:
            with suppress(OSError):
                beside.unlink(missing_ok=True)


def _stored(module: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    """Yield the tensors of a module as ComfyUI names scaled FP8 layers; tied ones once."""
    seen: set[int] = set()
    layers = {f"{name}.": layer for name, layer in module.named_modules() if isinstance(layer, Fp8Linear)}
    for name, tensor in module.state_dict().items():
        owner, own = name[: name.rfind(".") + 1], name.rpartition(".")[2]
        if owner in layers:
            own = {"values": "weight", "scale": "weight_scale"}.get(own, own)
        if not tensor.numel() or tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            yield owner + own, tensor


def _write(file: BinaryIO, tensors: dict[str, torch.Tensor]) -> None:
    """Write a safetensors file, a tensor at a time: the library's own writer holds a second copy of them all."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": safetensors_names()[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        if tensor.numel():
            file.write(memoryview(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()))
