"""Models that lie in single files, as ComfyUI's users have them, and the parts that run beside them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..errors import PiyingError
from ..host import Host
from .inspect import GB, Inspected, inspect

ENDINGS = (".safetensors", ".sft", ".gguf")
# PyTorch's own files are looked at for parts alone: their headers cannot be read without torch.
PART_ENDINGS = (*ENDINGS, ".pth", ".pt")
TRANSFORMER_FOLDERS = ("diffusion_models", "unet", "checkpoints", "")
PROMPT_FOLDERS = ("LLM", "text_encoders", "")
SEARCH_DEPTH = 3
MODULE, BASE = "Wan2.1 VACE module", "Wan2.1 text-to-video transformer"
WHOLE = "Wan2.1-VACE transformer"
TEXT_ENCODER, VAE = "UMT5 text encoder", "Wan2.1 VAE"


@dataclass(frozen=True)
class SingleFile:
    """One file of weights: the name shown for it, where it is, and what it is."""

    name: str
    path: Path
    found: Inspected

    @property
    def title(self) -> str:
        """What it is, where it is one known component; else ""."""
        return self.found.parts[0].title if len(self.found.parts) == 1 else ""

    @property
    def details(self) -> str:
        """Return family, parameters, format and size: "Wan2.1-VACE transformer, 17.3B, fp8 scaled, 17.4 GB"."""
        parameters = sum(part.parameters for part in self.found.parts) / GB
        what = self.title or self.found.what.removeprefix("a ")
        return f"{what}, {parameters:.1f}B, {self.found.precision}, {self.found.bytes / GB:.1f} GB"


def single_files(host: Host, wanted: Callable[[str], bool], endings: tuple[str, ...] = ENDINGS) -> list[SingleFile]:
    """Return the files of weights in the folders whose category is wanted; damaged ones are left out.

    Headers are read once and kept until a file changes.
    """
    found: dict[Path, SingleFile] = {}
    for category, root in host.model_folders():
        if not wanted(category):
            continue
        for path in _files(root, endings, SEARCH_DEPTH):
            inspected = _inspected(path)
            if inspected is not None and path.resolve() not in found:
                relative = path.relative_to(root).as_posix()
                found[path.resolve()] = SingleFile(f"{category}/{relative}" if category else relative, path, inspected)
    return list(found.values())


def _files(folder: Path, endings: tuple[str, ...], depth: int) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return  # a folder that is not there, or not ours to read, holds no models for us
    if any(entry.name in ("model_index.json", "config.json") for entry in entries):
        return  # the files of a folder that is a model are no models of their own
    for entry in entries:
        if entry.is_dir() and depth and not entry.name.startswith("."):
            yield from _files(Path(entry.path), endings, depth - 1)
        elif entry.name.lower().endswith(endings) and entry.is_file():
            yield Path(entry.path)


def _inspected(path: Path) -> Inspected | None:
    try:
        status = path.stat()
        return _kept(path, status.st_size, status.st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=1024)
def _kept(path: Path, size: int, changed: int) -> Inspected | None:
    del size, changed  # they tell one state of the file from another
    try:
        return inspect(path)
    except PiyingError:
        return None


def wan_files(host: Host) -> dict[str, tuple[SingleFile, ...]]:
    """Return the Wan2.1-VACE transformers in single files: {name: the files it is made of}.

    A VACE module is offered where a text-to-video model of its width is there to go with it.
    """
    files = [one for one in single_files(host, TRANSFORMER_FOLDERS.__contains__) if one.found.readable]
    bases = [one for one in files if one.title == BASE]
    offered: dict[str, tuple[SingleFile, ...]] = {one.name: (one,) for one in files if one.title == WHOLE}
    for module in (one for one in files if one.title == MODULE):
        base = next((one for one in bases if _width(one) == _width(module)), None)
        if base is not None:
            offered[module.name] = (base, module)
    return offered


def _width(one: SingleFile) -> int:
    return one.found.parts[0].width


def wan_companions(host: Host) -> dict[str, Path]:
    """Return the files of the UMT5 text encoder, with its tokenizer inside it, and of the VAE that are here."""
    found: dict[str, Path] = {}
    for one in single_files(host, lambda category: category not in ("diffusers", "LLM", "loras"), PART_ENDINGS):
        if one.title == TEXT_ENCODER and one.found.readable and not one.found.needs:
            found.setdefault("text_encoder", one.path)
            found.setdefault("tokenizer", one.path)
        if one.title == VAE and one.found.readable:
            found.setdefault("vae", one.path)
    return found


def what_is(name: str, host: Host) -> str | None:
    """Return what the single file of that name is, or None where there is no such file."""
    for category, root in host.model_folders():
        relative = name.removeprefix(f"{category}/") if category else name
        path = root / relative
        if ".." in relative or not path.is_file():
            continue
        try:
            found = inspect(path)
        except PiyingError as error:
            return str(error)
        return found.reason or f"this is {found.what}"
    return None
