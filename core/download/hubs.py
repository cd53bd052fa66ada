"""Hugging Face and ModelScope: their addresses, their listings, and who is asking."""

from __future__ import annotations

import importlib
import os
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from ..errors import PiyingError
from ..http import DownloadRefused, Remote, RetryPolicy, answers, read_json
from .manifest import Source

AUTO = "auto"
PROBE_SECONDS = 5.0


@dataclass(frozen=True)
class HubFile:
    """A file as a hub lists it: its path in the repository, its size, and its sha256 where the hub knows it."""

    path: str
    bytes: int | None
    sha256: str | None


class Hub(Protocol):
    """A place on the net that keeps models."""

    key: str
    title: str
    endpoint: str

    def remote(self, source: Source, file: HubFile) -> Remote:
        """Return where a file of a repository is."""

    def listing(self, source: Source, patience: RetryPolicy) -> list[HubFile]:
        """Return the files of a repository; raises Refused."""


class HuggingFace:
    """huggingface.co, or what HF_ENDPOINT names.

    Where huggingface_hub is installed it says which endpoint that is, and who is logged in.
    """

    key, title = "huggingface", "Hugging Face"
    endpoint: str

    def __init__(self) -> None:
        self.endpoint, self._token = _library_settings() or _own_settings()

    def remote(self, source: Source, file: HubFile) -> Remote:
        """Return where a file of a repository is."""
        path = f"{source.repo}/resolve/{_quoted(source.revision, '')}/{_quoted(file.path)}"
        return self._remote(path, source, file.bytes, file.sha256)

    def listing(self, source: Source, patience: RetryPolicy) -> list[HubFile]:
        """Return the files of a repository; git LFS keeps a sha256 of the large ones."""
        path = f"api/models/{source.repo}/revision/{_quoted(source.revision, '')}?blobs=true"
        content = read_json(self._remote(path, source), patience)
        try:
            return [_hugging_face_file(entry) for entry in content["siblings"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _no_listing(self.title, source) from error

    def _remote(self, path: str, source: Source, size: int | None = None, sha256: str | None = None) -> Remote:
        login = (
            f"Open {self.endpoint}/{source.repo}, accept its licence if it asks for that, then log in with `hf auth "
            "login` or put a token into HF_TOKEN, and run the same command again."
        )
        return Remote(f"{self.endpoint}/{path}", size, sha256, self.title, self._token, login)


class ModelScope:
    """modelscope.cn, or what MODELSCOPE_ENDPOINT names. None of the models here asks for a login there."""

    key, title = "modelscope", "ModelScope"

    def __init__(self) -> None:
        self.endpoint = (os.environ.get("MODELSCOPE_ENDPOINT") or "https://modelscope.cn").rstrip("/")

    def remote(self, source: Source, file: HubFile) -> Remote:
        """Return where a file of a repository is."""
        path = f"models/{source.repo}/resolve/{_quoted(source.revision, '')}/{_quoted(file.path)}"
        return self._remote(path, source, file.bytes, file.sha256)

    def listing(self, source: Source, patience: RetryPolicy) -> list[HubFile]:
        """Return the files of a repository; ModelScope keeps a sha256 of every one."""
        path = f"api/v1/models/{source.repo}/repo/files?Revision={_quoted(source.revision, '')}&Recursive=true"
        content = read_json(self._remote(path, source), patience)
        try:
            files = [entry for entry in content["Data"]["Files"] if entry["Type"] == "blob"]
            return [HubFile(_name(entry["Path"]), int(entry["Size"]), _hash(entry.get("Sha256"))) for entry in files]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _no_listing(self.title, source) from error

    def _remote(self, path: str, source: Source, size: int | None = None, sha256: str | None = None) -> Remote:
        login = f"Look at {self.endpoint}/models/{source.repo}, or choose --source huggingface."
        return Remote(f"{self.endpoint}/{path}", size, sha256, self.title, login=login)


def choose_hubs(choice: str) -> list[Hub]:
    """Return the hubs to ask, in order: the chosen one alone, or all, with the first that answers in front.

    Raises:
        PiyingError: none answers.
    """
    every: tuple[Hub, ...] = (HuggingFace(), ModelScope())
    hubs = {hub.key: hub for hub in every}
    if choice != AUTO:
        return [hubs[choice]]
    for first in hubs.values():
        if answers(first.endpoint, PROBE_SECONDS):
            return [first, *(hub for hub in hubs.values() if hub is not first)]
    places = " nor ".join(hub.endpoint for hub in hubs.values())
    raise PiyingError(
        f"Neither {places} answers. Check the network and the proxy. For a machine without a network make a list of "
        "what to carry with --print-files, on one that has one."
    )


def safe_path(name: str) -> str:
    """Return a listed file's path, refused where it would leave its folder.

    Raises:
        PiyingError: it has `..`, a drive or a root.
    """
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
        raise PiyingError(f"The hub lists a file {name!r}, whose path leaves its folder. Nothing was fetched.")
    return str(path)


def _library_settings() -> tuple[str, str | None] | None:
    """Return endpoint and token as huggingface_hub has them; None where it is not there, or cannot be imported."""
    try:
        constants = importlib.import_module("huggingface_hub.constants")
        library = importlib.import_module("huggingface_hub")
    except ImportError:
        return None
    return constants.ENDPOINT.rstrip("/"), library.get_token()


def _own_settings() -> tuple[str, str | None]:
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    return endpoint.rstrip("/"), _stored_token()


def _stored_token() -> str | None:
    """Return the token of whoever has logged in with huggingface_hub elsewhere on this machine."""
    if token := os.environ.get("HF_TOKEN"):
        return token.strip()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    try:
        return Path(home, "token").expanduser().read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError):
        return None


def _quoted(text: str, safe: str = "/") -> str:
    return urllib.parse.quote(text, safe=safe)


def _hugging_face_file(entry: dict[str, Any]) -> HubFile:
    lfs = entry.get("lfs") or {}
    size = lfs.get("size", entry.get("size"))
    return HubFile(_name(entry["rfilename"]), None if size is None else int(size), _hash(lfs.get("sha256")))


def _name(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a name that is no text")
    return value


def _hash(value: object) -> str | None:
    """Return a sha256 as it is listed; anything else is none."""
    if not isinstance(value, str) or len(value) != 64 or not _is_hex(value):
        return None
    return value.lower()


def _is_hex(text: str) -> bool:
    return all(letter in "0123456789abcdefABCDEF" for letter in text)


def _no_listing(title: str, source: Source) -> DownloadRefused:
    return DownloadRefused(
        f"{title} does not list the files of {source.repo} in a way that Piying knows. Update Piying."
    )


def titles(hubs: Iterable[Hub]) -> str:
    """Return the hubs' names for a sentence."""
    return " and ".join(hub.title for hub in hubs)
