"""A server for one test, and what its handlers can tell the test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from fabric.server import ConnectedClient, WebSocketServer


async def until(condition: Callable[[], object]) -> None:
    """Wait for what no event tells of: state inside the server."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def echo(client: ConnectedClient) -> None:
    async for message in client:
        await client.send(message)


class Held:
    """A handler that hands its clients to the test and keeps their connections open.

    `client = await held.next()` is the next connection; `held.release()` lets all handlers return.
    """

    def __init__(self) -> None:
        self._clients: asyncio.Queue[ConnectedClient] = asyncio.Queue()
        self._released = asyncio.Event()

    async def __call__(self, client: ConnectedClient) -> None:
        self._clients.put_nowait(client)
        await self._released.wait()

    async def next(self) -> ConnectedClient:
        return await self._clients.get()

    def release(self) -> None:
        self._released.set()


async def serve(stack: contextlib.AsyncExitStack, handler: Any = None, **options: Any) -> WebSocketServer:
    """A server on a free port, shut down when `stack` unwinds; `options` are those of `WebSocketServer.bind`.

    No heartbeat and no compression unless the test asks for them.
    """
    options.setdefault("ping_interval", None)
    options.setdefault("compression", None)
    server = WebSocketServer.bind("127.0.0.1:0", handler, **options)
    await server.start()
    stack.push_async_callback(_stop, server, handler)
    return server


async def _stop(server: WebSocketServer, handler: Any) -> None:
    if isinstance(handler, Held):
        handler.release()
    await server.shutdown(timeout=5)
