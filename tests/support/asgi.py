"""ASGI applications for one test, under uvicorn's HTTP protocols and `fabric.asgi`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from fabric.asgi import WebSocketProtocol
from support.serving import until

Event = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[dict[str, Any], Receive, Send], Awaitable[Any]]


class Served:
    """What `uvicorn.Server` does for an application, without its timers.

    Attributes:
        port: where it listens.
        state: what uvicorn's connections share.
    """

    def __init__(self, config: uvicorn.Config, server: asyncio.Server) -> None:
        self.config = config
        self.state: ServerState
        self.port: int
        self._server = server

    @property
    def connection(self) -> WebSocketProtocol:
        """The only connection."""
        (connection,) = self.state.connections
        return connection  # type: ignore[return-value]

    def shut_down(self) -> None:
        """As uvicorn does when it is told to end."""
        self._server.close()
        for connection in list(self.state.connections):
            connection.shutdown()

    async def ended(self) -> None:
        """Wait until connections and tasks are gone, as uvicorn does."""
        await until(lambda: not self.state.connections and not self.state.tasks)


async def serve(
    stack: contextlib.AsyncExitStack,
    app: App,
    *,
    http: str = "h11",
    state: dict[str, Any] | None = None,
    tls: ssl.SSLContext | None = None,
    sock: socket.socket | None = None,
    **options: Any,
) -> Served:
    """Serve `app` on `sock` or a free port of the loopback, to the end of `stack`; `options` are uvicorn's.

    No keepalive and no compression unless the test asks for them.
    """
    options.setdefault("ws_ping_interval", None)
    options.setdefault("ws_per_message_deflate", False)
    config = uvicorn.Config(
        app, ws=WebSocketProtocol, http=http, lifespan="off", log_config=None, interface="asgi3", **options
    )
    config.load()
    shared = ServerState()
    shared.default_headers = [(b"server", b"uvicorn")]
    make = functools.partial(
        config.http_protocol_class, config=config, server_state=shared, app_state={} if state is None else state
    )
    where: dict[str, Any] = {"host": "127.0.0.1", "port": 0} if sock is None else {"sock": sock}
    server = await asyncio.get_running_loop().create_server(make, ssl=tls, **where)
    served = Served(config, server)  # type: ignore[arg-type]
    served.state, served.port = shared, server.sockets[0].getsockname()[1]

    async def end() -> None:
        served.shut_down()
        await served.ended()
        await server.wait_closed()

    stack.push_async_callback(end)
    return served


async def accepted(receive: Receive, send: Send, **more: Any) -> None:
    """What an application begins with that accepts whatever comes."""
    assert await receive() == {"type": "websocket.connect"}
    await send({"type": "websocket.accept", **more})


async def echo(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Send back each message, until the client leaves."""
    await accepted(receive, send)
    while (event := await receive())["type"] == "websocket.receive":
        await send({**event, "type": "websocket.send"})


class Notes:
    """An application that accepts, then notes every event up to the end.

    `await notes.ended()` waits for that; `notes.events` are the events after `websocket.connect`.
    """

    def __init__(self, *, accept: bool = True) -> None:
        self.scope: dict[str, Any] = {}
        self.events: list[Event] = []
        self._accept = accept
        self._ended = asyncio.Event()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        self.scope = scope
        try:
            assert await receive() == {"type": "websocket.connect"}
            if self._accept:
                await send({"type": "websocket.accept"})
            while not self.events or self.events[-1]["type"] != "websocket.disconnect":
                self.events.append(await receive())
        finally:
            self._ended.set()

    async def ended(self) -> None:
        await self._ended.wait()


class Script:
    """An application that hands `receive` and `send` to the test, and lives until the test lets it go.

    `receive, send = await script.called()`; `script.release()`.
    """

    def __init__(self, *, accept: bool = True) -> None:
        self.scope: dict[str, Any] = {}
        self._accept = accept
        self._calls: asyncio.Queue[tuple[Receive, Send]] = asyncio.Queue()
        self._released = asyncio.Event()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        self.scope = scope
        if self._accept:
            await accepted(receive, send)
        self._calls.put_nowait((receive, send))
        await self._released.wait()

    async def called(self) -> tuple[Receive, Send]:
        return await self._calls.get()

    def release(self) -> None:
        self._released.set()
