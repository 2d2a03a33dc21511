"""fabric.pool and fabric._pool.host: lending and giving back, and the end of a pool."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

import pytest

from fabric.config import ClientConfig, PoolConfig
from fabric.error import InvalidState
from fabric.pool import CleanupStats, ConnectionPool, PoolStats
from support.fake_time import in_fake_time, settle
from support.pools import HOUR, URL, Client, in_turn, make, now, put_unread

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
