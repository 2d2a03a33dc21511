"""A server for one test, and what its handlers can tell the test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from fabric.error import ConnectionClosed
from fabric.server import ConnectedClient, WebSocketServer


async def until(condition: Callable[[], object]) -> None:
    """Wait for what no event tells of: state inside the server. Looked at in every turn, so that none is missed."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)


async def turns(count: int = 20) -> None:
    """Let tasks run until they wait: so many turns of the loop. What has not happened by then waits for something."""
    for _ in range(count):
        await asyncio.sleep(0)


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


class Recorder:
    """A handler that echoes if asked to, and keeps what it got and how that ended.

    Attributes:
        client: the connection, once there is one.
        messages: payloads received, str or bytes.
        error: what `recv` raised, or None after a normal close.
    """

    def __init__(self, *, echo: bool = False) -> None:
        self._echo = echo
        self.client: ConnectedClient = None  # type: ignore[assignment]
        self.messages: list[Any] = []
        self.error: ConnectionClosed | None = None
        self._connected = asyncio.Event()
        self._ended = asyncio.Event()

    async def __call__(self, client: ConnectedClient) -> None:
        self.client = client
        self._connected.set()
        try:
            async for message in client:
                self.messages.append(message.as_text() if message.is_text else message.as_bytes())
                if self._echo:
                    await client.send(message)
        except ConnectionClosed as error:
            self.error = error
        finally:
            self._ended.set()

    async def connected(self) -> ConnectedClient:
        await self._connected.wait()
        return self.client

    async def ended(self) -> None:
        """Wait until the handler is through and its connection closed."""
        await self._ended.wait()
        await self.client.wait_closed()


async def serve(
    stack: contextlib.AsyncExitStack, handler: Any = None, *, port: int = 0, **options: Any
) -> WebSocketServer:
    """A server on `port`, or a free one, shut down when `stack` unwinds; `options` are those of `WebSocketServer.bind`.

    No heartbeat and no compression unless the test asks for them.
    """
    options.setdefault("ping_interval", None)
    options.setdefault("compression", None)
    server = WebSocketServer.bind(f"127.0.0.1:{port}", handler, **options)
    await server.start()
    stack.push_async_callback(_stop, server, handler)
    return server


async def _stop(server: WebSocketServer, handler: Any) -> None:
    if isinstance(handler, Held):
        handler.release()
    await server.shutdown(timeout=5)
