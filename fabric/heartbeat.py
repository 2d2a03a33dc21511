"""Finds dead peers: pings those that are silent, with one timer for all of them.

Owns, for each peer, when it was last heard and which ping it has not answered; and one timer, or none while
there are no peers. Touches no socket: what it needs of a connection is `HeartbeatTarget`. Reads no clock but
the scheduler's and, for round trips, the one it is given; `sweep` is told the time.

The rules (RFC 6455 §5.5.2 leaves them open):

- Any inbound traffic proves life. A peer is pinged only after `ping_interval` of silence; in the mode "always" once in
  each `ping_interval`, for a peer or a proxy that takes a connection without pings for dead.
- A peer is dead when a ping has not been answered for `ping_timeout`, and nothing else was received since. If its
  kernel acknowledges the pings, it has `busy_timeout` longer, with another ping each `ping_timeout`.
- Silence for which this side is the cause proves nothing. While the ping still waits behind our own data, the peer
  cannot answer; it fails only if its kernel is silent as well. While we do not read, no answer can be seen; pings
  go on then, to show the peer that we are alive. After the loop stood still, or the machine slept, all deadlines
  begin again.
- An answer may lie unread when the time is over: the loop reads once more before the peer fails.

How it is kept cheap: each peer is looked at 16 times in an interval, which is one flag and one comparison.
Peers due at about the same moment share a timer, large numbers are done in slices, and queues whose entries all
have the same delay are in order without sorting.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

from fabric._config.policies import HeartbeatConfig
from fabric._connection.events import log_event

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["HeartbeatManager", "HeartbeatTarget"]

logger = logging.getLogger(__name__)

LOOKS = 16  # at each peer, in one ping_interval
GROUPS = 16  # timers, at most, in the time between two looks at one peer
SLICE = 500  # peers looked at before the loop may run something else,
PING_COST = 25  # of which a ping, with the system call that sends it, counts for so many
GRACE = 0.05  # seconds between the end of a peer's time and its failure, in which the loop reads once more
GAP = 0.5  # seconds by which a timer must be late, at least, to mean that the loop or the machine stood still
RESOLUTION = 0.001  # seconds: what the coarsest loop's clock shows (uvloop)
PAYLOAD_SIZE = 8  # bytes


class HeartbeatTarget(Protocol):
    """What the manager needs of a connection. Hashable, by identity.

    A target may also have `kernel_alive(within: float) -> bool | None`: whether the peer's kernel has
    acknowledged anything in the last `within` seconds (on Linux, TCP_INFO), or None if that is not known.
    """

    inbound_seen: bool
    """Set by the target whenever anything arrives, cleared by the manager."""

    @property
    def is_reading_paused(self) -> bool:
        """Whether the target does not read from its socket now."""

    @property
    def ping_is_queued(self) -> bool:
        """Whether the last ping is still in this machine's buffers, as far as the target can tell."""

    def send_ping(self, payload: bytes) -> None:
        """Send a ping, before any data that waits."""

    def fail(self, reason: str) -> None:
        """The peer is dead: drop the connection without a close handshake. It is no longer a peer here."""


class Timer(Protocol):
    def cancel(self) -> object: ...


class Scheduler(Protocol):
    """The part of an event loop that is used."""

    def time(self) -> float: ...
    def call_at(self, when: float, callback: Callable[[], object], /) -> Timer: ...


class _Slot:
    """What is known of one peer. Moments are the scheduler's, except `sent`."""

    __slots__ = ("again", "deferred", "due", "heard", "ping", "pinged", "sent", "target", "waiting")

    def __init__(self, target: HeartbeatTarget, now: float, due: float) -> None:
        self.target: HeartbeatTarget | None = target  # None: removed
        self.heard = now  # at the latest
        self.pinged = now  # when the last ping was begun
        self.due = due  # the next look
        self.ping: bytes | None = None  # payload of the last ping, until its pong
        self.sent = 0.0
        self.waiting = False  # nothing was heard since that ping
        self.deferred = False  # the ping was queued when its time was over
        self.again = 0  # times that it was sent again


_Deadline = tuple[float, _Slot, bytes]


def _is_owed(_: float, slot: _Slot, ping: bytes) -> bool:
    """Whether an answer to `ping`, or any other sign of life since, is still awaited."""
    return slot.target is not None and slot.waiting and slot.ping is ping


