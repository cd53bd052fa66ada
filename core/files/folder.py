"""From what a person names, a file or a folder, to the files that hold the tensors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import PiyingError
from .json_file import read_json

CONFIG = "config.json"
INDEX = "model_index.json"  # of a pipeline's folder, which has one folder for each component
SHOWN = 3  # names of missing files in a message
CONFIG_BYTES = 4 << 20  # the longest known, with the names of 21,000 classes, are under 2 MB
STEMS = ("diffusion_pytorch_model", "model")  # what diffusers and transformers call their files
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors", re.IGNORECASE)  # one of several files of one model
SPLIT_GGUF = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)  # by llama-gguf-split


def component_folder(path: Path, kind: str) -> Path:
    """Return the folder of one component: `path` itself, or the part of a pipeline's folder named for it.

    Raises:
        PiyingError: a pipeline's folder has no such part.
    """
    inside = path / kind
    if (path / INDEX).is_file() and not inside.is_dir():
        raise PiyingError(f"{path}: there is no {kind} in it. Fetch it again.")
    return inside if not (path / CONFIG).is_file() and inside.is_dir() else path


def component_files(folder: Path) -> list[Path]:
    """Return the safetensors files that together hold a folder's component.

    An index names its shards; without one their own names tell whether all are here, or there is a single file. Where
    a folder has variants (`.fp16.safetensors`) the plain one counts.

    Raises:
        PiyingError: there is none, a shard is missing, or there are several and nothing says which.
    """
    for stem in STEMS:
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            return _shards(folder, index)
        if (folder / f"{stem}.safetensors").is_file():
            return [folder / f"{stem}.safetensors"]
    indexes = sorted(folder.glob("*.safetensors.index*.json"))
    if len(indexes) == 1 and indexes[0].is_file():
        return _shards(folder, indexes[0])
    found = [
        path for ending in ("safetensors", "gguf") for path in sorted(folder.glob(f"*.{ending}")) if path.is_file()
    ]
    found = [path for path in found if path.suffix == found[0].suffix]
    if found and _are_all_shards(folder, found):
        return found
    if found and SPLIT_GGUF.fullmatch(found[0].name):
        raise PiyingError(f"{folder}: {split_gguf(found[0].name)}")
    several = f"are several {'GGUF' if found and found[0].suffix == '.gguf' else 'safetensors'} files and no index"
    raise PiyingError(
        f"{folder}: there {several if found else 'is no safetensors file'} in this folder. "
        "Fetch it again, or name one file."
    )


def split_gguf(name: str) -> str:
    """Return why one of the files into which llama.cpp splits a model is not read; "" for the name of another file."""
    match = SPLIT_GGUF.fullmatch(name)
    if match is None or int(match[3]) < 2:
        return ""
    first = f"{match[1]}-{1:05}-of-{match[3]}.gguf"
    return (
        f"it is file {int(match[2])} of {int(match[3])} of a split GGUF, which is not read. Join them with "
        f"`llama-gguf-split --merge {first} {match[1]}.gguf`, which comes with llama.cpp."
    )


def _are_all_shards(folder: Path, files: Sequence[Path]) -> bool:
    """Return whether files are all that a model was divided into; a single file is.

    Raises:
        PiyingError: one of them is missing.
    """
    matches = [SHARD.fullmatch(file.name) for file in files]
    parts = [match for match in matches if match is not None]
    if len(files) == 1 and not parts:
        return True
    if len(parts) < len(files) or len({(match[1], match[3]) for match in parts}) > 1:
        return False
    stem, count = parts[0][1], parts[0][3]
    here = {int(match[2]) for match in parts}
    missing = [
        f"{stem}-{number:05}-of-{count}.safetensors" for number in range(1, int(count) + 1) if number not in here
    ]
    _require(folder, missing)
    return True


def _require(folder: Path, missing: Sequence[str]) -> None:
    if missing:
        more = (
            f" and {len(missing) - SHOWN} more are" if len(missing) > SHOWN else " is" if len(missing) == 1 else " are"
        )
        raise PiyingError(f"{folder}: {', '.join(missing[:SHOWN])}{more} missing. Fetch the folder again.")


def _shards(folder: Path, index: Path) -> list[Path]:
    table = read_json(index).get("weight_map")
    names = set(table.values()) if isinstance(table, dict) and table else {None}
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise PiyingError(f"{index}: its weight_map is no list of files beside it. Fetch the folder again.")
    files = [folder / str(name) for name in sorted(map(str, names))]
    _require(folder, [file.name for file in files if not file.is_file()])
    return files
