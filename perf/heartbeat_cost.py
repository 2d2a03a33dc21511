"""What heartbeats cost: the part of one core that N idle peers take, and for how long they stall the loop.

    python perf/heartbeat_cost.py [peers]

Ten simulated minutes of peers that answer each ping at once and say nothing else, with the default interval
and timeout, run as fast as they go. What the connection does for a ping and a pong is not part of it.
"""

from __future__ import annotations

import heapq
import sys
import time
from collections.abc import Callable

from fabric.config import HeartbeatConfig
from fabric.heartbeat import HeartbeatManager

SECONDS = 600


class Timer:
    def cancel(self) -> None: ...


class Clock:
    """A scheduler for one timer, whose time jumps to it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.queue: list[tuple[float, int, Callable[[], object]]] = []
        self.took: list[float] = []
        self.rings = 0

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], object], /) -> Timer:
        heapq.heappush(self.queue, (when, self.rings, callback))
        return Timer()

    def run(self, until: float) -> None:
        while self.queue[0][0] <= until:
            when, _, callback = heapq.heappop(self.queue)
            self.now = max(self.now, when)
            self.rings += 1
            begin = time.perf_counter()
            callback()
            self.took.append(time.perf_counter() - begin)


class Peer:
    __slots__ = ("inbound_seen", "is_reading_paused", "manager", "ping_is_queued")

    def __init__(self, manager: HeartbeatManager) -> None:
        self.manager = manager
        self.inbound_seen = self.is_reading_paused = self.ping_is_queued = False

    def send_ping(self, payload: bytes) -> None:
        self.inbound_seen = True
        self.manager.pong(self, payload)

    def fail(self, reason: str) -> None:
        raise AssertionError(reason)


def main(count: int) -> None:
    for how, spread in (("spread over an interval", True), ("all at once", False)):
        clock = Clock()
        manager = HeartbeatManager(HeartbeatConfig(), clock)
        for number in range(count):
            manager.add(Peer(manager))
            if spread:
                clock.run(number * manager.config.ping_interval / count)
        begin = time.process_time()
        clock.took.clear()
        clock.run(clock.now + SECONDS)
        used = time.process_time() - begin
        print(
            f"{count} peers, added {how}: {used / SECONDS:.3%} of a core, "
            f"{clock.rings / SECONDS:.1f} timers and {manager.pings_sent / SECONDS:.0f} pings a second, "
            f"99.9 % of sweeps within {sorted(clock.took)[-1 - len(clock.took) // 1000] * 1e3:.2f} ms"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
