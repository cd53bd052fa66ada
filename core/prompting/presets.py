"""Presets: system prompts, one text file each; ours in `system_prompts`, the user's in models/LLM/prompts.

A user's file with the name of a built-in preset replaces it, so that an edited preset survives an update of the pack.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from ..errors import PiyingError
from ..files.scan import find_files

if TYPE_CHECKING:
    from ..host.base import Host

Preset = Literal[
    "text_to_video",
    "text_to_image",
    "image_to_video",
    "vace_repaint",
    "vace_inpaint",
    "vace_outpaint",
    "vace_extend",
    "vace_reference",
]
BUILT_IN_PRESETS: tuple[Preset, ...] = get_args(Preset)
FOLDER = Path(__file__).resolve().parent / "system_prompts"
USER_CATEGORY, USER_FOLDER = "LLM", "prompts"
MAX_CHARACTERS = 20_000
# Users name their own presets; these prefixes give theirs the treatment of ours.
STILL_PREFIX: Preset = "text_to_image"
EDIT_PREFIX = "vace_"


def preset_names(host: Host | None = None) -> list[str]:
    """Return the names of the presets: built-in ones, then the user's own in alphabetical order."""
    return [*BUILT_IN_PRESETS, *sorted(_user_files(host).keys() - set(BUILT_IN_PRESETS))]


def preset_text(name: str, host: Host | None = None) -> str:
    """Return the system prompt of a preset.

    Raises:
        PiyingError: there is no such preset, or its file cannot be read.
    """
    names = preset_names(host)
    if name not in names:
        raise PiyingError(f"preset is {name!r}. Choose one of: {', '.join(names)}.")
    path = _user_files(host).get(name, FOLDER / f"{name}.txt")
    try:
        # Windows editors put a byte order mark in front, which utf-8-sig skips.
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(MAX_CHARACTERS + 1).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PiyingError(f"preset {name}: {path} cannot be read ({error}). Save it as UTF-8 text.") from error
    if not 0 < len(text) <= MAX_CHARACTERS:
        amount = f"more than {MAX_CHARACTERS}" if text else "no"
        raise PiyingError(f"preset {name}: {path} has {amount} characters. Write 1 to {MAX_CHARACTERS}.")
    return text


def is_for_video(name: str) -> bool:
    """Return whether a preset is for videos rather than pictures."""
    return not name.startswith(STILL_PREFIX)


def is_for_editing(name: str) -> bool:
    """Return whether the prompts of a preset may be edit instructions, such as "remove the car"."""
    return name.startswith(EDIT_PREFIX)


def _user_files(host: Host | None) -> dict[str, Path]:
    """Return the user's files by name; of equal names that in the folder the host lists first."""
    files: dict[str, Path] = {}
    for category, root in host.model_folders() if host is not None else ():
        if category == USER_CATEGORY:
            for path in find_files(root / USER_FOLDER, 0, (".txt",)):
                files.setdefault(path.stem, path)
    return files
