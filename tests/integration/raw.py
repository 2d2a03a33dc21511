"""Servers that speak HTTP and frames byte by byte, for answers that no good server gives."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Self

from fabric._handshake.rules import accept_key
from fabric.message import Frame

SWITCHING = "HTTP/1.1 101 Switching Protocols"
UPGRADE = ("Upgrade: websocket", "Connection: Upgrade")


class Visit:
    """One connection to a RawServer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.head = b""

    async def request(self) -> dict[str, str]:
        """Read the request; return its headers, names in lower case, and "" for the first line."""
        self.head = (await self.reader.readuntil(b"\r\n\r\n"))[:-4]
        first, *lines = self.head.decode().split("\r\n")
        fields = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        return {"": first, **fields}

    def send(self, *lines: str, body: bytes = b"") -> None:
        """Send a head made of `lines`, and `body`."""
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)

    async def accept(self, *more: str, body: bytes = b"") -> dict[str, str]:
        """Read the request and answer it as a WebSocket server does."""
        headers = await self.request()
        self.accepted(headers, *more, body=body)
        return headers

    def accepted(self, headers: dict[str, str], *more: str, body: bytes = b"") -> None:
        """Answer a request that has been read."""
        accept = accept_key(headers["sec-websocket-key"])
        self.send(SWITCHING, *UPGRADE, f"Sec-WebSocket-Accept: {accept}", *more, body=body)

    async def frame(self) -> Frame:
        """Read one frame."""
        data = b""
        while (found := Frame.parse(data)) is None:
            data += await self.reader.readexactly(1)
        frame: Frame = found[0]
        return frame

    async def until_closed(self) -> None:
        """Read until the client hangs up."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass


class RawServer:
    """`async with RawServer(handle) as server`: calls `handle(visit)` for each connection, then hangs up."""

    def __init__(self, handle: Callable[[Visit], Awaitable[None]], *, port: int = 0, ssl: Any = None) -> None:
        self._handle = handle
        self._port = port
        self._ssl = ssl
        self._tasks: set[asyncio.Task[None]] = set()
        self.visits = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self._port, ssl=self._ssl, reuse_address=True
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    @property
    def port(self) -> int:
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"{'ws' if self._ssl is None else 'wss'}://127.0.0.1:{self.port}/"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.visits += 1
        try:
            await self._handle(Visit(reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError, OSError):
                await writer.wait_closed()
            self._tasks.discard(task)
