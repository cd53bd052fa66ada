"""Experts: two transformers of one model, of which the second takes over when little noise is left; told by name.

No header says which of them a file is: their authors name them "high_noise_model" and "low_noise_model", those who
convert them "…HIGH…" and "…LOW…", "…-high-noise-…" and "…-low-noise-…".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

HIGH, LOW = "high", "low"
# What a LoRA may be put on: {choice of the widget: an expert, "" for both}; auto goes by the file's name.
AUTO_EXPERT = "auto"
EXPERTS: Mapping[str, str] = {AUTO_EXPERT: "", "both": "", "high noise": HIGH, "low noise": LOW}

# Words behind a lone "high" or "low" that make it one of quality, of a camera or of a picture.
OTHER_MEANINGS = (
    "res|resolution|vram|ram|mem|memory|quality|poly|angle|details?|detailed|contrast|key|light|speed|motion|cfg|steps?"
    "|fps|shot|end|fashion|heels?|fidelity|rank|cut|rise|fantasy|waist|def|definition|pass|level|budget|fat|tide"
)
NOISE = rf"(?:(high|low)[-_ ]?noise|(?<![a-z])(high|low)(?![-_ ]?(?:{OTHER_MEANINGS})(?![a-z])))(?![a-z])"

if TYPE_CHECKING:

    class Named(Protocol):
        """What has a name."""

        @property
        def name(self) -> str:
            """Below the folder of all models."""


One = TypeVar("One", bound="Named")


def noise_of(name: str) -> str:
    """Return which expert a file is by its name, folders included: `HIGH`, `LOW`, or "" where that says nothing."""
    found = {(match[1] or match[2]).lower() for match in re.finditer(NOISE, name, re.IGNORECASE)}
    return found.pop() if len(found) == 1 else ""


def partner_name(name: str) -> str:
    """Return the name of the other expert's file; the same name where it is no expert's."""

    def other(match: re.Match[str]) -> str:
        word = match[1] or match[2]
        swapped = LOW if word.lower() == HIGH else HIGH
        cased = swapped.upper() if word.isupper() else swapped.capitalize() if word[0].isupper() else swapped
        return match[0].replace(word, cased, 1)

    return re.sub(NOISE, other, name, flags=re.IGNORECASE)


def paired(files: Iterable[One]) -> tuple[list[tuple[One, One]], list[One]]:
    """Return the pairs of experts, high noise first, and the files that are in none, in the order given."""
    files = list(files)
    by_name = {one.name.lower(): one for one in files}
    pairs = [
        (one, by_name[partner_name(one.name).lower()])
        for one in files
        if noise_of(one.name) == HIGH and partner_name(one.name).lower() in by_name
    ]
    taken = {one.name for pair in pairs for one in pair}
    return pairs, [one for one in files if one.name not in taken]


def pair_name(high: str, low: str) -> str:
    """Return the name of a model of two experts: a workflow that names the first alone is understood by it."""
    return f"{high} + {low.rpartition('/')[2]}"


def lone_experts(files: Sequence[Named], others: Iterable[Named]) -> list[str]:
    """Return the names of the partners that files lack which are experts of two.

    Args:
        files: that make up a model together.
        others: all that are here.
    """
    here = {one.name.lower() for one in others}
    partners = [partner_name(one.name) for one in files if noise_of(one.name)]
    return [name for name in partners if name.lower() not in here]
