"""Connections over a wire that loses, delays, reorders and is cut: two network namespaces."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from fabric.client import WebSocketClient
from fabric.config import HeartbeatConfig, ReconnectConfig
from fabric.error import ConnectionClosed, Timeout
from fabric.server import ConnectedClient, WebSocketServer
from fault.counted import account, number_of, numbered
from fault.namespaces import HOSTS, WIRES, Tun, Wire, can_make_namespaces, entered
from support.serving import until

BEAT = HeartbeatConfig(ping_interval=0.4, ping_timeout=0.4)
# For connections that must live: on a busy machine our wire's thread has stood still for longer than BEAT bears.
STEADY = HeartbeatConfig(ping_interval=0.2, ping_timeout=1.0)
QUICK = ReconnectConfig(initial_delay=0.05, max_delay=0.1)
SLACK = 10.0  # seconds for a busy machine; TCP itself would take minutes
RETRANSMISSION = 10.0  # seconds, generously: TCP doubles its time-out from 0.2 s while packets are lost


@pytest.fixture(params=["veth", "tun"])
def wire(request: pytest.FixtureRequest, require: Callable[[object, str], None]) -> Iterator[Wire]:
    require(can_make_namespaces(), "network namespaces need root on Linux, and iproute2")
    with WIRES[request.param]() as wire:
        yield wire


class Server:
    """Counts what each connection brings and echoes it; lives at HOSTS[1]."""

    def __init__(self) -> None:
        self.arrived: list[list[int]] = []
        self.ended: list[ConnectionClosed | None] = []

    @contextlib.asynccontextmanager
    async def run(self, wire: Wire, **options: Any) -> AsyncIterator[str]:
        """Its URL, for this thread, which is in the other namespace meanwhile."""
        beat = {"ping_interval": STEADY.ping_interval, "ping_timeout": STEADY.ping_timeout}
        options = {"compression": None, "close_timeout": 0.2, **beat, **options}
        server = WebSocketServer.bind(f"{HOSTS[1]}:0", self.handle, **options)
        with entered(wire.namespaces[1]):
            await server.start()
        try:
            with entered(wire.namespaces[0]):
                yield f"ws://{HOSTS[1]}:{server.port}/"
        finally:
            await server.shutdown(timeout=1)

    async def handle(self, client: ConnectedClient) -> None:
        self.arrived.append(mine := [])
        error = None
        try:
            async for message in client:
                mine.append(number_of(message))
                await client.send(message)
        except ConnectionClosed as closed:
            error = closed
        self.ended.append(error)


@pytest.mark.parametrize("fault", ["loss", "delay", "reordering", "all"])
async def test_a_bad_wire_costs_time_and_no_message(wire: Wire, rng: random.Random, fault: str) -> None:
    faults = {"loss": {"loss": 0.03}, "delay": {"delay": 0.02}, "reordering": {"delay": 0.005, "reorder": 0.25}}
    faults["all"] = faults["loss"] | faults["delay"] | faults["reordering"]
    try:
        wire.mistreat(rng, **faults[fault])
    except OSError as error:
        pytest.skip(f"this kernel has no netem; the TUN wire does the same: {error}")
    server = Server()
    async with server.run(wire, ping_timeout=RETRANSMISSION) as url:
        patient = BEAT.with_ping_timeout(RETRANSMISSION)
        async with WebSocketClient.connect(
            url, compression=None, heartbeat=patient, connection_timeout=RETRANSMISSION
        ) as client:

            async def send() -> None:
                for number in range(200):
                    await client.send(numbered(number, 1000))
                    await asyncio.sleep(0)

            sending = asyncio.create_task(send())
            assert [number_of(await client.recv()) for _ in range(200)] == list(range(200))
            await sending
        assert account(range(200), server.arrived) == []
        assert len(server.arrived) == 1
    if isinstance(wire, Tun):
        print(f"{wire.passed} packets passed, {wire.lost} lost, {wire.overtaken} overtook others")


async def test_a_cut_shorter_than_the_heartbeat_costs_no_connection(wire: Wire) -> None:
    server = Server()
    patient = BEAT.with_ping_timeout(RETRANSMISSION)
    async with server.run(wire, ping_timeout=RETRANSMISSION) as url:
        async with WebSocketClient.connect(url, compression=None, heartbeat=patient) as client:
            await client.send(numbered(0))
            assert number_of(await client.recv()) == 0
            wire.cut()
            for number in range(1, 20):
                await client.send(numbered(number, 1000))
            assert client.heartbeat is not None
            sent = client.heartbeat.pings_sent
            await until(lambda: client.heartbeat.pings_sent > sent)  # type: ignore[union-attr]
            wire.mend()
            assert [number_of(await client.recv()) for _ in range(1, 20)] == list(range(1, 20))
        assert account(range(20), server.arrived) == []
        assert len(server.arrived) == 1


async def test_a_cut_longer_than_the_heartbeat_is_found_at_both_ends_and_repaired(wire: Wire) -> None:
    server = Server()
    ended: asyncio.Queue[Exception] = asyncio.Queue()
    accepted: list[int] = []

    async def send(client: WebSocketClient, count: int) -> None:
        for _ in range(count):
            await client.send(numbered(len(accepted), 100))
            accepted.append(len(accepted))

    async with server.run(wire) as url:
        options: dict[str, Any] = {
            "compression": None,
            "heartbeat": STEADY,
            "reconnect": QUICK,
            "connection_timeout": 1.5,
        }
        async with WebSocketClient.connect(
            url, on_disconnect=lambda _, error: ended.put_nowait(error), **options
        ) as client:
            await send(client, 10)
            assert [number_of(await client.recv()) for _ in range(10)] == list(range(10))
            wire.cut()
            began = time.monotonic()
            await send(client, 10)
            error = await ended.get()
            took = time.monotonic() - began
            print(f"found after {took:.3f} s")
            assert took < STEADY.ping_interval + STEADY.ping_timeout + SLACK
            assert isinstance(error, ConnectionClosed)
            assert error.code == 1006
            assert isinstance(error.__cause__, (Timeout, OSError))
            await until(lambda: server.ended)
            assert server.ended[0] is not None
            assert isinstance(server.ended[0].__cause__, Timeout)
            await send(client, 10)
            wire.mend()
            assert [number_of(await client.recv()) for _ in range(10)] == list(range(20, 30))
        assert account(accepted, server.arrived) == list(range(10, 20))
        assert len(server.arrived) == 2


class Deaf(Server):
    """Reads nothing once its buffer of one message is full, until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = asyncio.Event()

    async def handle(self, client: ConnectedClient) -> None:
        await self.let_go.wait()
        await super().handle(client)


