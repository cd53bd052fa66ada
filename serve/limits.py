"""Limits: who may send work to a server, how much of it, and how fast."""

from __future__ import annotations

import hashlib
import hmac
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from ..core.errors import PiyingError, explain_os_errors

LOCAL = "local"  # who comes without a token, where none is asked for
MINUTE = 60.0
SHORTEST_TOKEN = 16  # characters


class LimitReached(Exception):
    """More than a token may ask for; the text says of what. `wait` are seconds after which to ask again."""

    def __init__(self, text: str, wait: float) -> None:
        super().__init__(text)
        self.wait = max(1, math.ceil(wait))


@dataclass(frozen=True)
class Limits:
    """What each token may have.

    Attributes:
        queued: jobs that wait.
        running: jobs that run at once; more of them wait.
        per_minute: jobs submitted within a minute.
    """

    queued: int = 1000
    running: int = 100
    per_minute: int = 600


@dataclass
class Submissions:
    """The times at which each token submitted jobs within the last minute."""

    limits: Limits
    _times: dict[str, deque[tuple[float, int]]] = field(default_factory=dict)

    def add(self, owner: str, count: int, queued: int, now: float) -> None:
        """Count jobs that are about to be submitted.

        Args:
            owner: name of the token.
            count: of them.
            queued: jobs of the token that wait already.
            now: seconds on any clock that does not go back.

        Raises:
            LimitReached: they are too many; nothing is counted.
        """
        if queued + count > self.limits.queued:
            raise LimitReached(
                f"{owner}: {queued} jobs wait and {count} more were sent; at most {self.limits.queued} may wait. Send "
                "them when some have run.",
                MINUTE / 2,
            )
        times = self._times.setdefault(owner, deque())
        while times and times[0][0] <= now - MINUTE:
            times.popleft()
        free = self.limits.per_minute - sum(number for _, number in times)
        if count > free:
            # A batch that is larger than the limit goes through by itself, or it never could.
            if count > self.limits.per_minute and not times:
                times.append((now, count))
                return
            sent = accumulate(number for _, number in times)
            wanted = min(count, self.limits.per_minute) - free
            until = next(when for (when, _), freed in zip(times, sent, strict=True) if freed >= wanted)
            raise LimitReached(
                f"{owner}: at most {self.limits.per_minute} jobs a minute are taken. Send them later.",
                until + MINUTE - now,
            )
        times.append((now, count))


@dataclass(frozen=True)
class Tokens:
    """Checksums of tokens by the name of who holds them; where there are none, nobody is asked for one.

    The tokens themselves are kept nowhere: what is passed between machines and written to logs gives nothing away.
    """

    by_name: Mapping[str, str] = field(default_factory=dict, repr=False)

    def owner_of(self, authorization: str | None) -> str | None:
        """Return the name for the value of an Authorization header; None where the request is refused."""
        if not self.by_name:
            return LOCAL
        scheme, _, given = (authorization or "").partition(" ")
        checksum = token_checksum(given.strip() if scheme.lower() == "bearer" else "")
        found = None
        # All are compared, each in constant time: how long it takes says nothing about any of them.
        for name, known in self.by_name.items():
            if hmac.compare_digest(known, checksum):
                found = name
        return found


def token_checksum(token: str) -> str:
    """Return the SHA-256 of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def read_tokens(file: Path | None, variable: str | None) -> Tokens:
    """Return the tokens of a file and of an environment variable.

    Args:
        file: a token a line, or NAME TOKEN; empty lines and those that begin with # are passed over.
        variable: the one token that PIYING_TOKEN holds.

    Raises:
        PiyingError: the file cannot be read, or a token is too short or has no name of its own.
    """
    lines: list[tuple[str, str]] = []
    if variable is not None:
        lines.append(("PIYING_TOKEN", variable))
    if file is not None:
        with explain_os_errors(f"--token-file {file}: cannot read it"):
            text = file.read_text(encoding="utf-8", errors="replace")
        named = [(f"--token-file {file}, line {number}", line) for number, line in enumerate(text.splitlines(), 1)]
        lines += [(place, line) for place, line in named if line.strip() and not line.lstrip().startswith("#")]
        if not lines:
            raise PiyingError(f"--token-file {file}: holds no token. Write one token a line, or NAME TOKEN.")
    found: dict[str, str] = {}
    for place, line in lines:
        words = line.split()
        if not 1 <= len(words) <= 2:
            raise PiyingError(f"{place}: has {len(words)} words. Write one token a line, or NAME TOKEN.")
        token = words[-1]
        if len(token) < SHORTEST_TOKEN or not token.isascii():
            raise PiyingError(
                f"{place}: a token has at least {SHORTEST_TOKEN} ASCII characters, as of `openssl rand -hex 16`."
            )
        # The beginning of a checksum tells tokens apart in logs, and gives nothing of them away.
        name = words[0] if len(words) == 2 else token_checksum(token)[:8]
        if name in found:
            raise PiyingError(f"{place}: two tokens are called {name!r}. Give each a name of its own.")
        found[name] = token_checksum(token)
    return Tokens(found)
