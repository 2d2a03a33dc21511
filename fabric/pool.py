"""A pool of client connections: opened when needed, kept while useful, handed out in the order they were asked for.

Owns its connections and, per server, one queue of those who wait. The rules:

- a server never has more than `max_connections`: idle, in use and being opened together;
- who waits is served first come, first served; what a cancelled or timed-out waiter was given goes to the next;
- a connection is handed out only while it is open and nothing unread is in it, and comes back only like that.

Connections of a pool do not reconnect by themselves: the pool replaces them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import warnings
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from fabric.client import WebSocketClient
from fabric.config import ClientConfig, PoolConfig
from fabric.error import Error, InvalidState, Timeout
from fabric.metrics import MetricsCollector

if TYPE_CHECKING:
    from fabric.message import Message

__all__ = ["CleanupStats", "ConnectionPool", "PoolStats", "PooledClient", "ServerPoolStats"]

logger = logging.getLogger("fabric.pool")


@dataclass(frozen=True, slots=True)
class ServerPoolStats:
    """The connections to one server, at one moment.

    Attributes:
        url: the server, without credentials.
        idle: open and free.
        in_use: handed out.
        opening: being opened.
        waiting: callers of `get` that wait for one of them.
        opened, reused, discarded: since the pool was made: connections opened; `get`s served by an open one;
            connections closed because they broke or came back with something unread.
    """

    url: str
    idle: int
    in_use: int
    opening: int
    waiting: int
    opened: int
    reused: int
    discarded: int

    @property
    def total(self) -> int:
        """What counts against `max_connections`."""
        return self.idle + self.in_use + self.opening


@dataclass(frozen=True, slots=True)
class PoolStats:
    """All servers of a pool together, at one moment; the fields are those of `ServerPoolStats`."""

    servers: int
    idle: int
    in_use: int
    opening: int
    waiting: int
    opened: int
    reused: int
    discarded: int

    @property
    def total(self) -> int:
        """Connections open or being opened."""
        return self.idle + self.in_use + self.opening


@dataclass(frozen=True, slots=True)
class CleanupStats:
    """What one `cleanup` did: idle connections found broken, closed for their age, and left."""

    broken: int
    expired: int
    left: int


class _Idle:
    """An open connection that nobody uses."""

    __slots__ = ("checked", "client", "config", "since")

    def __init__(self, client: WebSocketClient, config: ClientConfig, now: float) -> None:
        self.client = client
        self.config = config
        self.since = self.checked = now


class _Server:
    """The connections to one server and those who wait for them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.idle: deque[_Idle] = deque()  # the one used last at the right end
        self.in_use: set[WebSocketClient] = set()
        self.opening = 0
        self.waiters: deque[tuple[asyncio.Future[_Idle | None], ClientConfig]] = deque()
        self.opened = self.reused = self.discarded = 0
        self.default: ClientConfig | None = None  # for the connections that are kept warm

    @property
    def total(self) -> int:
        return len(self.idle) + len(self.in_use) + self.opening

    def stats(self) -> ServerPoolStats:
        return ServerPoolStats(
            self.url, len(self.idle), len(self.in_use), self.opening, len(self.waiters),
            self.opened, self.reused, self.discarded,
        )  # fmt: skip


