"""Errors: the exception whose text is written for the person at the screen, and what other errors say, in short."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager


class PiyingError(Exception):
    """A mistake or a circumstance that a person can mend.

    The text is a sentence or two that names the input, its value, what is allowed and what to do
    next. Both hosts show it without a traceback.
    """


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
    return f"{type(error).__name__}: {' '.join(paragraph.split())[:300]}"
