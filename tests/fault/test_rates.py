"""Rate limits as a peer feels them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import pytest

from fabric.client import WebSocketClient
from fabric.config import BackpressureConfig, RateLimitConfig
from fabric.error import ConnectionClosed
from fault.counted import number_of, numbered
from support.frames import BINARY, CONTINUATION, PING, PONG, TEXT, encode
from support.raw_peer import RawPeer
from support.serving import Recorder, serve, until

OPTIONS: dict[str, Any] = {"compression": None}
RARELY = 0.001  # per second: what the burst does not cover does not come in this test


@pytest.mark.parametrize(
    "limit",
    [
        RateLimitConfig(messages_per_second=200, messages_burst=10),
        RateLimitConfig(bytes_per_second=20_000, bytes_burst=1000),
    ],
    ids=["messages", "bytes"],
)
async def test_slow_delays_and_loses_nothing(stack: contextlib.AsyncExitStack, limit: RateLimitConfig) -> None:
    recorder = Recorder()
    server = await serve(stack, recorder, rate_limit=limit)
    async with WebSocketClient.connect(f"ws://127.0.0.1:{server.port}/", **OPTIONS) as client:
        began = time.monotonic()
        for number in range(70):
            await client.send(numbered(number, 100))
        await until(lambda: len(recorder.messages) == 70)
        assert time.monotonic() - began > 0.25  # 60 of 70 wait, 5 ms each
        assert list(map(number_of, recorder.messages)) == list(range(70))
        assert server.metrics.rate_limit_drops == 0


async def test_slow_stops_reading_so_that_the_sender_feels_it(stack: contextlib.AsyncExitStack) -> None:
    recorder = Recorder()
    limit = RateLimitConfig(messages_per_second=RARELY, messages_burst=5)
    server = await serve(stack, recorder, rate_limit=limit)
    few = BackpressureConfig(max_buffer_size=10)
    client = await WebSocketClient.connect(
        f"ws://127.0.0.1:{server.port}/", backpressure=few, close_timeout=0.1, **OPTIONS
    )
    sent = 0

    async def send() -> None:
        nonlocal sent
        with contextlib.suppress(ConnectionClosed):
            while True:
                await client.send(numbered(sent, 100_000))
                sent += 1

    sending = asyncio.create_task(send())
    await until(lambda: client.backpressure.waiting and len(recorder.messages) == 5)
    assert (await recorder.connected()).is_reading_paused
    print(f"{sent} of 100 KB accepted")
    assert sent < 300  # the rest fills the buffers of both systems
    await client.close()
    await sending
    assert list(map(number_of, recorder.messages[:5])) == list(range(5))


async def test_drop_takes_the_burst_and_counts_the_rest(stack: contextlib.AsyncExitStack) -> None:
    recorder = Recorder()
    limit = RateLimitConfig(messages_per_second=RARELY, messages_burst=10, on_exceed="drop")
    server = await serve(stack, recorder, rate_limit=limit)
    async with WebSocketClient.connect(f"ws://127.0.0.1:{server.port}/", **OPTIONS) as client:
        for number in range(60):
            await client.send(numbered(number))
        await client.ping()  # answered behind them all
        await until(lambda: len(recorder.messages) == 10)
        assert list(map(number_of, recorder.messages)) == list(range(10))
        assert server.metrics.rate_limit_drops == 50
        assert client.is_connected


async def test_close_takes_the_burst_and_ends_with_1008(stack: contextlib.AsyncExitStack) -> None:
    recorder = Recorder()
    limit = RateLimitConfig(messages_per_second=RARELY, messages_burst=10, on_exceed="close")
    server = await serve(stack, recorder, rate_limit=limit)
    client = await WebSocketClient.connect(f"ws://127.0.0.1:{server.port}/", **OPTIONS)
    for number in range(60):
        await client.send(numbered(number))
    with pytest.raises(ConnectionClosed) as info:
        await client.recv()
    assert info.value.code == 1008  # final: it does not come back
    await recorder.ended()
    assert list(map(number_of, recorder.messages)) == list(range(10))
    await client.close()


async def test_the_global_limit_is_shared(stack: contextlib.AsyncExitStack) -> None:
    received: list[int] = []

    async def handle(client: Any) -> None:
        async for message in client:
            received.append(number_of(message))

    limit = RateLimitConfig(messages_per_second=RARELY, messages_burst=10, on_exceed="drop")
    server = await serve(stack, handle, global_rate_limit=limit)
    url = f"ws://127.0.0.1:{server.port}/"
    async with WebSocketClient.connect(url, **OPTIONS) as one, WebSocketClient.connect(url, **OPTIONS) as two:
        for number in range(20):
            for client in (one, two):
                await client.send(numbered(number))
                await client.ping()
        await until(lambda: len(received) == 10)
        assert received == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert server.metrics.rate_limit_drops == 30


async def test_each_limit_has_its_own_consequence(stack: contextlib.AsyncExitStack) -> None:
    """The connection's own limit only slows; the common one, which is lower, closes."""
    recorder = Recorder()
    own = RateLimitConfig(messages_per_second=1000, messages_burst=1000)
    common = RateLimitConfig(messages_per_second=RARELY, messages_burst=3, on_exceed="close")
    server = await serve(stack, recorder, rate_limit=own, global_rate_limit=common)
    async with await RawPeer.open(server.port) as peer:
        for number in range(4):
            peer.send_text(numbered(number))
        assert await peer.close_seen() == (1008, "rate limit exceeded")
    assert list(map(number_of, recorder.messages)) == list(range(3))


