"""The client without an event loop, with the interface of the asyncio one: each call is made in a thread of its own.

So a test of `WebSocketClient` runs over `fabric.sync` as it stands. Cancelling an await does not end the call.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any, Self

from fabric import sync
from support.threads import DEADLINE

WAITING = """
    send send_text send_binary send_json send_parts send_many recv recv_many ping
    close wait_closed wait_connected reconnect
""".split()
"""The methods that wait, and are awaited here."""


class ThreadedClients:
    """Stands in for the class `WebSocketClient`; `end()` closes every client that was made, and waits for all calls."""

    def __init__(self) -> None:
        self._clients: list[sync.SyncClient] = []
        self._calls: dict[asyncio.Future[Any], str] = {}

    def connect(self, *args: Any, **options: Any) -> _Connecting:
        return _Connecting(self, args, options)

    async def call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call `function` in a thread of its own."""
        loop = asyncio.get_running_loop()
        returned: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()
        self._calls[returned] = repr(function)

        def run() -> None:
            result, failure = None, None
            try:
                result = function(*args, **options)
            except BaseException as error:  # noqa: BLE001  (raised to whoever awaits)
                failure = error
            loop.call_soon_threadsafe(self._returned, returned, result, failure)

        threading.Thread(target=run, name=f"calls {function!r}", daemon=True).start()
        result, failure = await asyncio.shield(returned)  # cancelled or not, `end` waits for it
        if failure is not None:
            raise failure
        return result

    def _returned(self, returned: asyncio.Future[Any], result: Any, failure: BaseException | None) -> None:
        del self._calls[returned]
        returned.set_result((result, failure))

    async def end(self) -> None:
        """Drop what is still connected, close all, and wait for every call that was made: none may hang."""
        for client in self._clients:
            if not client._driver.is_closed:
                client._driver.soon(client._connection._abort)
        closing = [asyncio.ensure_future(self.call(client.close)) for client in self._clients]
        waited = [*closing, *self._calls]
        if waited:
            await asyncio.wait(waited, timeout=DEADLINE)
        assert not self._calls, f"these calls do not return: {list(self._calls.values())}"
        await asyncio.gather(*closing)


class ThreadedClient:
    """A `SyncClient`, awaited."""

    def __init__(self, clients: ThreadedClients, client: sync.SyncClient) -> None:
        self._clients = clients
        self._client = client

    def __getattr__(self, name: str) -> Any:
        client = self._client
        if not hasattr(client, name):  # of the client inside, which is touched under the lock
            inner = getattr(client._connection, name)
            return functools.partial(client._driver.soon, inner) if callable(inner) else inner
        found = getattr(client, name)
        return functools.partial(self._clients.call, found) if name in WAITING else found

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        message = await self._clients.call(next, self._client, None)
        if message is None:
            raise StopAsyncIteration
        return message

    async def recv_stream(self) -> AsyncIterator[str | bytes]:
        stream = self._client.recv_stream()
        try:
            while (part := await self._clients.call(next, stream, None)) is not None:
                yield part
        finally:
            await self._clients.call(stream.close)


class _Connecting:
    """What `connect` returns: to be awaited, or to be entered."""

    def __init__(self, clients: ThreadedClients, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._clients, self._args, self._options = clients, args, options
        self._client: ThreadedClient | None = None

    def __await__(self) -> Generator[Any, Any, ThreadedClient]:
        return self._connect().__await__()

    async def __aenter__(self) -> ThreadedClient:
        self._client = await self._connect()
        return self._client

    async def __aexit__(self, *exc: object) -> None:
        assert self._client is not None
        await self._client.close()

    async def _connect(self) -> ThreadedClient:
        loop = asyncio.get_running_loop()
        options = {
            name: self._plain(value, loop) if name.startswith("on_") and callable(value) else value
            for name, value in self._options.items()
        }
        client = await self._clients.call(sync.connect, *self._args, **options)
        self._clients._clients.append(client)
        return ThreadedClient(self._clients, client)

    def _plain(self, function: Any, loop: asyncio.AbstractEventLoop) -> Any:
        """A callback of the test, which runs in its loop, as a plain function."""

        async def run(client: sync.SyncClient, *args: Any) -> None:
            result = function(ThreadedClient(self._clients, client), *args)
            if inspect.isawaitable(result):
                await result

        def call(client: sync.SyncClient, *args: Any) -> None:
            asyncio.run_coroutine_threadsafe(run(client, *args), loop).result(DEADLINE)

        return call
