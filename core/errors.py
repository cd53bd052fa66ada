"""The one exception whose text is written for the person at the screen."""

from __future__ import annotations


class PiyingError(Exception):
    """A mistake or a circumstance that a person can mend.

    The text is a sentence or two that names the input, its value, what is allowed and what to do
    next. Both hosts show it without a traceback.
    """
