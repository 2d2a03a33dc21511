"""fabric.pool: random use, and what holds at any time."""

from __future__ import annotations

import asyncio
import random
import warnings
from typing import Any

from fabric.config import ClientConfig
from fabric.error import ConnectionFailed, Timeout
from fabric.pool import PooledClient
from support.fake_time import in_fake_time
from support.pools import Client, make, now, put_unread


class Model:
    """Random use of a pool, and what must hold at any time."""

    URLS = ("ws://a/", "ws://b/")
    CONFIGS = (*map(ClientConfig, URLS * 2), ClientConfig(URLS[0]).with_header("X-User", "other"))

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.is_calm = rng.random() < 0.5
        self.limit = rng.randint(1, 4)
        self.pool, self.servers = make(
            min_connections=rng.randint(0, self.limit),
            max_connections=self.limit,
            acquire_timeout=rng.choice((0.5, 3)),
            idle_timeout=rng.choice((1, 20)),
            health_check_interval=2,
            enable_health_check=rng.random() < 0.5,
        )
        self.asked = 0
        self.waiting: dict[asyncio.Task[None], None] = {}  # ordered: the seed decides all
        self.lent: list[PooledClient] = []
        self.served: dict[str, tuple[int, float]] = {}
        self.outcomes: set[str] = set()

    async def run(self, steps: int) -> None:
        actions = [self.get] * 6 + [self.release] * 5 + [self.change] * 2 + [self.close, self.cancel, self.lose]
        if not self.is_calm:
            actions += [self.break_, self.litter]
        async with self.pool:
            for _ in range(steps):
                self.rng.choice(actions)()
                if self.rng.random() < 0.4:
                    await asyncio.sleep(self.rng.choice((0, 0, 0, 0.01, 0.3, 2)))
                elif self.rng.random() < 0.02:
                    await self.pool.check_health()
                self.check()
            await self.drain()
        assert sum(self.servers.count.values()) == 0

    def get(self) -> None:
        config = self.rng.choice(self.CONFIGS)
        self.asked += 1
        task = asyncio.create_task(self.borrow(self.asked, config))
        self.waiting[task] = None
        task.add_done_callback(self.waiting.pop)

    async def borrow(self, number: int, config: ClientConfig) -> None:
        try:
            client = await self.pool.get(config)
        except (asyncio.CancelledError, Timeout, ConnectionFailed) as error:
            self.outcomes.add(type(error).__name__)
            return
        inner: Any = client.inner
        assert inner.config.headers == config.headers
        assert inner.is_connected, "a broken connection was lent"
        assert not any(other.inner is inner for other in self.lent), "lent twice"
        queue = f"{config.url} {dict(config.headers)}"
        last, at = self.served.get(queue, (0, 0.0))
        # Who was granted a connection that breaks asks again; and tasks may run in another order than the grants'.
        if self.is_calm and now() > at:
            assert number > last, "not first come, first served"
        self.served[queue] = number, now()
        self.lent.append(client)
        self.outcomes.add("served")

    def one(self) -> PooledClient | None:
        return self.lent.pop(self.rng.randrange(len(self.lent))) if self.lent else None

    def release(self) -> None:
        if (client := self.one()) is not None:
            client.release()

    def close(self) -> None:
        if (client := self.one()) is not None:
            task = asyncio.create_task(client.close())
            if self.rng.random() < 0.5:
                asyncio.get_running_loop().call_soon(task.cancel)

    def lose(self) -> None:
        if (client := self.one()) is not None:
            del client

    def any_client(self) -> Client | None:
        living = [client for client in self.servers.clients if client.is_connected]
        return self.rng.choice(living) if living else None

    def break_(self) -> None:
        if (client := self.any_client()) is not None:
            client.break_()

    def litter(self) -> None:
        if (client := self.any_client()) is not None:
            self.rng.choice((put_unread, lambda client: setattr(client, "answers", False)))(client)

    def cancel(self) -> None:
        if self.waiting:
            self.rng.choice(list(self.waiting)).cancel()

    def change(self) -> None:
        """The servers become faster, slower or worse."""
        self.servers.opening_takes = self.rng.choice((0, 0, 0.01, 0.4, 4))
        self.servers.closing_takes = self.rng.choice((0, 0, 0.01, 0.4, 4))
        self.servers.refuses = ConnectionFailed("refused") if self.rng.random() < 0.15 else None
        self.servers.closes_at_once = self.rng.random() < 0.05

    def check(self) -> None:
        """That no limit is passed, `Servers` checks; here, that nothing is forgotten or counted twice."""
        stats = self.pool.stats()
        for url in self.URLS:
            server = self.pool.server_stats(url)
            assert server is None or server.total <= self.limit
        assert self.servers.most <= self.limit
        connected = sum(client.is_connected for client in self.servers.clients)
        assert connected <= stats.total
        assert stats.in_use >= len(self.lent)
        assert stats.waiting <= len(self.waiting)

    async def drain(self) -> None:
        """Once everybody is through, everything is as in the beginning."""
        self.servers.refuses, self.servers.closes_at_once = None, False
        self.servers.opening_takes = self.servers.closing_takes = 0
        while self.waiting or self.lent:
            while self.lent:
                self.release()
            await asyncio.sleep(0.1)
        await asyncio.sleep(5)
        stats = self.pool.stats()
        assert stats.in_use == stats.opening == stats.closing == stats.waiting == 0
        for url in self.URLS:  # no slot has leaked
            clients = [await self.pool.get(url) for _ in range(self.limit)]
            for client in clients:
                client.release()


def test_model(rng: random.Random) -> None:
    outcomes: set[str] = set()
    for _ in range(25):
        seed = rng.getrandbits(32)

        @in_fake_time
        async def run(seed: int = seed) -> None:
            model = Model(random.Random(seed))
            try:
                with warnings.catch_warnings(action="ignore", category=ResourceWarning):
                    await model.run(150)
            except BaseException:
                print(f"{seed=}")
                raise
            outcomes.update(model.outcomes)

        run()
    assert outcomes == {"served", "CancelledError", "Timeout", "ConnectionFailed"}
