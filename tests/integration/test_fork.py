"""A forked child holds no connection open."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Iterator

import pytest

import fabric.sync
from fabric.client import WebSocketClient
from fabric.message import Message
from fabric_ext.protocol import State
from integration.raw import RawServer, Visit
from support.raw_peer import RawPeer
from support.serving import Held, serve, until
from support.tls import server_context

Stack = contextlib.AsyncExitStack

secure = pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def lost_by_a_child(*descriptors: int) -> int:
    """How many of these pipes a forked process has no longer."""
    child = os.fork()
    if not child:
        try:
            os._exit(sum(not stat.S_ISFIFO(os.fstat(number).st_mode) for number in descriptors))
        finally:
            os._exit(100)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


async def test_a_child_keeps_the_files_that_came_after_a_blocking_client(stack: Stack) -> None:
    """Once it lost one of them, if the loop of the closed client had not been collected."""
    server = await serve(stack, Held())
    client = await asyncio.to_thread(fabric.sync.connect, f"ws://127.0.0.1:{server.port}")
    await asyncio.to_thread(client.close)
    pipes = [os.pipe() for _ in range(10)]
    assert lost_by_a_child(*(number for pipe in pipes for number in pipe)) == 0
    for number in (number for pipe in pipes for number in pipe):
        os.close(number)
    assert client.state is State.CLOSED


@contextlib.contextmanager
def child() -> Iterator[None]:
    """A forked process that does nothing, until the end of the block."""
    reading, writing = os.pipe()
    begun, begin = os.pipe()
    number = os.fork()
    if not number:
        try:
            os.close(writing)
            os.write(begin, b"!")  # what happens at a fork has happened
            os.read(reading, 1)
        finally:
            os._exit(0)
    os.close(reading)
    os.read(begun, 1)
    os.close(begun)
    os.close(begin)
    try:
        yield
    finally:
        os.close(writing)
        os.waitpid(number, 0)


async def test_the_servers_connections_end_although_a_child_lives(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held)
    async with await RawPeer.open(server.port) as peer:
        client = await held.next()
        with child():
            await client.send("still there")
            assert await peer.payload() == b"still there"
            client._abort()
            await peer.closed()


@secure
async def test_opening_handshakes_end_with_the_server_although_a_child_lives(stack: Stack, secure: bool) -> None:
    async with contextlib.AsyncExitStack() as inner:
        server = await serve(inner, Held(), **({"ssl": server_context()} if secure else {}))
        async with await RawPeer.connect(server.port) as peer:
            await until(lambda: len(server._handshakes or ()))
            with child():
                closing = asyncio.create_task(inner.aclose())
                assert (await peer.reader.read(-1)).startswith(b"" if secure else b"HTTP/1.1 503")
                peer.writer.close()
                await closing


@secure
async def test_an_attempt_to_connect_ends_although_a_child_lives(stack: Stack, secure: bool) -> None:
    async def handle(visit: Visit) -> None:
        visits.append(visit)
        await visit.until_closed()
        ended.append(True)

    visits: list[Visit] = []
    ended: list[bool] = []
    server = await stack.enter_async_context(RawServer(handle))
    url = server.url.replace("ws", "wss" if secure else "ws")
    for proxy in (None, f"http://127.0.0.1:{server.port}", f"socks5://127.0.0.1:{server.port}"):
        connecting = asyncio.create_task(_connect(url, proxy))
        await until(lambda: visits)
        with child():
            connecting.cancel()
            await until(lambda: ended)
        visits.clear()
        ended.clear()


async def _connect(url: str, proxy: str | None) -> None:
    async with WebSocketClient.connect(url, proxy=proxy, connection_timeout=60):
        pass


@secure
async def test_a_port_is_free_when_the_server_has_stopped_although_a_child_lives(secure: bool) -> None:
    async with contextlib.AsyncExitStack() as inner:
        server = await serve(inner, Held(), **({"ssl": server_context()} if secure else {}))
        port = server.port
        with child():
            await inner.aclose()
            with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                pass


async def test_a_clients_connection_ends_although_a_child_lives(stack: Stack) -> None:
    async def handle(visit: Visit) -> None:
        await visit.accept()
        frame = await visit.frame()
        visit.writer.write(bytes([0x81, len(frame.payload)]) + frame.payload)
        await visit.until_closed()
        ended.append(True)

    ended: list[bool] = []
    server = await stack.enter_async_context(RawServer(handle))
    client = await WebSocketClient.connect(server.url, auto_reconnect=False, compression=None)
    with child():
        await client.send("x")
        assert await client.recv() == Message("x")
        client._abort()
        await client.wait_closed()
        await until(lambda: ended)
