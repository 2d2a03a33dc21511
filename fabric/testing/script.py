"""A server that does what its script says, for tests of programs that connect to one.

Owns `ScriptedServer` and `Script`: what the script of each connection is, how far it has come, and what went otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Self, Unpack

from fabric._config.options import ServerOptions
from fabric._http.messages import Request, Response
from fabric.error import ConnectionClosed, JsonError
from fabric.message import Message
from fabric.server import ConnectedClient, WebSocketServer
from fabric.testing.network import PATIENCE, in_memory
from fabric_ext.protocol import MAX_REASON

__all__ = ["Script", "ScriptedServer"]


Expected = str | bytes | Message | re.Pattern[str] | Callable[[Message], bool]

_SCRIPT = "fabric.testing.script"  # in `Request.state`

_numbers = itertools.count(1)


class _Unexpected(Exception):
    """What the client did is not in the script."""


class Script:
    """What the server does on one connection, step by step; made by `ScriptedServer.connection`.

    Each method adds a step and returns the script, so that steps can be written in a row. After the last one the
    connection stays open until the client closes it.

    Attributes:
        request: of the connection; None until there is one.
        received: the messages that have come, in order.
    """

    def __init__(self, number: int) -> None:
        self.request: Request | None = None
        self.received: list[Message] = []
        self._number = number
        self._steps: list[tuple[str, Callable[[ConnectedClient], Awaitable[None]]]] = []
        self._done = 0  # steps

    def _add(self, text: str, step: Callable[[ConnectedClient], Awaitable[None]]) -> Self:
        self._steps.append((text, step))
        return self

    def expect(self, message: Expected) -> Self:
        """Wait for a message: this one; text that a regular expression fits; or one that a function returns true for.

        Another message, or the end of the connection, is a failure: the client is closed with 1002 and the reason,
        further connections are refused with 400, and `ScriptedServer.done` raises.
        """

        async def step(client: ConnectedClient) -> None:
            received = await self._receive(client)
            if isinstance(message, re.Pattern):
                fits = received.is_text and message.fullmatch(received.text) is not None
            elif isinstance(message, str | bytes | Message):
                fits = received == message
            else:
                fits = message(received)
            if not fits:
                raise _Unexpected(f"{received!r} has come")

        return self._add(f"expect({message!r})", step)

    def expect_json(self, value: Any) -> Self:
        """Wait for a message that is this value in JSON; as `expect`."""

        async def step(client: ConnectedClient) -> None:
            received = await self._receive(client)
            try:
                fits = received.json() == value
            except JsonError:
                fits = False
            if not fits:
                raise _Unexpected(f"{received!r} has come")

        return self._add(f"expect_json({value!r})", step)

    async def _receive(self, client: ConnectedClient) -> Message:
        received = await client.recv()
        if received is None:
            raise _Unexpected(f"the client has closed the connection with {client.close_code}")
        self.received.append(received)
        return received

    def send(self, message: str | bytes | Message) -> Self:
        """Send a message."""

        async def step(client: ConnectedClient) -> None:
            await client.send(message)

        return self._add(f"send({message!r})", step)

    def send_json(self, value: Any) -> Self:
        """Send a value as JSON."""
        return self.send(Message.json(value))

    def delay(self, seconds: float) -> Self:
        """Do nothing for so many seconds; in a `FakeTimeLoop` they take no time."""

        async def step(_: ConnectedClient) -> None:
            await asyncio.sleep(seconds)

        return self._add(f"delay({seconds!r})", step)

    def freeze(self) -> Self:
        """Read nothing any more, and answer no ping: what a server does that hangs, or one behind a cut cable."""

        async def step(client: ConnectedClient) -> None:
            if client._transport is not None:
                client._transport.pause_reading()

        return self._add("freeze()", step)

    def drop(self) -> Self:
        """Cut the connection, without a close frame; what was sent before arrives. Nothing can follow."""

        async def step(client: ConnectedClient) -> None:
            client.flush()
            if client._transport is not None:
                client._transport.close()

        return self._add("drop()", step)

    def close(self, code: int = 1000, reason: str = "") -> Self:
        """Close the connection with this code. Nothing can follow."""

        async def step(client: ConnectedClient) -> None:
            await client.close(code, reason)

        return self._add(f"close({code!r})", step)

    @property
    def _is_over(self) -> bool:
        return self._done == len(self._steps)

    def _where(self) -> str:
        """The step that is being done, for messages."""
        if self._is_over:
            return f"connection {self._number}"
        return f"connection {self._number}, step {self._done + 1}, {self._steps[self._done][0]}"

    async def _play(self, client: ConnectedClient) -> None:
        while not self._is_over:
            try:
                await self._steps[self._done][1](client)
            except ConnectionClosed as error:
                raise _Unexpected(f"{self._where()}: the connection is lost: {error}") from error
            except _Unexpected as error:
                raise _Unexpected(f"{self._where()}: {error}") from None
            self._done += 1


class ScriptedServer:
    """A server that follows a script: for each connection that comes, in order, what it does.

        async with ScriptedServer("ws://prices.example/feed") as server:
            server.refuse(503)
            server.connection().expect("login").send("welcome").drop()
            server.connection().expect("login").send("welcome again")

            ...  # the code under test connects to ws://prices.example/feed

            await server.done()

    It is reached in memory, at the host and port of its URL, by each `WebSocketClient` of this process; no socket is
    opened, and in a `FakeTimeLoop` no time passes. With `bind` it listens on a socket instead, for clients of other
    kinds.

    Leaving `async with` waits for the end of the script, as `done` does, unless an exception is on its way. A
    connection after the last one of the script is refused with 503.

    Args:
        url: where it is reached in memory; by default at a host of its own, see the attribute `url`.
        bind: an address to listen on, as of `ServerConfig`: "127.0.0.1:0" for any free port.
        options: fields of `ServerConfig`. Pings are off unless `ping_interval` says otherwise.

    Attributes:
        requests: of all connections so far, those that were refused too.
    """

    def __init__(self, url: str | None = None, *, bind: str | None = None, **options: Unpack[ServerOptions]) -> None:
        if url is not None and bind is not None:
            raise ValueError("give either url or bind: a server is reached in memory or by a socket")
        options.setdefault("ping_interval", None)
        self._url = f"ws://scripted-{next(_numbers)}.test" if url is None else url
        self._is_bound = bind is not None
        self._server = WebSocketServer.bind(
            "127.0.0.1:0" if bind is None else bind, self._handle, process_request=self._judge, **options
        )
        self.requests: list[Request] = []
        self._added = 0
        self._to_come: deque[Script | Response] = deque()
        self._playing: set[Script] = set()
        self._changed = asyncio.Event()
        self._failure: str | None = None
        self._life = contextlib.AsyncExitStack()

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return f"ws://127.0.0.1:{self._server.port}" if self._is_bound else self._url

    # -- the script

    def connection(self) -> Script:
        """Accept the next connection of the script; the steps that follow are added to what this returns."""
        self._added += 1
        script = Script(self._added)
        self._to_come.append(script)
        return script

    def refuse(
        self, status: int = 503, headers: Mapping[str, str] | Iterable[tuple[str, str]] = (), body: str = ""
    ) -> None:
        """Answer the next connection of the script with this status instead of an upgrade."""
        self._added += 1
        self._to_come.append(Response(status, headers, body))

    # -- playing it

    async def __aenter__(self) -> Self:
        if self._is_bound:
            await self._server.start()
            self._life.push_async_callback(self._server.shutdown, PATIENCE)
        else:
            await self._life.enter_async_context(in_memory(self._server, self._url))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None or self._failure is not None:
                await self.done()
        finally:
            for client in self._server.clients():
                client._abort()
            await self._life.aclose()

    async def done(self, timeout: float = 10.0) -> None:
        """Wait until the script is over: each connection has come, and each step has been done.

        Raises:
            AssertionError: something went otherwise, or `timeout` seconds have passed; says at which step.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._failure is None and (self._to_come or self._playing):
                    self._changed.clear()
                    await self._changed.wait()
        if self._failure is None and (self._to_come or self._playing):
            open_ends = [script._where() for script in self._playing]
            if self._to_come:
                open_ends.append(f"connection {self._added - len(self._to_come) + 1} has not come")
            self._failure = f"the script is not over after {timeout:g} s: {'; '.join(open_ends)}"
        if self._failure is not None:
            raise AssertionError(self._failure)

    def _judge(self, request: Request) -> Response | None:
        self.requests.append(request)
        if self._failure is not None:
            return Response(400, body="the script has failed")
        if not self._to_come:
            return Response(503, body="the script is over")
        scene = self._to_come.popleft()
        self._changed.set()
        if isinstance(scene, Response):
            return scene
        scene.request = request
        request.state[_SCRIPT] = scene
        self._playing.add(scene)
        return None

    async def _handle(self, client: ConnectedClient) -> None:
        script: Script = client.state_data.pop(_SCRIPT)
        try:
            await script._play(client)
        except _Unexpected as error:
            if self._failure is None:
                self._failure = str(error)
            await client.close(1002, _cut(str(error)))
        finally:
            self._playing.discard(script)
            self._changed.set()
        await client.wait_closed()


def _cut(reason: str) -> str:
    """As much of a reason as fits into a close frame."""
    return reason.encode()[:MAX_REASON].decode(errors="ignore")
