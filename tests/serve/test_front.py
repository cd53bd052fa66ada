"""The front: what strangers send gets no further than it should."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket

import pytest
from piying.serve.front import Front, FrontLimits

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"


class Backend:
    """A server that notes what reaches it, and answers with two bytes, or with very many."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.answer = ANSWER
        self.gone = asyncio.Event()

    async def __call__(self, reader, writer):
        data = await reader.readuntil(b"\r\n\r\n")
        lines = {line.partition(b":")[0].lower(): line.partition(b":")[2] for line in data.split(b"\r\n")}
        data += await reader.readexactly(int(lines.get(b"content-length", b"0")))
        self.seen.append(data)
        writer.write(self.answer)
        if self.answer is not ANSWER:
            with contextlib.suppress(ConnectionError):
                await reader.read()  # until the client is gone
            self.gone.set()
        writer.close()


async def started(limits):
    backend = Backend()
    server = await asyncio.start_server(backend, "127.0.0.1", 0)
    front = Front("127.0.0.1", server.sockets[0].getsockname()[1], limits)
    listening = socket.create_server(("127.0.0.1", 0))
    await front.listen(listening)
    return backend, front, listening.getsockname()


async def exchanged(address, data, wait=5.0):
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(), wait)
    finally:
        writer.close()


def run(check, **limits):
    async def checked():
        await check(*await started(FrontLimits(**{"header_seconds": 0.3, "linger": 0.3, **limits})))

    asyncio.run(checked())


def test_a_request_is_passed_on_and_its_connection_closed():
    async def check(backend, front, address):
        body = b"POST /jobs HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\nContent-Length: 4\r\n\r\nbody"
        assert await exchanged(address, body + b"POST /second HTTP/1.1\r\n\r\n") == ANSWER
        (seen,) = backend.seen
        assert seen.endswith(b"\r\n\r\nbody") and b"Connection: close\r\nX-Forwarded-For: 127.0.0.1" in seen
        assert b"keep-alive" not in seen and front.open == 0

    run(check)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET http://inside/ HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA : b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n folded: b\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 0x10\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"POST / HTTP/1.1\r\nContent-Length: 100000000\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 10_000, 431),
        (b"GET / HTTP/1.1\r\nA: b", 408),
        (b"", 408),
    ],
)
def test_what_is_no_bounded_request_goes_no_further(sent, status):
    async def check(backend, front, address):
        answer = await exchanged(address, sent)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["problems"][0]["message"]
        assert backend.seen == []

    run(check)


def test_a_hundred_megabytes_are_refused_without_being_kept():
    async def check(backend, front, address):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"POST / HTTP/1.1\r\nContent-Length: 100000000\r\n\r\n")
        chunk = bytes(1 << 20)
        for _ in range(95):
            writer.write(chunk)
            await writer.drain()
        assert b"413" in await reader.read()
        writer.close()
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10  # KiB
        assert backend.seen == []

    run(check, linger=5.0)


def test_idle_connections_are_closed_and_stop_nobody():
    async def check(backend, front, address):
        idle = [await asyncio.open_connection(*address) for _ in range(200)]
        assert await exchanged(address, b"GET / HTTP/1.1\r\n\r\n") == ANSWER
        answers = await asyncio.gather(*(reader.read() for reader, _ in idle))
        assert all(b" 408 " in answer for answer in answers)
        for _, writer in idle:
            writer.close()
        await asyncio.sleep(0.4)
        assert front.open == 0

    run(check)


def test_more_connections_than_there_may_be_are_told_so():
    async def check(backend, front, address):
        idle = [await asyncio.open_connection(*address) for _ in range(3)]
        assert b" 503 " in await exchanged(address, b"GET / HTTP/1.1\r\n\r\n")
        for _, writer in idle:
            writer.close()
        await asyncio.sleep(0.1)
        assert await exchanged(address, b"GET / HTTP/1.1\r\n\r\n") == ANSWER

    run(check, connections=3, header_seconds=5.0)


def test_a_client_that_goes_ends_its_request_and_one_that_reads_nothing_too():
    async def check(backend, front, address):
        backend.answer = b"HTTP/1.1 200 OK\r\n\r\n" + bytes(32 << 20)
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await reader.read(10)
        writer.transport.abort()
        await asyncio.wait_for(backend.gone.wait(), 5.0)
        backend.gone.clear()
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await asyncio.wait_for(backend.gone.wait(), 5.0)
        writer.transport.abort()
        await asyncio.sleep(0.1)
        assert front.open == 0

    run(check, silence=0.3)


def test_a_server_that_is_not_there_is_told():
    async def check(backend, front, address):
        front.port = 1
        assert b" 502 " in await exchanged(address, b"GET / HTTP/1.1\r\n\r\n")

    run(check)
