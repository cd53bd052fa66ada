"""Addresses of ComfyUI servers, and the credentials that go with them and into no message."""

from __future__ import annotations

import base64
import os
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field

from ...core.http import is_loopback
from ..errors import WorkflowError

AUTHORIZATION = "PIYING_SERVER_AUTHORIZATION"  # a whole Authorization header, for all servers without a user
EXAMPLE = "http://127.0.0.1:8188"
LONGEST_URL = 2000
GOOD_HOST = r"[A-Za-z0-9._:-]{1,253}"
GOOD_PATH = r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]+)*"


@dataclass(frozen=True)
class ServerAddress:
    """Where a ComfyUI server is.

    Attributes:
        url: scheme, host, port and path, without credentials and without a slash at its end.
        authorization: value of the Authorization header, None for none.
    """

    url: str
    authorization: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return self.url

    def to(self, route: str, query: Mapping[str, str] | None = None) -> str:
        """Return the URL of a route, such as `/prompt`."""
        return self.url + route + (f"?{urllib.parse.urlencode(query)}" if query else "")


def read_server_address(text: str, environment: Mapping[str, str] | None = None) -> ServerAddress:
    """Return the address of a ComfyUI server.

    Args:
        text: `http://host:port`, with a path where a proxy wants one, and `user:password@` before the host.
        environment: in place of this process's.

    Raises:
        WorkflowError: it is no such URL, or credentials would go unencrypted over a network.
    """
    # Nothing before an @ or behind a ? is repeated in a message: it may be a password or a key.
    shown = f"…@{text.rpartition('@')[2]}" if "@" in text else text
    wrong = WorkflowError(
        f"--server {shown.partition('?')[0]!r}: write the address of a ComfyUI server, such as {EXAMPLE}."
    )
    text = text.strip()
    try:
        parts = urllib.parse.urlsplit(text)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise wrong from None
    # urlsplit leaves tabs and line breaks out.
    if len(text) > LONGEST_URL or not text.isprintable() or port == 0 or parts.scheme not in ("http", "https"):
        raise wrong
    path = parts.path.rstrip("/")
    if parts.query or parts.fragment or not re.fullmatch(GOOD_HOST, host) or not re.fullmatch(GOOD_PATH, path):
        raise wrong
    place = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
    url = f"{parts.scheme}://{place}{path}"
    authorization = _authorization(parts, os.environ if environment is None else environment)
    if authorization is not None and parts.scheme == "http" and not is_loopback(host):
        raise WorkflowError(
            f"--server {url}: its credentials would go unencrypted over a network. Use https, or a tunnel that ends "
            "on this machine."
        )
    return ServerAddress(url, authorization)


def _authorization(parts: urllib.parse.SplitResult, environment: Mapping[str, str]) -> str | None:
    if parts.username is not None:
        pair = ":".join(urllib.parse.unquote(part or "") for part in (parts.username, parts.password))
        return f"Basic {base64.b64encode(pair.encode()).decode()}"
    value = environment.get(AUTHORIZATION, "").strip()
    if not value:
        return None
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]* [\x21-\x7e]+", value):
        raise WorkflowError(f"{AUTHORIZATION} is no Authorization header. Write all of it, such as 'Bearer KEY'.")
    return value
