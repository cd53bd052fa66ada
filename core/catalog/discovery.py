"""Models that lie in single files, as ComfyUI's users have them, and the parts that run beside them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..checkpoints.inspect import GB, ComponentInfo, FileInfo, inspect
from ..checkpoints.key_mapping import class_shapes
from ..checkpoints.layouts.language_model import PROMPT_MODEL
from ..checkpoints.tokenizers import bert_tokenizer, qwen_tokenizer
from ..errors import PiyingError
from ..host.base import Host
from .installed_model import BUILT_IN_ROOT, InstalledModel

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
    found: FileInfo

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


def _inspected(path: Path) -> FileInfo | None:
    try:
        status = path.stat()
        return _kept(path, status.st_size, status.st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=1024)
def _kept(path: Path, size: int, changed: int) -> FileInfo | None:
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


Places = Mapping[str, tuple[Path, ...]]

BERT_TITLE = "BERT text encoder"
# The folders beside `model/` in what Tencent publishes (t2i/ of Tencent-Hunyuan/HunyuanDiT-v1.2).
TENCENT = {
    "text_encoder": "clip_text_encoder",
    "text_encoder_2": "mt5",
    "tokenizer": "tokenizer",
    "tokenizer_2": "mt5",
    "vae": "sdxl-vae-fp16-fix",
}
PYTORCH = "pytorch_model.bin"
NEEDED = {
    "wan_vace": ("transformer", "text_encoder", "vae"),
    "hunyuan_dit": ("transformer", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae"),
    "prompt": ("prompt_model", "tokenizer"),
}


def in_single_files(family: str, folders: list[InstalledModel], host: Host) -> list[InstalledModel]:
    """Return the family's models in single files.

    Args:
        folders: its models in folders, which lend their parts.
    """
    find = {"wan_vace": _wan, "hunyuan_dit": _hunyuan_dit, "prompt": _prompt}.get(family)
    return [] if find is None else find(folders, host)


def _lent(folders: list[InstalledModel], parts: tuple[str, ...]) -> dict[str, tuple[Path, ...]]:
    """Return for each part the folder of the first model that has it."""
    found: dict[str, tuple[Path, ...]] = {}
    for part in parts:
        here = [folder.path / part for folder in folders if (folder.path / part).is_dir()]
        if here:
            found[part] = (here[0],)
    return found


def _wan(folders: list[InstalledModel], host: Host) -> list[InstalledModel]:
    offered = wan_files(host)
    if not offered:
        return []
    beside = _lent(folders, ("text_encoder", "tokenizer", "vae"))
    if len(beside) < 3:
        beside = {part: (path,) for part, path in wan_companions(host).items()} | beside
    beside["scheduler"] = (BUILT_IN_ROOT / "wan_vace" / "scheduler",)
    return [
        InstalledModel(
            name,
            files[-1].path,
            sum(one.found.bytes for one in files),
            {**beside, "transformer": tuple(one.path for one in files)},
            files[-1].details,
            NEEDED["wan_vace"],
        )
        for name, files in offered.items()
    ]


def _hunyuan_dit(folders: list[InstalledModel], host: Host) -> list[InstalledModel]:
    """Return all-in-one checkpoints of ComfyUI's, Tencent's own files, and transformers alone."""
    files = _hunyuan_files(host)
    if not files:
        return []
    shared: dict[str, tuple[Path, ...]] = {}
    words = bert_tokenizer(host)
    if words is not None:
        shared["tokenizer"] = (words,)
    shared |= _lent(folders, tuple(TENCENT))
    return [_hunyuan_model(one, shared) for one in files]


def _hunyuan_files(host: Host) -> list[SingleFile]:
    """Return the files with a Hunyuan-DiT transformer.

    PyTorch's own, whose headers need torch, are looked at in ComfyUI's folders for transformers alone.
    """
    named = single_files(host, [folder for folder in TRANSFORMER_FOLDERS if folder].__contains__, PART_ENDINGS)
    rest = single_files(host, "".__eq__)
    known = {one.path for one in named}
    return [
        one
        for one in [*named, *(one for one in rest if one.path not in known)]
        if one.found.readable and any(_is_hunyuan(part) for part in one.found.parts)
    ]


def _is_hunyuan(part: ComponentInfo) -> bool:
    return (part.kind, part.family) == ("transformer", "hunyuan_dit")


def _hunyuan_model(one: SingleFile, shared: Places) -> InstalledModel:
    # No folder lends its noise schedule: it may be of another version. The shapes tell which.
    parts = {**shared, **_beside(one.path), **_inside(one)}
    return InstalledModel(one.name, one.path, one.found.bytes, parts, one.details, NEEDED["hunyuan_dit"])


def _beside(path: Path) -> Places:
    folder = path.parent.parent
    here = {part: folder / name for part, name in TENCENT.items() if (folder / name).is_dir()}
    return {part: (_weights(place) if "encoder" in part else place,) for part, place in here.items()}


def _weights(folder: Path) -> Path:
    """Return the file of PyTorch's own in Tencent's folder of a text encoder, or the folder where it has others."""
    return folder / PYTORCH if (folder / PYTORCH).is_file() else folder


def _inside(one: SingleFile) -> Places:
    found = {}
    for part in one.found.parts:
        second = part.kind == "text_encoder" and part.title != BERT_TITLE
        found[f"{part.kind}_2" if second else part.kind] = (one.path,)
        if part.has_tokenizer:
            found["tokenizer_2" if second else "tokenizer"] = (one.path,)
    return found


def _prompt(folders: list[InstalledModel], host: Host) -> list[InstalledModel]:
    """Return Qwen models in one file, as ComfyUI has them for text encoders."""
    found = []
    for one in single_files(host, PROMPT_FOLDERS.__contains__):
        if one.title == PROMPT_MODEL.title and one.found.readable:
            vocabulary = _vocabulary(one.path)
            if vocabulary:
                words = qwen_tokenizer([folder.path for folder in folders], vocabulary, host)
                parts = {"prompt_model": (one.path,)} | ({"tokenizer": (words,)} if words is not None else {})
                found.append(
                    InstalledModel(one.name, one.path, one.found.bytes, parts, one.details, NEEDED["prompt"]),
                )
    return found


def _vocabulary(path: Path) -> int:
    """Return the rows of a language model's embeddings; 0 where its shapes do not say which model it is."""
    try:
        return int(_prompt_config(path)["vocab_size"])
    except (PiyingError, KeyError, IndexError, ValueError):
        return 0


def _prompt_config(path: Path) -> dict[str, Any]:
    return PROMPT_MODEL.config({name: entry.shape for name, entry in class_shapes([path], "prompt_model").items()})


def unfit(name: str, family: str, host: Host) -> str | None:
    """Return why a language model in one file is not offered; None where there is no such file, or another reason."""
    files = single_files(host, PROMPT_FOLDERS.__contains__) if family == "prompt" else []
    one = next((one for one in files if one.name == name and one.title == PROMPT_MODEL.title), None)
    try:
        if one is not None:
            _prompt_config(one.path)
    except PiyingError as error:
        return str(error)
    return None
