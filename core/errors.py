"""Errors: the one exception whose text is written for the person at the screen, and other errors in short."""

from __future__ import annotations


class PiyingError(Exception):
    """A mistake or a circumstance that a person can mend.

    The text is a sentence or two that names the input, its value, what is allowed and what to do
    next. Both hosts show it without a traceback.
    """


def short_text(error: Exception) -> str:
    """Return the kind of error and the first paragraph of its text, on one line of 300 characters at most.

    What follows the first paragraph of torch's compiler errors is advice for its own developers.
    """
    paragraph = str(error).partition("\n\n")[0]
    return f"{type(error).__name__}: {' '.join(paragraph.split())[:300]}"