@pytest.mark.deadline(180)
async def test_a_peer_whose_window_is_shut_lives_until_the_wire_is_cut(wire: Wire) -> None:
    server = Deaf()
    async with server.run(wire, ping_interval=None, buffer_size=1) as url:
        async with WebSocketClient.connect(url, compression=None, heartbeat=STEADY, auto_reconnect=False) as client:

            async def fill() -> None:
                for number in range(1000):
                    await client.send(numbered(number, 100_000))

            filling = asyncio.create_task(fill())
            await until(lambda: client._is_blocked and client.backpressure.is_active)
            # No event tells that nothing happens: the heartbeat's whole time passes twice. The window is probed after
            # 0.2, 0.6, 1.4, 3 and 6.2 s; a cut after the fourth would be found twice as late.
            await asyncio.sleep(2 * (STEADY.ping_interval + STEADY.ping_timeout))
            assert client.is_connected
            assert client.heartbeat is not None
            assert client.heartbeat.pings_sent >= 1
            wire.cut()
            began = time.monotonic()
            with pytest.raises(ConnectionClosed) as caught:
                await client.recv()
            print(f"found after {time.monotonic() - began:.3f} s")
            assert time.monotonic() - began < 2 * RETRANSMISSION  # probes of a shut window come ever further apart
            assert isinstance(caught.value.__cause__, Timeout)
            with pytest.raises(ConnectionClosed):
                await filling
        server.let_go.set()


async def test_a_cut_wire_is_no_busy_peer(wire: Wire) -> None:
    server = Server()
    async with server.run(wire, ping_interval=None) as url:
        async with WebSocketClient.connect(
            url, compression=None, heartbeat=BEAT.with_busy_timeout(None), auto_reconnect=False
        ) as client:
            await client.send(numbered(0))
            assert number_of(await client.recv()) == 0
            wire.cut()
            began = time.monotonic()
            with pytest.raises(ConnectionClosed) as caught:
                await client.recv()
            took = time.monotonic() - began
            print(f"found after {took:.3f} s")
            assert took < BEAT.ping_interval + BEAT.ping_timeout + SLACK
            assert isinstance(caught.value.__cause__, Timeout)
