"""Addresses of language-model servers: those on this machine, and those that its owner allows prompts to go to."""

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


def api_key(address: Address, environment: Mapping[str, str] | None = None) -> str | None:
    """Return the API key for a server, None where none is set for it.

    Where servers are allowed by name, the key is theirs: a workflow that names another one on this machine does not
    get it.

    Raises:
        PiyingError: the key would go unencrypted over a network, or is none.
    """
    environment = os.environ if environment is None else environment
    key, allowed = environment.get(API_KEY, "").strip(), _allowed(environment)
    if not key or (allowed and not {address.host, f"{address.host}:{address.port}"} & allowed):
        return None
    if not address.secure and not address.is_loopback:
        raise PiyingError(f"{API_KEY} is set, and {address} is not encrypted. Use https, or unset the key.")
    if not key.isascii() or not key.isprintable():
        raise PiyingError(f"{API_KEY} holds characters that no key has. Set it again.")
    return key


def key_hint(address: Address) -> str:
    """Return what to do where a server wants a key and `api_key` has none for it."""
    if os.environ.get(API_KEY, "").strip():
        return f"The key in {API_KEY} goes to the servers in {ALLOWED} alone: add {address.host}:{address.port} there."
    return f"Set the environment variable {API_KEY}."


def _allowed(environment: Mapping[str, str]) -> set[str]:
    return {entry.strip().lower() for entry in environment.get(ALLOWED, "").split(",") if entry.strip()}


def _parse(url: str) -> Address:
    from urllib.parse import urlsplit

    from ..http import is_loopback

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
    endpoint = (parts.path.rstrip("/").removesuffix(ENDPOINT) or "/v1") + ENDPOINT
    return Address(secure, host, port or (443 if secure else 80), endpoint, is_loopback(host))
