"""Lists of numbers as people type them into a widget."""

from __future__ import annotations

import re


def words_of(text: str) -> list[str]:
    """Return what is parted by commas, Chinese ones too, or by spaces."""
    return re.sub("[,，、]", " ", text).split()
