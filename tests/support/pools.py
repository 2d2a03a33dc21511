"""Servers that are made up, for a pool whose time passes at once."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from fabric.config import ClientConfig, PoolConfig
from fabric.error import ConnectionClosed
from fabric.metrics import MetricsCollector
from fabric.pool import ConnectionPool, PooledClient
from fabric_ext.receive_queue import ReceiveQueue

URL = "ws://server/"
HOUR = 3600.0


class Client(ReceiveQueue):
    """What the pool sees of a client."""

    def __init__(self, server: Servers, config: ClientConfig) -> None:
        super().__init__(asyncio.get_running_loop())
        self.config = config
        self.is_connected = True
        self.pings = 0
        self.answers = True
        self.close_calls: list[tuple[int, str]] = []
        self._aborted = asyncio.Event()
        self.metrics = MetricsCollector()
        self.metrics.record_connection()
        self._server = server
        self.in_use = False
        self._is_counted = True

    @property
    def is_at_rest(self) -> bool:
        return not (self.queued or self.in_use)

    async def ping(self) -> float:
        self.pings += 1
        if not self.is_connected:
            raise ConnectionClosed(1006)
        if not self.answers:
            await asyncio.sleep(HOUR)
        return 0.001

    async def close(self, code: int = 1000, reason: str = "") -> None:
        self.close_calls.append((code, reason))
        assert len(self.close_calls) == 1, "closed twice by the pool"
        if self.is_connected:
            self.is_connected = False
            await asyncio.sleep(0)
            with contextlib.suppress(TimeoutError):  # in which the server answers the close frame
                async with asyncio.timeout(self._server.closing_takes):
                    await self._aborted.wait()
        self._gone()

    @property
    def aborted(self) -> bool:
        return self._aborted.is_set()

    def _abort(self) -> None:
        self._aborted.set()

    def break_(self) -> None:
        """The server or the network ends it."""
        self.is_connected = False
        self._gone()

    def _gone(self) -> None:
        if self._is_counted:
            self._is_counted = False
            self.metrics.record_disconnection()
            self._server.count[self.config.url] -= 1


class Servers:
    """All servers: the pool's `connect`. Complains of more than `limit` connections, open or on their way."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.opening_takes = 0.0
        self.closing_takes = 0.0
        self.refuses: BaseException | None = None
        self.closes_at_once = False
        self.clients: list[Client] = []
        self.count: dict[str, int] = {}
        self.most = 0
        self.attempts = 0

    async def __call__(self, config: ClientConfig) -> Any:
        assert not config.auto_reconnect
        self.attempts += 1
        count = self.count[config.url] = self.count.get(config.url, 0) + 1
        assert count <= self.limit, f"{count} connections, {self.limit} are allowed"
        self.most = max(self.most, count)
        refuses = self.refuses
        try:
            await asyncio.sleep(self.opening_takes)
            if refuses is not None:
                raise refuses
        except BaseException:
            self.count[config.url] -= 1
            raise
        client = Client(self, config)
        self.clients.append(client)
        if self.closes_at_once:
            client.break_()
        return client


def make(**options: Any) -> tuple[ConnectionPool, Servers]:
    """A pool that does nothing by itself, unless told."""
    options = {"min_connections": 0, "max_connections": 2, "enable_health_check": False, **options}
    servers = Servers(options["max_connections"])
    return ConnectionPool(PoolConfig(**options), connect=servers), servers


def now() -> float:
    return asyncio.get_running_loop().time()


def in_turn(pool: ConnectionPool, count: int, **options: Any) -> list[asyncio.Task[PooledClient]]:
    """`count` tasks that ask for a connection, in their order."""
    return [asyncio.create_task(pool.get(URL, **options)) for _ in range(count)]


def done(tasks: list[asyncio.Task[PooledClient]]) -> list[bool]:
    return [task.done() for task in tasks]


def put_unread(client: Client) -> None:
    client._put("unread")
