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
from typing import Any

import pytest

from fabric.client import WebSocketClient
from fabric.message import Frame
from fabric.server import ConnectedClient
from support.frames import decode, encode
from support.raw_peer import request
from support.serving import serve

Stack = contextlib.AsyncExitStack

PATIENCE = 3.0  # seconds after which what has not come is taken for what does not come


class ThreadPeer:
    """A client in a thread of its own: sends `data`, then reads frames; `seen[n]` is set when it has the n-th."""

    def __init__(self, port: int, data: bytes, count: int) -> None:
        self.seen = [threading.Event() for _ in range(count)]
        self.payloads: list[bytes] = []
        self._sock = socket.create_connection(("127.0.0.1", port))
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
    peers.append(await loop.run_in_executor(None, ThreadPeer, server.port, data, count))
    await done.wait()
    await loop.run_in_executor(None, peers[0].thread.join)
    await loop.shutdown_default_executor()
    return peers[0]


cork = pytest.mark.parametrize("options", [{}, {"cork": False}], ids=["default", "no cork"])


@cork
async def test_an_answer_before_work_that_blocks(stack: Stack, options: dict[str, Any]) -> None:
    seen: list[bool] = []

    async def handler(client: ConnectedClient, peer: ThreadPeer) -> None:
        await client.recv()
        await client.send("order")
        seen.append(peer.seen[0].wait(PATIENCE))

    peer = await run(stack, handler, encode(1, "tick"), 1, **options)
    assert seen == [True]
    assert peer.payloads == [b"order"]


@cork
async def test_an_order_at_the_first_of_many_ticks_in_one_read(stack: Stack, options: dict[str, Any]) -> None:
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

    await run(stack, handler, encode(1, "tick") * 1000, 1, **options)
    assert at
    assert at[0] <= 2


@cork
async def test_a_synchronous_generator_of_tokens(stack: Stack, options: dict[str, Any]) -> None:
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

    await run(stack, handler, b"", 5, **options)
    assert seen == [True] * 4


async def test_a_client_sends_before_it_blocks(stack: Stack) -> None:
    """The same from the client's side, to a peer in a thread."""
    got = threading.Event()
    port: list[int] = []
    listener = socket.create_server(("127.0.0.1", 0))
    port.append(listener.getsockname()[1])

    def peer() -> None:
        from fabric._handshake.rules import accept_key

        with listener, listener.accept()[0] as sock:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += sock.recv(1)
            key = next(line[19:] for line in head.decode().split("\r\n") if line.startswith("Sec-WebSocket-Key: "))
            answer = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept_key(key)}\r\n\r\n"
            sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\n" + answer.encode())
            sock.sendall(Frame(opcode=1, payload=b"tick").encode())
            sock.recv(100)
            got.set()
            while sock.recv(100):
                pass

    thread = threading.Thread(target=peer)
    thread.start()
    client = await WebSocketClient.connect(f"ws://127.0.0.1:{port[0]}/", auto_reconnect=False, close_timeout=0.1)
    await client.recv()
    await client.send("order")
    assert got.wait(PATIENCE)
    client._abort()
    await client.wait_closed()
    await asyncio.get_running_loop().run_in_executor(None, thread.join)
    await asyncio.get_running_loop().shutdown_default_executor()
