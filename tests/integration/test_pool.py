"""A pool of real clients: what servers and networks do to connections that nobody looks at."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fabric.client import WebSocketClient
from fabric.config import ClientConfig, HeartbeatConfig, PoolConfig
from fabric.error import ConnectionClosed, ConnectionFailed, InvalidState
from fabric.message import Frame
from fabric.pool import ConnectionPool
from fabric.server import ConnectedClient, WebSocketServer
from fabric_ext.protocol import State
from integration.raw import RawServer, Visit
from support.serving import Held, echo, serve, turns, until


def make(stack: contextlib.AsyncExitStack, **options: Any) -> ConnectionPool:
    """A pool that does nothing by itself unless asked to, closed when `stack` unwinds."""
    pool = ConnectionPool(PoolConfig(**{"min_connections": 0, "enable_health_check": False, **options}))
    stack.push_async_callback(pool.close_all)
    return pool


def url(server: WebSocketServer) -> str:
    return f"ws://127.0.0.1:{server.port}/"


async def ask(pool: ConnectionPool, address: str, text: str) -> WebSocketClient:
    """One question and its answer, on a borrowed connection."""
    async with pool.get(address) as client:
        await client.send(text)
        message = await client.recv()
        assert message.as_text() == text
        return client.inner


async def test_many_share_a_few(stack: contextlib.AsyncExitStack) -> None:
    server = await serve(stack, echo)
    pool = make(stack, max_connections=4)
    await asyncio.gather(*(ask(pool, url(server), f"question {number}") for number in range(200)))
    assert server.metrics.total_connections == 4
    assert server.connection_count == 4
    stats = pool.stats()
    assert (stats.idle, stats.opened, stats.reused, stats.discarded) == (4, 4, 196, 0)
    assert pool.metrics.messages_received == 200
    await pool.close_all()
    await until(lambda: not server.connection_count)


async def test_a_borrower_has_all_that_a_client_has(stack: contextlib.AsyncExitStack) -> None:
    server = await serve(stack, echo)
    pool = make(stack)
    async with pool.get(url(server)) as client:
        await client.send_text("one")
        await client.send_binary(b"two")
        await client.send_json({"three": 3})
        client.send_nowait("four")
        await client.send(iter(["fi", "ve"]))
        received = []
        async for message in client:
            received.append(message.payload)
            if len(received) == 5:
                break
        assert received == [b"one", b"two", b'{"three":3}', b"four", b"five"]
        assert await client.ping() > 0
        assert client.inner.url == url(server)
    assert pool.stats().idle == 1


async def test_the_servers_limit_is_never_passed(stack: contextlib.AsyncExitStack, rng: random.Random) -> None:
    server = await serve(stack, echo, max_connections=3)  # answers the fourth with 503
    pool = make(stack, max_connections=3, acquire_timeout=20)
    configs = [ClientConfig(url(server)), ClientConfig(url(server)).with_header("X-User", "a")]

    async def use() -> None:
        how = rng.choice(("clean", "unread", "close", "abort", "interrupt"))
        with contextlib.suppress(ZeroDivisionError):
            async with pool.get(rng.choice(configs)) as client:
                await client.send("x")
                if how == "unread":
                    await client.ping()  # the answer has come before the pong
                    return
                await client.recv()
                if how == "close":
                    await client.close()
                elif how == "abort":
                    client.inner._abort()
                elif how == "interrupt":
                    raise ZeroDivisionError

    await asyncio.gather(*(use() for _ in range(150)))
    # A connection may still be opened for one who was then lent another that came back.
    await until(lambda: not (pool.stats().closing or pool.stats().opening))
    assert pool.stats().total == pool.stats().idle <= 3
    assert pool.stats().discarded > 0


async def test_connections_of_a_killed_server_are_not_lent(stack: contextlib.AsyncExitStack) -> None:
    held = Held()
    server = await serve(stack, held)
    pool = make(stack, max_connections=3)
    loans = [await pool.get(url(server)) for _ in range(3)]
    for _ in loans:
        (await held.next())._abort()
    await until(lambda: not any(loan.is_connected for loan in loans))
    for loan in loans:
        loan.release()
    assert pool.stats().discarded == 3
    loans = [await pool.get(url(server)) for _ in range(3)]
    for loan in loans:
        loan.release()
    assert pool.stats().idle == 3
    for _ in loans:
        (await held.next())._abort()
    await until(lambda: not any(member.client.is_connected for member in only(pool).members()))
    loan = await pool.get(url(server))
    assert loan.is_connected
    assert loan.state is State.OPEN
    loan.release()
    assert pool.stats().discarded == 6


def only(pool: ConnectionPool) -> Any:
    """The one server that the pool knows."""
    (server,) = pool._servers.values()
    return server


async def test_a_server_that_restarts_on_its_port(stack: contextlib.AsyncExitStack) -> None:
    first = await serve(stack, echo)
    address = url(first)
    pool = make(stack)
    one = await ask(pool, address, "before")
    await first.shutdown()
    with pytest.raises(ConnectionFailed):
        await pool.get(address)
    second = WebSocketServer.bind(f"127.0.0.1:{address.split(':')[2].rstrip('/')}", echo, compression=None)
    await second.start()
    stack.push_async_callback(second.shutdown)
    assert await ask(pool, address, "after") is not one


async def reset(visit: Visit) -> None:
    """Hang up in the rudest way."""
    sock = visit.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    visit.writer.transport.abort()


async def test_reset_while_idle(stack: contextlib.AsyncExitStack) -> None:
    visits: asyncio.Queue[Visit] = asyncio.Queue()

    async def handle(visit: Visit) -> None:
        await visit.accept()
        visits.put_nowait(visit)
        await visit.until_closed()

    server = await stack.enter_async_context(RawServer(handle))
    pool = make(stack, max_connections=1)
    async with pool.get(server.url) as loan:
        first = loan.inner
    await reset(await visits.get())
    await until(lambda: not first.is_connected)
    assert (await pool.cleanup()).broken == 1
    async with pool.get(server.url) as loan:
        assert loan.inner is not first
        assert loan.is_connected
    await reset(await visits.get())  # nobody has noticed when it is asked for
    async with pool.get(server.url) as loan:
        assert loan.is_connected


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([Frame(opcode=1, payload=b"unsolicited")], id="message"),
        pytest.param([Frame(opcode=1, fin=False, payload=b"half a mess")], id="half a message"),
        pytest.param([Frame(opcode=8, payload=b"\x03\xe8")], id="close"),
        pytest.param([Frame(opcode=0, payload=b"out of order")], id="fault"),
    ],
)
@pytest.mark.parametrize("when", ["lent", "idle"])
async def test_what_a_former_borrower_left_is_for_nobody(
    stack: contextlib.AsyncExitStack, frames: list[Frame], when: str
) -> None:
    go, sent = asyncio.Event(), asyncio.Event()

    async def handle(visit: Visit) -> None:
        await visit.accept()
        if server.visits == 1:
            await go.wait()
            for frame in [*frames, Frame(opcode=9, payload=b"read so far?")]:
                visit.writer.write(frame.encode())
            while (await visit.frame()).opcode not in (8, 10):
                pass
            sent.set()
        with contextlib.suppress(asyncio.IncompleteReadError):
            while (frame := await visit.frame()).opcode != 8:
                pass
            visit.writer.write(Frame(opcode=8, payload=frame.payload).encode())

    server = await stack.enter_async_context(RawServer(handle))
    pool = make(stack, max_connections=1)
    loan = await pool.get(ClientConfig(server.url, close_timeout=0.2))
    first = loan.inner
    if when == "idle":
        loan.release()
        assert pool.stats().idle == 1
    go.set()
    await sent.wait()
    loan.release()
    async with pool.get(ClientConfig(server.url, close_timeout=0.2)) as other:
        assert other.inner is not first
        assert other.inner.queued == 0
    assert pool.stats().discarded == 1


async def test_a_connection_that_another_task_reads_is_not_lent(stack: contextlib.AsyncExitStack) -> None:
    server = await serve(stack, echo)
    pool = make(stack)
    loan = await pool.get(url(server))
    first = loan.inner
    reader = asyncio.ensure_future(loan.recv())
    await asyncio.sleep(0)
    loan.release()
    assert await ask(pool, url(server), "mine") is not first
    assert await reader is None


async def test_nothing_that_a_borrower_began_goes_on_after_the_loan(stack: contextlib.AsyncExitStack) -> None:
    server = await serve(stack, echo)
    pool = make(stack, max_connections=1)
    loan = await pool.get(url(server))
    messages = aiter(loan)
    begun = [anext(messages), loan.recv(), anext(loan.recv_stream()), loan.ping(), loan.send(["in", "parts"])]
    tasks = [asyncio.ensure_future(each) for each in begun]  # which have not had their turn
    loan.release()
    assert pool.stats().idle == 1
    assert await ask(pool, url(server), "mine") is not None
    for each in (*tasks, anext(messages)):
        with pytest.raises(InvalidState, match="given back"):
            await each
    assert server.metrics.messages_received == 1
    assert pool.stats().discarded == 0


async def test_a_loop_over_messages_that_gives_the_connection_back_is_over(stack: contextlib.AsyncExitStack) -> None:
    server = await serve(stack, echo)
    pool = make(stack, max_connections=1)
    for end in ("release", "close"):
        loan = await pool.get(url(server))
        await loan.send("x")
        with pytest.raises(InvalidState, match="given back"):
            async for _ in loan:
                await getattr(loan, end)()
    assert pool.stats().opened == 1


async def test_a_loop_over_messages_keeps_the_loan(stack: contextlib.AsyncExitStack) -> None:
    server = await serve(stack, echo)
    pool = make(stack, max_connections=1)
    loan = await pool.get(url(server))
    await loan.send("x")
    messages = aiter(loan)
    del loan
    gc.collect()
    assert (await anext(messages)).as_text() == "x"
    assert pool.stats().in_use == 1
    messages.release()  # type: ignore[attr-defined]


async def test_a_connection_that_another_task_is_about_to_send_on_is_not_lent(
    stack: contextlib.AsyncExitStack,
) -> None:
    server = await serve(stack, echo)
    pool = make(stack)
    loan = await pool.get(url(server))
    go = asyncio.Event()

    async def parts() -> AsyncIterator[str]:
        await go.wait()
        yield "first"

    async def send_and_release() -> None:
        await loan.send(parts())
        loan.release()  # the second one has its turn, and does not know it yet

    first = asyncio.create_task(send_and_release())
    await turns()
    second = asyncio.create_task(loan.send(iter(["second"])))
    await turns()
    go.set()
    await first
    assert pool.stats().discarded == 1
    await asyncio.gather(second, return_exceptions=True)


@pytest.mark.parametrize("asleep", [True, False], ids=["waiting", "between two parts"])
async def test_a_connection_that_is_read_in_parts_is_not_lent(stack: contextlib.AsyncExitStack, asleep: bool) -> None:
    held = Held()
    server = await serve(stack, held)
    pool = make(stack)
    loan = await pool.get(url(server))
    peer = await held.next()
    stream = loan.recv_stream()
    go = asyncio.Event()

    async def parts() -> AsyncIterator[str]:
        yield "one"
        yield "two"
        await go.wait()

    sending = asyncio.create_task(peer.send(parts()))
    assert await anext(stream) == "one"
    reading = asyncio.create_task(anext(stream)) if asleep else None
    await turns()
    loan.release()
    assert pool.stats().discarded == 1
    with pytest.raises(ConnectionClosed if asleep else InvalidState):
        await (reading or anext(stream))
    go.set()
    await asyncio.gather(sending, return_exceptions=True)


async def test_who_has_read_all_parts_takes_nothing_from_the_next(stack: contextlib.AsyncExitStack) -> None:
    server = await serve(stack, echo)
    pool = make(stack, max_connections=1)
    loan = await pool.get(url(server))
    stream = loan.inner.recv_stream()
    reading = asyncio.create_task(anext(stream))
    await turns()
    await loan.send("x")
    assert await reading == "x"
    loan.release()  # only the end of the stream is left to be told
    async with pool.get(url(server)) as other:
        receiving = asyncio.create_task(other.recv())
        await turns()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        await other.send("y")
        assert (await receiving).as_text() == "y"
    assert pool.stats().reused == 1


async def test_a_connection_with_something_to_send_is_not_lent(stack: contextlib.AsyncExitStack) -> None:
    held = Held()
    server = await serve(stack, held, buffer_size=1)
    pool = make(stack)
    loan = await pool.get(ClientConfig(url(server), close_timeout=0.1, compression=None))
    while not loan.inner._is_blocked:  # until the server's receive buffer and ours are full
        loan.send_nowait(bytes(1 << 20))
    sending = asyncio.ensure_future(loan.send(b"waits"))
    await asyncio.sleep(0)
    loan.release()
    assert pool.stats().discarded == 1
    await asyncio.gather(sending, return_exceptions=True)


async def test_a_server_that_hangs_up_at_once(stack: contextlib.AsyncExitStack) -> None:
    async def leave(client: ConnectedClient) -> None:
        pass

    server = await serve(stack, leave)
    pool = make(stack, max_connections=2, min_connections=2)
    for _ in range(20):
        with contextlib.suppress(ConnectionFailed):
            loan = await pool.get(url(server))
            assert [message async for message in loan] == []
            assert await loan.recv() is None
            loan.release()
    for _ in range(3):
        await pool.cleanup()
    assert server.metrics.total_connections <= 20 * 3  # each `get`, and what is kept warm once


async def test_a_silent_connection_is_dropped_and_replaced(stack: contextlib.AsyncExitStack) -> None:
    async def handle(visit: Visit) -> None:
        await visit.accept()
        await visit.until_closed()  # answers nothing

    server = await stack.enter_async_context(RawServer(handle))
    pool = make(stack, max_connections=1, min_connections=1)
    heartbeat = HeartbeatConfig(ping_interval=30, ping_timeout=0.05)
    config = ClientConfig(server.url, heartbeat=heartbeat, close_timeout=0.1)
    async with pool.get(config) as loan:
        first = loan.inner
    await pool.check_health()
    await until(lambda: server.visits == 2 and pool.stats().idle)
    assert not first.is_connected
    assert pool.stats().discarded == 1


async def test_a_server_that_answers_nothing_keeps_nobody_from_its_place(stack: contextlib.AsyncExitStack) -> None:
    told = []

    async def handle(visit: Visit) -> None:
        await visit.accept()
        told.append((await visit.frame()).opcode)
        await visit.until_closed()

    server = await stack.enter_async_context(RawServer(handle))
    pool = make(stack, max_connections=1, acquire_timeout=2)
    for _ in range(3):  # for longer than one `acquire_timeout`, were each to take its `close_timeout`
        with pytest.raises(ZeroDivisionError):
            async with pool.get(server.url):
                raise ZeroDivisionError
    await until(lambda: not pool.stats().total)
    assert told == [8, 8, 8]
    assert server.visits == 3


async def test_the_minimum_is_kept_warm(stack: contextlib.AsyncExitStack) -> None:
    server = await serve(stack, echo)
    pool = make(stack, min_connections=3, max_connections=5)
    await ask(pool, url(server), "one")
    await until(lambda: server.connection_count == 3)
    for client in server.clients():
        client._abort()
    await until(lambda: not any(member.client.is_connected for member in only(pool).members()))
    await pool.check_health()
    await until(lambda: pool.stats().idle == 3)
    assert server.connection_count == 3


async def test_a_lost_loan_comes_back(stack: contextlib.AsyncExitStack) -> None:
    server = await serve(stack, echo)
    pool = make(stack, max_connections=1)
    loans = [await pool.get(url(server))]
    first = loans[0].inner
    with pytest.warns(ResourceWarning, match="never released"):
        loans.clear()
    gc.collect()
    assert await ask(pool, url(server), "again") is first


async def test_cancelled_while_connecting(stack: contextlib.AsyncExitStack) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def handle(visit: Visit) -> None:
        asked.set()
        await go.wait()
        await visit.accept()
        await visit.until_closed()

    server = await stack.enter_async_context(RawServer(handle))
    pool = make(stack, max_connections=1)
    task = asyncio.create_task(pool.get(server.url))
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go.set()
    async with pool.get(server.url) as loan:
        assert server.visits == 1
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.get(server.url), 0.01)
        loan.inner._abort()


async def test_close_all_with_loans_waiters_and_attempts(stack: contextlib.AsyncExitStack) -> None:
    async def never(visit: Visit) -> None:
        await visit.request()
        await visit.until_closed()

    server = await serve(stack, echo)
    silent = await stack.enter_async_context(RawServer(never))
    pool = make(stack, max_connections=1)
    loan = await pool.get(url(server))
    waiting = asyncio.create_task(pool.get(url(server)))
    connecting = asyncio.create_task(pool.get(silent.url))
    await until(lambda: silent.visits)
    await pool.close_all()
    for task in (waiting, connecting):
        with pytest.raises(InvalidState):
            await task
    assert not loan.is_connected
    assert await loan.recv() is None
    assert loan.inner.close_code == 1000
    await until(lambda: not server.connection_count)


async def test_different_configs_to_one_server(stack: contextlib.AsyncExitStack) -> None:
    held = Held()
    server = await serve(stack, held)
    pool = make(stack, max_connections=1)
    for user in ("a", "b", "a"):
        async with pool.get(url(server), ClientConfig(url(server)).with_header("X-User", user)):
            assert (await held.next()).request.headers["X-User"] == user
            assert server.connection_count == 1
    assert pool.stats().opened == 3


async def test_a_connection_that_is_ending_is_not_lent(stack: contextlib.AsyncExitStack) -> None:
    """Between the call that ends a transport and the loop's word that it has ended, it looks open."""
    server = await serve(stack, echo)
    pool = make(stack, max_connections=2)
    async with pool.get(url(server)) as client:
        client.inner._abort()
        assert not client.is_connected
    async with pool.get(url(server)) as client:
        await client.send("x")
        answer = await client.recv()
    assert answer is not None
    assert answer.as_text() == "x"
