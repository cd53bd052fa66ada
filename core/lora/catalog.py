"""LoRA files in the models folders: listed, chosen by name, and the settings they were made for.

What reads headers is imported where it is used: the node is declared at ComfyUI's start, which none of it may slow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ..catalog.selection import ChosenLora, ModelHandle
from ..download.manifest import ListedModel, listed_models
from ..errors import PiyingError
from ..host.base import Host

if TYPE_CHECKING:
    from ..catalog.discovery import SingleFile
    from .file import LoraShape


NONE = "none"
FOLDER = "loras"
KIND = "lora"


@dataclass(frozen=True)
class LoraFile:
    """A LoRA that is here, and how strongly it is to be used.

    Attributes:
        shape: what it holds.
        settings: the `steps`, `cfg` and `shift` it was made for; empty where neither the file nor a table says.
    """

    name: str
    path: Path
    strength: float
    shape: LoraShape
    settings: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def identity(self) -> str:
        """Return a text that changes when the file or the strength does."""
        status = self.path.stat()
        return f"{self.path} {status.st_size} {status.st_mtime_ns} {self.strength}"


def _found(host: Host) -> list[SingleFile]:
    from ..catalog.discovery import single_files

    files = single_files(host, (FOLDER, "").__contains__)
    return [replace(one, name=one.name.removeprefix(f"{FOLDER}/")) for one in files if one.found.is_lora]


def record_of(files: tuple[LoraFile, ...]) -> dict[str, list[dict[str, object]]]:
    """Return what a run's record says of its LoRAs; nothing where there are none."""
    return {"loras": [{"name": one.name, "strength": one.strength} for one in files]} if files else {}


def lora_choices(host: Host) -> list[str]:
    """Return what the `lora` widget offers: `none` first, then the files by their places below models/loras."""
    return _choices(_found(host))


def _choices(found: list[SingleFile]) -> list[str]:
    return [NONE, *dict.fromkeys(one.name for one in found if one.found.readable)]


def lora_details(host: Host) -> list[str]:
    """Return a line for each LoRA: its name, what it is for, and the settings it was made for."""
    lines = []
    for one in _found(host):
        listed = _listed_by_name(one.path.name)
        advice = "" if listed is None else f"; made for {in_words(listed.settings)}"
        lines.append(f"{one.name}: {one.found.what.removeprefix('a ')}{advice}")
    return lines


def in_words(settings: Mapping[str, float]) -> str:
    """Return settings for people: "4 steps, cfg 1, shift 5"."""
    forms = {"steps": "{:g} steps", "cfg": "cfg {:g}", "shift": "shift {:g}", "strength": "strength {:g}"}
    return ", ".join(form.format(settings[name]) for name, form in forms.items() if name in settings)


def check_lora(name: str, host: Host) -> None:
    """Accept a name from `lora_choices`, spelled with either slash.

    Raises:
        PiyingError: there is no such LoRA; a file of another kind says what it is.
    """
    _check(_plain(name), _choices(_found(host)), host)


def _check(name: str, choices: list[str], host: Host) -> None:
    if name in choices:
        return
    from ..catalog.discovery import what_is

    what = what_is(f"{FOLDER}/{name}", host) or what_is(name, host)
    raise PiyingError(
        f"lora {name!r} {f'cannot be used: {what}' if what else 'is not installed'}. "
        f"Here are: {', '.join(choices)}. Choose one of them, or put the file under models/{FOLDER}."
    )


def _plain(name: str) -> str:
    return name.replace("\\", "/").removeprefix(f"{FOLDER}/")


def with_lora(handle: ModelHandle, name: str, strength: float, host: Host) -> ModelHandle:
    """Return a handle with one LoRA more; the same handle for `none` and for a strength of 0.

    Raises:
        PiyingError: there is no such LoRA.
    """
    check_lora(name, host)
    if _plain(name) == NONE or strength == 0:
        return handle
    return replace(handle, loras=(*handle.loras, ChosenLora(_plain(name), strength)))


def lora_files(handle: ModelHandle, host: Host) -> tuple[LoraFile, ...]:
    """Return the LoRAs of a handle, in the order in which they were added.

    Raises:
        PiyingError: one is not there any more, or is damaged.
    """
    if not handle.loras:
        return ()
    from ..files.open import read_header
    from .file import lora_shape

    installed = _found(host)
    paths, choices = {one.name: one.path for one in installed}, _choices(installed)
    files = []
    for chosen in handle.loras:
        _check(chosen.name, choices, host)
        path = paths[chosen.name]
        shape = lora_shape(read_header(path).entries)
        files.append(LoraFile(chosen.name, path, chosen.strength, shape, settings_of(path)))
    return tuple(files)


def made_for(files: tuple[LoraFile, ...]) -> Mapping[str, float]:
    """Return the `steps`, `cfg` and `shift` of the last LoRA that was made for any; empty where none was."""
    return next((one.settings for one in reversed(files) if one.settings), {})


def settings_of(path: Path) -> Mapping[str, float]:
    """Return what the manifest says a LoRA was made for; it is known by its name, or by its size and sha256."""
    listed = _listed_by_name(path.name)
    if listed is None:
        status = path.stat()
        listed = _listed_by_content(path, status.st_size, status.st_mtime_ns)
    return {} if listed is None else listed.settings


def _distilled() -> list[ListedModel]:
    return [model for model in listed_models() if model.kind == KIND and model.settings]


def _listed_by_name(name: str) -> ListedModel | None:
    return next((model for model in _distilled() if PurePosixPath(model.files[0].path).name == name), None)


@lru_cache(maxsize=256)
def _listed_by_content(path: Path, size: int, changed: int) -> ListedModel | None:
    del changed  # tells one state of the file from another
    same = [model for model in _distilled() if model.files[0].bytes == size]
    if not same:
        return None
    from ..download.checksums import sha256_of

    digest = sha256_of(path)
    return next((model for model in same if model.files[0].sha256 == digest), None)
