"""fabric._pool.host: the connections that are kept, for how long, and the health check."""

from __future__ import annotations

import asyncio

import pytest

from fabric.config import ClientConfig, HeartbeatConfig
from fabric.error import ConnectionFailed
from fabric.pool import CleanupStats
from support.fake_time import in_fake_time, settle
from support.pools import HOUR, URL, make, now


@in_fake_time
async def test_the_minimum_is_kept_warm() -> None:
    pool, servers = make(min_connections=3, max_connections=4)
    async with pool:
        client = await pool.get(URL)
        await settle()
        assert pool.stats().total == 3
        assert pool.stats().idle == 2
        await client.close()
        await settle()
        assert pool.stats().idle == 3
        client = await pool.get(URL)
        servers.clients[-1].break_()
        client.release()
        await settle()
        assert pool.stats().idle == 3
        for each in servers.clients:
            if each.is_connected:
                each.break_()
        assert (await pool.cleanup()).broken == 3
        await pool.check_health()
        await settle()
        assert pool.stats().idle == 3
        assert servers.most <= 4


@in_fake_time
async def test_keeping_warm_does_not_insist(caplog: pytest.LogCaptureFixture) -> None:
    pool, servers = make(min_connections=2, enable_health_check=True, health_check_interval=30)
    async with pool:
        servers.refuses = ConnectionFailed("refused")
        with pytest.raises(ConnectionFailed):
            await pool.get(URL)
        await asyncio.sleep(100)
        assert servers.attempts == 1  # nothing was ever there to be kept
        servers.refuses = None
        client = await pool.get(URL)
        await settle()
        assert servers.attempts == 3
        servers.refuses = ConnectionFailed("refused")
        await client.close()
        await asyncio.sleep(1)
        assert servers.attempts == 4
        await asyncio.sleep(60)
        assert servers.attempts == 6  # once per health check
        servers.refuses = None
        await asyncio.sleep(30)
        assert pool.stats().idle == 2
    assert caplog.text.count("no connection to ws://server/: refused") == 3


@in_fake_time
async def test_idle_connections_above_the_minimum_are_closed_in_time() -> None:
    pool, _ = make(min_connections=1, max_connections=5, idle_timeout=60)
    async with pool:
        clients = [await pool.get(URL) for _ in range(4)]
        for client in clients[:2]:
            client.release()
        await asyncio.sleep(30)
        clients[2].release()
        await asyncio.sleep(29.9)
        assert await pool.cleanup() == CleanupStats(broken=0, expired=0, left=3)
        await asyncio.sleep(0.2)
        assert await pool.cleanup() == CleanupStats(broken=0, expired=2, left=1)
        await asyncio.sleep(HOUR)
        assert await pool.cleanup() == CleanupStats(broken=0, expired=1, left=0)  # one is in use
        clients[3].release()
        await asyncio.sleep(HOUR)
        assert await pool.cleanup() == CleanupStats(broken=0, expired=0, left=1)
        assert pool.stats().expired == 3


@pytest.mark.parametrize(("idle_timeout", "interval"), [(300, 30), (5, 30)])
def test_the_health_check_closes_idle_connections(idle_timeout: float, interval: float) -> None:
    @in_fake_time
    async def run() -> None:
        pool, _ = make(idle_timeout=idle_timeout, health_check_interval=interval, enable_health_check=True)
        async with pool:
            (await pool.get(URL)).release()
            await asyncio.sleep(idle_timeout - 0.1)
            assert pool.stats().idle == 1
            await asyncio.sleep(min(idle_timeout, interval) + 0.2)
            assert pool.stats().idle == 0

    run()


@in_fake_time
async def test_the_health_check_pings_what_nobody_used() -> None:
    pool, servers = make(min_connections=2, enable_health_check=True, health_check_interval=30)
    async with pool:
        lent = await pool.get(URL)
        await asyncio.sleep(301)
        assert [client.pings for client in servers.clients] == [0, 10]
        for _ in range(10):
            lent.release()
            await asyncio.sleep(10)
            lent = await pool.get(URL)
            assert lent.inner is servers.clients[0]
        assert servers.clients[0].pings == 0
        lent.release()


@in_fake_time
async def test_what_does_not_answer_a_ping_is_dropped_and_replaced() -> None:
    pool, servers = make(min_connections=1, max_connections=1)
    servers.closing_takes = 5  # the close handshake would not be answered either
    config = ClientConfig(URL, heartbeat=HeartbeatConfig(ping_timeout=7))
    async with pool:
        (await pool.get(config)).release()
        servers.clients[0].answers = False
        before = now()
        await pool.check_health()
        assert now() == before + 7
        await settle()
        assert servers.clients[0].aborted
        assert pool.stats().discarded == 1
        assert pool.stats().idle == 1
        assert servers.clients[1].is_connected


@in_fake_time
async def test_a_ping_keeps_nobody_from_the_connection() -> None:
    pool, servers = make(max_connections=1)
    async with pool:
        (await pool.get(URL)).release()
        servers.clients[0].answers = False
        check = asyncio.create_task(pool.check_health())
        await settle()
        client = await pool.get(URL)
        assert client.inner is servers.clients[0]
        await check
        assert client.is_connected  # its borrower finds out for himself
        client.release()


@in_fake_time
async def test_a_failing_health_check_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, servers = make(min_connections=1, enable_health_check=True, health_check_interval=30)

    async def fail() -> float:
        raise LookupError("a bug")

    async with pool:
        (await pool.get(URL)).release()
        monkeypatch.setattr(servers.clients[0], "ping", fail, raising=False)
        await asyncio.sleep(31)
        assert "a bug" in caplog.text
        monkeypatch.undo()
        await asyncio.sleep(30)
        assert servers.clients[0].pings == 1
        task = pool.start_health_check_task()
        assert task is pool.start_health_check_task()


@in_fake_time
async def test_a_server_that_nobody_asks_for_is_forgotten() -> None:
    pool, _ = make(idle_timeout=60)
    async with pool:
        (await pool.get(URL)).release()
        kept = await pool.get("ws://other/")
        assert pool.server_stats(URL) is not None
        await asyncio.sleep(60)
        await pool.cleanup()
        await asyncio.sleep(60)
        await pool.cleanup()
        assert pool.server_stats(URL) is None
        assert pool.stats().servers == 1
        assert pool.stats().opened == 2
        assert pool.stats().expired == 1
        kept.release()
        (await pool.get(URL)).release()
        assert pool.stats().opened == 3


@in_fake_time
async def test_a_server_that_is_forgotten_during_a_health_check_stays_forgotten() -> None:
    pool, servers = make(min_connections=1, max_connections=1, idle_timeout=1)
    async with pool:
        (await pool.get(URL)).release()
        (await pool.get("ws://slow/")).release()
        servers.clients[1].answers = False
        check = asyncio.create_task(pool.check_health())
        await asyncio.sleep(2)
        servers.refuses = ConnectionFailed("refused")
        servers.clients[0].break_()
        await pool.cleanup()
        await settle()
        await pool.cleanup()
        assert pool.stats().servers == 1
        servers.refuses = None
        await check
        await settle()
        assert sum(servers.count.values()) == pool.stats().total == 1
