"""A pool of client connections: opened when needed, kept while useful, lent in the order they were asked for.

Owns what callers see, `ConnectionPool`, `PooledClient` and statistics, and when idle connections are looked
after. What happens to the connections of one server is `fabric._pool.host`'s. A server is a URL, credentials
aside. Connections of a pool do not reconnect by themselves: the pool replaces them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import warnings
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self

from fabric._connection.events import log_event
from fabric._connection.open_context import OpenContext
from fabric._http.url import redact
from fabric._pool.host import Counts, HostPool, Member, ServerPoolStats, now
from fabric.client import WebSocketClient
from fabric.config import ClientConfig, PoolConfig
from fabric.error import InvalidState
from fabric.metrics import MetricsCollector
from fabric_ext.protocol import State, check_close

if TYPE_CHECKING:
    from types import TracebackType

    from fabric.message import Message, Sendable

_COUNTS = tuple(field.name for field in fields(Counts))

_Key = tuple[str, str | None]  # of a server: its URL without credentials, and its UNIX-domain socket

__all__ = ["CleanupStats", "ConnectionPool", "PoolStats", "PooledClient", "ServerPoolStats"]

logger = logging.getLogger("fabric.pool")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats(Counts):
    """All connections of a pool at one moment: the sums of `ServerPoolStats`, forgotten servers included.

    Attributes:
        servers: how many servers the pool knows.
    """

    servers: int


@dataclass(frozen=True, slots=True)
class CleanupStats:
    """What one `cleanup` did.

    Attributes:
        broken: idle connections closed because they broke or had something unread in them.
        expired: idle connections closed because of their age.
        left: idle connections that stay.
    """

    broken: int
    expired: int
    left: int


class _Released:
    """An awaitable with nothing to wait for."""

    def __await__(self) -> Generator[Any, None, None]:
        yield from ()


RELEASED = _Released()


class PooledClient:
    """A connection on loan: use it like a client, then `release()` it; `async with` does that.

    One that is collected without a release goes back to its pool with a ResourceWarning. What is not here,
    `inner` has.

    What it hands out asks for the loan when it begins: an awaitable that had not begun when the loan ended, and
    the next step of an `async for`, raise `InvalidState`. A connection on which something is still being
    received or sent then is closed.
    """

    __slots__ = ("__weakref__", "_loop", "_member", "_server")

    def __init__(self, server: HostPool, member: Member) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._member: Member | None = member

    @property
    def inner(self) -> WebSocketClient:
        """The client itself; raises `InvalidState` once it has been given back.

        Neither it nor what it hands out is to be kept longer than the loan: it knows of none.
        """
        return self._lent().client

    def _lent(self) -> Member:
        if self._member is None:
            raise InvalidState("this connection has been given back to its pool", state="released")
        return self._member

    @property
    def is_connected(self) -> bool:
        """Is the connection open, and still ours?"""
        return self._member is not None and self._member.client.is_connected

    @property
    def state(self) -> State:
        """See `WebSocketClient.state`; raises `InvalidState` once it has been given back."""
        return self.inner.state

    async def send(
        self, message: Sendable | Iterator[Sendable] | AsyncIterable[Sendable], *, compress: bool | None = None
    ) -> None:
        """See `WebSocketClient.send`."""
        await self._counted(self.inner.send(message, compress=compress))

    def send_nowait(self, message: Sendable, *, compress: bool | None = None) -> None:
        """See `WebSocketClient.send_nowait`."""
        self.inner.send_nowait(message, compress=compress)

    async def send_text(self, text: str, *, compress: bool | None = None) -> None:
        """See `WebSocketClient.send_text`."""
        await self._counted(self.inner.send_text(text, compress=compress))

    async def send_binary(self, data: bytes | bytearray | memoryview, *, compress: bool | None = None) -> None:
        """See `WebSocketClient.send_binary`."""
        await self._counted(self.inner.send_binary(data, compress=compress))

    async def send_json(self, value: Any, *, compress: bool | None = None) -> None:
        """See `WebSocketClient.send_json`."""
        await self._counted(self.inner.send_json(value, compress=compress))

    async def _counted(self, sending: Awaitable[None]) -> None:
        """Send, and have a loan that ends meanwhile know that something is still being sent."""
        member = self._lent()
        member.senders += 1
        try:
            await sending
        finally:
            member.senders -= 1

    async def recv(self) -> Message | None:
        """See `WebSocketClient.recv`."""
        return await self.inner.recv()

    async def recv_stream(self) -> AsyncIterator[str | bytes]:
        """See `WebSocketClient.recv_stream`."""
        async for part in self.inner.recv_stream():
            yield part
            self._lent()

    def __aiter__(self) -> Self:
        self._lent()
        return self

    async def __anext__(self) -> Message:
        return await self.inner.__anext__()

    async def ping(self, data: str | bytes | None = None) -> float:
        """See `WebSocketClient.ping`."""
        return await self.inner.ping(data)

    def release(self) -> Awaitable[None]:
        """Give the connection back; one that is broken, or has something unread in it, is closed.

        It is done when this returns: the result may be awaited, and need not be. A second call does nothing.
        """
        self._give_back()
        return RELEASED

    def _give_back(self, error: BaseException | None = None) -> None:
        """End the loan. A task that `error` interrupted may have left an answer on its way, not to be got."""
        member, self._member = self._member, None
        if member is not None:
            self._server.give_back(member, is_clean=error is None)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection instead of giving it back; see `WebSocketClient.close`."""
        if self._member is None:
            return
        check_close(code, reason)
        member, self._member = self._member, None
        if self._server.owns(member):
            await asyncio.shield(self._server.retire(member, code, reason))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._give_back(error)

    def __del__(self) -> None:
        member = getattr(self, "_member", None)
        if member is None or not self._server.owns(member) or self._loop.is_closed():
            return
        with contextlib.suppress(RuntimeError):  # closed by now: the collector runs on any thread
            self._loop.call_soon_threadsafe(self._server.give_back, member)
        warnings.warn(f"{self!r} was never released", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        return f"<PooledClient of {self._server.url}{' (released)' if self._member is None else ''}>"


class _Getting(OpenContext[PooledClient]):
    """What `get` returns: awaitable for the connection, or the context of an `async with`."""

    __slots__ = ()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._result is not None
        self._result._give_back(error)


class ConnectionPool:
    """Connections to any number of servers, each with its own limits.

        async with ConnectionPool() as pool:
            async with pool.get("ws://localhost:8080") as client:
                await client.send("hello")
                print(await client.recv())

    Args:
        config: limits and times; by default those of `PoolConfig`.
        connect: opens a connection, given a `ClientConfig`: `WebSocketClient.connect`, or what also makes it
            ready for use, by logging in say.
    """

    def __init__(
        self,
        config: PoolConfig | None = None,
        *,
        connect: Callable[[ClientConfig], Awaitable[WebSocketClient]] = WebSocketClient.connect,
    ) -> None:
        self._config = config or PoolConfig()
        self._connect = connect
        self._past = MetricsCollector()  # of all connections that are closed by now
        self._servers: dict[_Key, HostPool] = {}
        self._forgotten = Counter[str]()  # counts of servers that are not kept any more
        self._upkeep: asyncio.Task[None] | None = None
        self._is_closed = False
        self._prepare_url = lru_cache(_prepare)  # most programs ask for the same URL again and again

    @classmethod
    def with_defaults(cls) -> Self:
        """A pool with the default `PoolConfig`."""
        return cls()

    @property
    def config(self) -> PoolConfig:
        """What it was made with."""
        return self._config

    @property
    def metrics(self) -> MetricsCollector:
        """Counters and latencies of all connections that there are and were, added up as of now."""
        living = (member.client.metrics for server in self._servers.values() for member in server.members())
        return MetricsCollector.merged([self._past, *living])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close_all()

    def get(self, url: str | ClientConfig, config: ClientConfig | None = None) -> _Getting:
        """A connection to `url`: an open one, a new one, or the first that comes back.

            client = await pool.get("ws://localhost:8080")  # to be released

            async with pool.get("ws://localhost:8080") as client:
                ...  # released at the end, closed by an exception

        Args:
            url: the server, or a whole `ClientConfig`.
            config: how to connect; its `url` is replaced by the first argument. Connections opened with one
                config are not lent for another. `auto_reconnect` is of no effect.

        Raises:
            Timeout: there was none within `acquire_timeout` seconds.
            Error: what `WebSocketClient.connect` raises.
            InvalidState: the pool is closed.
        """
        key, wanted = self._prepare(url, config)
        return _Getting("pool.get()", lambda: self._get(key, wanted))

    def _prepare(self, url: str | ClientConfig, config: ClientConfig | None = None) -> tuple[_Key, ClientConfig]:
        if config is None and isinstance(url, str):
            return self._prepare_url(url)
        return _prepare(url, config)

    async def _get(self, key: _Key, config: ClientConfig) -> PooledClient:
        self._check_open()
        server = self._servers.get(key)
        if server is None:
            server = self._servers[key] = HostPool(redact(key[0]), self._config, self._connect, self._past)
        if self._config.enable_health_check:
            self.start_health_check_task()
        return PooledClient(server, await server.get(config))

    def _check_open(self) -> None:
        if self._is_closed:
            raise InvalidState("the pool is closed", state="closed")

    async def close_all(self) -> None:
        """Close every connection, lent ones too; tasks that wait for one get `InvalidState`. The pool is done then."""
        self._is_closed = True
        for server in self._servers.values():
            server.close()
        if self._upkeep is not None:
            self._upkeep.cancel()
            await asyncio.wait([self._upkeep])
        while tasks := [task for server in self._servers.values() for task in (*server.opening, *server.closing)]:
            await asyncio.wait(tasks)

    # -- upkeep

    async def cleanup(self) -> CleanupStats:
        """Close idle connections that are broken, or idle for `idle_timeout` and more than `min_connections`.

        Servers that nobody asked for in that time, and to which there are no connections, are forgotten.
        """
        stats = self._sweep()
        closing = [task for server in self._servers.values() for task in server.closing]
        if closing:
            await asyncio.wait(closing)
        return stats

    def _sweep(self) -> CleanupStats:
        """Begin a `cleanup`."""
        broken = expired = 0
        for key, server in list(self._servers.items()):
            found = server.sweep()
            broken += found[0]
            expired += found[1]
            if server.is_unused and now() - server.asked >= self._config.idle_timeout:
                del self._servers[key]
                stats = server.stats()
                self._forgotten.update({name: getattr(stats, name) for name in _COUNTS})
        return CleanupStats(broken, expired, self.stats().idle)

    async def check_health(self, *, unused_for: float = 0.0) -> None:
        """What the health check does: `cleanup`, ping idle connections, open what `min_connections` wants.

        One that does not answer within the `ping_timeout` of its config's heartbeat is dropped.

        Args:
            unused_for: ping those that were neither used nor pinged for so many seconds.
        """
        self._sweep()
        limit = now() - unused_for
        await asyncio.gather(*(server.ping(limit) for server in self._servers.values()))
        for server in self._servers.values():  # not those that have been forgotten since
            server.warm()

    def start_health_check_task(self) -> asyncio.Task[None]:
        """Check health every `health_check_interval`, or `idle_timeout` where that is shorter.

        `get` does this, unless `enable_health_check` is False.
        """
        self._check_open()
        if self._upkeep is None or self._upkeep.done():
            self._upkeep = asyncio.get_running_loop().create_task(self._keep_up())
        return self._upkeep

    async def _keep_up(self) -> None:
        interval = self._config.health_check_interval
        period = min(interval, self._config.idle_timeout)
        while True:
            await asyncio.sleep(period)
            try:
                await self.check_health(unused_for=interval - period / 2)
            except Exception as error:  # noqa: BLE001  (logged)
                log_event(logger, logging.ERROR, "the health check failed", exc_info=error)

    # -- statistics

    def stats(self) -> PoolStats:
        """All connections."""
        each = [server.stats() for server in self._servers.values()]
        sums = {name: self._forgotten[name] + sum(getattr(stats, name) for stats in each) for name in _COUNTS}
        return PoolStats(servers=len(each), **sums)

    def server_stats(self, url: str | ClientConfig) -> ServerPoolStats | None:
        """The connections to `url`; None when the pool does not know it."""
        server = self._servers.get(self._prepare(url)[0])
        return None if server is None else server.stats()

    def __repr__(self) -> str:
        stats = self.stats()
        return f"<ConnectionPool {stats.servers} servers, {stats.idle} idle, {stats.in_use} in use>"


def _prepare(url: str | ClientConfig, config: ClientConfig | None = None) -> tuple[_Key, ClientConfig]:
    """What tells the server from others, and how to connect to it."""
    if not isinstance(url, ClientConfig):
        config = ClientConfig(url) if config is None else replace(config, url=url)
    elif config is None:
        config = url
    else:
        raise TypeError("give a URL and a config, or a config alone")
    if config.sock is not None:
        raise ValueError("a pool opens its connections itself: a socket serves only once")
    return (config.address.full, config.unix_path), replace(config, auto_reconnect=False)