@pytest.mark.parametrize(("on_exceed", "code"), [("drop", 1000), ("slow", 1008), ("close", 1008)])
async def test_a_message_larger_than_the_burst(stack: contextlib.AsyncExitStack, on_exceed: Any, code: int) -> None:
    """No wait would let it in."""
    recorder = Recorder()
    limit = RateLimitConfig(bytes_per_second=1000, bytes_burst=1000, on_exceed=on_exceed)
    server = await serve(stack, recorder, rate_limit=limit)
    async with await RawPeer.open(server.port) as peer:
        peer.send_binary(bytes(1001))
        peer.send_close()
        assert (await peer.close_seen())[0] == code
    assert recorder.messages == []
    assert server.metrics.rate_limit_drops == (on_exceed == "drop")


OPERATIONS = RateLimitConfig(operations_per_second=RARELY, operations_burst=3)


async def test_messages_and_pings_are_operations(stack: contextlib.AsyncExitStack) -> None:
    recorder = Recorder()
    server = await serve(stack, recorder, rate_limit=OPERATIONS.with_on_exceed("drop"))
    async with await RawPeer.open(server.port) as peer:
        for number in range(3):
            peer.send_frame(PING, b"%d" % number)
            peer.send_text(numbered(number))
        peer.send_close()
        answers = [wire.payload for wire in await peer.rest() if wire.opcode == PONG]
    assert answers == [b"0", b"1"]
    assert list(map(number_of, recorder.messages)) == [0]


async def test_pings_over_the_limit_close_or_stop_the_reading(stack: contextlib.AsyncExitStack) -> None:
    recorder = Recorder()
    server = await serve(stack, recorder, rate_limit=OPERATIONS.with_on_exceed("close"))
    async with await RawPeer.open(server.port) as peer:
        peer.send(*(encode(PING, b"%d" % number) for number in range(4)))
        assert await peer.close_seen() == (1008, "rate limit exceeded")
    recorder = Recorder()
    quick = RateLimitConfig(operations_per_second=20, operations_burst=3)
    server = await serve(stack, recorder, rate_limit=quick)
    async with await RawPeer.open(server.port) as peer:
        client = await recorder.connected()
        began = time.monotonic()
        for number in range(14):
            peer.send_frame(PING, b"%d" % number)
            assert (await peer.frame()).payload == b"%d" % number
        assert time.monotonic() - began > 0.4  # 11 of 14 wait, 50 ms each; the last one's is still to come
        assert client.is_reading_paused


@pytest.mark.parametrize(("on_exceed", "code"), [("drop", 1000), ("close", 1008)])
async def test_streams_are_limited_too(stack: contextlib.AsyncExitStack, on_exceed: Any, code: int) -> None:
    streams: list[list[Any]] = []

    async def handle(client: Any) -> None:
        while client.is_connected:
            streams.append([])
            async for part in client.recv_stream():
                streams[-1].append(part)

    limit = RateLimitConfig(messages_per_second=RARELY, messages_burst=2, on_exceed=on_exceed)
    server = await serve(stack, handle, rate_limit=limit, close_timeout=1)
    async with await RawPeer.open(server.port) as peer:
        for number in range(4):
            peer.send_frame(TEXT, f"{number}a", fin=False)
            peer.send_frame(CONTINUATION, f"{number}b")
        peer.send_close()
        assert (await peer.close_seen())[0] == code
        await until(lambda: not server.connection_count)
    assert ["".join(stream) for stream in streams if stream] == ["0a0b", "1a1b"]
    assert server.metrics.rate_limit_drops == (2 if on_exceed == "drop" else 0)


async def test_a_stream_that_is_dropped_may_cut_characters(stack: contextlib.AsyncExitStack) -> None:
    streams: list[list[Any]] = []

    async def handle(client: Any) -> None:
        while client.is_connected:
            streams.append([])
            async for part in client.recv_stream():
                streams[-1].append(part)

    limit = RateLimitConfig(messages_per_second=RARELY, messages_burst=1, on_exceed="drop")
    server = await serve(stack, handle, rate_limit=limit)
    async with await RawPeer.open(server.port) as peer:
        await until(lambda: streams)
        peer.send_text("first")
        await until(lambda: len(streams) == 2)
        for part, fin in ((b"\xc3", False), (b"\xa9", True)):
            peer.send_frame(CONTINUATION if fin else TEXT, part, fin=fin)
        peer.send_close()
        assert (await peer.close_seen())[0] == 1000
    assert server.metrics.rate_limit_drops == 1


async def test_the_parts_of_a_stream_are_paid_for_before_more_is_read(stack: contextlib.AsyncExitStack) -> None:
    arrived: list[int] = []

    async def handle(client: Any) -> None:
        async for part in client.recv_stream():
            arrived.append(len(part))

    limit = RateLimitConfig(bytes_per_second=20_000, bytes_burst=1000)
    server = await serve(stack, handle, rate_limit=limit)
    async with await RawPeer.open(server.port) as peer:
        began = time.monotonic()
        for number in range(7):
            peer.send_frame(CONTINUATION if number else BINARY, bytes(1000), fin=number == 6)
            await until(lambda number=number: len(arrived) == number + 1)
        assert time.monotonic() - began > 0.2  # 5 wait, 50 ms each
