"""Event stream of a ComfyUI server: the messages of its websocket, by aiohttp, which every ComfyUI has."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import queue
import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import timeouts
from .address import ServerAddress

if TYPE_CHECKING:
    from types import SimpleNamespace

LARGEST_MESSAGE = 4 << 20  # bytes; with a larger one the connection ends, and the state is asked for
MOST_MESSAGES = 64  # that wait to be shown; the server's own wait behind them
PROGRESS_TEXT = 3  # ComfyUI's number of a binary message with a text that a node shows while it works


@dataclass(frozen=True)
class ServerEvent:
    """A message: its type, such as `executing`, and its data."""

    kind: str
    data: dict[str, Any]


def has_websockets() -> bool:
    """Return whether events can be received here."""
    return importlib.util.find_spec("aiohttp") is not None


class EventStream:
    """The messages that a server sends to one client, received in a thread; it connects again where it is cut off.

    Attributes:
        failure: why there is no connection now; empty where there is one.
        drops: how often a connection ended.
    """

    def __init__(self, address: ServerAddress, client: str) -> None:
        self.failure, self.drops = "not connected yet", 0
        self._address = address
        self._url = address.to("/ws", {"clientId": client})
        self._events: queue.Queue[ServerEvent] = queue.Queue(MOST_MESSAGES)
        self._tried, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="piying-events", daemon=True)
        self._thread.start()

    def wait_connected(self, seconds: float) -> bool:
        """Wait until the first attempt to connect has ended, and return whether it did."""
        self._tried.wait(seconds)
        return self.is_connected

    @property
    def is_connected(self) -> bool:
        """Whether messages can come now."""
        return not self.failure

    def next(self, timeout: float) -> ServerEvent | None:
        """Return the next message, None where none comes within `timeout` seconds."""
        try:
            return self._events.get(timeout=timeout)
        except queue.Empty:
            return None

    def close(self) -> None:
        """End the connection. Where the server does not take leave, the thread waits for it, and nobody else does."""
        self._closing.set()
        self._thread.join(1.0)

    # In the thread

    def _run(self) -> None:
        asyncio.run(self._receive())

    async def _receive(self) -> None:
        work = asyncio.ensure_future(self._connect_again_and_again())
        while not self._closing.is_set() and not work.done():
            await asyncio.sleep(0.1)
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work

    async def _connect_again_and_again(self) -> None:
        import aiohttp

        async def refuse(session: Any, context: SimpleNamespace, redirect: Any) -> None:
            del session, context, redirect
            raise aiohttp.ClientError("it redirects, which is not followed")

        trace = aiohttp.TraceConfig()
        trace.on_request_redirect.append(refuse)
        given = self._address.authorization
        headers = {"User-Agent": "piying"} | ({} if given is None else {"Authorization": given})
        failures = 0
        async with aiohttp.ClientSession(headers=headers, trace_configs=[trace]) as session:
            while True:
                try:
                    connecting = session.ws_connect(
                        self._url, heartbeat=timeouts.HEARTBEAT, max_msg_size=LARGEST_MESSAGE
                    )
                    async with await asyncio.wait_for(connecting, timeouts.CONNECT) as websocket:
                        self.failure, failures = "", 0
                        self._tried.set()
                        async for message in websocket:
                            await self._take(message.data)
                    self._note_failure("the connection was closed")
                except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
                    self._note_failure(str(error) or type(error).__name__)
                pauses = timeouts.RECONNECT_PAUSES
                await asyncio.sleep(pauses[min(failures, len(pauses) - 1)])
                failures += 1

    def _note_failure(self, reason: str) -> None:
        self.drops += not self.failure
        # The URL in aiohttp's messages is long and known; what it found there is not.
        self.failure = " ".join(reason.partition(", url=")[0].split()) or "cut off"
        self._tried.set()

    async def _take(self, data: Any) -> None:
        event = _decoded(data)
        while event is not None:
            try:
                self._events.put_nowait(event)
                return
            except queue.Full:
                await asyncio.sleep(0.01)


def _decoded(data: Any) -> ServerEvent | None:
    """Return the event of a message, None for pictures and for what ComfyUI does not send."""
    try:
        if isinstance(data, bytes):
            return _progress_text(data)
        found = json.loads(data)
    except (ValueError, TypeError, RecursionError, struct.error):
        return None
    kind, values = (found.get("type"), found.get("data")) if isinstance(found, dict) else (None, None)
    return ServerEvent(kind, values) if isinstance(kind, str) and isinstance(values, dict) else None


def _progress_text(data: bytes) -> ServerEvent | None:
    """Return the event of a text: two numbers of four bytes, the kind and the length of the node's id, and both."""
    kind, length = struct.unpack(">II", data[:8])
    if kind != PROGRESS_TEXT:
        return None
    node, text = data[8 : 8 + length].decode(), data[8 + length :].decode("utf-8", "replace")
    return ServerEvent("progress_text", {"node": node, "text": text})
