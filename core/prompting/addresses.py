"""Which servers prompts may go to: this machine, and those that its owner names outside of any workflow."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import PiyingError

ALLOWED = "PIYING_ALLOW_SERVERS"  # host or host:port, parted by commas
API_KEY = "PIYING_SERVER_API_KEY"
ENDPOINT = "/chat/completions"
EXAMPLE = "http://127.0.0.1:11434/v1"
GOOD_HOST = re.compile(r"[A-Za-z0-9.:-]{1,253}")
GOOD_PATH = re.compile(r"(?:/[A-Za-z0-9._~-]+)*")


@dataclass(frozen=True)
class Address:
    """Where chats are sent.

    Attributes:
        secure: by TLS.
        host, port: of the server.
        path: of the endpoint.
        is_loopback: on this machine, whatever is allowed.
    """

    secure: bool
    host: str
    port: int
    path: str
    is_loopback: bool

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.secure else 'http'}://{host}:{self.port}{self.path}"


def read_address(url: str, environment: Mapping[str, str] | None = None) -> Address:
    """Return the chat endpoint of an OpenAI-compatible server.

    Args:
        url: `http://host:port`, with `/v1` or the whole endpoint behind it or not.
        environment: in place of this process's.

    Raises:
        PiyingError: it is no such URL, or the server is neither on this machine nor allowed.
    """
    address = _parse(url.strip())
    allowed = _allowed(os.environ if environment is None else environment)
    if address.is_loopback or {address.host, f"{address.host}:{address.port}"} & allowed:
        return address
    raise PiyingError(
        f"url is {url!r}, a server that is not on this machine. Prompts are private: to send them there, start "
        f"the program with the environment variable {ALLOWED}={address.host}."
    )


def check_address(url: str) -> None:
    """Accept a URL that `read_address` does.

    Raises:
        PiyingError: it does not.
    """
    read_address(url)


def _allowed(environment: Mapping[str, str]) -> set[str]:
    return {entry.strip().lower() for entry in environment.get(ALLOWED, "").split(",") if entry.strip()}


def _parse(url: str) -> Address:
    from urllib.parse import urlsplit

    bad = PiyingError(f"url is {url!r}. Write the address of an OpenAI-compatible server, such as {EXAMPLE}.")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError as error:
        raise bad from error
    secure = parts.scheme == "https"
    known = parts.scheme in ("http", "https") and GOOD_HOST.fullmatch(host) and "@" not in parts.netloc
    if not known or parts.query or parts.fragment or not GOOD_PATH.fullmatch(parts.path.rstrip("/")):
        raise bad
    return Address(secure, host, port or (443 if secure else 80), _endpoint(parts.path), _is_loopback(host))


def _endpoint(path: str) -> str:
    base = path.rstrip("/").removesuffix(ENDPOINT) or "/v1"
    return base + ENDPOINT


def _is_loopback(host: str) -> bool:
    from ipaddress import ip_address

    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
