"""Model hubs: the addresses and listings of Hugging Face and ModelScope, and which of them to ask."""

from __future__ import annotations

import os
import string
import urllib.parse
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from ..errors import PiyingError
from ..http import RetryPolicy
from .manifest import ListedFile, Source
from .transfer import DownloadRefused, RemoteFile, fetch_json, server_answers

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

    def remote(self, source: Source, file: HubFile) -> RemoteFile:
        """Return where a file of a repository is."""

    def listing(self, source: Source, policy: RetryPolicy) -> list[HubFile]:
        """Return the files of a repository; raises DownloadRefused."""


class HuggingFace:
    """huggingface.co, or what HF_ENDPOINT names, on the standard library alone."""

    key, title = "huggingface", "Hugging Face"

    def __init__(self) -> None:
        self.endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        self.token = _stored_token()

    def remote(self, source: Source, file: HubFile) -> RemoteFile:
        """Return where a file of a repository is."""
        path = f"{source.repo}/resolve/{_quoted(source.revision, '')}/{_quoted(file.path)}"
        return self._remote(path, source, file)

    def listing(self, source: Source, policy: RetryPolicy) -> list[HubFile]:
        """Return the files of a repository; git LFS keeps a sha256 of the large ones."""
        path = f"api/models/{source.repo}/revision/{_quoted(source.revision, '')}?blobs=true"
        content = fetch_json(self._remote(path, source), policy)
        try:
            return [self._file(entry) for entry in content["siblings"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise unknown_listing(self.title, source) from error

    def _remote(self, path: str, source: Source, file: HubFile | None = None) -> RemoteFile:
        login = (
            f"Open {self.endpoint}/{source.repo}, accept its licence if it asks for that, then log in with `hf auth "
            "login` or put a token into HF_TOKEN, and run the same command again."
        )
        size, sha256 = (file.bytes, file.sha256) if file else (None, None)
        return RemoteFile(f"{self.endpoint}/{path}", size, sha256, self.title, self.token, login)

    @staticmethod
    def _file(entry: dict[str, Any]) -> HubFile:
        lfs = entry.get("lfs") or {}
        return hub_file(entry["rfilename"], lfs.get("size", entry.get("size")), lfs.get("sha256"))


class ModelScope:
    """modelscope.cn, or what MODELSCOPE_ENDPOINT names. None of the models here asks for a login there."""

    key, title = "modelscope", "ModelScope"

    def __init__(self) -> None:
        self.endpoint = (os.environ.get("MODELSCOPE_ENDPOINT") or "https://modelscope.cn").rstrip("/")

    def remote(self, source: Source, file: HubFile) -> RemoteFile:
        """Return where a file of a repository is."""
        path = f"models/{source.repo}/resolve/{_quoted(source.revision, '')}/{_quoted(file.path)}"
        return self._remote(path, source, file)

    def listing(self, source: Source, policy: RetryPolicy) -> list[HubFile]:
        """Return the files of a repository; ModelScope keeps a sha256 of every one."""
        path = f"api/v1/models/{source.repo}/repo/files?Revision={_quoted(source.revision, '')}&Recursive=true"
        content = fetch_json(self._remote(path, source), policy)
        try:
            files = [entry for entry in content["Data"]["Files"] if entry["Type"] == "blob"]
            return [hub_file(entry["Path"], entry["Size"], entry.get("Sha256")) for entry in files]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise unknown_listing(self.title, source) from error

    def _remote(self, path: str, source: Source, file: HubFile | None = None) -> RemoteFile:
        login = f"Look at {self.endpoint}/models/{source.repo}, or choose --source huggingface."
        size, sha256 = (file.bytes, file.sha256) if file else (None, None)
        return RemoteFile(f"{self.endpoint}/{path}", size, sha256, self.title, login=login)


def hugging_face() -> HuggingFace:
    """Return Hugging Face through its own library, or where that is not there through the standard library."""
    try:
        from .huggingface_library import HuggingFaceLibrary
    except ImportError:
        return HuggingFace()
    return HuggingFaceLibrary()


def choose_hubs(choice: str) -> list[Hub]:
    """Return the hubs to ask, in order: the chosen one alone, or all, with the first that answers in front.

    Raises:
        PiyingError: none answers.
    """
    every: tuple[Hub, ...] = (hugging_face(), ModelScope())
    hubs = {hub.key: hub for hub in every}
    if choice != AUTO:
        return [hubs[choice]]
    for first in hubs.values():
        if server_answers(first.endpoint, PROBE_SECONDS):
            return [first, *(hub for hub in hubs.values() if hub is not first)]
    places = " nor ".join(hub.endpoint for hub in hubs.values())
    raise PiyingError(
        f"Neither {places} answers. Check the network and the proxy. For a machine without a network make a list of "
        "what to carry with --print-files, on one that has one."
    )


class HubSession:
    """The hubs of one command, asked no earlier than needed, and once for each repository."""

    def __init__(self, choice: str = AUTO, policy: RetryPolicy | None = None) -> None:
        self.policy = policy or RetryPolicy()
        self._choice = choice
        self._listings: dict[tuple[str, Source], list[HubFile]] = {}

    @cached_property
    def hubs(self) -> list[Hub]:
        """The hubs to ask, in order."""
        return choose_hubs(self._choice)

    def sources(self, file: ListedFile) -> list[tuple[Hub, Source]]:
        """Return the hubs that keep a file.

        Raises:
            PiyingError: the chosen one does not.
        """
        found = [(hub, file.sources[hub.key]) for hub in self.hubs if hub.key in file.sources]
        if not found:
            titles = " and ".join(hub.title for hub in self.hubs)
            raise PiyingError(f"{file.path} is not on {titles}. Leave --source out.")
        return found

    def listing(self, hub: Hub, source: Source) -> list[HubFile]:
        """Return the files of a repository; raises DownloadRefused."""
        key = (hub.key, Source(source.repo, source.revision))
        if key not in self._listings:
            self._listings[key] = hub.listing(source, self.policy)
        return self._listings[key]


def hub_file(name: object, size: object, sha256: object) -> HubFile:
    """Return a listed file.

    Raises:
        TypeError, ValueError: the values are of other types.
    """
    if not isinstance(name, str):
        raise TypeError("a name that is no text")
    if not isinstance(sha256, str) or len(sha256) != 64 or not set(sha256) <= set(string.hexdigits):
        sha256 = None
    return HubFile(name, None if size is None else int(str(size)), sha256.lower() if sha256 else None)


def unknown_listing(title: str, source: Source) -> DownloadRefused:
    """Return the error for a listing of another form."""
    return DownloadRefused(
        f"{title} does not list the files of {source.repo} in a way that Piying knows. Update Piying."
    )


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