class PooledClient:
    """A connection on loan: use it like a client, then `release()` it; `async with` does that.

    One that is collected without having been released goes back to its pool with a ResourceWarning.
    """

    def __init__(self, pool: ConnectionPool, server: _Server, client: WebSocketClient, config: ClientConfig) -> None:
        self._pool = pool
        self._server = server
        self._client: WebSocketClient | None = client
        self._config = config
        self._loop = asyncio.get_running_loop()

    @property
    def inner(self) -> WebSocketClient:
        """The client itself; `InvalidState` once it has been given back."""
        if self._client is None:
            raise InvalidState("this connection has been given back to its pool", state="released")
        return self._client

    @property
    def is_connected(self) -> bool:
        """Is the connection open, and still ours?"""
        return self._client is not None and self._client.is_connected

    def send(self, message: Any, *, compress: bool | None = None) -> Any:
        """See `WebSocketClient.send`."""
        return self.inner.send(message, compress=compress)

    def send_text(self, text: str) -> Any:
        """See `WebSocketClient.send_text`."""
        return self.inner.send_text(text)

    def send_binary(self, data: bytes | bytearray | memoryview) -> Any:
        """See `WebSocketClient.send_binary`."""
        return self.inner.send_binary(data)

    def send_json(self, value: Any) -> Any:
        """See `WebSocketClient.send_json`."""
        return self.inner.send_json(value)

    def recv(self) -> Any:
        """See `WebSocketClient.recv`."""
        return self.inner.recv()

    async def __aiter__(self) -> AsyncIterator[Message]:
        async for message in self.inner:
            yield message

    async def ping(self, data: str | bytes | None = None) -> float:
        """See `WebSocketClient.ping`."""
        return await self.inner.ping(data)

    async def release(self) -> None:
        """Give the connection back; one that is broken, or has something unread, is closed. Again does nothing."""
        client, self._client = self._client, None
        if client is not None:
            self._pool._take_back(self._server, client, self._config)

    async def close(self) -> None:
        """Close the connection instead of giving it back."""
        client, self._client = self._client, None
        if client is not None:
            self._pool._drop(self._server, client)
            await client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.release()

    def __del__(self) -> None:
        client, self._client = getattr(self, "_client", None), None
        if client is None or self._loop.is_closed():
            return
        warnings.warn(f"{self!r} was never released", ResourceWarning, source=self, stacklevel=2)
        # The collector may run on any thread.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._pool._take_back, self._server, client, self._config)

    def __repr__(self) -> str:
        return f"<PooledClient of {self._server.url}>"


class _Acquisition:
    """What `get` returns: awaitable, and an async context manager."""

    def __init__(self, acquire: Callable[[], Coroutine[Any, Any, PooledClient]]) -> None:
        self._acquire = acquire
        self._client: PooledClient | None = None

    def __await__(self) -> Generator[Any, None, PooledClient]:
        return self._acquire().__await__()

    async def __aenter__(self) -> PooledClient:
        self._client = await self._acquire()
        return self._client

    async def __aexit__(self, *exc: object) -> None:
        assert self._client is not None
        await self._client.release()


