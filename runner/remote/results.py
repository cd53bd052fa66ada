"""Results of a job: its output files, fetched from a server into a folder, whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from http.client import OK, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import Any

from ...core.errors import clipped, explain_os_errors
from ...core.http import (
    TRANSIENT_STATUSES,
    HttpError,
    RetryableError,
    RetryPolicy,
    fast_enough,
    read_limited,
    retry,
)
from ...core.media.naming import writing
from .server import PAUSES, TIMEOUT, ComfyServer

LARGEST_FILE = 4 << 30  # bytes
MOST_FILES = 10_000
# Names as ComfyUI's savers give them: what comes before the number, and the ending.
NUMBERED = re.compile(r"(?P<stem>.+)_[0-9]{5,}_?(?P<suffix>\.[^.]{1,20})")


class FileProblem(Exception):
    """A file of a job cannot be fetched; the text says why."""


@dataclass(frozen=True)
class OutputFile:
    """A file that a node saved, as the server names it."""

    filename: str
    subfolder: str

    def __str__(self) -> str:
        return f"{self.subfolder}/{self.filename}" if self.subfolder else self.filename

    def place(self) -> tuple[str, str]:
        """Return prefix and ending that the file is saved under, for `naming.writing`.

        Raises:
            FileProblem: the name leads out of the folder, or is none.
        """
        parts = self.subfolder.replace("\\", "/").split("/") if self.subfolder else []
        bad = re.search(r"[\x00-\x1f\x7f]", str(self)) or re.match(r"[/\\]|[A-Za-z]:", str(self))
        if bad or ".." in parts or self.filename in ("", ".", "..") or re.search(r"[/\\]", self.filename):
            raise FileProblem("its name leads out of the output folder, or is no name of a file")
        found = NUMBERED.fullmatch(self.filename)
        plain = PurePosixPath(self.filename)
        stem, suffix = (found["stem"], found["suffix"]) if found else (plain.stem, plain.suffix)
        # A percent sign would begin a token, and the name here is final.
        return "/".join([*parts, stem.replace("%", "_")]), suffix


def output_files(outputs: dict[str, Any]) -> list[OutputFile]:
    """Return the files that nodes report, under whatever key: packs have keys of their own; previews are left out."""
    shown = [entries for node in outputs.values() if isinstance(node, dict) for entries in node.values()]
    entries = [entry for each in shown if isinstance(each, list) for entry in each if isinstance(entry, dict)]
    saved = [entry for entry in entries if entry.get("type") == "output" and entry.get("filename")]
    files = (OutputFile(str(entry["filename"]), str(entry.get("subfolder") or "")) for entry in saved)
    return list(dict.fromkeys(files))


def fetch_files(
    server: ComfyServer, files: list[OutputFile], folder: Path, on_saved: Callable[[Path], None]
) -> list[str]:
    """Fetch files into a folder, and return what is wrong with those that did not come.

    Args:
        on_saved: called with the path of each that did.

    Raises:
        ServerError: the server is gone.
        PiyingError: the folder cannot be written.
    """
    problems = [f"{len(files) - MOST_FILES} files beyond the first {MOST_FILES}"] if len(files) > MOST_FILES else []
    for file in files[:MOST_FILES]:
        try:
            on_saved(_fetch(server, file, folder))
        except FileProblem as problem:
            problems.append(f"{clipped(str(file), 120)!r}: {problem}")
    return problems


def _fetch(server: ComfyServer, file: OutputFile, folder: Path) -> Path:
    place = file.place()
    try:
        return retry(lambda: _attempt(server, file, folder, place), RetryPolicy(pauses=PAUSES), str(server))
    except RetryableError as error:
        raise server.unreachable(error) from error
    except HttpError as error:
        raise FileProblem(f"the server {str(error).rstrip('.')}") from error


def _attempt(server: ComfyServer, file: OutputFile, folder: Path, place: tuple[str, str]) -> Path:
    """Fetch a file from its beginning; whatever goes wrong, nothing of it is left.

    Raises:
        RetryableError: the server broke off.
    """
    with writing(folder, *place) as output, output.path.open("wb") as unfinished:
        with server.view(file.filename, file.subfolder) as response:
            if response.status in TRANSIENT_STATUSES:
                raise RetryableError(f"HTTP {response.status}")
            if response.status != OK:
                raise FileProblem(f"the server answered with HTTP {response.status}")
            expected, size = _expected_size(response), 0
            for chunk in fast_enough(read_limited(response, LARGEST_FILE), TIMEOUT):
                with explain_os_errors(f"Cannot save {file} in {folder}"):
                    unfinished.write(chunk)
                size += len(chunk)
            if size != expected:
                raise RetryableError(f"{file} ended after {size} of {expected} bytes")
        with explain_os_errors(f"Cannot save {file} in {folder}"):
            unfinished.close()  # what is still in its buffer may not fit the disk
    return output.path


def _expected_size(response: HTTPResponse) -> int:
    text = response.getheader("Content-Length") or ""
    if not text.isascii() or not text.isdigit():
        raise FileProblem("the server does not say how large it is, so whether it is whole cannot be told")
    if int(text) > LARGEST_FILE:
        raise FileProblem(f"it has {int(text) >> 20} MiB; at most {LARGEST_FILE >> 20} MiB are fetched")
    return int(text)
