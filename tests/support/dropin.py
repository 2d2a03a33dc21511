"""Servers and clients of `fabric.websockets` for one test."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from fabric.websockets.asyncio.server import Server, ServerConnection, serve

__all__ = ["Held", "echo", "start", "url"]


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


class Held:
    """A handler that hands its connections to the test: `await held.next()`; each is open until it is closed."""

    def __init__(self) -> None:
        self._connections: asyncio.Queue[ServerConnection] = asyncio.Queue()

    async def __call__(self, connection: ServerConnection) -> None:
        self._connections.put_nowait(connection)
        await connection.wait_closed()

    async def next(self) -> ServerConnection:
        return await self._connections.get()


async def start(stack: contextlib.AsyncExitStack, handler: Any = echo, **options: Any) -> Server:
    """A server on a free port of the loopback, closed when `stack` unwinds. No keepalive unless asked for."""
    options.setdefault("ping_interval", None)
    return await stack.enter_async_context(serve(handler, "127.0.0.1", 0, **options))


def url(server: Server, path: str = "/", *, scheme: str = "ws") -> str:
    return f"{scheme}://localhost:{server.sockets[0].getsockname()[1]}{path}"
