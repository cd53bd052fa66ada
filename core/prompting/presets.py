"""System prompts: one text file each in `system_prompts`, readable and editable."""

from __future__ import annotations

from pathlib import Path

from ..errors import PiyingError

FOLDER = Path(__file__).resolve().parent / "system_prompts"


def preset_names() -> list[str]:
    """Return the names of the presets, text to video first."""
    return sorted((path.stem for path in FOLDER.glob("*.txt")), reverse=True)


def preset_text(name: str) -> str:
    """Return the system prompt of a preset.

    Raises:
        PiyingError: there is no such preset.
    """
    names = preset_names()
    if name not in names:
        raise PiyingError(f"preset is {name!r}. Choose one of: {', '.join(names)}.")
    return (FOLDER / f"{name}.txt").read_text(encoding="utf-8").strip()
