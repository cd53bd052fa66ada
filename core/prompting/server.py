"""Language-model server: a prompt model behind an OpenAI-compatible server (Ollama, vLLM, LM Studio, llama.cpp).

Requests are made with the standard library alone: no proxy from the environment sees a prompt, and no
redirect is followed. A thread reads the answer, so that a cancel and the time limit work while it is
silent.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..catalog.selection import ModelHandle
from ..host.base import Host
from .addresses import api_key, read_address
from .answers import clean_answer
from .chat_client import ChatTerms, RequestRejected, ServerFailed, chat_completion
from .messages import Answer, Chat, Generate, Picture
from .request import ExpandRequest

log = logging.getLogger("piying")

DEFAULT_TIMEOUT = 60
TRIES = 2  # for what a second request may mend
SEED_BITS = 31  # some servers keep a seed in 32 bits with a sign
# Switches thinking off in vLLM, SGLang and llama.cpp, and in Ollama; servers that refuse what they do not
# know get a second request without them.
EXTRAS: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "none"}


@dataclass(frozen=True)
class ServerHandle:
    """A prompt model behind a server; travels along the graph's wires like a `ModelHandle`.

    Attributes:
        url: of the server, see `addresses.read_address`.
        model: its name there.
        timeout: seconds for one answer, second tries included.
        fallback: the model to ask when the server fails, None for the original prompt.
    """

    url: str
    model: str
    timeout: int = DEFAULT_TIMEOUT
    fallback: ModelHandle | None = None


class ServerModel:
    """A chat model: the model behind a server."""

    has_vision, plain_chats = True, False
    # What a server runs is rarely below 4B; and not every server goes on from the beginning of an answer.
    examples, takes_opening = 1, False

    def __init__(self, handle: ServerHandle, host: Host) -> None:
        """Check the address.

        Raises:
            PiyingError: it is none, or one that prompts may not go to.
        """
        self._handle, self._host = handle, host
        self._address = read_address(handle.url)
        self.name = f"{handle.model} at {self._address}"

    def identity(self) -> dict[str, Any]:
        """Return address and model; whether the server answers alike for one seed is up to it."""
        return self.record()

    def record(self) -> dict[str, Any]:
        """Return address and model."""
        return {"model": self._handle.model, "server": str(self._address)}

    def run(self, use: Callable[[Generate], str], max_new_tokens: int, answer_tokens: int = 0) -> str:
        """Let `use` ask the server, which holds its model itself."""
        return use(self._write)

    def _write(self, chat: Chat, picture: Picture | None, request: ExpandRequest) -> Answer:
        timeout = self._handle.timeout
        terms = ChatTerms(
            address=self._address,
            api_key=api_key(self._address),
            timeout=timeout,
            deadline=time.monotonic() + timeout,
            tries=TRIES,
        )
        refused: RequestRejected | None = None
        for body, sees in _bodies(self._handle.model, chat, picture, request):
            if picture is not None and not sees:
                log.warning("%s does not take pictures: it goes by the text alone.", self._address)
            try:
                return chat_completion(terms, body, self._host, clean_answer)
            except RequestRejected as error:
                refused = error
        raise ServerFailed(str(refused)) from refused


def _bodies(
    model: str, chat: Chat, picture: Picture | None, request: ExpandRequest
) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield the request, then with less of what a server may not know, and whether the picture is in it."""
    yield {**_body(model, chat, picture, request), **EXTRAS}, True
    yield _body(model, chat, picture, request), True
    if picture is not None:
        yield _body(model, chat, None, request), False


def _body(model: str, chat: Chat, picture: Picture | None, request: ExpandRequest) -> dict[str, Any]:
    user: Any = chat.user
    if picture is not None:
        data = base64.b64encode(picture.png()).decode()
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
        user = [image, {"type": "text", "text": chat.user}]
    turns = [
        {"role": role, "content": text}
        for turn in chat.examples
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    return {
        "model": model,
        "messages": [{"role": "system", "content": chat.system}, *turns, {"role": "user", "content": user}],
        "max_tokens": request.max_new_tokens,
        "temperature": request.temperature,
        "seed": request.seed % 2**SEED_BITS,
        "stream": True,
    }
