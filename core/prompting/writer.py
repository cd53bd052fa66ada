"""What writes: a model on this machine, or one behind a server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from .messages import Chat
from .picture import Picture
from .request import ExpandRequest


@dataclass(frozen=True)
class Answer:
    """What a model wrote.

    Attributes:
        text: as it came, thinking and all.
        finished: the model ended by itself; else it was cut off.
    """

    text: str
    finished: bool


Write = Callable[[Chat, Picture | None, ExpandRequest], Answer]


class Writer(Protocol):
    """Something that answers chats.

    Attributes:
        name: for people.
        sees: it can look at a picture.
        plain: it was taught the preset and the line alone, see `messages.plain`.
    """

    name: str
    sees: bool
    plain: bool

    def identity(self) -> dict[str, Any]:
        """Return what tells this writer from every other, fit for JSON; reads no weights."""

    def record(self) -> dict[str, Any]:
        """Return what to note of it in the metadata; more once it has written."""

    def hold(self, use: Callable[[Write], str], max_new_tokens: int) -> str:
        """Return what `use` gives, the model being where it computes while `use` asks it.

        Args:
            use: is given the function that asks the model.
            max_new_tokens: the longest answer it will ask for.

        Raises:
            PiyingError: the model or the server cannot be used.
        """
