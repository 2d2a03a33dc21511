"""How connections and servers end: what was sent arrives, a peer's end is noticed, deadlines hold, nobody is noisy."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fabric.client import WebSocketClient
from fabric.config import BackpressureConfig
from fabric.error import ConnectionClosed
from fault.counted import number_of, numbered
from fault.relay import Relay
from support.frames import encode
from support.raw_peer import RawPeer, request
from support.serving import Held, serve, turns, until
from support.tls import client_context, server_context

SMALL = 4096  # bytes of a kernel's buffer
PLAIN: dict[str, Any] = {"compression": None, "auto_reconnect": False, "heartbeat": None}
SECURE = pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])


def shrink(end: Any) -> None:
    sock = end._transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)


def tls_of(secure: bool) -> dict[str, Any]:
    return {"ssl": server_context()} if secure else {}


def trust_of(secure: bool) -> dict[str, Any]:
    return {"ssl": client_context()} if secure else {}


def scheme_of(secure: bool) -> str:
    return "wss" if secure else "ws"


# -- what was sent arrives


@SECURE
@pytest.mark.parametrize("pieces", [1, 100])
async def test_a_slow_client_gets_all_although_the_handler_has_returned(
    stack: contextlib.AsyncExitStack, pieces: int, *, secure: bool
) -> None:
    size = 3_000_000 // pieces

    async def handle(client: Any) -> None:
        shrink(client)
        for number in range(pieces):
            await client.send(numbered(number, size))

    roomy = BackpressureConfig(max_buffer_bytes=10_000_000)
    server = await serve(stack, handle, close_timeout=0.2, backpressure=roomy, **tls_of(secure))
    async with Relay(server.port, buffers=SMALL) as relay:
        relay.to_client.rate, relay.to_client.piece = 4_000_000, 3000
        url = relay.url.replace("ws://", f"{scheme_of(secure)}://")
        began = time.monotonic()
        async with WebSocketClient.connect(url, **PLAIN, **trust_of(secure)) as client:
            assert [number_of(await client.recv()) for _ in range(pieces)] == list(range(pieces))
            assert await client.recv() is None
            assert client.close_code == 1000
        assert time.monotonic() - began > 0.4  # longer than close_timeout


@SECURE
async def test_a_slow_server_gets_all_that_a_client_sent_before_close(
    stack: contextlib.AsyncExitStack, *, secure: bool
) -> None:
    got: list[int] = []

    async def handle(client: Any) -> None:
        async for message in client:
            got.append(number_of(message))

    server = await serve(stack, handle, **tls_of(secure))
    async with Relay(server.port, buffers=SMALL) as relay:
        relay.to_server.rate, relay.to_server.piece = 4_000_000, 3000
        url = relay.url.replace("ws://", f"{scheme_of(secure)}://")
        client = await WebSocketClient.connect(url, close_timeout=0.2, **PLAIN, **trust_of(secure))
        shrink(client)
        for number in range(60):
            await client.send(numbered(number, 50_000))
        await client.close()
        assert client.close_code == 1000
        assert not client.undelivered
        assert got == list(range(60))


@SECURE
@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("one", [True, False], ids=["one message", "an outbox"])
async def test_what_is_cut_off_is_told(
    stack: contextlib.AsyncExitStack, caplog: pytest.LogCaptureFixture, side: str, *, one: bool, secure: bool
) -> None:
    caplog.set_level(logging.WARNING)
    held = Held()
    server = await serve(stack, held, close_timeout=0.2, buffer_size=10, **tls_of(secure))
    limits = BackpressureConfig(max_buffer_bytes=10_000_000)
    url = f"{scheme_of(secure)}://127.0.0.1:{server.port}/"
    async with WebSocketClient.connect(
        url, close_timeout=0.2, buffer_size=10, backpressure=limits, **PLAIN, **trust_of(secure)
    ) as client:
        server_end = await held.next()
        sender, receiver = (client, server_end) if side == "client" else (server_end, client)
        receiver._session_now.pause_for_rate()  # takes nothing from now on
        shrink(sender)
        sent = 0
        if one:
            sender.send_nowait(numbered(0, 8_000_000))
            sent = 1
        else:
            while sender.backpressure.messages < 30:  # a busy kernel takes some of them a little later
                sender.send_nowait(numbered(sent, 30_000))
                sent += 1
        began = time.monotonic()
        await sender.close()
        assert time.monotonic() - began >= 0.19
        assert sender.close_code == 1006
        assert any("not delivered" in record.getMessage() for record in caplog.records)
        back = [number_of(message) for message in sender.undelivered]
        assert back
        assert back == list(range(sent - len(back), sent))  # the kernel may have taken some before
        receiver._session_now.abort()
        held.release()


# -- the peer's end is noticed


@pytest.mark.usefixtures("no_look_ahead")
@pytest.mark.parametrize("how", ["fin", "close frame", "reset"])
async def test_a_client_that_leaves_while_nobody_reads_is_noticed(stack: contextlib.AsyncExitStack, how: str) -> None:
    taken: list[str] = []

    async def handle(client: Any) -> None:
        await client.wait_closed()
        with contextlib.suppress(ConnectionClosed):
            async for message in client:
                taken.append(message.as_text())

    server = await serve(stack, handle, buffer_size=100, close_timeout=0.2)
    peer = await RawPeer.open(server.port)
    async with peer:
        await until(lambda: server.connection_count == 1)
        for number in range(1000):
            peer.send_text(str(number))
        await peer.writer.drain()
        await until(lambda: server.clients()[0].is_reading_paused)
        if how == "close frame":
            peer.send_close()
        if how == "reset":
            peer.reset()
        else:
            peer.writer.close()
        async with asyncio.timeout(20):
            await until(lambda: server.connection_count == 0)
    await until(lambda: not server._connections.tasks)
    if how != "reset":
        assert taken == [str(number) for number in range(1000)]
    else:
        assert taken == [str(number) for number in range(len(taken))]


@pytest.mark.usefixtures("no_look_ahead")
async def test_a_server_that_leaves_while_nobody_reads_is_noticed(stack: contextlib.AsyncExitStack) -> None:
    async def handle(client: Any) -> None:
        for number in range(1000):
            await client.send(str(number))
        await client.close()

    server = await serve(stack, handle, close_timeout=0.2)
    url = f"ws://127.0.0.1:{server.port}/"
    async with WebSocketClient.connect(url, buffer_size=100, **PLAIN) as client:
        async with asyncio.timeout(20):
            await client.wait_closed()
        assert [(await client.recv()).as_text() for _ in range(1000)] == [str(number) for number in range(1000)]


# -- peers that are gone when they are answered


class Blocking:
    """A client without an event loop: what it does has happened when the call returns."""

    def __init__(self, port: int, *data: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        if data:
            self.socket.sendall(b"".join(data))

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


async def test_shutdown_survives_peers_that_have_gone(
    stack: contextlib.AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    held = Held()
    server = await serve(stack, held, close_timeout=0.2)
    silent = [Blocking(server.port) for _ in range(3)]
    half = [Blocking(server.port, b"GET / HTTP/1.1\r\n") for _ in range(3)]
    whole = [Blocking(server.port, request()) for _ in range(3)]
    staying = Blocking(server.port, request())
    await until(lambda: server.connection_count == 4 and len(server._handshakes) == 6)
    serving = asyncio.create_task(server.serve_forever())
    await asyncio.sleep(0)
    for peer in (*silent, *half, *whole):
        peer.reset()
    held.release()  # nothing has run in the loop since
    await server.shutdown(timeout=1)
    await server.shutdown(timeout=1)
    async with asyncio.timeout(20):
        await serving
    assert server.connection_count == 0
    staying.socket.close()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@SECURE
@pytest.mark.parametrize("end", ["fin", "reset"])
async def test_health_checks_are_quiet(
    stack: contextlib.AsyncExitStack, caplog: pytest.LogCaptureFixture, end: str, *, secure: bool
) -> None:
    server = await serve(stack, Held(), close_timeout=0.2, **tls_of(secure))
    for data in (b"", b"GET ", b"GET / HTTP/1.1\r\n\r\n", request()[:-2], b"nonsense\r\n\r\n"):
        for wait in (False, True):
            peer = Blocking(server.port, data)
            if wait:
                await turns()
            if end == "reset":
                peer.reset()
            else:
                peer.socket.close()
            await turns()
    await until(lambda: not server._handshakes)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_fault_of_a_peer_that_has_gone_is_quiet(
    stack: contextlib.AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    server = await serve(stack, on_message=lambda *_: None, close_timeout=0.2)
    for _ in range(5):
        peer = Blocking(server.port, request())
        await until(lambda: server.connection_count == 1)
        peer.socket.sendall(encode(0xB, b""))
        peer.reset()
        await until(lambda: server.connection_count == 0)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


# -- the deadline of shutdown


@contextlib.asynccontextmanager
async def stubborn(kind: str, release: asyncio.Event) -> AsyncIterator[Any]:
    async def slow_finally(client: Any) -> None:
        try:
            await client.wait_closed()
            await release.wait()
        finally:
            await release.wait()

    async def swallows(client: Any) -> None:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    yield {"finally": slow_finally, "swallows": swallows}[kind]
    release.set()


@pytest.mark.parametrize("kind", ["finally", "swallows"])
async def test_shutdown_leaves_handlers_behind_that_do_not_end(
    stack: contextlib.AsyncExitStack, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    release = asyncio.Event()
    async with stubborn(kind, release) as handle:
        server = await serve(stack, handle, close_timeout=60)
        async with await RawPeer.open(server.port):
            await until(lambda: server.connection_count == 1)
            await server.shutdown(timeout=0.2)
            assert any("goes on although" in record.getMessage() for record in caplog.records)
            assert server.connection_count == 0


async def test_shutdown_waits_for_no_silent_tls_client(stack: contextlib.AsyncExitStack) -> None:
    server = await serve(stack, Held(), handshake_timeout=60, ssl=server_context())
    silent = [Blocking(server.port) for _ in range(3)]
    half = ssl.MemoryBIO()
    hello = client_context().wrap_bio(ssl.MemoryBIO(), half, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        hello.do_handshake()
    silent.append(Blocking(server.port, half.read()[:50]))
    await turns()
    await server.shutdown(timeout=0.2)
    for peer in silent:
        peer.socket.close()


async def test_shutdown_waits_for_no_peer_that_takes_nothing(stack: contextlib.AsyncExitStack) -> None:
    async def handle(client: Any) -> None:
        shrink(client)
        for number in range(100):
            client.send_nowait(numbered(number, 50_000))
        await client.wait_closed()

    server = await serve(stack, handle, close_timeout=60)
    async with await RawPeer.open(server.port, receive_buffer=SMALL):
        await until(lambda: server.connection_count == 1 and server.clients()[0]._outbox_size)
        await server.shutdown(timeout=0.2)
        assert server.connection_count == 0


# -- a broadcast that waits


async def test_a_peer_that_takes_nothing_holds_up_no_broadcaster(
    stack: contextlib.AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    """`slow_peer="wait"` waits as long as a peer takes bytes, and closes one that takes none for `close_timeout`."""
    held = Held()
    few = BackpressureConfig(max_buffer_size=10)
    server = await serve(stack, held, slow_peer="wait", backpressure=few, close_timeout=0.2)
    async with (
        await RawPeer.open(server.port, receive_buffer=SMALL) as deaf,
        WebSocketClient.connect(f"ws://127.0.0.1:{server.port}/", **PLAIN) as hearing,
    ):
        for _ in range(2):
            shrink(await held.next())
        heard = asyncio.create_task(hear(hearing, 60))
        reached = [await server.broadcast(numbered(number, 50_000)) for number in range(60)]
        assert await heard == list(range(60))
        assert reached[0] == 2
        assert reached[-1] == 1
        await until(lambda: server.connection_count == 1)
        assert any("took none" in record.getMessage() for record in caplog.records)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await deaf.reader.read(-1)
        held.release()


async def hear(client: WebSocketClient, count: int) -> list[int]:
    return [number_of(await client.recv()) for _ in range(count)]


async def test_a_broadcast_waits_for_a_peer_that_is_slow(stack: contextlib.AsyncExitStack) -> None:
    held = Held()
    few = BackpressureConfig(max_buffer_size=10)
    server = await serve(stack, held, slow_peer="wait", backpressure=few, close_timeout=0.2)
    async with Relay(server.port, buffers=SMALL) as relay:
        relay.to_client.rate, relay.to_client.piece = 4_000_000, 3000
        async with WebSocketClient.connect(relay.url, **PLAIN) as client:
            shrink(await held.next())
            heard = asyncio.create_task(hear(client, 60))
            assert [await server.broadcast(numbered(number, 50_000)) for number in range(60)] == [1] * 60
            assert await heard == list(range(60))
            held.release()
