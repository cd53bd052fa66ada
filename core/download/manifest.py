"""`models_manifest.json`: the models that can be fetched, and from where.

Needs the standard library alone, as all of `download/` does but `huggingface_library`: `install.py` reads it before
anything is installed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath

from ..errors import PiyingError
from ..files.json_file import load_json
from ..media.naming import is_windows_device
from .checksums import LEDGER

MANIFEST = Path(__file__).resolve().parents[2] / "models_manifest.json"
SCHEMA = 2
LONGEST_NAME = 200  # bytes; file systems take 255, and a download adds its endings
OWN_ENDINGS = (".part", ".part.json", ".part.lock")


@dataclass(frozen=True)
class Source:
    """Where a hub keeps a file, or the folder of files of a whole repository where `file` is None."""

    repo: str
    revision: str
    file: str | None = None


@dataclass(frozen=True)
class ListedFile:
    """One file of a model, or all files of a repository.

    Attributes:
        path: where it goes, below the models folder, with `/`; a repository's path ends with `/`.
        bytes, sha256: None where they are not verified; the hub is asked then.
        sources: {hub: where}; hubs are `huggingface` and `modelscope`.
        only: for a repository, shell patterns of the files that are needed.
    """

    path: str
    bytes: int | None
    sha256: str | None
    sources: dict[str, Source]
    only: tuple[str, ...] = ()

    @property
    def is_repository(self) -> bool:
        """Whether this stands for the files of a repository, whose names the hub knows."""
        return self.path.endswith("/")


@dataclass(frozen=True)
class ListedModel:
    """One model of the manifest.

    Attributes:
        id: its name on the command line.
        family: the key of a family of models.
        kind: `model`, a `part` (text encoder, VAE) or a `lora`.
        title, licence: for people.
        min_vram_gb: the smallest card the memory plan finds a way for, GB; None for parts and LoRAs.
        files: what it is made of.
        needs: ids of the parts it runs with.
        settings: for a distilled LoRA, the `steps`, `cfg`, `shift` and `strength` it was made for.
        sampler: for a distilled LoRA, the sampler it was published with; "" for that of its model.
    """

    id: str
    family: str
    kind: str
    title: str
    licence: str
    min_vram_gb: int | None
    files: tuple[ListedFile, ...]
    needs: tuple[str, ...] = ()
    settings: dict[str, float] = field(default_factory=dict)
    sampler: str = ""

    @property
    def folder(self) -> str:
        """Return where its first file or repository goes, below the models folder."""
        path = self.files[0].path
        return path.rstrip("/") if path.endswith("/") else path.rpartition("/")[0]


def read_manifest(path: Path) -> tuple[ListedModel, ...]:
    """Return the models of a manifest file.

    Raises:
        PiyingError: it is not a manifest of this version.
    """
    try:
        content = load_json(path)
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']}")
        models = []
        for entry in content["models"]:
            files = []
            for file in entry["files"]:
                safe_path(file["path"])
                if not (file["bytes"] is None or type(file["bytes"]) is int) or not _is_sha256(file["sha256"]):
                    raise ValueError(f"{file['path']} has no proper bytes and sha256")
                sources = {hub: Source(**source) for hub, source in file["sources"].items()}
                only = tuple(file.get("only", ()))
                files.append(ListedFile(file["path"], file["bytes"], file["sha256"], sources, only))
            names = ("id", "family", "kind", "title", "licence", "min_vram_gb")
            models.append(
                ListedModel(
                    **{name: entry[name] for name in names},
                    files=tuple(files),
                    needs=tuple(entry.get("needs", ())),
                    settings=entry.get("settings", {}),
                    sampler=entry.get("sampler", ""),
                )
            )
        return tuple(models)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PiyingError(
            f"{path} cannot be read as a list of models of schema {SCHEMA} ({error}). Reinstall Piying."
        ) from error


def _is_sha256(value: object) -> bool:
    return value is None or (isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None)


def safe_path(name: str) -> str:
    """Return a listed file's path, refused where it would leave its folder or is a name that not every system takes.

    Raises:
        PiyingError: it has `..`, a drive, a root, control characters, a device of Windows, or the name of a file that
            downloads need themselves.
    """
    path = PurePosixPath(name)
    is_inside = bool(path.parts) and not path.is_absolute() and ".." not in path.parts
    is_plain = name.isprintable() and not set('\\:*?"<>|') & set(name)
    if not (is_inside and is_plain and all(map(_is_usable, path.parts))):
        raise PiyingError(
            f"The file {name!r} is listed, whose path leaves its folder or is no name for a file. Nothing was fetched."
        )
    return str(path)


def _is_usable(part: str) -> bool:
    is_ours = part.endswith(OWN_ENDINGS) or part == LEDGER
    return (
        len(part.encode()) <= LONGEST_NAME and part == part.rstrip(". ") and not (is_ours or is_windows_device(part))
    )


@cache
def listed_models() -> tuple[ListedModel, ...]:
    """Return the models of the manifest, the one to begin with first in each family."""
    return read_manifest(MANIFEST)


def first_of(family: str) -> ListedModel:
    """Return the model a newcomer to a family should fetch."""
    return next(model for model in listed_models() if model.family == family)


def find_listed(ids: Iterable[str]) -> list[ListedModel]:
    """Return the models of these ids.

    Raises:
        PiyingError: the manifest has no such model.
    """
    known = {model.id: model for model in listed_models()}
    wanted = list(ids)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise PiyingError(f"There is no model {unknown[0]!r} to fetch. There are: {', '.join(known)}.")
    return [known[name] for name in wanted]


def files_of(models: Iterable[ListedModel]) -> list[ListedFile]:
    """Return the files of models and of the parts they need, each once, in order."""
    found: dict[str, ListedFile] = {}
    for model in models:
        for listed in (model, *find_listed(model.needs)):
            found.update({file.path: file for file in listed.files if file.path not in found})
    return list(found.values())
