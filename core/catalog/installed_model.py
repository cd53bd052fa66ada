"""Installed models: what is known of one before it is read."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..files.scan import find_files

BUILT_IN = "built-in"
AUTO = "auto"
FOLDER_DEPTH = 4  # of a model: its parts are one level down, two in what Tencent publishes
BUILT_IN_ROOT = Path(__file__).resolve().parents[2] / "builtin_models"


@dataclass(frozen=True)
class InstalledModel:
    """An installed model.

    Attributes:
        name: shown in lists.
        path: its folder, or its file.
        size: the bytes of its weights, without those of a second expert: two are never in memory together.
        parts: of a model in single files: {part: the files or the folder that hold it}.
        details: what a single file is, in a few words.
        needed: the parts it cannot run without, where they are looked for one by one.
        problem: why its folder cannot be used; "" where nothing is known against it.
        caution: a sentence on what it is not fit for though it runs; "" where there is none.
    """

    name: str
    path: Path
    size: int
    parts: Mapping[str, tuple[Path, ...]] = field(default_factory=dict, hash=False)
    details: str = ""
    needed: tuple[str, ...] = ()
    problem: str = ""
    caution: str = ""

    @property
    def is_built_in(self) -> bool:
        """Whether this is the toy model that ships with the pack."""
        return self.name == BUILT_IN

    @property
    def lacking(self) -> tuple[str, ...]:
        """Return the parts that a model in single files needs and that are not here."""
        return tuple(part for part in self.needed if part not in self.parts)

    @property
    def can_run(self) -> bool:
        """Whether nothing is missing, as far as file names and headers tell."""
        return not self.lacking and not self.problem

    def has(self, part: str) -> bool:
        """Return whether it has a part that not every model of its family has."""
        return part in self.parts if self.parts else (self.path / part).is_dir()

    def place(self, part: str) -> tuple[Path, ...]:
        """Return the files or the folder that hold a part."""
        return self.parts.get(part) or (self.path / part,)


def has_built_in(family: str) -> bool:
    """Return whether a toy model of the family with that key ships with the pack."""
    return (BUILT_IN_ROOT / family).is_dir()


def built_in(family: str) -> InstalledModel:
    """Return the built-in toy model of the family with that key."""
    path = BUILT_IN_ROOT / family
    return InstalledModel(BUILT_IN, path, weight_bytes(path))


def weight_bytes(folder: Path) -> int:
    """Return the bytes of all safetensors files under `folder`."""
    total = 0
    for path in find_files(folder, FOLDER_DEPTH, (".safetensors",)):
        with contextlib.suppress(OSError):  # removed since
            total += path.stat().st_size
    return total
