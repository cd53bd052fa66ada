"""What torch says when it cannot compile, for people: its advice for its own developers is left out."""

from __future__ import annotations


def in_short(error: Exception) -> str:
    """Return the kind of error and the first paragraph of its text, on one line of 300 characters at most."""
    said = str(error).partition("\n\n")[0]
    return f"{type(error).__name__}: {' '.join(said.split())[:300]}"
