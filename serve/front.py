"""Front: the socket that clients reach, which lets only whole and bounded HTTP requests through to the server.

One request for each connection. Its header has to come within seconds and its body has to say its size, so that
neither idle connections nor endless bodies hold anything but a socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import ssl
from dataclasses import dataclass, field

from ..core.process import WRONG
from .job import problem

CHUNK = 64 << 10
REASONS = {
    400: "Bad Request",
    411: "Length Required",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
}
REASONS |= {408: "Request Timeout", 502: "Bad Gateway", 503: "Service Unavailable"}
# What is about one connection is not passed on, and neither is what a client says of the connections before it.
DROPPED = (b"connection", b"keep-alive", b"proxy-connection", b"upgrade", b"te", b"x-forwarded-for", b"forwarded")
TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True)
class FrontLimits:
    """What a connection may take.

    Attributes:
        connections: open at once; more are refused.
        header_bytes, body_bytes: of a request.
        header_seconds: until the header is whole.
        silence: seconds in which a client neither sends its body nor takes what it is sent.
        linger: seconds that a refused client may still send, so that it gets to read why.
    """

    connections: int = 4096
    header_bytes: int = 32 << 10
    body_bytes: int = 16 << 20
    header_seconds: float = 10.0
    silence: float = 60.0
    linger: float = 5.0


class _Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass
class Front:
    """Passes requests on to a server on this machine.

    Attributes:
        host, port: of that server.
        open: connections that are open now.
    """

    host: str
    port: int
    limits: FrontLimits = field(default_factory=FrontLimits)
    open: int = 0

    async def listen(self, listening: socket.socket, tls: ssl.SSLContext | None = None) -> asyncio.Server:
        """Accept connections on a socket that listens."""
        return await asyncio.start_server(
            self._answer, sock=listening, limit=self.limits.header_bytes, ssl=tls, backlog=1024
        )

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        # `drain` then returns when the system has taken everything: what is left here would be lost with the socket.
        writer.transport.set_write_buffer_limits(high=0)
        try:
            try:
                if self.open > self.limits.connections:
                    raise _Refused(503, "Too many connections are open. Try again later.")
                header, length = await self._header(reader, writer)
                await self._pass_on(reader, writer, header, length)
            except _Refused as refused:
                await self._refuse(reader, writer, refused)
        except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError):
            pass  # the client is gone, or takes nothing any more
        finally:
            self.open -= 1
            writer.transport.abort()

    async def _header(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[bytes, int]:
        """Return the header to pass on, and the size of the body."""
        try:
            header = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), self.limits.header_seconds)
        except asyncio.LimitOverrunError as error:
            raise _Refused(431, f"The header is larger than {self.limits.header_bytes >> 10} KiB.") from error
        except asyncio.TimeoutError as error:
            raise _Refused(408, "The header did not come in time.") from error
        kept, length = _checked(header)
        if length > self.limits.body_bytes:
            most = f"{self.limits.body_bytes / 2**20:g} MiB"
            raise _Refused(413, f"The body is larger than {most}. Send a smaller workflow, or fewer jobs at once.")
        peer = writer.get_extra_info("peername")
        kept += [b"Connection: close", f"X-Forwarded-For: {peer[0] if peer else 'unknown'}".encode()]
        return b"\r\n".join(kept) + b"\r\n\r\n", length

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, header: bytes, length: int
    ) -> None:
        try:
            answer, server = await asyncio.open_connection(self.host, self.port)
        except OSError as error:
            raise _Refused(502, "The queue is starting or has stopped. Try again later.") from error
        try:
            server.write(header)
            sending = asyncio.create_task(self._send(reader, server, length))
            answering = asyncio.create_task(self._receive(answer, writer))
            # A client that is gone ends the answer; an answer that is whole ends what the client still sends.
            await asyncio.wait({sending, answering}, return_when=asyncio.FIRST_COMPLETED)
            for task in (sending, answering):
                task.cancel()
            await asyncio.gather(sending, answering, return_exceptions=True)
        finally:
            server.transport.abort()

    async def _send(self, reader: asyncio.StreamReader, server: asyncio.StreamWriter, length: int) -> None:
        """Pass the body on, then return when the client is gone."""
        while length > 0:
            chunk = await asyncio.wait_for(reader.read(min(length, CHUNK)), self.limits.silence)
            if not chunk:
                return
            length -= len(chunk)
            server.write(chunk)
            await server.drain()
        while await reader.read(CHUNK):
            pass  # a second request on the connection, which is not answered

    async def _receive(self, answer: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await answer.read(CHUNK):
            writer.write(chunk)
            await asyncio.wait_for(writer.drain(), self.limits.silence)

    async def _refuse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, refused: _Refused) -> None:
        body = json.dumps({"problems": [problem(str(refused), exit_code=WRONG)]}).encode()
        lines = (
            f"HTTP/1.1 {refused.status} {REASONS[refused.status]}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Connection: close",
        )
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await asyncio.wait_for(writer.drain(), self.limits.linger)
        if writer.can_write_eof():
            writer.write_eof()
        # A socket that is closed with unread data is reset, and the client would never read the answer.
        with contextlib.suppress(asyncio.TimeoutError):
            deadline = asyncio.get_running_loop().time() + self.limits.linger
            while await asyncio.wait_for(reader.read(CHUNK), deadline - asyncio.get_running_loop().time()):
                pass


def _checked(header: bytes) -> tuple[list[bytes], int]:
    """Return the lines of a request's header that are passed on, and the size of its body."""
    first, *lines = header[:-4].split(b"\r\n")
    if not re.fullmatch(rb"[A-Z]+ /[!-~]* HTTP/1\.[01]", first):
        raise _Refused(400, "The first line is no HTTP request for a path.")
    kept, lengths = [first], []
    for line in lines:
        name, colon, value = line.partition(b":")
        name = name.lower()
        # Two programs that read the same header in two ways would let a second request through inside the first.
        if not colon or not TOKEN.fullmatch(name) or re.search(rb"[\r\n\0]", line):
            raise _Refused(400, "A line of the header is malformed.")
        if name == b"transfer-encoding":
            raise _Refused(411, "Send the body with a Content-Length.")
        if name == b"content-length":
            lengths.append(value.strip())
        if name not in DROPPED:
            kept.append(line)
    if len(lengths) > 1 or any(not re.fullmatch(rb"[0-9]{1,18}", one) for one in lengths):
        raise _Refused(400, "Content-Length is not one number.")
    return kept, int(lengths[0]) if lengths else 0
