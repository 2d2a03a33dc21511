"""fabric.pool and fabric._pool.host against servers that are made up, in a time that passes at once."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import socket
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from fabric.config import ClientConfig, HeartbeatConfig, PoolConfig
from fabric.error import ConnectionClosed, ConnectionFailed, InvalidState, Timeout
from fabric.metrics import MetricsCollector
from fabric.pool import CleanupStats, ConnectionPool, PooledClient, PoolStats
from fabric_ext.receive_queue import ReceiveQueue
from support.fake_time import in_fake_time, settle

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


# Lending and giving back.


@in_fake_time
async def test_one_is_opened_lent_and_lent_again() -> None:
    pool, servers = make()
    async with pool:
        first = await pool.get(URL)
        assert first.is_connected
        assert first.inner is servers.clients[0]
        first.release()
        async with pool.get(URL) as second:
            assert second.inner is servers.clients[0]
        assert pool.stats() == PoolStats(
            servers=1,
            idle=1,
            in_use=0,
            opening=0,
            closing=0,
            waiting=0,
            opened=1,
            reused=1,
            discarded=0,
            expired=0,
        )


@in_fake_time
async def test_metrics_are_those_of_all_connections_ever() -> None:
    pool, servers = make(idle_timeout=1)
    async with pool:
        for url in (URL, "ws://other/"):
            async with pool.get(url) as client:
                client.inner.metrics.record_message_sent(100)
        lent = await pool.get(URL)
        lent.inner.metrics.record_latency(0.001)
        await asyncio.sleep(1)
        servers.closing_takes = 1
        cleanup = asyncio.create_task(pool.cleanup())
        for _ in range(2):
            assert pool.metrics.total_connections == 2
            assert pool.metrics.bytes_sent == 200
            await asyncio.sleep(0.5)
        await cleanup
        await pool.cleanup()
        assert pool.stats().servers == 1
        assert pool.metrics.total_connections == 2
        assert pool.metrics.active_connections == 1
        lent.release()
    assert pool.metrics.bytes_sent == 200
    assert pool.metrics.active_connections == 0
    assert pool.metrics.latency_percentiles().count == 1


@in_fake_time
async def test_a_loan_ends_once() -> None:
    pool, servers = make()
    async with pool:
        client = await pool.get(URL)
        await client.release()
        client.release()
        await client.close()
        assert not client.is_connected
        with pytest.raises(InvalidState, match="given back"):
            client.inner  # noqa: B018
        for use in (client.__aiter__, lambda: client.send_nowait("x")):
            with pytest.raises(InvalidState):
                use()
        for wait in (client.recv, client.__anext__, client.ping, lambda: client.send("x")):
            with pytest.raises(InvalidState):
                await wait()
        assert pool.stats().idle == 1
        other = await pool.get(URL)
        client.release()  # does not end the other's loan
        assert other.is_connected
        assert pool.stats().in_use == 1
        other.release()
        assert servers.attempts == 1
        assert "released" in repr(client)


@in_fake_time
async def test_close_takes_it_out_of_the_pool() -> None:
    pool, servers = make()
    servers.closing_takes = 1
    async with pool:
        client = await pool.get(URL)
        with pytest.raises(ValueError, match="7"):
            await client.close(7)
        assert client.is_connected
        before = now()
        await client.close(3000, "bye")
        assert now() == before + 1
        assert servers.clients[0].close_calls == [(3000, "bye")]
        assert pool.stats().total == 0
        assert pool.stats().discarded == 0


@in_fake_time
async def test_a_cancelled_close_goes_on() -> None:
    pool, servers = make(max_connections=1)
    servers.closing_takes = 1
    async with pool:
        client = await pool.get(URL)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.close(), 0.5)
        assert pool.stats().closing == 1
        before = now()
        (await pool.get(URL)).release()
        assert now() == before + 0.5


@in_fake_time
async def test_get_is_what_asyncio_takes_for_a_coroutine() -> None:
    pool, _ = make(max_connections=10)
    async with pool:
        for client in (
            await asyncio.create_task(pool.get(URL)),
            await asyncio.wait_for(pool.get(URL), 5),
            *await asyncio.gather(pool.get(URL), pool.get(URL)),
        ):
            client.release()
        pool.get(URL).close()  # nothing has begun
        pool.get(URL).close()
        acquisition = pool.get(URL)
        with pytest.raises(KeyError):
            acquisition.throw(KeyError())
        acquisition.close()
        assert pool.stats().in_use == 0


@in_fake_time
async def test_the_one_used_last_is_lent_first() -> None:
    pool, servers = make()
    async with pool:
        one, two = await pool.get(URL), await pool.get(URL)
        two.release()
        one.release()
        async with pool.get(URL) as client:
            assert client.inner is servers.clients[0]


@in_fake_time
async def test_what_is_wrong_is_said_at_once() -> None:
    pool, _ = make()
    with pytest.raises(ValueError, match="ws://"):
        pool.get("http://server/")
    with pytest.raises(TypeError):
        pool.get(ClientConfig(URL), ClientConfig(URL))
    with socket.socket() as sock, pytest.raises(ValueError, match="serves only once"):
        pool.get(ClientConfig(URL, sock=sock))


@in_fake_time
async def test_an_interrupted_borrower_may_have_left_an_answer_on_its_way() -> None:
    pool, servers = make()
    async with pool:
        with pytest.raises(ZeroDivisionError):
            async with pool.get(URL):
                raise ZeroDivisionError
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1), await pool.get(URL) as client:
                await client.recv()
        await settle()
        assert [client.is_connected for client in servers.clients] == [False, False]
        assert pool.stats().discarded == 2
        assert pool.stats().total == 0


def put_unread(client: Client) -> None:
    client._put("unread")


@in_fake_time
async def test_a_server_that_answers_no_close_frame_keeps_nobody_from_its_place() -> None:
    pool, servers = make(max_connections=1, acquire_timeout=5)
    servers.closing_takes = 5  # the default `close_timeout`
    async with pool:
        for number in range(3):
            before = now()
            with pytest.raises(ZeroDivisionError):
                async with pool.get(URL) as client:
                    assert now() == before + (0.5 if number else 0)  # `Servers` insists on the limit
                    assert client.inner is servers.clients[number]
                    raise ZeroDivisionError
        await asyncio.sleep(0.5)
        await settle()
        assert pool.stats().total == 0
        assert all(client.aborted and client.close_calls == [(1000, "")] for client in servers.clients)


@in_fake_time
async def test_a_server_that_answers_the_close_frame_is_left_to_it() -> None:
    pool, servers = make(max_connections=1, acquire_timeout=5)
    servers.closing_takes = 0.4
    async with pool:
        with pytest.raises(ZeroDivisionError):
            async with pool.get(URL):
                raise ZeroDivisionError
        before = now()
        (await pool.get(URL)).release()
        assert now() == before + 0.4
        await asyncio.sleep(HOUR)
        assert not servers.clients[0].aborted


@in_fake_time
async def test_who_closes_by_himself_has_the_time_of_his_config() -> None:
    pool, servers = make(max_connections=1, acquire_timeout=5)
    servers.closing_takes = 5
    async with pool:
        client = await pool.get(URL)
        before = now()
        await client.close()
        assert now() == before + 5
        assert not servers.clients[0].aborted


UNCLEAN: dict[str, Callable[[Client], None]] = {
    "broken": Client.break_,
    "unread": put_unread,
    "in use": lambda client: setattr(client, "in_use", True),  # of which test_base.py has the cases
}


@pytest.mark.parametrize("how", UNCLEAN)
def test_what_is_broken_or_not_clean_is_not_lent_again(how: str) -> None:
    @in_fake_time
    async def run() -> None:
        pool, servers = make()
        async with pool:
            # When it comes back,
            client = await pool.get(URL)
            UNCLEAN[how](servers.clients[0])
            client.release()
            assert pool.stats().discarded == 1
            # or while it is idle.
            client = await pool.get(URL)
            client.release()
            UNCLEAN[how](servers.clients[1])
            assert pool.stats().idle == 1
            client = await pool.get(URL)
            assert client.inner is servers.clients[2]
            client.release()
            UNCLEAN[how](servers.clients[2])
            assert await pool.cleanup() == CleanupStats(broken=1, expired=0, left=0)
            assert pool.stats().discarded == 3
            assert [len(client.close_calls) for client in servers.clients] == [1, 1, 1]

    run()


@in_fake_time
async def test_a_greeting_is_for_the_first_borrower() -> None:
    pool, servers = make(min_connections=2)
    async with pool:
        first = await pool.get(URL)
        await settle()
        assert pool.stats().idle == 1  # kept warm
        servers.clients[1]._put("welcome")
        assert await pool.cleanup() == CleanupStats(broken=0, expired=0, left=1)
        second = await pool.get(URL)
        assert second.inner is servers.clients[1]
        assert second.inner.queued == 1
        assert pool.stats().reused == 0
        second.release()
        assert pool.stats().discarded == 1
        first.release()


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


# Different configs.


@in_fake_time
async def test_a_connection_is_lent_only_for_the_config_it_was_opened_with() -> None:
    pool, servers = make(max_connections=3)
    async with pool:
        configs = [ClientConfig(URL), ClientConfig(URL).with_header("X-User", "a")]
        for config in configs * 2:
            async with pool.get(config) as client:
                assert client.inner.config.headers == config.headers
        async with pool.get(URL, configs[1]) as client:
            assert client.inner is servers.clients[1]
        async with pool.get(URL, ClientConfig("ws://elsewhere/").with_header("X-User", "a")) as client:
            assert client.inner is servers.clients[1]
        assert servers.attempts == 2


@pytest.mark.parametrize(("closing_takes", "waited"), [(0.4, 0.4), (5, 0.5)])
@in_fake_time
async def test_an_idle_connection_makes_room_for_another_config(closing_takes: float, waited: float) -> None:
    pool, servers = make(max_connections=2, acquire_timeout=5)
    other = ClientConfig(URL).with_header("X-User", "b")
    async with pool:
        one, two = await pool.get(URL), await pool.get(URL)
        one.release()
        two.release()
        servers.closing_takes = closing_takes
        before = now()
        async with pool.get(other) as client:
            assert now() == before + waited  # a connection counts until it is closed: `Servers` insists on it
            assert client.inner.config.headers == other.headers
            assert [each.is_connected for each in servers.clients] == [False, True, True]  # the oldest
        async with pool.get(URL):
            pass
        assert servers.attempts == 3
        assert pool.stats().discarded == 0


@in_fake_time
async def test_credentials_are_not_shown() -> None:
    pool, _ = make()
    url = "ws://user:secret@server/"
    async with pool:
        client = await pool.get(url)
        texts = [repr(pool), repr(client), repr(pool.stats()), repr(pool.server_stats(url))]
        assert not any("secret" in text for text in texts)
        assert pool.server_stats(URL) == pool.server_stats(url)
        client.release()


# Keeping connections.


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


# Loans that are lost.


@in_fake_time
async def test_a_loan_that_is_collected_comes_back_with_a_warning() -> None:
    pool, servers = make(max_connections=1)
    async with pool:
        client = await pool.get(URL)
        loans = [client]
        del client
        with pytest.warns(ResourceWarning, match="PooledClient of ws://server/> was never released"):
            loans.clear()
        await settle()
        assert pool.stats().idle == 1
        async with pool.get(URL) as client:
            assert client.inner is servers.clients[0]


@in_fake_time
async def test_a_loan_that_is_collected_comes_back_though_warnings_are_errors() -> None:
    pool, _ = make(max_connections=1)
    async with pool:
        client = await pool.get(URL)
        waiter = in_turn(pool, 1)[0]
        await settle()
        loans = [client]
        del client
        assert [type(error) for error in collect_with_errors(loans)] == [ResourceWarning]
        (await waiter).release()


def collect_with_errors(loans: list[Any]) -> list[BaseException | None]:
    """Collect them while warnings are errors; what was raised meanwhile."""
    caught: list[BaseException | None] = []
    hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: caught.append(unraisable.exc_value)
    try:
        with warnings.catch_warnings(action="error"):
            loans.clear()
            gc.collect(0)
    finally:
        sys.unraisablehook = hook
    return caught


def run_on_a_thread(function: Callable[[], None]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


@in_fake_time
async def test_a_loan_that_is_collected_on_another_thread_comes_back() -> None:
    pool, _ = make(max_connections=1)
    async with pool:
        loans = [await pool.get(URL)]
        waiter = in_turn(pool, 1)[0]
        await settle()
        with pytest.warns(ResourceWarning):
            run_on_a_thread(loans.clear)
        (await waiter).release()


@in_fake_time
async def test_no_warning_for_a_loan_that_is_over() -> None:
    pool, _ = make()
    released, closed, lent = await pool.get(URL), await pool.get("ws://a/"), await pool.get("ws://b/")
    released.release()
    await closed.close()
    await pool.close_all()
    with warnings.catch_warnings(action="error"):
        del released, closed, lent
        gc.collect(0)


def test_a_loan_that_outlives_its_loop_is_collected_in_silence() -> None:
    loans = []

    @in_fake_time
    async def run() -> None:
        pool, _ = make()
        loans.append(await pool.get(URL))

    run()
    assert collect_with_errors(loans) == []


# The end.


@in_fake_time
async def test_close_all_ends_everything() -> None:
    pool, servers = make(max_connections=2, min_connections=1, enable_health_check=True)
    lent = await pool.get(URL)
    (await pool.get("ws://idle/")).release()
    servers.closing_takes = 1
    servers.opening_takes = 10
    opening = asyncio.create_task(pool.get("ws://opening/"))
    tasks = in_turn(pool, 3)
    await settle()
    before = now()
    await asyncio.gather(pool.close_all(), pool.close_all())
    assert now() == before + 1
    for task in (opening, *tasks):
        with pytest.raises(InvalidState, match="closed"):
            await task
    assert not lent.is_connected
    lent.release()
    await lent.close()
    assert pool.stats().total == pool.stats().waiting == 0
    assert sum(servers.count.values()) == 0
    with pytest.raises(InvalidState):
        await pool.get(URL)
    with pytest.raises(InvalidState):
        pool.start_health_check_task()
    await pool.close_all()


@in_fake_time
async def test_close_all_when_a_connection_was_just_granted() -> None:
    pool, _ = make(max_connections=1)
    client = await pool.get(URL)
    task = in_turn(pool, 1)[0]
    await settle()
    client.release()
    await pool.close_all()
    with pytest.raises(InvalidState):
        await task
    assert pool.stats().total == 0


@in_fake_time
async def test_close_all_when_a_connection_was_just_opened() -> None:
    for turns in range(8):
        pool, servers = make(max_connections=1)
        task = in_turn(pool, 1)[0]
        for _ in range(turns):
            await asyncio.sleep(0)
        await pool.close_all()
        with contextlib.suppress(InvalidState):
            assert not (await task).is_connected
        assert sum(servers.count.values()) == 0
        assert pool.stats().total == 0


@in_fake_time
async def test_a_cancelled_close_all_goes_on() -> None:
    pool, servers = make()
    (await pool.get(URL)).release()
    servers.closing_takes = 1
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(pool.close_all(), 0.5)
    await asyncio.sleep(0.6)
    assert servers.clients[0].close_calls == [(1000, "")]
    assert sum(servers.count.values()) == 0


@in_fake_time
async def test_an_error_while_closing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    pool, servers = make(max_connections=1)

    async def fail(code: int, reason: str) -> None:
        servers.clients[0].break_()
        raise LookupError("a bug")

    async with pool:
        client = await pool.get(URL)
        servers.clients[0].close = fail  # type: ignore[method-assign]
        put_unread(servers.clients[0])
        client.release()
        (await pool.get(URL)).release()
        assert "closing a connection to ws://server/ failed: a bug" in caplog.text


def test_a_pool_that_is_not_used_needs_no_loop() -> None:
    pool = ConnectionPool.with_defaults()
    assert pool.config == PoolConfig()
    assert pool.stats().total == pool.stats().servers == 0
    assert pool.server_stats(URL) is None
    asyncio.run(pool.close_all())


# Everything together.


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
