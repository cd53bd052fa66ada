"""Model hubs: the addresses and listings of Hugging Face and ModelScope, on the standard library alone."""

from __future__ import annotations

import os
import string
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..http import RetryPolicy
from .manifest import Source
from .transfer import DownloadRefused, RemoteFile, fetch_json


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
            found = [(entry, entry.get("lfs") or {}) for entry in content["siblings"]]
            # Outside LFS a hub names a git hash, which is no sha256 of the file.
            return [_hub_file(e["rfilename"], lfs.get("size", e.get("size")), lfs.get("sha256")) for e, lfs in found]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _unknown_listing(self.title, source) from error

    def _remote(self, path: str, source: Source, file: HubFile | None = None) -> RemoteFile:
        login = (
            f"Open {self.endpoint}/{source.repo}, accept its licence if it asks for that, then log in with `hf auth "
            "login` or put a token into HF_TOKEN, and run the same command again."
        )
        size, sha256 = (file.bytes, file.sha256) if file else (None, None)
        return RemoteFile(f"{self.endpoint}/{path}", size, sha256, self.title, self.token, login)


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
            return [_hub_file(entry["Path"], entry["Size"], entry.get("Sha256")) for entry in files]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _unknown_listing(self.title, source) from error

    def _remote(self, path: str, source: Source, file: HubFile | None = None) -> RemoteFile:
        login = f"Look at {self.endpoint}/models/{source.repo}, or choose --source huggingface."
        size, sha256 = (file.bytes, file.sha256) if file else (None, None)
        return RemoteFile(f"{self.endpoint}/{path}", size, sha256, self.title, login=login)


def _hub_file(name: object, size: object, sha256: object) -> HubFile:
    """Return a listed file.

    Raises:
        TypeError, ValueError: the values are of other types.
    """
    if not isinstance(name, str):
        raise TypeError("a name that is no text")
    if not isinstance(sha256, str) or len(sha256) != 64 or not set(sha256) <= set(string.hexdigits):
        sha256 = None
    return HubFile(name, None if size is None else int(str(size)), sha256.lower() if sha256 else None)


def _unknown_listing(title: str, source: Source) -> DownloadRefused:
    """Return the error for a listing of another form."""
    return DownloadRefused(
        f"{title} does not list the files of {source.repo} in a way that Piying knows. Update Piying."
    )


def _stored_token() -> str | None:
    """Return the token that huggingface_hub stored at a login on this machine."""
    if token := os.environ.get("HF_TOKEN"):
        return token.strip()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    try:
        return Path(home, "token").expanduser().read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError, RuntimeError):  # RuntimeError: nobody says where home is
        return None


def _quoted(text: str, safe: str = "/") -> str:
    return urllib.parse.quote(text, safe=safe)
