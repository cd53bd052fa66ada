"""Models of each family that lie in single files, and the parts that run beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import PiyingError
from ..host import Host
from .class_shapes import class_shapes
from .found import BUILT_IN_ROOT, FoundModel
from .inspect import FoundPart
from .layouts.prompt import PROMPT_MODEL
from .single_files import (
    PART_ENDINGS,
    PROMPT_FOLDERS,
    TRANSFORMER_FOLDERS,
    SingleFile,
    single_files,
    wan_companions,
    wan_files,
)
from .tokenizer_folders import bert_tokenizer, qwen_tokenizer

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


def in_single_files(family: str, folders: list[FoundModel], host: Host) -> list[FoundModel]:
    """Return the family's models in single files.

    Args:
        folders: its models in folders, which lend their parts.
    """
    find = {"wan_vace": _wan, "hunyuan_dit": _hunyuan_dit, "prompt": _prompt}.get(family)
    return [] if find is None else find(folders, host)


def _lent(folders: list[FoundModel], parts: tuple[str, ...]) -> dict[str, tuple[Path, ...]]:
    """Return for each part the folder of the first model that has it."""
    found: dict[str, tuple[Path, ...]] = {}
    for part in parts:
        here = [folder.path / part for folder in folders if (folder.path / part).is_dir()]
        if here:
            found[part] = (here[0],)
    return found


def _wan(folders: list[FoundModel], host: Host) -> list[FoundModel]:
    offered = wan_files(host)
    if not offered:
        return []
    beside = _lent(folders, ("text_encoder", "tokenizer", "vae"))
    if len(beside) < 3:
        beside = {part: (path,) for part, path in wan_companions(host).items()} | beside
    beside["scheduler"] = (BUILT_IN_ROOT / "wan_vace" / "scheduler",)
    return [
        FoundModel(
            name,
            files[-1].path,
            sum(one.found.bytes for one in files),
            {**beside, "transformer": tuple(one.path for one in files)},
            files[-1].details,
            NEEDED["wan_vace"],
        )
        for name, files in offered.items()
    ]


def _hunyuan_dit(folders: list[FoundModel], host: Host) -> list[FoundModel]:
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


def _is_hunyuan(part: FoundPart) -> bool:
    return (part.kind, part.family) == ("transformer", "hunyuan_dit")


def _hunyuan_model(one: SingleFile, shared: Places) -> FoundModel:
    # No folder lends its noise schedule: it may be of another version. The shapes tell which.
    parts = {**shared, **_beside(one.path), **_inside(one)}
    return FoundModel(one.name, one.path, one.found.bytes, parts, one.details, NEEDED["hunyuan_dit"])


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


def _prompt(folders: list[FoundModel], host: Host) -> list[FoundModel]:
    """Return Qwen models in one file, as ComfyUI has them for text encoders."""
    found = []
    for one in single_files(host, PROMPT_FOLDERS.__contains__):
        if one.title == PROMPT_MODEL.title and one.found.readable:
            vocabulary = _vocabulary(one.path)
            if vocabulary:
                words = qwen_tokenizer([folder.path for folder in folders], vocabulary, host)
                parts = {"prompt_model": (one.path,)} | ({"tokenizer": (words,)} if words is not None else {})
                found.append(
                    FoundModel(one.name, one.path, one.found.bytes, parts, one.details, NEEDED["prompt"]),
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
