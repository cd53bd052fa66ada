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
LONGEST_URL = 2000
GOOD_HOST = r"[A-Za-z0-9.:-]{1,253}"
GOOD_PATH = r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]+)*"
# The server before the key that is for it; keys have neither dots nor colons before an equals sign.
KEY_ENTRY = r"\s*(localhost|\[?[A-Za-z0-9-]*[.:][A-Za-z0-9.:-]*\]?(?::\d+)?)=(\S+)\s*"


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

    @property
    def place(self) -> str:
        """Host and port, as servers are allowed and keys are set for."""
        return f"{self.host}:{self.port}"

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
    if address.is_loopback or {address.host, address.place} & allowed:
        return address
    raise PiyingError(
        f"url is {url!r}, a server that is not on this machine. Prompts are private: to send them there, start "
        f"the program with the environment variable {ALLOWED}={address.host}."
    )


def api_key(address: Address, environment: Mapping[str, str] | None = None) -> str | None:
    """Return the API key that is set for a server, None where there is none.

    A workflow may name any port of this machine and any server that is allowed. So a key goes to the one it is written
    with, or without an address to the only one that is allowed; on this machine that takes a port.

    Raises:
        PiyingError: the key would go unencrypted over a network, or is none.
    """
    keys = _keys(os.environ if environment is None else environment)
    key = keys.get(address.place) or (None if address.is_loopback else keys.get(address.host))
    if key is None:
        return None
    if not address.secure and not address.is_loopback:
        raise PiyingError(f"{API_KEY} is set, and {address} is not encrypted. Use https, or unset the key.")
    if not key.isascii() or not key.isprintable():
        raise PiyingError(f"{API_KEY} holds characters that no key has. Set it again.")
    return key


def key_hint(address: Address) -> str:
    """Return what to do where a server wants a key and `api_key` has none for it."""
    place = address.place
    if os.environ.get(API_KEY, "").strip():
        return f"The key in {API_KEY} is not set for {place}: add {place}=KEY there, after a comma."
    return f"Set the environment variable {API_KEY}={place}=KEY."


def _keys(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the keys by the server that each is for, `host:port` or `host`."""
    value = environment.get(API_KEY, "").strip()
    entries = [re.fullmatch(KEY_ENTRY, entry, re.IGNORECASE) for entry in value.split(",")]
    if all(entries):
        return {entry[1].lower().replace("[", "").replace("]", ""): entry[2] for entry in entries if entry}
    allowed = _allowed(environment)
    return dict.fromkeys(allowed, value) if value and len(allowed) == 1 else {}


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
    known = parts.scheme in ("http", "https") and re.fullmatch(GOOD_HOST, host) and "@" not in parts.netloc
    # urlsplit leaves tabs and line breaks out.
    if len(url) > LONGEST_URL or not url.isprintable() or port == 0:
        raise bad
    if not known or parts.query or parts.fragment or not re.fullmatch(GOOD_PATH, parts.path.rstrip("/")):
        raise bad
    endpoint = (parts.path.rstrip("/").removesuffix(ENDPOINT) or "/v1") + ENDPOINT
    return Address(secure, host, port or (443 if secure else 80), endpoint, is_loopback(host))
