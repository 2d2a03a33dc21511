"""fabric._pool.host: the limit of a server, those who wait for a connection, and attempts that fail."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from fabric.config import ClientConfig, PoolConfig
from fabric.error import ConnectionFailed, Timeout
from fabric.pool import ConnectionPool
from support.fake_time import in_fake_time, settle
from support.pools import HOUR, URL, done, in_turn, make, now

# The limit, and those who wait.


@in_fake_time
async def test_the_limit_is_per_server() -> None:
    pool, servers = make(max_connections=3)
    async with pool:
        tasks = in_turn(pool, 5)
        others = [asyncio.create_task(pool.get("ws://other/")) for _ in range(4)]
        await settle()
        assert done(tasks) == [True] * 3 + [False] * 2
        assert done(others) == [True] * 3 + [False]
        assert pool.stats().waiting == 3
        assert pool.server_stats(URL).waiting == 2  # type: ignore[union-attr]
        assert servers.most == 3
        for task in (*tasks, *others):
            (await task).release()
            await settle()
        assert pool.stats().in_use == 0
        assert servers.attempts == 6


@in_fake_time
async def test_first_come_first_served() -> None:
    pool, servers = make(max_connections=1)
    order: list[int] = []

    async def use(number: int) -> None:
        async with pool.get(URL):
            order.append(number)
            await asyncio.sleep(0.01)

    async with pool:
        await asyncio.gather(*(use(number) for number in range(20)))
        assert order == list(range(20))
        assert servers.attempts == 1


@in_fake_time
async def test_nobody_overtakes_those_who_wait() -> None:
    pool, _ = make(max_connections=1)
    async with pool:
        client = await pool.get(URL)
        waiting = in_turn(pool, 1)
        await settle()
        client.release()
        late = in_turn(pool, 1)
        await settle()
        assert done(waiting + late) == [True, False]
        (await waiting[0]).release()
        (await late[0]).release()


@in_fake_time
async def test_a_connection_that_comes_back_may_be_sooner_than_one_that_is_being_opened() -> None:
    pool, servers = make(max_connections=3)
    async with pool:
        client = await pool.get(URL)
        servers.opening_takes = 2
        tasks = in_turn(pool, 2)
        await asyncio.sleep(1)
        client.release()
        await settle()
        assert done(tasks) == [True, False]
        third = in_turn(pool, 1)  # for whom a connection is on its way
        await asyncio.sleep(1.5)
        assert done(tasks + third) == [True, True, True]
        assert servers.attempts == 3
        for task in tasks + third:
            task.result().release()


@in_fake_time
async def test_waiting_ends_in_time() -> None:
    pool, _ = make(max_connections=1, acquire_timeout=3)
    async with pool:
        client = await pool.get(URL)
        before = now()
        with pytest.raises(Timeout, match="at most 1 connections to ws://server/ timed out after 3 s") as caught:
            await pool.get(URL)
        assert caught.value.is_retryable
        assert now() == before + 3
        assert pool.stats().waiting == 0
        client.release()
        assert pool.stats().idle == 1


@in_fake_time
async def test_opening_counts_to_the_time_to_wait_and_goes_on() -> None:
    pool, servers = make(max_connections=1, acquire_timeout=3)
    servers.opening_takes = 4
    async with pool:
        with pytest.raises(Timeout):
            await pool.get(URL)
        assert pool.stats().opening == 1
        client = await pool.get(URL)
        assert client.inner is servers.clients[0]
        client.release()


@in_fake_time
async def test_a_timeout_of_the_caller_stays_his() -> None:
    pool, _ = make(max_connections=1)
    async with pool:
        client = await pool.get(URL)
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(1):
                await pool.get(URL)
        assert not isinstance(caught.value, Timeout)
        client.release()


@in_fake_time
async def test_cancelled_while_waiting() -> None:
    pool, _ = make(max_connections=1)
    async with pool:
        client = await pool.get(URL)
        tasks = in_turn(pool, 3)
        await settle()
        tasks[0].cancel()
        tasks[1].cancel()
        client.release()  # before the cancelled ones know
        await settle()
        assert [task.cancelled() for task in tasks] == [True, True, False]
        assert tasks[2].done()
        tasks[2].result().release()
        assert pool.stats().idle == 1


@in_fake_time
async def test_cancelled_when_it_was_granted_already() -> None:
    pool, _ = make(max_connections=1)
    async with pool:
        client = await pool.get(URL)
        tasks = in_turn(pool, 2)
        await settle()
        client.release()
        tasks[0].cancel()
        await settle()
        assert tasks[0].cancelled()
        tasks[1].result().release()
        assert pool.stats().idle == 1
        assert pool.stats().in_use == 0


@in_fake_time
async def test_granted_and_timed_out_at_once() -> None:
    pool, _ = make(max_connections=1, acquire_timeout=1)
    async with pool:
        client = await pool.get(URL)
        task = in_turn(pool, 1)[0]
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_at(now() + 1, client.release)
        with pytest.raises(Timeout):
            await task
        await settle()
        assert pool.stats().idle == 1
        assert pool.stats().in_use == 0


@in_fake_time
async def test_cancelled_while_it_is_being_opened() -> None:
    pool, servers = make(max_connections=1)
    servers.opening_takes = 1
    async with pool:
        tasks = in_turn(pool, 2)
        await asyncio.sleep(0.5)
        tasks[0].cancel()
        await asyncio.sleep(0.6)
        assert tasks[1].result().inner is servers.clients[0]
        tasks[1].result().release()
        lone = asyncio.create_task(pool.get("ws://other/"))
        await asyncio.sleep(0.5)
        lone.cancel()
        await asyncio.sleep(0.6)
        assert pool.stats().idle == 2
        assert servers.attempts == 2


@in_fake_time
async def test_cancelled_when_opening_has_failed_already() -> None:
    pool, servers = make()
    servers.refuses = ConnectionFailed("refused")
    servers.opening_takes = 1
    async with pool:
        task = in_turn(pool, 1)[0]
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_at(now() + 1, lambda: asyncio.get_running_loop().call_soon(task.cancel))
        with pytest.raises((asyncio.CancelledError, ConnectionFailed)):
            await task
        assert pool.stats().total == 0


@in_fake_time
async def test_who_stood_behind_a_cancelled_one_may_be_served() -> None:
    pool, servers = make(max_connections=2)
    servers.closing_takes = 1
    other = ClientConfig(URL).with_user_agent("other/1")
    async with pool:
        one, two = await pool.get(URL), await pool.get(URL)
        blocked = asyncio.create_task(pool.get(other))
        behind = in_turn(pool, 1)
        await settle()
        await asyncio.sleep(0)
        one.release()  # closed, to make room for the first in the queue
        await settle()
        assert pool.stats().closing == 1
        two.release()  # which that one cannot use, and the second must not take before him
        await settle()
        assert not behind[0].done()
        blocked.cancel()
        await settle()
        assert behind[0].result().inner is servers.clients[1]
        behind[0].result().release()


# When opening fails.


@in_fake_time
async def test_an_attempt_that_fails_is_the_error_of_who_counted_on_it() -> None:
    pool, servers = make(max_connections=2)
    servers.refuses = ConnectionFailed("refused")
    servers.opening_takes = 1
    async with pool:
        tasks = in_turn(pool, 5)
        begun = now()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [ConnectionFailed] * 5
        assert now() == begun + 3
        assert servers.attempts == 5
        assert pool.stats().total == pool.stats().waiting == 0
        servers.refuses = None
        (await pool.get(URL)).release()


@in_fake_time
async def test_an_attempt_that_nobody_counts_on_any_more_fails_in_silence(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool, servers = make(max_connections=2)
    async with pool:
        client = await pool.get(URL)
        servers.opening_takes = 1
        servers.refuses = ConnectionFailed("refused")
        task = in_turn(pool, 1)[0]
        await asyncio.sleep(0.5)
        client.release()
        assert (await task).is_connected
        with caplog.at_level(logging.WARNING, "fabric.pool"):
            await asyncio.sleep(1)
        assert "refused" in caplog.text
        assert pool.stats().opening == 0
        task.result().release()


@in_fake_time
async def test_the_failed_attempt_is_not_the_error_of_who_has_another_one() -> None:
    pool, servers = make(max_connections=2)
    async with pool:
        servers.opening_takes = 2
        tasks = in_turn(pool, 1)
        await asyncio.sleep(1)
        servers.opening_takes, servers.refuses = 0.5, ConnectionFailed("refused")
        tasks += in_turn(pool, 1)
        await asyncio.sleep(0.75)
        assert done(tasks) == [False, True]
        assert isinstance(tasks[1].exception(), ConnectionFailed)
        (await tasks[0]).release()


@in_fake_time
async def test_a_server_that_closes_at_once_is_not_hammered() -> None:
    pool, servers = make(max_connections=2, min_connections=2)
    servers.closes_at_once = True
    async with pool:
        with pytest.raises(ConnectionFailed, match="closed the connection at once"):
            await pool.get(URL)
        await asyncio.sleep(HOUR)
        assert servers.attempts == 1
        assert pool.stats().discarded == 1
        assert pool.stats().total == 0


@in_fake_time
async def test_broken_between_the_grant_and_the_turn_of_the_task() -> None:
    pool, servers = make(max_connections=1)
    async with pool:
        client = await pool.get(URL)
        tasks = in_turn(pool, 2)
        await settle()
        client.release()
        servers.clients[0].break_()
        await settle()
        assert done(tasks) == [True, False]  # it kept its place in the queue
        assert tasks[0].result().inner is servers.clients[1]
        tasks[0].result().release()
        await settle()
        tasks[1].result().release()
        assert pool.stats().discarded == 1


@in_fake_time
async def test_opened_and_broken_before_the_turn_of_the_task() -> None:
    pool, servers = make(max_connections=1)
    async with pool:
        task = in_turn(pool, 1)[0]
        while not pool.stats().in_use:
            await asyncio.sleep(0)
        assert not task.done()
        servers.clients[0].break_()
        with pytest.raises(ConnectionFailed):
            await task
        assert servers.attempts == 1


@in_fake_time
async def test_connect_may_be_anything_that_raises() -> None:
    def connect(config: ClientConfig) -> Any:
        raise LookupError("not even a coroutine")

    async with ConnectionPool(PoolConfig(max_connections=1), connect=connect) as pool:
        for _ in range(2):
            with pytest.raises(LookupError):
                await pool.get(URL)
        assert pool.stats().total == 0
