"""Errors: the exception whose text is written for the person at the screen, and what other errors say, in short."""

from __future__ import annotations

import errno
import logging
import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST_LINE = 1000  # characters of a line of a message
LONGEST_VALUE = 120  # characters of a quoted value
LONGEST_WORD = 300  # characters of anything else without spaces, such as a path
MOST_LINES = 200
JOINERS = "\u200c\u200d"  # invisible, and part of how Persian, Hindi and some emoji are written
# Values as `repr` quotes them; an apostrophe inside a word is none of these quotes.
_QUOTED = re.compile(r"""(?<!\w)(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")(?!\w)""")
_LONG_WORD = re.compile(rf"\S{{{LONGEST_WORD + 1},}}")


class PiyingError(Exception):
    """A mistake or a circumstance that a person can mend.

    The text is a sentence or two that names the input, its value, what is allowed and what to do
    next. Both hosts show it without a traceback.
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(readable(text.replace("\n", "\\n")))

    def __init_subclass__(cls) -> None:
        cls.__module__ = PiyingError.__module__


# The page shows the type of an error with its module, and inside ComfyUI a module's name is the path of the pack.
PiyingError.__module__ = "piying"


def readable(text: str) -> str:
    """Return a message that is harmless to show, whatever the values in it are.

    File names, workflows and servers may hold anything: escape sequences that a terminal would obey, marks that turn
    the direction of writing, megabytes. Control characters are escaped, long values shortened in the middle, and so
    are long lines, whose ends say what to do.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    if len(lines) > MOST_LINES:
        lines[MOST_LINES - 1 :] = [f"… ({len(lines) - MOST_LINES + 1} more lines)"]
    return "\n".join(map(_readable_line, lines))


def _readable_line(line: str) -> str:
    line = _QUOTED.sub(lambda match: shortened(match[0], LONGEST_VALUE), escaped(line))
    line = _LONG_WORD.sub(lambda match: shortened(match[0], LONGEST_WORD), line)
    return shortened(line, LONGEST_LINE)


def shortened(text: str, limit: int) -> str:
    """Return a text of up to `limit` characters, without the middle of a longer one."""
    half = limit // 2
    return text if len(text) <= limit else f"{text[: limit - half]} … {text[-half:]}"


def clipped(text: str, limit: int = 80) -> str:
    """Return the first `limit` characters of a text, with a mark where it goes on."""
    return text if len(text) <= limit else f"{text[:limit]}…"


def escaped(text: str) -> str:
    """Return a text whose control characters, but for line breaks and tabs, are written as Python writes them."""
    return text if text.isprintable() else "".join(map(_escaped_character, text))


def _escaped_character(character: str) -> str:
    is_shown = character.isprintable() or character in "\n\t" + JOINERS or unicodedata.category(character) == "Zs"
    return character if is_shown else character.encode("unicode_escape").decode()


class ReadableRecords(logging.Filter):
    """Makes what is logged readable: see `readable`."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Accept a record, with its arguments put into its text."""
        record.msg, record.args = readable(record.getMessage()), None
        return True


logging.getLogger("piying").addFilter(ReadableRecords())


_REASONS = {
    errno.ENOSPC: "the disk is full. Free some space, or choose another folder.",
    errno.EDQUOT: "this account's disk quota is used up. Free some space, or choose another folder.",
    errno.EFBIG: "the file would be larger than this disk or account allows. Save less at once, or choose "
    "another folder.",
    errno.EROFS: "the disk is read-only. Choose another folder.",
    errno.EACCES: "this account has no permission. Change the permissions, or choose another folder.",
    errno.EPERM: "this account has no permission. Change the permissions, or choose another folder.",
    errno.ENAMETOOLONG: "the name is too long. Choose a shorter one.",
    errno.ENOTDIR: "a file stands where a folder is needed. Move the file away, or choose another folder.",
    errno.EEXIST: "a file stands where a folder is needed. Move the file away, or choose another folder.",
    errno.EISDIR: "it is a folder. Give the name of a file.",
    errno.ENOMEM: "main memory is used up, or what this process may use of it. Close other programs, or raise the "
    "limit of this process or its container.",
    errno.ENOENT: "there is no such file or folder. Check the name.",
}


def file_error(doing: str, number: int | None, words: str) -> PiyingError:
    """Return the error for `doing` ("Cannot save in /out"), explained by errno, else by `words`."""
    reason = _REASONS.get(number) if number is not None else None
    return PiyingError(f"{doing}: {reason or words.rstrip('.') + '.'}")


def errno_in(text: str) -> int | None:
    """Return the errno whose message another program's output quotes, or None."""
    return next((number for number in _REASONS if os.strerror(number) in text), None)


@contextmanager
def explain_os_errors(doing: str) -> Iterator[None]:
    """Turn an OSError of the block into a PiyingError that begins with `doing`."""
    try:
        yield
    except OSError as error:
        raise file_error(doing, error.errno, error.strerror or str(error)) from error


def short_text(error: Exception) -> str:
    """Return the kind of error and the first paragraph of its text, on one line of 300 characters at most.

    What follows the first paragraph of torch's compiler errors is advice for its own developers.
    """
    paragraph = str(error).partition("\n\n")[0]
    return f"{type(error).__name__}: {clipped(' '.join(paragraph.split()), 300)}"


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Validate a widget value: hosts do not check values that come through a link.

    Raises:
        PiyingError: any other value.
    """
    if value not in choices:
        raise PiyingError(f"{name} is {value!r}. Choose one of: {', '.join(choices)}.")