class HeartbeatManager:
    """Watches any number of peers of one event loop.

    A dead peer is found within `ping_interval + ping_timeout` of its last sign of life; one that is cut off during
    `busy_timeout`, within two `ping_timeout` of the cut.

    Args:
        config: interval and timeouts. With `enabled` false no peer is ever watched.
        loop: the scheduler; None = the running loop, when the first peer is added.
        on_late: called with the seconds by which the timer was late, each time that it rings; below 0 it was early.
        clock: for round trips, in seconds; finer than the loop's.

    Attributes:
        pings_sent: so far, to all peers.
        peers_failed: how many were found dead.
    """

    __slots__ = (
        "__weakref__",
        "_always",
        "_armed",
        "_clock",
        "_config",
        "_deadlines",
        "_due",
        "_gap",
        "_grace",
        "_loop",
        "_on_late",
        "_patience",
        "_quantum",
        "_quiet",
        "_slots",
        "_suspects",
        "_tick",
        "_timer",
        "_visits",
        "_wake",
        "peers_failed",
        "pings_sent",
    )

    def __init__(
        self,
        config: HeartbeatConfig | None = None,
        loop: Scheduler | None = None,
        *,
        on_late: Callable[[float], object] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._config = config or HeartbeatConfig()
        self._loop = loop
        self._on_late = on_late
        self._clock = clock
        self._always = self._config.mode == "always"
        interval, timeout = self._config.ping_interval, self._config.ping_timeout
        self._tick = interval / LOOKS
        self._quantum = self._tick / GROUPS
        self._grace = min(GRACE, interval / 20, timeout / 20)
        self._gap = max(GAP, self._tick)
        # The interval, less what may go by unnoticed: up to a tick until a sign of life is seen, and until
        # its absence is, both late by a quantum; and the grace.
        self._quiet = interval - 2 * (self._tick + self._quantum) - self._grace
        busy = self._config.busy_timeout
        self._patience = math.inf if busy is None else math.ceil(busy / timeout)  # pings more, at most
        self._slots: dict[HeartbeatTarget, _Slot] = {}
        # Three queues, each in order of time, because in each all wait equally long. What is no longer true
        # in them is skipped when its time comes.
        self._visits: deque[_Slot] = deque()
        self._deadlines: deque[_Deadline] = deque()
        self._suspects: deque[_Deadline] = deque()
        self._timer: Timer | None = None
        self._armed = 0.0  # when it rings
        self._due = 0.0  # the same by the finer clock
        self._wake = 0.0  # when the next sweep should be; 0 = never
        self.pings_sent = 0
        self.peers_failed = 0

    @property
    def config(self) -> HeartbeatConfig:
        """Interval and timeouts."""
        return self._config

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, target: object) -> bool:
        return target in self._slots

    # -- peers come and go

    def add(self, target: HeartbeatTarget) -> None:
        """Watch `target` from now on; one that is watched already starts afresh."""
        if not self._config.enabled:
            return
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        self.remove(target)
        now = self._loop.time()
        slot = self._slots[target] = _Slot(target, now, now + self._tick)
        self._visits.append(slot)
        self._arm(slot.due)

    def remove(self, target: HeartbeatTarget) -> None:
        """Watch `target` no longer. Does nothing if it is not watched."""
        slot = self._slots.pop(target, None)
        if slot is not None:
            slot.target = None
            if not self._slots:
                self.stop()

    def stop(self) -> None:
        """Watch no peer any more, and stop the timer."""
        for slot in self._slots.values():
            slot.target = None
        self._slots.clear()
        self._visits.clear()
        self._deadlines.clear()
        self._suspects.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def pong(self, target: HeartbeatTarget, payload: bytes) -> float | None:
        """A pong arrived. Returns the round trip in seconds, or None if it answers no ping of ours.

        Either way it is a sign of life, for which the target sets `inbound_seen`.
        """
        slot = self._slots.get(target)
        if slot is None or slot.ping is None or slot.ping != payload:
            return None
        rtt = self._clock() - slot.sent
        assert self._loop is not None
        slot.heard = self._loop.time()
        slot.ping = None
        slot.waiting = False
        return rtt

    # -- the sweep

    def sweep(self, now: float) -> float | None:
        """Do what is due at `now`; return when to come next, None = never."""
        if self._wake and now - self._wake > self._gap:
            self._reset_deadlines(now)
        due, visits, left = now + RESOLUTION, self._visits, SLICE
        while visits and visits[0].due <= due and left > 0:
            slot = visits.popleft()
            if slot.target is None:
                left -= 1
                continue
            left -= self._look(slot, slot.target, now)
            if slot.target is not None:
                slot.due = now + self._tick
                visits.append(slot)
        while self._deadlines and self._deadlines[0][0] <= due:
            _, slot, ping = self._deadlines.popleft()
            self._time_out(slot, ping, now)
        while self._suspects and self._suspects[0][0] <= due:
            _, slot, ping = self._suspects.popleft()
            self._fail(slot, ping, now)
        when = self._next(now)
        self._wake = when or 0.0
        return when

    def _look(self, slot: _Slot, target: HeartbeatTarget, now: float) -> int:
        """The rule for one peer, LOOKS times in an interval. Returns its part of a SLICE."""
        if target.inbound_seen:
            target.inbound_seen = False
            slot.heard = now
            slot.waiting = False
            if not self._always:
                return 1
        if not slot.waiting and now - (slot.pinged if self._always else slot.heard) >= self._quiet:
            self._ping(slot, target, now)
            return PING_COST
        return 1

    def _ping(self, slot: _Slot, target: HeartbeatTarget, now: float) -> None:
        ping = slot.ping = os.urandom(PAYLOAD_SIZE)
        slot.waiting, slot.deferred, slot.again = True, False, 0
        slot.pinged = now
        slot.sent = self._clock()
        self._send(slot, target, ping, now)

    def _send(self, slot: _Slot, target: HeartbeatTarget, ping: bytes, now: float) -> None:
        self._deadlines.append((now + self._config.ping_timeout, slot, ping))
        self.pings_sent += 1
        try:
            target.send_ping(ping)
        except Exception as error:  # noqa: BLE001  (logged)
            log_event(logger, logging.ERROR, "a heartbeat could not be sent to %r", target, exc_info=error)

    def _silent(self, slot: _Slot, ping: bytes, now: float) -> HeartbeatTarget | None:
        """The slot's target, if nothing has been heard of it since `ping`."""
        target = slot.target
        if target is None or not slot.waiting or slot.ping is not ping:
            return None
        if target.inbound_seen:
            target.inbound_seen = False
            slot.heard = now
            slot.waiting = False
            return None
        return target

    def _time_out(self, slot: _Slot, ping: bytes, now: float) -> None:
        """The time for an answer to `ping` is over: find out whether this side is the cause."""
        target = self._silent(slot, ping, now)
        if target is None:
            return
        timeout = self._config.ping_timeout
        if target.ping_is_queued:
            if self._kernel_alive(target) is not False:
                slot.deferred = True
                self._deadlines.append((now + timeout, slot, ping))
                return
        elif target.is_reading_paused:
            self._ask_later(slot, now)
            return
        elif slot.deferred:
            # It has left only since we last looked: now its time begins.
            slot.deferred = False
            self._deadlines.append((now + timeout, slot, ping))
            return
        elif slot.again < self._patience and self._kernel_alive(target):
            # The same ping: whichever pong comes is an answer, and its round trip began with the first.
            slot.again += 1
            self._send(slot, target, ping, now)
            return
        self._suspects.append((now + self._grace, slot, ping))

    def _kernel_alive(self, target: HeartbeatTarget) -> bool | None:
        ask = getattr(target, "kernel_alive", None)
        return None if ask is None else ask(self._config.ping_timeout)

    def _ask_later(self, slot: _Slot, now: float) -> None:
        """An answer may be unread, as reading is paused: ping again, an interval after the last ping."""
        slot.waiting = False
        slot.heard = now - self._config.ping_timeout

    def _fail(self, slot: _Slot, ping: bytes, now: float) -> None:
        """The loop has read once more: the peer is dead if it is still silent."""
        target = self._silent(slot, ping, now)
        if target is None:
            return
        if target.is_reading_paused:
            self._ask_later(slot, now)
            return
        self.remove(target)
        self.peers_failed += 1
        silence = self._config.ping_timeout * (1 + slot.again)
        try:
            target.fail(f"no sign of life within {silence:g} s after a ping")
        except Exception as error:  # noqa: BLE001  (logged)
            log_event(logger, logging.ERROR, "a dead peer could not be dropped: %r", target, exc_info=error)

    def _reset_deadlines(self, now: float) -> None:
        """The last sweep is too long ago to judge by it: all peers count as heard now, and have their whole time."""
        deadline = now + self._config.ping_timeout
        owed = (*self._suspects, *self._deadlines)
        self._deadlines = deque((deadline, slot, ping) for _, slot, ping in owed)
        self._suspects.clear()
        for slot in self._slots.values():
            slot.heard = now

    # -- the timer

    def _next(self, now: float) -> float | None:
        """When there is something to do after a sweep at `now`."""
        if not self._slots:
            return None
        when = self._visits[0].due
        # Those due a little later than the last do not get a timer of their own.
        when = now if when <= now else max(when, now + self._quantum)
        for queue in (self._deadlines, self._suspects):
            while queue and not _is_owed(*queue[0]):
                queue.popleft()
            if queue:
                when = min(when, queue[0][0])
        return when

    def _arm(self, when: float) -> None:
        assert self._loop is not None
        if self._timer is not None:
            if self._armed <= when:
                return
            self._timer.cancel()
        self._wake = self._armed = when
        if self._on_late is not None:
            self._due = self._clock() + when - self._loop.time()
        self._timer = self._loop.call_at(when, self._ring)

    def _ring(self) -> None:
        assert self._loop is not None
        self._timer = None
        if self._on_late is not None:
            self._on_late(self._clock() - self._due)
        when = self.sweep(self._loop.time())
        if when is not None:
            self._arm(when)

    def __repr__(self) -> str:
        config = self._config
        return (
            f"<HeartbeatManager {len(self._slots)} peers,"
            f" interval {config.ping_interval:g} s, timeout {config.ping_timeout:g} s>"
        )
