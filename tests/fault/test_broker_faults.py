"""Adapters of brokers that hang, raise, or do not let themselves be cancelled: the server goes on, and ends in time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from typing import Any

import pytest

from fabric.broker import Broker, Node
from fabric.error import ConnectionClosed
from fabric.server import WebSocketServer
from support.raw_peer import RawPeer
from support.serving import Held, serve, until

Stack = contextlib.AsyncExitStack


class Faulty(Broker):
    """Raises in one method, or hangs in it until it is let go."""

    def __init__(self, method: str, fault: type[BaseException] | str) -> None:
        self.method = method
        self.fault = fault
        self.let_go = asyncio.Event()
        self.node: Node | None = None
        self.hung = False

    def _hit(self, method: str) -> None:
        if method == self.method and not isinstance(self.fault, str):
            raise self.fault("of the adapter")

    async def _hang(self, method: str) -> None:
        self._hit(method)
        while method == self.method and not self.let_go.is_set():
            self.hung = True
            try:
                await self.let_go.wait()
            except asyncio.CancelledError:
                if self.fault == "hangs":
                    raise

    async def start(self, node: Node) -> None:
        self.node = node
        await self._hang("start")

    async def close(self) -> None:
        await self._hang("close")

    def subscribe(self, patterns: Iterable[str]) -> None:
        if any(not pattern.startswith("$") for pattern in patterns):  # `$…` is what servers tell each other
            self._hit("subscribe")

    def unsubscribe(self, patterns: Iterable[str]) -> None:
        self._hit("unsubscribe")

    def publish(self, topic: str, envelope: bytes) -> None:
        self._hit("publish")

    async def flush(self) -> None:
        await self._hang("flush")

    @property
    def is_healthy(self) -> bool:
        return True


def texts(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("fault", ["hangs", "is not to be cancelled", ValueError, OSError])
async def test_shutdown_waits_for_no_broker(
    stack: Stack, caplog: pytest.LogCaptureFixture, fault: type[BaseException] | str
) -> None:
    broker = Faulty("close", fault)
    stack.callback(broker.let_go.set)
    server = await serve(stack, Held(), broker=broker)
    listening = asyncio.ensure_future(anext(aiter(server.topic("x"))))
    async with asyncio.timeout(20):
        await asyncio.gather(server.shutdown(timeout=0.01), server.serve_forever())
    assert not server.is_running
    with pytest.raises(StopAsyncIteration):
        await listening
    assert broker.hung == isinstance(fault, str)
    what = "was left: it did not close within" if broker.hung else "raised"
    assert [what in text for text in texts(caplog)] == [True]


@pytest.mark.parametrize("fault", ["hangs", "is not to be cancelled"])
async def test_a_start_that_fails_waits_for_no_broker(stack: Stack, fault: str) -> None:
    broker = Faulty("close", fault)
    stack.callback(broker.let_go.set)
    taken = await serve(stack)
    server = WebSocketServer.bind(f"127.0.0.1:{taken.port}", broker=broker)
    async with asyncio.timeout(20):
        with pytest.raises(OSError, match="cannot listen on"):
            await server.start()


async def test_a_shutdown_that_is_cancelled_in_its_last_part_lets_nobody_wait(stack: Stack) -> None:
    broker = Faulty("close", "is not to be cancelled")
    stack.callback(broker.let_go.set)
    server = await serve(stack, Held(), broker=broker)
    shutting = asyncio.create_task(server.shutdown(timeout=1000))
    waiting = asyncio.create_task(server.shutdown())
    forever = asyncio.create_task(server.serve_forever())
    await until(lambda: broker.hung)
    shutting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await shutting
    async with asyncio.timeout(20):
        await waiting
        await forever


@pytest.mark.parametrize("method", ["subscribe", "unsubscribe", "publish", "flush"])
async def test_what_an_adapter_raises_ends_nothing_else(stack: Stack, method: str) -> None:
    broker = Faulty(method, KeyError)
    held = Held()
    server = await serve(stack, held, broker=broker)
    async with await RawPeer.open(server.port) as peer:
        client = await held.next()
        expected = pytest.raises(KeyError) if method != "unsubscribe" else contextlib.nullcontext()
        with expected:
            await client.subscribe("a")
            await server.publish("a", "x")
        peer.send_close(1000)
        await peer.close_seen()
        held.release()
        await client.wait_closed()
    assert server.connection_count == 0
    assert server.topics.count("a") == 0
    assert len(server.topics) == 0
    with pytest.raises(ConnectionClosed):
        client.subscribe("b")


@pytest.mark.parametrize("kind", [ValueError, asyncio.CancelledError, GeneratorExit])
async def test_on_gap_may_raise_whatever_there_is(
    stack: Stack, caplog: pytest.LogCaptureFixture, kind: type[BaseException]
) -> None:
    broker = Faulty("none", "")
    told: list[str] = []

    def on_gap(topic: str, since: float) -> None:
        told.append(topic)
        raise kind("of the application")

    server = await serve(stack, Held(), broker=broker, on_gap=on_gap)
    listeners: list[Any] = [server.topic(name) for name in ("a", "b")]
    assert broker.node is not None
    broker.node.gap(0)
    assert sorted(told) == ["a", "b"]
    assert len(texts(caplog)) == 2
    for listener in listeners:
        listener.close()
