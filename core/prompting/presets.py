"""Presets: system prompts and worked examples, in text files; ours in this package, the user's in models/LLM/prompts.

A user's file with the name of a built-in preset replaces it, so that an edited preset survives an update of the pack.
Worked examples lie in a subfolder, `examples/NAME.zh.txt` and `examples/NAME.en.txt`: a short line, below it the
prompt it becomes, then an empty line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from ..errors import PiyingError, clipped
from ..files.scan import find_files

if TYPE_CHECKING:
    from ..host.base import Host
    from .language import Language

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
EXAMPLES = FOLDER.with_name("examples")
USER_CATEGORY, USER_FOLDER = "LLM", "prompts"
MAX_CHARACTERS = 20_000
# Users name their own presets; these prefixes give theirs the treatment of ours.
STILL_PREFIX: Preset = "text_to_image"
EDIT_PREFIX = "vace_"


@dataclass(frozen=True)
class Example:
    """A worked example: a short line, and the prompt it becomes."""

    line: str
    answer: str


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
    return _read_text(_user_files(host).get(name, FOLDER / f"{name}.txt"), f"preset {name}")


def preset_examples(name: str, language: Language | None, host: Host | None = None) -> tuple[Example, ...]:
    """Return the worked examples of a preset in a language; none where there is no such file, or an empty one.

    A system prompt of the user's own has the user's examples alone: a model that was tuned for it may want none.

    Raises:
        PiyingError: the file cannot be read, or an example has no prompt below its line.
    """
    file = f"{name}.{language or 'en'}"
    own = _user_files(host, Path(USER_FOLDER, EXAMPLES.name)).get(file)
    path = own or EXAMPLES / f"{file}.txt"
    if own is None and (name in _user_files(host) or not path.is_file()):
        return ()
    what = f"examples of preset {name}"
    found = []
    for block in re.split(r"\n\s*\n", _read_text(path, what, least=0)):
        line, _, answer = block.strip().partition("\n")
        if line and not answer.strip():
            raise PiyingError(f"{what}: in {path} the line {clipped(line, 60)!r} has no prompt below it. Write one.")
        if line:
            found.append(Example(line.strip(), " ".join(answer.split())))
    return tuple(found)


def _read_text(path: Path, what: str, least: int = 1) -> str:
    try:
        # Windows editors put a byte order mark in front, which utf-8-sig skips.
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(MAX_CHARACTERS + 1).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PiyingError(f"{what}: {path} cannot be read ({error}). Save it as UTF-8 text.") from error
    if not least <= len(text) <= MAX_CHARACTERS:
        amount = f"more than {MAX_CHARACTERS}" if text else "no"
        raise PiyingError(f"{what}: {path} has {amount} characters. Write {least} to {MAX_CHARACTERS}.")
    return text


def preset_length(text: str) -> tuple[int, int] | None:
    """Return the minimum and maximum words that a preset's text asks for; None where it has no such rule."""
    found = re.search(r"(\d+) (?:to|-) (\d+) words", text)
    return (int(found[1]), int(found[2])) if found else None


def is_for_video(name: str) -> bool:
    """Return whether a preset is for videos rather than pictures."""
    return not name.startswith(STILL_PREFIX)


def is_for_editing(name: str) -> bool:
    """Return whether the prompts of a preset may be edit instructions, such as "remove the car"."""
    return name.startswith(EDIT_PREFIX)


def _user_files(host: Host | None, folder: Path = Path(USER_FOLDER)) -> dict[str, Path]:
    """Return the user's files in a folder by name; of equal names that under the root the host lists first."""
    files: dict[str, Path] = {}
    for category, root in host.model_folders() if host is not None else ():
        if category == USER_CATEGORY:
            for path in find_files(root / folder, 0, (".txt",)):
                files.setdefault(path.stem, path)
    return files