class ConnectionPool:
    """Connections to any number of servers, each with its own limits.

        async with ConnectionPool() as pool:
            async with pool.get("ws://localhost:8080") as client:
                await client.send("hello")
                print(await client.recv())
    """

    def __init__(self, config: PoolConfig | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config or PoolConfig()
        self._clock = clock
        self._servers: dict[str, _Server] = {}
        self._metrics = MetricsCollector()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._health_check: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    def with_defaults(cls) -> Self:
        """A pool with the default `PoolConfig`."""
        return cls()

    @property
    def metrics(self) -> MetricsCollector:
        """Counters and latencies of all connections together."""
        return self._metrics

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close_all()

    # -- getting and giving back

    def get(self, url: str | ClientConfig, config: ClientConfig | None = None) -> _Acquisition:
        """A connection to `url`: an open one, a new one, or the first that comes back.

        Args:
            url: the server, or a `ClientConfig`.
            config: how to connect; its `url` is replaced by the first argument.

        Raises:
            Timeout: all `max_connections` stayed in use for `acquire_timeout` seconds.
            Error: what `WebSocketClient.connect` raises.
            InvalidState: the pool is closed.
        """
        if isinstance(url, ClientConfig):
            wanted = url
        else:
            wanted = ClientConfig(url) if config is None else replace(config, url=url)
        wanted = replace(wanted, auto_reconnect=False)
        return _Acquisition(lambda: self._get(wanted))

    async def _get(self, config: ClientConfig) -> PooledClient:
        if self._closed:
            raise InvalidState("the pool is closed", state="closed")
        server = self._server(config)
        grant = None
        if server.waiters or not (self._may_open(server, config) or self._has_idle(server, config)):
            grant = await self._wait(server, config)
        else:
            grant = self._grant(server, config)
        if grant is not None:
            return self._lend(server, grant)
        try:
            client = await WebSocketClient.connect(config, metrics=self._metrics)
        except BaseException:
            server.opening -= 1
            self._serve(server)
            raise
        server.opening -= 1
        server.opened += 1
        if self._closed:
            await client.close()
            raise InvalidState("the pool was closed while connecting", state="closed")
        server.in_use.add(client)
        return PooledClient(self, server, client, config)

    def _lend(self, server: _Server, idle: _Idle) -> PooledClient:
        server.reused += 1
        return PooledClient(self, server, idle.client, idle.config)

    async def _wait(self, server: _Server, config: ClientConfig) -> _Idle | None:
        """Wait for a connection (`_Idle`, in use already) or for the right to open one (None, counted already)."""
        future: asyncio.Future[_Idle | None] = asyncio.get_running_loop().create_future()
        server.waiters.append((future, config))
        try:
            async with asyncio.timeout(self.config.acquire_timeout):
                return await future
        except BaseException as error:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._return_grant(server, future.result())
            else:
                with contextlib.suppress(ValueError):
                    server.waiters.remove((future, config))
            if isinstance(error, TimeoutError) and not isinstance(error, Error):
                raise Timeout(f"no free connection to {server.url} of {self.config.max_connections}",
                              self.config.acquire_timeout) from None
            raise

    def _return_grant(self, server: _Server, grant: _Idle | None) -> None:
        if grant is None:
            server.opening -= 1
            self._serve(server)
        else:
            self._take_back(server, grant.client, grant.config)

    def _server(self, config: ClientConfig) -> _Server:
        url = str(config.address)
        server = self._servers.get(url)
        if server is None:
            server = self._servers[url] = _Server(url)
        if server.default is None:
            server.default = config
        if self.config.enable_health_check:
            self.start_health_check_task()
        return server

    def _has_idle(self, server: _Server, config: ClientConfig) -> bool:
        self._discard_broken(server)
        return any(idle.config == config for idle in server.idle)

    def _may_open(self, server: _Server, config: ClientConfig) -> bool:
        """Is there room for one more, if need be by closing an idle one that was opened otherwise?"""
        if server.total < self.config.max_connections:
            return True
        return any(idle.config != config for idle in server.idle)

    def _grant(self, server: _Server, config: ClientConfig) -> _Idle | None:
        """Take a connection, or count one as being opened; there is one or the other."""
        for idle in reversed(server.idle):
            if idle.config == config:
                server.idle.remove(idle)
                server.in_use.add(idle.client)
                return idle
        if server.total >= self.config.max_connections:
            self._spawn(server.idle.popleft().client.close())
        server.opening += 1
        return None

    def _serve(self, server: _Server) -> None:
        """Something became free: give it to those who wait, in their order."""
        while server.waiters:
            future, config = server.waiters[0]
            if future.done():
                server.waiters.popleft()
                continue
            if not (self._has_idle(server, config) or self._may_open(server, config)):
                return
            server.waiters.popleft()
            future.set_result(self._grant(server, config))

    def _take_back(self, server: _Server, client: WebSocketClient, config: ClientConfig) -> None:
        if client not in server.in_use:
            return
        server.in_use.discard(client)
        if self._closed or not _is_clean(client):
            server.discarded += not self._closed
            self._spawn(client.close())
        else:
            server.idle.append(_Idle(client, config, self._clock()))
        self._serve(server)

    def _drop(self, server: _Server, client: WebSocketClient) -> None:
        server.in_use.discard(client)
        self._serve(server)

    # -- upkeep

    def _discard_broken(self, server: _Server) -> int:
        """Close what is not fit to be handed out; the slots are free at once."""
        broken = [idle for idle in server.idle if not _is_clean(idle.client)]
        for idle in broken:
            server.idle.remove(idle)
            server.discarded += 1
            self._spawn(idle.client.close())
        return len(broken)

    async def cleanup(self) -> CleanupStats:
        """Close idle connections that are broken, or older than `idle_timeout` and above `min_connections`."""
        broken = expired = 0
        now = self._clock()
        for server in self._servers.values():
            broken += self._discard_broken(server)
            while server.total > self.config.min_connections and server.idle:
                if now - server.idle[0].since < self.config.idle_timeout:
                    break
                expired += 1
                self._spawn(server.idle.popleft().client.close())
            self._serve(server)
        return CleanupStats(broken, expired, sum(len(server.idle) for server in self._servers.values()))

    def start_health_check_task(self) -> None:
        """Check idle connections every `health_check_interval`; `get` does this unless it is switched off."""
        if self._closed:
            raise InvalidState("the pool is closed", state="closed")
        if self._health_check is None or self._health_check.done():
            self._health_check = asyncio.get_running_loop().create_task(self._check_health())

    async def _check_health(self) -> None:
        while True:
            await asyncio.sleep(self.config.health_check_interval)
            await self.check_health()

    async def check_health(self) -> None:
        """Once: `cleanup`, ping what is idle and close what does not answer, open what `min_connections` wants."""
        await self.cleanup()
        await asyncio.gather(*(self._check_server(server) for server in list(self._servers.values())))

    async def _check_server(self, server: _Server) -> None:
        for idle in list(server.idle):
            if idle not in server.idle:
                continue  # handed out meanwhile
            server.idle.remove(idle)
            server.in_use.add(idle.client)  # nobody else gets it while it is pinged
            since = idle.since
            try:
                async with asyncio.timeout(self.config.acquire_timeout):
                    await idle.client.ping()
            except (Error, TimeoutError):
                server.in_use.discard(idle.client)
                server.discarded += 1
                self._spawn(idle.client.close())
                self._serve(server)
            except BaseException:
                self._take_back(server, idle.client, idle.config)
                raise
            else:
                self._take_back(server, idle.client, idle.config)
                if server.idle and server.idle[-1].client is idle.client:
                    server.idle[-1].since = since
        await self._warm(server)

    async def _warm(self, server: _Server) -> None:
        """Open connections until there are `min_connections`."""
        config = server.default
        while config is not None and server.total < self.config.min_connections and not self._closed:
            server.opening += 1
            try:
                client = await WebSocketClient.connect(config, metrics=self._metrics)
            except Error as error:
                logger.warning("cannot keep a connection to %s warm: %s", server.url, error)
                return
            finally:
                server.opening -= 1
            server.opened += 1
            server.in_use.add(client)
            self._take_back(server, client, config)

    async def close_all(self) -> None:
        """Close every connection, lent ones too; who waits gets `InvalidState`. The pool cannot be used again."""
        self._closed = True
        if self._health_check is not None:
            self._health_check.cancel()
            await asyncio.wait([self._health_check])
        clients = []
        for server in self._servers.values():
            for future, _ in server.waiters:
                if not future.done():
                    future.set_exception(InvalidState("the pool was closed", state="closed"))
            server.waiters.clear()
            clients += [idle.client for idle in server.idle]
            clients += server.in_use
            server.idle.clear()
            server.in_use.clear()
        await asyncio.gather(*(client.close() for client in clients), *self._tasks, return_exceptions=True)

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run a close that nobody waits for, except `close_all`."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._spawned_done)

    def _spawned_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.warning("closing a connection failed: %s", task.exception())

    # -- statistics

    def server_stats(self, url: str) -> ServerPoolStats | None:
        """The connections to `url`; None when the pool has never been asked for it."""
        server = self._servers.get(str(ClientConfig(url).address))
        return None if server is None else server.stats()

    def stats(self) -> PoolStats:
        """All connections."""
        servers = [server.stats() for server in self._servers.values()]
        names = ("idle", "in_use", "opening", "waiting", "opened", "reused", "discarded")
        return PoolStats(len(servers), *(sum(getattr(server, name) for server in servers) for name in names))

    def __repr__(self) -> str:
        stats = self.stats()
        return f"<ConnectionPool {stats.servers} servers, {stats.idle} idle, {stats.in_use} in use>"


def _is_clean(client: WebSocketClient) -> bool:
    """May this connection serve somebody else: open, nothing unread, nothing half-sent or half-received?"""
    return client.is_connected and not (
        client.queued or client._outbox_size or client._has_partial_message() or client._is_fragmenting
    )
