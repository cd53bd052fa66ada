"""System prompts: one text file each, ours in `system_prompts`, the user's in `prompts` beside the language models.

A user's file of the name of one of ours takes its place, so that an edit outlives an update of the pack.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..errors import PiyingError
from ..host.base import Host

FOLDER = Path(__file__).resolve().parent / "system_prompts"
USER_CATEGORY, USER_FOLDER = "LLM", "prompts"  # models/LLM/prompts/*.txt
ORDER = (
    "text_to_video",
    "text_to_image",
    "image_to_video",
    "vace_repaint",
    "vace_inpaint",
    "vace_outpaint",
    "vace_extend",
    "vace_reference",
)
STILL = "text_to_image"
LONGEST = 20_000  # characters of a system prompt


def preset_names(host: Host | None = None) -> list[str]:
    """Return the names of the presets: ours, then the user's own by name."""
    return [*ORDER, *sorted(set(_user_files(host)) - set(ORDER))]


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
        text = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PiyingError(f"preset {name}: {path} cannot be read ({error}). Save it as UTF-8 text.") from error
    if not 0 < len(text) <= LONGEST:
        raise PiyingError(f"preset {name}: {path} has {len(text)} characters. Write 1 to {LONGEST}.")
    return text


def shows_motion(name: str) -> bool:
    """Return whether the preset is for videos; a user's preset is for pictures when its name begins so."""
    return not name.startswith(STILL)


def _user_files(host: Host | None) -> dict[str, Path]:
    """Return the user's files by name; the folder the host prefers comes first."""
    files: dict[str, Path] = {}
    for folder in _user_folders(host):
        for path in sorted(folder.glob("*.txt")):
            files.setdefault(path.stem, path)
    return files


def _user_folders(host: Host | None) -> Iterator[Path]:
    for category, root in host.model_folders() if host is not None else ():
        if category == USER_CATEGORY:
            yield root / USER_FOLDER
