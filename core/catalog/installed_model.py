"""Which models are installed: folders that say what they are, and single files known by their contents."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..host.base import Host

BUILT_IN = "built-in"
AUTO = "auto"
BUILT_IN_ROOT = Path(__file__).resolve().parents[2] / "builtin_models"

# Class names as diffusers writes them into model_index.json, transformers into config.json.
FAMILY_CLASSES = {
    "wan_vace": ("WanVACEPipeline",),
    "hunyuan_dit": ("HunyuanDiTPipeline",),
    "prompt": (
        "Qwen3ForCausalLM",
        "Qwen2ForCausalLM",
        "Ernie4_5ForCausalLM",
        "GlmForCausalLM",
        "Glm4ForCausalLM",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen3VLForConditionalGeneration",
    ),
    "depth": ("DepthAnythingForDepthEstimation", "DPTForDepthEstimation"),
    "segmentation": ("SegformerForSemanticSegmentation", "UperNetForSemanticSegmentation"),
    "pose": ("VitPoseForPoseEstimation",),
    "detector": ("RTDetrForObjectDetection", "RTDetrV2ForObjectDetection"),
}
INDEXES = ("model_index.json", "config.json")
SEARCH_DEPTH = 3  # models/<category>/<author>/<model>


@dataclass(frozen=True)
class InstalledModel:
    """An installed model.

    Attributes:
        name: shown in lists.
        path: its folder, or its file.
        size: the bytes of its weights.
        parts: of a model in single files: {part: the files or the folder that hold it}.
        details: what a single file is, in a few words.
        needed: the parts it cannot run without, where they are looked for one by one.
    """

    name: str
    path: Path
    size: int
    parts: Mapping[str, tuple[Path, ...]] = field(default_factory=dict, hash=False)
    details: str = ""
    needed: tuple[str, ...] = ()

    @property
    def is_built_in(self) -> bool:
        """Whether this is the toy model that ships with the pack."""
        return self.name == BUILT_IN

    @property
    def lacking(self) -> tuple[str, ...]:
        """Return the parts that a model in single files needs and that are not here."""
        return tuple(part for part in self.needed if part not in self.parts)

    def place(self, part: str) -> tuple[Path, ...]:
        """Return the files or the folder that hold a part."""
        return self.parts.get(part) or (self.path / part,)


def built_in(family: str) -> InstalledModel:
    """Return the family's built-in toy model."""
    path = BUILT_IN_ROOT / family
    return InstalledModel(BUILT_IN, path, weight_bytes(path))


def weight_bytes(folder: Path) -> int:
    """Return the bytes of all safetensors files under `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def installed_models(family: str, host: Host) -> list[InstalledModel]:
    """Return the family's installed models, in the host's order of preference, without the built-in one."""
    from .discovery import in_single_files

    found: dict[Path, InstalledModel] = {}
    for category, root in host.model_folders():
        for folder in _model_folders(root, SEARCH_DEPTH):
            path = folder.resolve()
            ours = path not in found and _class_name(folder) in FAMILY_CLASSES[family]
            if ours and not _is_on_its_way(folder):
                found[path] = InstalledModel(_shown_name(category, root, folder), path, weight_bytes(path))
    folders = list(found.values())
    return folders + in_single_files(family, folders, host)


def _is_on_its_way(folder: Path) -> bool:
    """Return whether a fetch of this model goes on or was stopped: `fetch_part` leaves NAME.part files."""
    return next(folder.rglob("*.part"), None) is not None


def why_not(name: str, family: str, host: Host) -> str | None:
    """Return why the folder or file of that name is no model of the family; None where there is neither."""
    from .discovery import unfit, what_is

    for category, root in host.model_folders():
        relative = name.removeprefix(f"{category}/") if category else name
        folder = root / relative
        if ".." in relative or not folder.is_dir():
            continue
        index = next((file for file in INDEXES if (folder / file).is_file()), None)
        if index is None:
            return f"the folder {folder} has neither {' nor '.join(INDEXES)}"
        found = _class_name(folder)
        if found is None:
            return f"{folder / index} cannot be read"
        if _is_on_its_way(folder):
            return f"{folder} is not all here yet: fetch it again, it goes on where it stopped"
        return f"{folder} is a {found}, not a {' or '.join(FAMILY_CLASSES[family])}"
    return unfit(name, family, host) or what_is(name, host)


def _shown_name(category: str, root: Path, folder: Path) -> str:
    relative = folder.relative_to(root).as_posix()
    return f"{category}/{relative}" if category else relative


def _model_folders(root: Path, depth: int) -> Iterator[Path]:
    """Yield folders that hold a model's index, not looking inside them for more."""
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError:
        return  # a folder that is not there, or not ours to read, holds no models for us
    names = {entry.name for entry in entries}
    if names & set(INDEXES):
        yield root
    elif depth:
        for entry in entries:
            if entry.is_dir() and not entry.name.startswith("."):
                yield from _model_folders(Path(entry.path), depth - 1)


def _class_name(folder: Path) -> str | None:
    """Return the class a folder says it is, or None where its index cannot be read."""
    if (folder / INDEXES[0]).is_file():
        found = (_read_json(folder / INDEXES[0]) or {}).get("_class_name")
    else:
        architectures = (_read_json(folder / INDEXES[1]) or {}).get("architectures")
        found = architectures[0] if isinstance(architectures, list) and architectures else None
    return found if isinstance(found, str) else None


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
