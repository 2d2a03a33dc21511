"""When `send` returns, the bytes are on their way: a peer in another thread has them while this one does nothing.

Order is told by events, not by time: the sender stands still in `threading.Event.wait` until the peer has read.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

import fabric.sync
from fabric._handshake.rules import accept_key
from fabric._sync.keeper import keeper
from fabric.client import WebSocketClient
from fabric.message import Frame
from fabric.server import ConnectedClient
from support.frames import decode, encode
from support.raw_peer import request
from support.serving import serve
from support.tls import client_context, server_context

Stack = contextlib.AsyncExitStack

PATIENCE = 3.0  # seconds after which what has not come is taken for what does not come


class ThreadPeer:
    """A client in a thread of its own: sends `data`, then reads frames; `seen[n]` is set when it has the n-th."""

    def __init__(self, port: int, data: bytes, count: int, *, secure: bool = False) -> None:
        self.seen = [threading.Event() for _ in range(count)]
        self.payloads: list[bytes] = []
        self._sock = socket.create_connection(("127.0.0.1", port))
        if secure:
            self._sock = client_context().wrap_socket(self._sock, server_hostname="localhost")
        self._data = data
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        with self._sock as sock:
            sock.settimeout(PATIENCE * 2)
            sock.sendall(request())
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += sock.recv(1)
            sock.sendall(self._data)
            buffer = bytearray()
            for event in self.seen:
                while (found := decode(buffer)) is None:
                    data = sock.recv(65536)
                    if not data:
                        return
                    buffer += data
                self.payloads.append(found[0].payload)
                del buffer[: found[1]]
                event.set()


async def run(stack: Stack, handler: Any, data: bytes, count: int, **options: Any) -> ThreadPeer:
    done = asyncio.Event()
    peers: list[ThreadPeer] = []

    async def handle(client: ConnectedClient) -> None:
        while not peers:
            await asyncio.sleep(0)
        try:
            await handler(client, peers[0])
        finally:
            done.set()

    server = await serve(stack, handle, **options)
    loop = asyncio.get_running_loop()
    secure = server.config.ssl is not None
    peers.append(await loop.run_in_executor(None, partial(ThreadPeer, server.port, data, count, secure=secure)))
    await done.wait()
    await loop.run_in_executor(None, peers[0].thread.join)
    await loop.shutdown_default_executor()
    return peers[0]


cork = pytest.mark.parametrize("options", [{}, {"cork": False}], ids=["default", "no cork"])
secure = pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])


def with_tls(options: dict[str, Any], secure: bool) -> dict[str, Any]:
    return {**options, "ssl": server_context()} if secure else options


@cork
@secure
async def test_an_answer_before_work_that_blocks(stack: Stack, options: dict[str, Any], secure: bool) -> None:
    seen: list[bool] = []

    async def handler(client: ConnectedClient, peer: ThreadPeer) -> None:
        await client.recv()
        await client.send("order")
        seen.append(peer.seen[0].wait(PATIENCE))

    peer = await run(stack, handler, encode(1, "tick"), 1, **with_tls(options, secure))
    assert seen == [True]
    assert peer.payloads == [b"order"]


@cork
@secure
async def test_an_order_at_the_first_of_many_ticks_in_one_read(
    stack: Stack, options: dict[str, Any], secure: bool
) -> None:
    """It leaves while the ticks behind it are being worked on."""
    at: list[int] = []

    async def handler(client: ConnectedClient, peer: ThreadPeer) -> None:
        await client.recv()
        await client.send("order")
        for number in range(1, 1000):
            await client.recv()
            if peer.seen[0].wait(PATIENCE / 100):
                at.append(number)
                return

    await run(stack, handler, encode(1, "tick") * 1000, 1, **with_tls(options, secure))
    assert at
    assert at[0] <= 2


@cork
@secure
async def test_a_synchronous_generator_of_tokens(stack: Stack, options: dict[str, Any], secure: bool) -> None:
    seen: list[bool] = []

    async def handler(client: ConnectedClient, peer: ThreadPeer) -> None:
        def tokens() -> Iterator[str]:
            for number in range(5):
                if number:
                    if not options:
                        time.sleep(0.001)  # work: what is sent closer than 50 µs may be gathered
                    seen.append(peer.seen[number - 1].wait(PATIENCE))
                yield f"token {number}"

        for token in tokens():
            await client.send(token)

    await run(stack, handler, b"", 5, **with_tls(options, secure))
    assert seen == [True] * 4


class TickingServer:
    """A server in a thread: sends "tick", then sets `seen[n]` when the n-th message has come."""

    def __init__(self, count: int, *, secure: bool) -> None:
        self.seen = [threading.Event() for _ in range(count)]
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._secure = secure
        self.url = f"{'wss' if secure else 'ws'}://localhost:{self._listening.getsockname()[1]}/"
        self.options: dict[str, Any] = {"auto_reconnect": False, "close_timeout": 0.1, "compression": None}
        if secure:
            self.options["ssl"] = client_context()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        with self._listening:
            sock = self._listening.accept()[0]
        if self._secure:
            sock = server_context().wrap_socket(sock, server_side=True)
        with sock, contextlib.suppress(OSError):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += sock.recv(1)
            key = next(line[19:] for line in head.decode().split("\r\n") if line.startswith("Sec-WebSocket-Key: "))
            answer = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept_key(key)}\r\n\r\n"
            sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\n" + answer.encode())
            sock.sendall(Frame(opcode=1, payload=b"tick").encode())
            buffer = b""
            for event in self.seen:
                while (found := Frame.parse(buffer)) is None:
                    buffer += sock.recv(100)
                buffer = buffer[found[1] :]
                event.set()
            while sock.recv(100):
                pass


@secure
async def test_a_client_sends_before_it_blocks(stack: Stack, secure: bool) -> None:
    """The same from the client's side, to a peer in a thread."""
    server = TickingServer(1, secure=secure)
    client = await WebSocketClient.connect(server.url, **server.options)
    await client.recv()
    await client.send("order")
    assert server.seen[0].wait(PATIENCE)
    client._abort()
    await client.wait_closed()
    await asyncio.get_running_loop().run_in_executor(None, server.thread.join)
    await asyncio.get_running_loop().shutdown_default_executor()


@secure
def test_a_blocking_client_sends_before_it_returns(monkeypatch: pytest.MonkeyPatch, secure: bool) -> None:
    """And not the thread that looks after idle clients: there is none here."""
    monkeypatch.setattr(keeper, "add", lambda driver: None)
    server = TickingServer(4, secure=secure)
    client = fabric.sync.connect(server.url, **server.options)
    assert client.recv() == "tick"
    for event in server.seen[:2]:
        client.send("token")
        assert event.wait(PATIENCE)
    with client.cork():
        client.send("gathered")
        client.send("on purpose")
    for event in server.seen[2:]:
        assert event.wait(PATIENCE)
    client.close()
    server.thread.join()
