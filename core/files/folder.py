"""From what a person names, a file or a folder, to the files that hold the tensors."""

from __future__ import annotations

from pathlib import Path

from ..errors import PiyingError
from .json_file import read_json

CONFIG = "config.json"
CONFIG_BYTES = 4 << 20  # the longest known, with the names of 21,000 classes, are under 2 MB
STEMS = ("diffusion_pytorch_model", "model")  # what diffusers and transformers call their files


def component_folder(path: Path, kind: str) -> Path:
    """Return the folder of one component: `path` itself, or the part of a pipeline's folder named for it."""
    inside = path / kind
    return inside if not (path / CONFIG).is_file() and inside.is_dir() else path


def component_files(folder: Path) -> list[Path]:
    """Return the safetensors files that together hold a folder's component.

    An index names its shards; without one there is a single file, and where a folder has variants
    (`.fp16.safetensors`) the plain one counts.

    Raises:
        PiyingError: there is none, or several and no index to say which.
    """
    for stem in STEMS:
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            return _shards(folder, index)
        if (folder / f"{stem}.safetensors").is_file():
            return [folder / f"{stem}.safetensors"]
    found = [
        path for ending in ("safetensors", "gguf") for path in sorted(folder.glob(f"*.{ending}")) if path.is_file()
    ]
    found = [path for path in found if path.suffix == found[0].suffix]
    if len(found) == 1:
        return found
    raise PiyingError(
        f"{folder}: there {'is no safetensors file' if not found else 'are several safetensors files and no index'} "
        "in this folder. Fetch it again, or name one file."
    )


def _shards(folder: Path, index: Path) -> list[Path]:
    table = read_json(index).get("weight_map")
    names = set(table.values()) if isinstance(table, dict) and table else {None}
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise PiyingError(f"{index}: its weight_map is no list of files beside it. Fetch the folder again.")
    files = [folder / str(name) for name in sorted(map(str, names))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise PiyingError(f"{folder}: {', '.join(missing[:5])} missing. Fetch the folder again.")
    return files
