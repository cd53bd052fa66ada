"""What to expand, and how."""

from __future__ import annotations

from dataclasses import dataclass

from .presets import ORDER

DEFAULT_PRESET = ORDER[0]
DEFAULT_MAX_NEW_TOKENS = 256
DEFAULT_TEMPERATURE = 0.7
LANGUAGES = ("auto", "zh", "en")
# length → words of the answer, from and to; auto leaves it to the preset. A Chinese text of as many words
# has about 1.6 characters for each.
LENGTHS: dict[str, tuple[int, int] | None] = {"auto": None, "short": (20, 40), "medium": (50, 80), "long": (100, 140)}


@dataclass(frozen=True)
class ExpandRequest:
    """One prompt to expand.

    Attributes:
        prompt: the short line.
        preset: a name from `presets.preset_names`.
        max_new_tokens: the longest answer.
        temperature: 0 always takes the likeliest token; higher wanders more.
        seed: 0 … 2**64-1; the same seed, model and text give the same answer.
        language: of the answer, one of `LANGUAGES`; auto is that of the prompt.
        length: one of `LENGTHS`.
        style: a style to write towards, in any words; empty for none.
        keep: words that must be in the answer as they are, parted by commas or lines; what is quoted,
            counted, named or coloured in the prompt is found without being listed.
        strict: fail where the original prompt would be used in place of an answer.
        frozen_prompt: an answer to give as it is, without asking a model; empty asks.
    """

    prompt: str
    preset: str = DEFAULT_PRESET
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    temperature: float = DEFAULT_TEMPERATURE
    seed: int = 0
    language: str = "auto"
    length: str = "auto"
    style: str = ""
    keep: str = ""
    strict: bool = False
    frozen_prompt: str = ""
