"""Expand requests: the prompt to expand, how to write it, and the values each setting may have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import PiyingError
from ..families.prompt_tokens import require_length
from .presets import BUILT_IN_PRESETS

AnswerLanguage = Literal["auto", "zh", "en"]
AnswerLength = Literal["auto", "short", "medium", "long"]

LANGUAGES: tuple[AnswerLanguage, ...] = get_args(AnswerLanguage)
# Minimum and maximum words of an answer; None leaves the length to the preset.
LENGTHS: dict[AnswerLength, tuple[int, int] | None] = {
    "auto": None,
    "short": (20, 40),
    "medium": (50, 80),
    "long": (100, 140),
}
DEFAULT_PRESET = BUILT_IN_PRESETS[0]
DEFAULT_MAX_NEW_TOKENS = 256
DEFAULT_TEMPERATURE = 0.7


@dataclass(frozen=True)
class ExpandRequest:
    """One prompt to expand.

    Attributes:
        prompt: the short line.
        preset: a name from `presets.preset_names`; users add their own, so it is no closed set.
        max_new_tokens: the longest answer.
        temperature: 0 decodes greedily; higher values sample more freely.
        seed: 0 … 2**64-1; the same seed, model and text give the same answer.
        language: language of the answer; auto is that of the prompt.
        length: length of the answer.
        style: a style to write in, as free text; empty for none.
        keep: further words that must appear in the answer unchanged, separated by commas or lines. Quoted text,
            numbers, colours and names in the prompt are found without being listed.
        strict: raise an error instead of falling back to the original prompt.
        frozen_prompt: text to return unchanged, without running a model; empty runs the model.
    """

    prompt: str
    preset: str = DEFAULT_PRESET
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    temperature: float = DEFAULT_TEMPERATURE
    seed: int = 0
    language: AnswerLanguage = "auto"
    length: AnswerLength = "auto"
    style: str = ""
    keep: str = ""
    strict: bool = False
    frozen_prompt: str = ""

    def validate(self) -> None:
        """Accept a request with a prompt that people write, and closed settings with values that exist.

        Raises:
            PiyingError: the prompt is absurdly long, or a setting has another value; the message lists those it may
                have.
        """
        settings: tuple[tuple[str, str, tuple[str, ...]], ...] = (
            ("language", self.language, LANGUAGES),
            ("length", self.length, tuple(LENGTHS)),
        )
        # Megabytes would be searched for facts for minutes.
        require_length(self.prompt)
        for name, value, allowed in settings:
            if value not in allowed:
                raise PiyingError(f"{name} is {value!r}. Choose one of: {', '.join(allowed)}.")


def has_text(prompt: str) -> bool:
    """Return whether a prompt has a character that is seen, which a zero-width space is not."""
    return any(character.isprintable() and not character.isspace() for character in prompt)


def require_text(prompt: str, frozen_prompt: str = "") -> None:
    """Accept a prompt that can be expanded without an image, or one with an answer that is frozen.

    Raises:
        PiyingError: there is neither.
    """
    if not has_text(prompt) and not has_text(frozen_prompt):
        raise PiyingError("prompt is empty. Write what to show, or connect an image to look at.")
