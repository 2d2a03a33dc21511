"""A TCP relay between a client and a server that mistreats what it passes on.

Each direction is a `Way` whose attributes may be changed at any moment; they hold for all connections. Counts every
byte, so that a test waits for what has happened instead of for time to pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Self

CHUNK = 65536
HARD = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST


class Way:
    """One direction.

    Attributes:
        delay: seconds for which each read is held.
        piece: bytes of each write, or what tells them; None = as they came.
        gather: bytes to wait for before any are written; the end of the stream passes on what there is.
        rate: bytes per second; None = as fast as it goes.
        swallowing: everything is read, acknowledged and thrown away.
        passed: bytes written so far.
        swallowed: bytes thrown away.
    """

    def __init__(self) -> None:
        self.delay = 0.0
        self.piece: int | Callable[[], int] | None = None
        self.gather = 0
        self.rate: float | None = None
        self.swallowing = False
        self.passed = self.swallowed = 0
        self._budget: int | None = None  # bytes that may pass before it goes silent
        self._moving = asyncio.Event()
        self._moving.set()
        self._changed = asyncio.Condition()

    def go_silent(self, after: int = 0) -> None:
        """Neither read nor write anything once `after` more bytes have passed."""
        self._budget = after
        if not after:
            self._moving.clear()

    def resume(self) -> None:
        """Undo `go_silent`, with what waited."""
        self._budget = None
        self._moving.set()

    async def reached(self, count: int) -> None:
        """Wait until `count` bytes have passed or been swallowed, since the beginning."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.passed + self.swallowed >= count)

    async def carry(self, source: socket.socket, sink: socket.socket) -> None:
        """Pass on what `source` says, up to its end, and that too."""
        loop = asyncio.get_running_loop()
        held = bytearray()
        while True:
            await self._moving.wait()
            data = await loop.sock_recv(source, CHUNK)
            if self.delay:
                await asyncio.sleep(self.delay)
            held += data
            if data and len(held) < self.gather:
                continue
            for piece in self._cut(bytes(held)):
                await self._pass(sink, piece)
            held.clear()
            if not data:
                await self._moving.wait()
                sink.shutdown(socket.SHUT_WR)
                return

    def _cut(self, data: bytes) -> Iterator[bytes]:
        while data:
            size = self.piece() if callable(self.piece) else self.piece or len(data)
            yield data[:size]
            data = data[size:]

    async def _pass(self, sink: socket.socket, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        while data:
            await self._moving.wait()
            part = data if self._budget is None else data[: self._budget]
            data = data[len(part) :]
            if self.swallowing:
                self.swallowed += len(part)
            else:
                await loop.sock_sendall(sink, part)
                self.passed += len(part)
            if self._budget is not None:
                self._budget -= len(part)
                if self._budget <= 0:
                    self._moving.clear()
            async with self._changed:
                self._changed.notify_all()
            if self.rate:
                await asyncio.sleep(len(part) / self.rate)


class Relay:
    """`async with Relay(port) as relay:` listens at `relay.port` for what goes to `port`.

    Attributes:
        to_server, to_client: the two directions.
        accepted: connections so far.
    """

    def __init__(self, target: int, *, buffers: int | None = None) -> None:
        self.target = target
        self.to_server, self.to_client = Way(), Way()
        self.accepted = 0
        self.port = 0
        self._buffers = buffers  # bytes in each of the kernel's buffers here; None = as it likes
        self._listener: socket.socket | None = None
        self._acceptor: asyncio.Task[None] | None = None
        self._links: dict[asyncio.Task[None], tuple[socket.socket, socket.socket]] = {}

    async def __aenter__(self) -> Self:
        self._listener = self._new_socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", self.port))
        self._listener.listen(1024)
        self.port = self._listener.getsockname()[1]
        self._acceptor = asyncio.create_task(self._accept(self._listener))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._acceptor is not None
        assert self._listener is not None
        self._acceptor.cancel()
        await asyncio.wait([self._acceptor])
        self._listener.close()
        await self.reset()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/"

    @property
    def open(self) -> int:
        """Connections that are being relayed."""
        return len(self._links)

    async def reset(self) -> None:
        """End all connections as a crash does, in both directions: RST."""
        tasks = list(self._links)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def end_to_client(self) -> None:
        """Half-close: the client reads the end of the stream, what it sends still passes."""
        for client, _ in self._links.values():
            with contextlib.suppress(OSError):  # it has gone
                client.shutdown(socket.SHUT_WR)

    def end_to_server(self) -> None:
        """Half-close: the server reads the end of the stream, what it sends still passes."""
        for _, server in self._links.values():
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_WR)

    def _new_socket(self) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        if self._buffers is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffers)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._buffers)
        return sock

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(listener)
            client.setblocking(False)
            self.accepted += 1
            server = self._new_socket()
            link = asyncio.create_task(self._link(client, server))
            self._links[link] = client, server
            link.add_done_callback(self._unlink)

    async def _link(self, client: socket.socket, server: socket.socket) -> None:
        await asyncio.get_running_loop().sock_connect(server, ("127.0.0.1", self.target))
        for sock in (client, server):  # what is cut stays cut
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.to_server.carry(client, server))
            group.create_task(self.to_client.carry(server, client))

    def _unlink(self, link: asyncio.Task[None]) -> None:
        """Also of a task that was cancelled before it began."""
        ended = not link.cancelled() and link.exception() is None
        for sock in self._links.pop(link):
            if not ended:  # one side was reset, or both are to be
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, HARD)
            sock.close()
