"""fabric._connection.base on a transport that the test holds in its hand; over sockets it is tested in integration."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fabric import backpressure
from fabric._connection import base
from fabric._connection.base import BaseConnection
from fabric.config import ServerConfig
from fabric.error import ConnectionClosed
from fabric.metrics import MetricsCollector
from fabric_ext.bucket import RateGate, TokenBucket
from support.fake_transport import FakeTransport
from support.frames import CONTINUATION, TEXT, close_frame, decode_all, encode
from support.interruption import interrupted


def connect(gate: RateGate | None = None) -> tuple[BaseConnection, FakeTransport]:
    connection = BaseConnection(
        asyncio.get_running_loop(),
        ServerConfig(),
        masking=False,
        metrics=MetricsCollector(),
        logger=logging.getLogger("fabric.test"),
        on_message=None,
    )
    transport = FakeTransport()
    connection._open_session(transport, None, gate)  # type: ignore[arg-type]
    return connection, transport


# --- is nothing going on? ----------------------------------------------------------------------------------

Undo = Callable[[], Awaitable[Any]]


async def unread(connection: BaseConnection, transport: FakeTransport) -> Undo:
    transport.feed(encode(TEXT, "x"))
    return connection.recv


async def half_received(_: BaseConnection, transport: FakeTransport) -> Undo:
    transport.feed(encode(TEXT, "x", fin=False))

    async def undo() -> None:
        transport.feed(encode(CONTINUATION))
        await _.recv()

    return undo


async def half_a_frame_received(connection: BaseConnection, transport: FakeTransport) -> Undo:
    data = encode(TEXT, "x" * 100)
    transport.feed(data[:20])

    async def undo() -> None:
        transport.feed(data[20:])
        await connection.recv()

    return undo


async def awaited(connection: BaseConnection, transport: FakeTransport) -> Undo:
    task = asyncio.create_task(connection.recv())
    await asyncio.sleep(0)

    async def undo() -> None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    return undo


async def awaited_and_answered(connection: BaseConnection, transport: FakeTransport) -> Undo:
    task = asyncio.create_task(connection.recv())
    await asyncio.sleep(0)

    async def undo() -> None:
        transport.feed(encode(TEXT, "read in time"))
        await task

    return undo


async def not_yet_sent(connection: BaseConnection, transport: FakeTransport) -> Undo:
    transport.protocol.pause_writing()
    await connection.send("x")

    async def undo() -> None:
        transport.protocol.resume_writing()
        await asyncio.sleep(0)

    return undo


async def half_sent(connection: BaseConnection, transport: FakeTransport) -> Undo:
    gate = asyncio.Event()

    async def parts() -> Any:
        yield "a"
        yield "b"
        await gate.wait()

    task = asyncio.create_task(connection.send(parts()))
    await asyncio.sleep(0)

    async def undo() -> None:
        gate.set()
        await task

    return undo


@pytest.mark.parametrize(
    "make", [unread, half_received, half_a_frame_received, awaited, awaited_and_answered, not_yet_sent, half_sent]
)
async def test_what_a_connection_is_in_the_midst_of(make: Any) -> None:
    """A pool asks before it lends a connection again."""
    connection, transport = connect()
    assert connection.is_at_rest
    undo = await make(connection, transport)
    for _ in range(2):  # asking changes nothing
        assert not connection.is_at_rest
    await undo()
    assert connection.is_at_rest
    assert connection.is_connected
    transport.lose()


async def test_what_a_rate_limit_holds_back_is_not_at_rest() -> None:
    connection, transport = connect(RateGate(TokenBucket(0.001, 1)))
    transport.feed(encode(TEXT, "1") + encode(TEXT, "2"))
    await connection.recv()
    assert connection.queued == 0
    assert connection.is_reading_paused
    assert not connection.is_at_rest
    transport.lose()


# --- several at once ----------------------------------------------------------------------------------------


def texts(*said: str) -> bytes:
    return b"".join(encode(TEXT, each) for each in said)


async def test_several_are_received_at_once() -> None:
    connection, transport = connect()
    transport.feed(texts("a", "b", "c", "d"))
    assert await connection.recv_many(3) == ["a", "b", "c"]
    assert await connection.recv_many() == ["d"]
    transport.lose()


async def test_receiving_several_waits_for_the_first_alone() -> None:
    connection, transport = connect()
    receiving = asyncio.ensure_future(connection.recv_many())
    await asyncio.sleep(0)
    assert not receiving.done()
    transport.feed(texts("a"))
    assert await receiving == ["a"]
    transport.lose()


async def test_receiving_several_that_is_cancelled_loses_none() -> None:
    connection, transport = connect()
    receiving = asyncio.ensure_future(connection.recv_many())
    await asyncio.sleep(0)
    receiving.cancel()
    transport.feed(texts("a", "b"))
    await asyncio.wait([receiving])
    assert receiving.cancelled()
    assert await connection.recv_many() == ["a", "b"]
    transport.lose()


async def test_receiving_several_at_the_end_gives_what_came_before_it() -> None:
    connection, transport = connect()
    transport.feed(texts("a", "b") + close_frame(1000))
    assert await connection.recv_many() == ["a", "b"]
    transport.lose()
    assert await connection.recv_many() == []
    connection, transport = connect()
    transport.feed(texts("a"))
    transport.lose()
    assert await connection.recv_many() == ["a"]
    with pytest.raises(ConnectionClosed):
        await connection.recv_many()


async def test_none_cannot_be_received() -> None:
    connection, transport = connect()
    transport.feed(texts("a"))
    for limit in (0, -1):
        with pytest.raises(ValueError, match=f"limit is {limit}, must be at least 1"):
            await connection.recv_many(limit)
    assert await connection.recv_many() == ["a"]
    transport.lose()


# --- what an opening brings --------------------------------------------------------------------------------


async def test_what_came_behind_the_handshake_is_read_after_it_has_opened() -> None:
    order: list[str] = []

    class Noting(BaseConnection):
        def _opened(self) -> None:
            order.append("opened")

    connection = Noting(
        asyncio.get_running_loop(),
        ServerConfig(),
        masking=False,
        metrics=MetricsCollector(),
        logger=logging.getLogger("fabric.test"),
        on_message=lambda _, message: order.append(message.as_text()),
    )
    transport = FakeTransport()
    connection._open_session(transport, None, rest=encode(TEXT, "early"))  # type: ignore[arg-type]
    transport.lose()
    assert order == ["opened", "early"]


# --- a signal handler that sends may come before any bytecode ---------------------------------------------


def step(coroutine: Any) -> None:
    """Run a coroutine that does not wait."""
    with contextlib.suppress(StopIteration):
        coroutine.send(None)


def write_on(transport: FakeTransport) -> None:
    transport.keeps, transport.held = False, 0
    transport.protocol._write_on()


@pytest.mark.parametrize("how", ["send", "send_nowait", "write on"])
@pytest.mark.parametrize("waiting", [0, 3])
async def test_an_interruption_anywhere_loses_nothing(how: str, waiting: int) -> None:
    at = 0
    going_on = True
    while going_on:
        at += 1
        connection, transport = connect()
        transport.keeps = True
        sent = ["fills the transport", *map(str, range(waiting))]
        for text in sent:
            connection.send_nowait(text)

        def interrupt(connection: BaseConnection = connection, sent: list[str] = sent) -> None:
            connection.send_nowait("interruption")
            sent.append("interruption")

        if how == "send":
            going_on = interrupted(functools.partial(step, connection.send("outer")), interrupt, at, base, backpressure)
        elif how == "send_nowait":
            call = functools.partial(connection.send_nowait, "outer")
            going_on = interrupted(call, interrupt, at, base, backpressure)
        else:
            going_on = interrupted(functools.partial(write_on, transport), interrupt, at, base, backpressure)
        if how.startswith("send"):
            sent.append("outer")
        write_on(transport)
        connection.flush()
        texts = [frame.payload.decode() for frame in decode_all(transport.output)]
        assert sorted(texts) == sorted(sent)
        assert [text for text in texts if text.isdecimal()] == [str(number) for number in range(waiting)]
        assert (connection._outbox_size, connection.backpressure.messages, connection.backpressure.bytes) == (0, 0, 0)
        transport.lose()
    assert at > 3 or how == "write on"
