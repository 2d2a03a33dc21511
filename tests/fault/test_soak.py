"""Minutes of churn, faults and compression: what is held does not grow. `make soak`, or FABRIC_SOAK_SECONDS=120.

The same storm blows twice, first as long as everything needs to reach its size; then memory and descriptors
are compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from fabric.client import WebSocketClient
from fabric.config import BackpressureConfig, CompressionConfig, HeartbeatConfig, ReconnectConfig
from fabric.error import BufferFull, ConnectionFailed, Error
from fabric.server import ConnectedClient, WebSocketServer
from fault.relay import Relay

SECONDS = float(os.environ.get("FABRIC_SOAK_SECONDS") or 120) / 2  # for each of two event loops
WORKERS = 40
RELAYS = 4
GROWTH = 8 << 20  # bytes that the process may gain; a leak of one message a second would be more

RECONNECT = ReconnectConfig(initial_delay=0.02, max_delay=0.2)
BEAT = HeartbeatConfig(ping_interval=0.5, ping_timeout=0.5)
LIMITS = BackpressureConfig(max_buffer_size=100)
WORDS = "price volume symbol bid ask open close high low trade order book quote tick spread".split()


class Storm:
    """Clients that come, talk, suffer and go."""

    def __init__(self, server: WebSocketServer, relays: list[Relay], rng: random.Random) -> None:
        self.server = server
        self.relays = relays
        self.rng = rng
        self.counts: Counter[str] = Counter()
        self.trouble: list[str] = []

    async def blow(self, seconds: float) -> None:
        """Then everything is closed again."""
        end = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(self._work(end))
            for relay in self.relays:
                group.create_task(self._mistreat(relay, end))
        for relay in self.relays:
            await relay.reset()
        while self.server.connection_count or any(relay.open for relay in self.relays):
            await asyncio.sleep(0.01)

    async def _work(self, end: float) -> None:
        while time.monotonic() < end:
            relay = self.rng.choice(self.relays)
            try:
                client = await WebSocketClient.connect(
                    relay.url,
                    reconnect=RECONNECT,
                    heartbeat=BEAT,
                    backpressure=LIMITS,
                    compression=self.rng.choice((None, CompressionConfig())),
                    connection_timeout=2,
                    close_timeout=0.5,
                    fragment_size=self.rng.choice((None, 1000)),
                )
            except (Error, OSError) as error:
                self.counts[f"not connected: {type(error).__name__}"] += 1
                continue
            self.counts["clients"] += 1
            try:
                await self._talk(client, self.rng.randrange(1, 300))
            finally:
                if self.rng.random() < 0.2:
                    client._abort()
                await client.close()
                self.counts["reconnections"] += client.metrics.reconnections

    async def _talk(self, client: WebSocketClient, count: int) -> None:
        """Send `count` messages and read what comes back: in order, nothing twice, each as it was."""
        sent: dict[int, str] = {}

        async def read() -> None:
            last = -1
            async for message in client:
                number = int(message.as_text().partition(" ")[0])
                if number <= last or sent.pop(number, None) != message.as_text():
                    self.trouble.append(f"{number} came after {last}, or twice, or changed")
                last = number
                self.counts["echoed"] += 1

        reading = asyncio.create_task(read())
        for number in range(count):
            text = f"{number} " + " ".join(self.rng.choices(WORDS, k=self.rng.choice((1, 10, 100, 1000))))
            sent[number] = text
            try:
                await client.send(text)
                self.counts["sent"] += 1
            except BufferFull:
                self.counts["refused"] += 1
                await asyncio.sleep(0.05)
            except Error as error:
                self.counts[f"ended by {type(error).__name__}"] += 1
                break
            if self.rng.random() < 0.3:
                await asyncio.sleep(self.rng.random() * 0.02)
        await client.close()
        self.counts["undelivered"] += len(client.undelivered)
        with contextlib.suppress(Error):
            await reading

    async def _mistreat(self, relay: Relay, end: float) -> None:
        while time.monotonic() < end:
            way = self.rng.choice((relay.to_server, relay.to_client))
            fault = self.rng.choice(("reset", "end_to_client", "end_to_server", "silent", "swallow", "cut", "delay"))
            self.counts[f"fault {fault}"] += 1
            if fault == "reset":
                await relay.reset()
            elif fault.startswith("end"):
                with contextlib.suppress(OSError):  # one of them is closed already
                    getattr(relay, fault)()
            elif fault == "silent":
                way.go_silent(after=self.rng.randrange(1, 10_000))
                await asyncio.sleep(self.rng.random() * 1.5)
                way.resume()
            elif fault == "swallow":
                way.swallowing = True
                await asyncio.sleep(self.rng.random())
                way.swallowing = False
                await relay.reset()  # what is left of the stream is no stream
            else:
                way.piece = self.rng.choice((1, 7, 100, 1000)) if fault == "cut" else None
                way.delay = self.rng.random() * 0.1 if fault == "delay" else 0.0
                await asyncio.sleep(0.3)
                way.piece, way.delay = None, 0.0
            await asyncio.sleep(self.rng.random() * 0.1)


def held() -> tuple[int, int, int]:
    """Bytes of memory, descriptors and tasks of this process."""
    for _ in range(3):
        gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # what is free is not ours
    process = psutil.Process()
    return process.memory_info().rss, process.num_fds(), len(asyncio.all_tasks())


@contextlib.contextmanager
def errors() -> Iterator[list[str]]:
    """What is logged as an error by fabric."""
    found: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(self.format(record))

    handler = Collect(logging.ERROR)
    logging.getLogger("fabric").addHandler(handler)
    yield found
    logging.getLogger("fabric").removeHandler(handler)


async def echo(client: ConnectedClient) -> None:
    with contextlib.suppress(ConnectionFailed):
        async for message in client:
            await client.send(message)


@pytest.mark.soak
@pytest.mark.deadline(SECONDS + 60)
async def test_soak(stack: contextlib.AsyncExitStack, rng: random.Random) -> None:
    options: dict[str, Any] = {"ping_interval": 0.5, "ping_timeout": 0.5, "close_timeout": 0.5}
    server = WebSocketServer.bind("127.0.0.1:0", echo, **options)
    await stack.enter_async_context(server)
    relays = [await stack.enter_async_context(Relay(server.port)) for _ in range(RELAYS)]
    storm = Storm(server, relays, rng)
    with errors() as logged:
        await storm.blow(max(5, SECONDS / 5))
        before = held()
        await storm.blow(SECONDS * 4 / 5)
        after = held()
    for name in sorted(storm.counts):
        print(f"{storm.counts[name]:10,} {name}")
    for name, old, new in zip(("bytes of memory", "descriptors", "tasks"), before, after, strict=True):
        print(f"{new:13,} {name}, {new - old:+,}")
    assert storm.trouble == []
    assert logged == []
    assert storm.counts["echoed"] > storm.counts["sent"] / 10
    assert server.metrics.active_connections == 0
    assert after[0] - before[0] < GROWTH
    assert after[1:] == before[1:]
