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
    assert (await recorder.connected())._is_reading_paused
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
