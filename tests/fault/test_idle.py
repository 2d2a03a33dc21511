"""Ten thousand idle connections: what their heartbeats cost, counted, and with real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from fabric.client import WebSocketClient
from fabric.config import HeartbeatConfig
from fabric.heartbeat import HeartbeatManager
from support.serving import serve, until

PEERS = 10_000
INTERVAL, TIMEOUT = 30.0, 10.0


class Scheduler:
    """Time that passes when it is told to; counts the timers that it rings."""

    def __init__(self) -> None:
        self.now = 0.0
        self.rung = 0
        self._timers: list[tuple[float, int, Callable[[], object], list[bool]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], object]) -> Any:
        live = [True]
        self._timers.append((when, len(self._timers), callback, live))

        class Handle:
            def cancel(self) -> None:
                live[0] = False

        return Handle()

    def run(self, until: float) -> None:
        while due := [timer for timer in self._timers if timer[3][0] and timer[0] <= until]:
            first = min(due)
            self._timers = [timer for timer in self._timers if timer[3][0] and timer is not first]
            self.now = max(self.now, first[0])
            self.rung += 1
            first[2]()
        self.now = until


class Quiet:
    """A peer that says nothing but pong; counts how often it is looked at."""

    looks = 0
    is_reading_paused = ping_is_queued = False

    def __init__(self) -> None:
        self.manager: HeartbeatManager = None  # type: ignore[assignment]
        self._seen = False
        self.pings = 0

    @property
    def inbound_seen(self) -> bool:
        Quiet.looks += 1
        return self._seen

    @inbound_seen.setter
    def inbound_seen(self, seen: bool) -> None:
        self._seen = seen

    def send_ping(self, payload: bytes) -> None:
        self.pings += 1
        self.manager.pong(self, payload)
        self._seen = True

    def fail(self, reason: str) -> None:
        raise AssertionError(reason)


def test_the_sweep_of_ten_thousand_is_a_bounded_number_of_looks_and_timers() -> None:
    scheduler = Scheduler()
    manager = HeartbeatManager(HeartbeatConfig(ping_interval=INTERVAL, ping_timeout=TIMEOUT), scheduler)
    peers = [Quiet() for _ in range(PEERS)]
    for number, peer in enumerate(peers):
        peer.manager = manager
        scheduler.now = number * INTERVAL / PEERS  # they come spread over an interval
        manager.add(peer)
    scheduler.run(scheduler.now)
    Quiet.looks = scheduler.rung = 0
    began, start = time.process_time(), scheduler.now
    scheduler.run(start + 2 * INTERVAL)
    spent = time.process_time() - began
    print(f"{PEERS} heartbeats for {2 * INTERVAL:g} s: {spent:.3f} s of CPU, {spent / 2 / INTERVAL:.2%} of a core,")
    print(f"{Quiet.looks / PEERS:.1f} looks and {sum(peer.pings for peer in peers) / PEERS:.2f} pings for each,")
    print(f"{scheduler.rung} timers in all")
    assert Quiet.looks <= PEERS * 2 * 20
    assert scheduler.rung <= 4000
    assert all(1 <= peer.pings <= 4 for peer in peers)


@pytest.mark.deadline(300)
@pytest.mark.parametrize("loop_factory", ["uvloop"], indirect=True)
@pytest.mark.parametrize("most", [1000, pytest.param(9000, marks=pytest.mark.soak)])
async def test_idle_connections_are_all_kept_alive_by_one_timer_at_each_end(
    stack: contextlib.AsyncExitStack, most: int
) -> None:
    """Both ends in this process, so half of the CPU time is the server's."""
    room, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(most, (room - 200) // 2)
    interval = 1.0 if most == 1000 else 4.0
    server = await serve(
        stack,
        on_message=lambda *_: None,
        ping_interval=interval,
        ping_timeout=10,
        max_connections=count,
        backlog=4096,
    )
    url = f"ws://127.0.0.1:{server.port}/"
    # The server's pings alone keep both ends known to live: the client's has a longer breath.
    options: dict[str, Any] = {
        "compression": None,
        "auto_reconnect": False,
        "connection_timeout": 30,
        "heartbeat": HeartbeatConfig(ping_interval=60, ping_timeout=10),
    }
    clients: list[WebSocketClient] = []
    for _ in range(0, count, 100):
        clients += await asyncio.gather(*(WebSocketClient.connect(url, **options) for _ in range(100)))
        if len(clients) + 100 > count:
            break
    await until(lambda: server.connection_count == len(clients))
    assert server.heartbeat is not None
    before, process = server.heartbeat.pings_sent, psutil.Process()
    used, began = sum(process.cpu_times()[:2]), time.monotonic()
    while server.heartbeat.pings_sent - before < len(clients):
        await asyncio.sleep(0.5)
    used, took = sum(process.cpu_times()[:2]) - used, time.monotonic() - began
    pings = server.heartbeat.pings_sent - before
    each = used / pings
    print(f"{len(clients)} connections: {pings} pings and pongs in {took:.1f} s took {used:.2f} s of CPU at both ends,")
    print(f"{each * 1e6:.0f} us for each: {each * PEERS / INTERVAL:.2%} of a core for {PEERS} at {INTERVAL:g} s")
    assert server.heartbeat.peers_failed == 0
    assert server.connection_count == len(clients)
    assert all(client.is_connected for client in clients)
    for client in clients:
        client._begin_closing(1000, "")
    for client in clients:
        await client.wait_closed()
