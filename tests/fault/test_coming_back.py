"""Ten thousand clients whose server is killed come back to another one at once: histories lose and double nothing."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fabric.broker.embedded import find_nats_server
from support.brokers import NatsServer, RealBroker, RedisServer
from support.frames import decode
from support.raw_peer import request
from support.serving import serve

Stack = contextlib.AsyncExitStack

TOPICS = 100
ROUNDS = 10  # messages of each topic: before the server is killed, meanwhile, and afterwards
DIALLED = 500  # that connect at a time, at first
SPARE = 200  # descriptors for all else

SERVER = """
import asyncio, resource, sys
from fabric import WebSocketServer
from fabric.history import Position

async def handler(client):
    since = client.request.query.get("since")
    await client.subscribe(client.request.path.strip("/"), since=Position.parse(since) if since else None)
    await client.send("ready")
    await client.wait_closed()

async def main():
    server = WebSocketServer.bind("127.0.0.1:0", handler, broker=sys.argv[1], max_connections=20_000, backlog=4096,
                                  handshake_timeout=60)
    server.topics.configure("room.>", history=1000)
    server.topics.wrap = lambda topic, message, position: f"{position} {message.text}"
    async with server:
        print(server.port, flush=True)
        await server.serve_forever()

hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
asyncio.run(main())
"""


class Client(asyncio.Protocol):
    """A client that keeps the numbers that came, and comes back with the position of the last one."""

    def __init__(self, topic: str, on_progress: Callable[[], None]) -> None:
        self.numbers: list[int] = []
        self.recovered = 0  # messages that came before "ready" when it had come back
        self.is_ready = False
        self._topic = topic
        self._position = ""
        self._on_progress = on_progress
        self._data = bytearray()
        self._is_open = False
        self._transport: Any = None
        self._lost: asyncio.Future[None] | None = None

    async def connect(self, port: int) -> None:
        self.is_ready = self._is_open = False
        self._data.clear()
        while True:
            with contextlib.suppress(OSError):  # so many at once: the system may refuse some
                await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", port)
                return
            await asyncio.sleep(0.1)

    async def close(self) -> None:
        if self._lost is not None:
            self._transport.abort()
            await self._lost

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._lost = asyncio.get_running_loop().create_future()
        query = f"?since={self._position}" if self._position else ""
        self._transport.write(request(line=f"GET /{self._topic}{query} HTTP/1.1"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_ready = False
        assert self._lost is not None
        self._lost.set_result(None)
        self._on_progress()

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._is_open:
            head, end, rest = bytes(self._data).partition(b"\r\n\r\n")
            if not end:
                return
            assert head.startswith(b"HTTP/1.1 101"), head
            self._is_open, self._data = True, bytearray(rest)
        while (found := decode(self._data)) is not None:
            wire, size = found
            del self._data[:size]
            text = wire.payload.decode()
            if text == "ready":
                self.is_ready = True
            else:
                self._position, _, number = text.partition(" ")
                self.numbers.append(int(number))
                self.recovered += not self.is_ready
            self._on_progress()


class Crowd:
    """All clients, and waiting for them."""

    def __init__(self, count: int) -> None:
        self._changed = asyncio.Event()
        self.clients = [Client(f"room.{number % TOPICS}", self._changed.set) for number in range(count)]

    async def until(self, condition: Callable[[Client], object]) -> None:
        waiting = self.clients
        while waiting := [client for client in waiting if not condition(client)]:
            self._changed.clear()
            await self._changed.wait()
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        for client in self.clients:
            await client.close()


@pytest.fixture
def descriptors() -> Iterator[int]:
    """As many as the system allows."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture(params=["nats", "redis"])
def broker(request: pytest.FixtureRequest, tmp_path: Path, require: Callable[[object, str], None]) -> RealBroker:
    if request.param == "nats":
        require(find_nats_server(), 'nats-server is not in PATH: pip install "websocket-fabric[nats-server]" brings it')
        return NatsServer(tmp_path, *NatsServer.KEPT)
    require(RedisServer.program(), "redis-server is not in PATH: .ci/setup installs it")
    return RedisServer(tmp_path, *RedisServer.KEPT)


@pytest.mark.soak
@pytest.mark.deadline(600)
@pytest.mark.parametrize("loop_factory", ["uvloop"], indirect=True)
async def test_ten_thousand_clients_come_back(stack: Stack, broker: RealBroker, descriptors: int) -> None:
    await stack.enter_async_context(broker)
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", SERVER, broker.url, stdout=asyncio.subprocess.PIPE)
        for _ in range(2)
    ]
    for process in processes:
        stack.push_async_callback(process.wait)
        stack.callback(_kill, process)
    ports = [int(await process.stdout.readline()) for process in processes if process.stdout is not None]
    publisher = await serve(stack, broker=broker.url)
    publisher.topics.configure("room.>", history=1000)
    crowd = Crowd(min(10_000, descriptors - SPARE))
    stack.push_async_callback(crowd.close)
    published = 0

    async def publish() -> None:
        nonlocal published
        for _ in range(ROUNDS):
            for topic in range(TOPICS):
                await publisher.publish(f"room.{topic}", str(published))
            published += 1

    for start in range(0, len(crowd.clients), DIALLED):
        await asyncio.gather(*(client.connect(ports[0]) for client in crowd.clients[start : start + DIALLED]))
    await crowd.until(lambda client: client.is_ready)
    await publish()
    await crowd.until(lambda client: len(client.numbers) == published)

    more = asyncio.create_task(publish())
    processes[0].kill()
    await crowd.until(lambda client: not client.is_ready)
    begun = time.monotonic()
    returning = asyncio.gather(*(client.connect(ports[1]) for client in crowd.clients))
    await more
    await publish()
    await returning
    await crowd.until(lambda client: client.is_ready)
    took = time.monotonic() - begun
    await crowd.until(lambda client: len(client.numbers) >= published)
    recovered = sum(client.recovered for client in crowd.clients)
    print(f"{len(crowd.clients):,} clients were back after {took:.1f} s, and {recovered:,} messages were recovered")
    expected = list(range(published))
    assert [client.numbers for client in crowd.clients if client.numbers != expected] == []
    assert recovered > 0


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
