"""ComfyUI's event stream: as much of a websocket client as reading a loopback server's messages takes."""

from __future__ import annotations

import base64
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any
from urllib.parse import urlparse

TEXT = 1
ENDS = ("execution_success", "execution_error", "execution_interrupted")


def has_ended(message: dict[str, Any]) -> bool:
    return message["type"] in ENDS


class EventStream:
    """The messages ComfyUI sends to `client_id`; use as a context manager."""

    def __init__(self, url: str, client_id: str, timeout: float = 120) -> None:
        self._where = urlparse(url)
        self._client_id = client_id
        self._timeout = timeout

    def __enter__(self) -> EventStream:
        assert self._where.hostname and self._where.port
        self._socket = socket.create_connection((self._where.hostname, self._where.port), self._timeout)
        self._stream = self._socket.makefile("rb")
        self._socket.sendall(self._handshake().encode())
        while self._stream.readline().strip():
            pass
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stream.close()
        self._socket.close()

    def _handshake(self) -> str:
        lines = [
            f"GET /ws?clientId={self._client_id} HTTP/1.1",
            f"Host: {self._where.netloc}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            "Sec-WebSocket-Version: 13",
        ]
        return "\r\n".join(lines) + "\r\n\r\n"

    def _frame(self) -> tuple[int, bytes]:
        opcode, size = self._read(2)
        if size == 126:
            size = int.from_bytes(self._read(2), "big")
        elif size == 127:
            size = int.from_bytes(self._read(8), "big")
        return opcode & 15, self._read(size)

    def _read(self, size: int) -> bytes:
        data = self._stream.read(size)
        if len(data) < size:
            raise ConnectionError("ComfyUI closed the event stream")
        return data

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yield the JSON messages; previews, which are binary, are left out."""
        deadline = time.monotonic() + self._timeout
        while time.monotonic() < deadline:
            opcode, data = self._frame()
            if opcode == TEXT:
                yield json.loads(data)

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Return the messages up to the first wanted one, that one included; fail where the run ends before."""
        seen = []
        for message in self.messages():
            seen.append(message)
            if wanted(message):
                return seen
            assert not has_ended(message), f"the run ended before: {message}"
        raise TimeoutError(f"no such message came; the last was {seen[-1:]}")
