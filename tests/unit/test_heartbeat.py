"""fabric.heartbeat among peers that are made up, in a time that the tests move by hand."""

from __future__ import annotations

import asyncio
import gc
import heapq
import itertools
import random
import weakref
from collections.abc import Callable

import pytest

from fabric.config import HeartbeatConfig
from fabric.heartbeat import HeartbeatManager

CONFIG = HeartbeatConfig()  # 30 s and 10 s
INTERVAL, TIMEOUT = CONFIG.ping_interval, CONFIG.ping_timeout


class Timer:
    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeLoop:
    """A clock that stands still, and the timers that ring when it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.queue: list[tuple[float, int, Timer]] = []
        self.count = itertools.count()
        self.rings = 0

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], object], /) -> Timer:
        timer = Timer(callback)
        heapq.heappush(self.queue, (when, next(self.count), timer))
        return timer

    def call_in(self, delay: float, callback: Callable[[], object]) -> None:
        self.call_at(self.now + delay, callback)

    @property
    def pending(self) -> int:
        return sum(not timer.cancelled for _, _, timer in self.queue)

    def ring(self) -> None:
        """Ring what is due now."""
        while self.queue and self.queue[0][0] <= self.now:
            _, _, timer = heapq.heappop(self.queue)
            if not timer.cancelled:
                self.rings += 1
                timer.callback()

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self.queue and self.queue[0][0] <= end:
            self.now = max(self.now, self.queue[0][0])
            self.ring()
        self.now = end

    def stand_still(self, seconds: float) -> None:
        """Time passes and nothing rings: the loop is blocked, or the machine sleeps."""
        self.now += seconds


class Peer:
    """A peer whose every way of being slow, deaf or dead can be set."""

    def __init__(self, loop: FakeLoop, delay: float | None = 0.01) -> None:
        self.loop = loop
        self.delay = delay  # of its pongs; None: no pongs
        self.manager: HeartbeatManager | None = None
        self.inbound_seen = False
        self.is_reading_paused = False
        self.ping_is_queued = False
        self.pings: list[tuple[float, bytes]] = []
        self.rtts: list[float | None] = []
        self.heard = loop.now
        self.failed: float | None = None
        self.reason = ""

    def watch(self, manager: HeartbeatManager) -> Peer:
        self.manager = manager
        manager.add(self)
        return self

    def send_ping(self, payload: bytes) -> None:
        self.pings.append((self.loop.now, payload))
        if self.delay is not None:
            self.loop.call_in(self.delay, lambda: self.answer(payload))

    def answer(self, payload: bytes) -> None:
        if self.delay is not None:  # else it has died meanwhile
            self.hear()
            assert self.manager is not None
            self.rtts.append(self.manager.pong(self, payload))

    def hear(self) -> None:
        self.inbound_seen = True
        self.heard = self.loop.now

    def fail(self, reason: str) -> None:
        assert self.failed is None
        self.failed, self.reason = self.loop.now, reason


class LinuxPeer(Peer):
    """One whose kernel can be asked."""

    alive: bool | None = True

    def kernel_alive(self, within: float) -> bool | None:
        assert within == TIMEOUT
        return self.alive


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


@pytest.fixture
def manager(loop: FakeLoop) -> HeartbeatManager:
    return HeartbeatManager(CONFIG, loop, clock=loop.time)


def test_how_late_its_timer_is_told(loop: FakeLoop) -> None:
    late: list[float] = []
    manager = HeartbeatManager(CONFIG, loop, on_late=late.append, clock=lambda: loop.now + 5)
    Peer(loop).watch(manager)
    loop.advance(INTERVAL)
    assert late == pytest.approx([0] * len(late))
    count = len(late)
    assert count >= 8
    loop.stand_still(INTERVAL / 8)
    loop.advance(0)
    assert INTERVAL / 16 <= late[count] <= INTERVAL / 8


# Life and death.


def test_a_silent_peer_is_pinged_before_the_interval_is_over(loop: FakeLoop, manager: HeartbeatManager) -> None:
    peer = Peer(loop).watch(manager)
    loop.advance(INTERVAL * 0.8)
    assert peer.pings == []
    loop.advance(INTERVAL * 0.2)
    assert len(peer.pings) == 1
    assert manager.pings_sent == 1


def test_one_that_answers_lives_for_ever(loop: FakeLoop, manager: HeartbeatManager) -> None:
    peer = Peer(loop, delay=TIMEOUT - 0.1).watch(manager)
    loop.advance(3600)
    assert peer.failed is None
    assert 3600 / (INTERVAL + TIMEOUT) <= len(peer.pings) <= 3600 / (INTERVAL * 0.8)
    assert peer.rtts == [pytest.approx(TIMEOUT - 0.1)] * len(peer.rtts)


def test_a_dead_peer_is_found_within_interval_and_timeout(loop: FakeLoop, manager: HeartbeatManager) -> None:
    peer = Peer(loop, delay=None).watch(manager)
    born = loop.now
    loop.advance(100)
    assert peer.failed is not None
    assert len(peer.pings) == 1
    assert peer.failed <= born + INTERVAL + TIMEOUT
    assert peer.failed >= peer.pings[0][0] + TIMEOUT  # it had all its time
    assert peer.reason == "no sign of life within 10 s after a ping"
    assert peer not in manager
    assert manager.peers_failed == 1
    assert loop.pending == 0


@pytest.mark.parametrize("interval", [0.1, 1, 30, 300])
@pytest.mark.parametrize("timeout", [0.1, 1, 10, 100])
def test_found_in_time_whenever_it_dies(loop: FakeLoop, rng: random.Random, interval: float, timeout: float) -> None:
    manager = HeartbeatManager(HeartbeatConfig(ping_interval=interval, ping_timeout=timeout), loop)
    for _ in range(30):
        peer = Peer(loop, delay=rng.random() * timeout / 2).watch(manager)
        loop.advance(rng.random() * 5 * interval)
        for _ in range(rng.randrange(5)):
            peer.hear()
            loop.advance(rng.random() * interval)
        peer.delay = None
        loop.advance(interval + timeout + 1e-6)
        assert peer.failed is not None
        assert peer.failed <= peer.heard + interval + timeout + 1e-6
        assert peer.failed >= peer.pings[-1][0] + timeout - 0.001


def test_any_traffic_proves_life_without_a_ping(loop: FakeLoop, manager: HeartbeatManager) -> None:
    peer = Peer(loop, delay=None).watch(manager)
    for _ in range(100):
        loop.advance(INTERVAL * 0.7)
        peer.hear()
    assert peer.failed is None
    assert peer.pings == []


def test_a_peer_that_talks_is_pinged_too_if_asked(loop: FakeLoop) -> None:
    manager = HeartbeatManager(HeartbeatConfig(mode="always"), loop)
    talks = Peer(loop).watch(manager)
    for _ in range(300):
        loop.advance(1)
        talks.hear()
    assert 9 <= len(talks.pings) <= 12
    gaps = [b[0] - a[0] for a, b in itertools.pairwise(talks.pings)]
    assert max(gaps) <= INTERVAL
    assert all(talks.rtts)
    assert len(talks.rtts) == len(talks.pings)
    assert talks.failed is None
    deaf = Peer(loop, None).watch(manager)
    loop.advance(INTERVAL + TIMEOUT)
    assert deaf.failed is not None


def test_any_traffic_after_the_ping_proves_life(loop: FakeLoop, manager: HeartbeatManager) -> None:
    peer = Peer(loop, delay=None).watch(manager)
    loop.advance(INTERVAL)
    assert len(peer.pings) == 1
    loop.advance(peer.pings[0][0] + TIMEOUT - 0.1 - loop.now)
    peer.hear()
    loop.advance(INTERVAL * 0.8 + TIMEOUT - 1)
    assert peer.failed is None
    loop.advance(INTERVAL)
    assert peer.failed is not None
    assert len(peer.pings) == 2


def test_traffic_at_the_last_moment(loop: FakeLoop, manager: HeartbeatManager) -> None:
    """What arrives between the end of the time and the verdict still counts."""
    peer = Peer(loop, delay=None).watch(manager)
    while not peer.pings:
        loop.advance(0.01)
    loop.advance(peer.pings[0][0] + TIMEOUT + 0.01 - loop.now)
    peer.hear()
    loop.advance(1)
    assert peer.failed is None


# Pongs.


def test_a_pong_must_match_its_ping(loop: FakeLoop, manager: HeartbeatManager) -> None:
    peer = Peer(loop, delay=None).watch(manager)
    loop.advance(INTERVAL)
    [(_, payload)] = peer.pings
    assert manager.pong(peer, b"") is None
    assert manager.pong(peer, b"unasked") is None
    assert manager.pong(peer, payload + b"x") is None
    loop.advance(0.5)
    assert manager.pong(peer, payload) is not None
    assert manager.pong(peer, payload) is None  # only once
    assert manager.pong(Peer(loop), payload) is None  # nor for somebody else


def test_payloads_are_not_guessable(loop: FakeLoop, manager: HeartbeatManager) -> None:
    peers = [Peer(loop).watch(manager) for _ in range(50)]
    loop.advance(INTERVAL)
    payloads = {peer.pings[0][1] for peer in peers}
    assert len(payloads) == 50
    assert {len(payload) for payload in payloads} == {8}


def test_an_old_pong_measures_nothing_and_saves_nobody(loop: FakeLoop, manager: HeartbeatManager) -> None:
    peer = Peer(loop, delay=None).watch(manager)
    loop.advance(INTERVAL)
    [(_, first)] = peer.pings
    peer.hear()
    loop.advance(INTERVAL + 3)
    assert len(peer.pings) == 2
    assert manager.pong(peer, first) is None
    loop.advance(INTERVAL + TIMEOUT)
    assert peer.failed is not None


def test_a_late_pong_is_measured(loop: FakeLoop, manager: HeartbeatManager) -> None:
    """The peer is busy sending: its data prove its life, its pong comes behind them."""
    peer = Peer(loop, delay=20).watch(manager)
    loop.advance(INTERVAL)
    for _ in range(25):
        loop.advance(1)
        peer.hear()
    assert peer.rtts == [pytest.approx(20)]
    assert peer.failed is None


# Who is not to be taken for dead.


def test_a_ping_behind_our_own_data(loop: FakeLoop, manager: HeartbeatManager) -> None:
    peer = Peer(loop, delay=None).watch(manager)
    peer.ping_is_queued = True
    loop.advance(500)
    assert peer.failed is None
    assert len(peer.pings) == 1  # they do not pile up
    peer.ping_is_queued = False
    left = loop.now
    loop.advance(100)
    assert peer.failed is not None
    assert left + TIMEOUT <= peer.failed <= left + 3 * TIMEOUT


def test_a_queued_ping_is_answered_at_last(loop: FakeLoop, manager: HeartbeatManager) -> None:
    peer = Peer(loop, delay=None).watch(manager)
    peer.ping_is_queued = True
    loop.advance(105)
    peer.ping_is_queued = False
    [(sent, payload)] = peer.pings
    loop.advance(TIMEOUT - 0.1)
    peer.hear()
    assert manager.pong(peer, payload) == pytest.approx(loop.now - sent)
    loop.advance(INTERVAL * 0.6)
    assert peer.failed is None


@pytest.mark.parametrize("alive", [True, None])
def test_a_queued_ping_and_a_kernel_that_answers(loop: FakeLoop, manager: HeartbeatManager, alive: bool | None) -> None:
    peer = LinuxPeer(loop, delay=None)
    peer.watch(manager)
    peer.ping_is_queued, peer.alive = True, alive
    loop.advance(1000)
    assert peer.failed is None


def test_a_queued_ping_and_a_kernel_that_is_silent(loop: FakeLoop, manager: HeartbeatManager) -> None:
    peer = LinuxPeer(loop, delay=None)
    peer.watch(manager)
    peer.ping_is_queued, peer.alive = True, False
    born = loop.now
    loop.advance(100)
    assert peer.failed is not None
    assert peer.failed <= born + INTERVAL + TIMEOUT


def test_a_delivered_ping_is_not_excused_by_the_kernel(loop: FakeLoop, manager: HeartbeatManager) -> None:
    """A relay or a hung process whose kernel lives: what was delivered must be answered."""
    peer = LinuxPeer(loop, delay=None)
    peer.watch(manager)
    loop.advance(INTERVAL + TIMEOUT)
    assert peer.failed is not None


@pytest.mark.parametrize(
    ("busy", "alive", "pings"),
    [
        (0, True, 1),
        (1, True, 2),  # in steps of the timeout
        (TIMEOUT, True, 2),
        (3 * TIMEOUT, True, 4),
        (3 * TIMEOUT, False, 1),
        (3 * TIMEOUT, None, 1),  # a system that does not tell
        (None, False, 1),
        (None, None, 1),
    ],
)
def test_how_long_a_hung_peer_is_borne_with(loop: FakeLoop, busy: float | None, alive: bool | None, pings: int) -> None:
    manager = HeartbeatManager(CONFIG.with_busy_timeout(busy), loop, clock=loop.time)
    peer = LinuxPeer(loop, delay=None)
    peer.watch(manager)
    peer.alive = alive
    loop.advance(500)
    assert peer.failed is not None
    assert len(peer.pings) == manager.pings_sent == pings
    assert len({payload for _, payload in peer.pings}) == 1
    assert peer.failed - peer.pings[0][0] == pytest.approx(pings * TIMEOUT, abs=0.1)
    assert peer.reason == f"no sign of life within {pings * TIMEOUT:g} s after a ping"


def test_a_peer_that_cannot_be_asked_about_is_not_borne_with(loop: FakeLoop) -> None:
    manager = HeartbeatManager(CONFIG.with_busy_timeout(None), loop)
    peer = Peer(loop, delay=None).watch(manager)
    loop.advance(INTERVAL + TIMEOUT)
    assert peer.failed is not None


def test_a_busy_peer_answers_at_last(loop: FakeLoop) -> None:
    """All its pongs at once: the first is measured, from the first ping; and the next silence is a new one."""
    manager = HeartbeatManager(CONFIG.with_busy_timeout(None), loop, clock=loop.time)
    peer = LinuxPeer(loop, delay=None)
    peer.watch(manager)
    loop.advance(1000)
    assert peer.failed is None
    (sent, payload), count = peer.pings[0], len(peer.pings)
    assert count == pytest.approx((loop.now - sent) / TIMEOUT, abs=1)
    peer.hear()
    assert manager.pong(peer, payload) == pytest.approx(loop.now - sent)
    assert [manager.pong(peer, payload) for _ in range(count - 1)] == [None] * (count - 1)
    loop.advance(INTERVAL)
    assert len(peer.pings) == count + 1
    assert peer.pings[-1][1] != payload


@pytest.mark.parametrize("acknowledged", [True, False])
def test_a_busy_peer_that_is_cut_off(loop: FakeLoop, acknowledged: bool) -> None:
    manager = HeartbeatManager(CONFIG.with_busy_timeout(None), loop)
    peer = LinuxPeer(loop, delay=None)
    peer.watch(manager)
    loop.advance(500)
    peer.alive, peer.ping_is_queued, cut = False, not acknowledged, loop.now
    loop.advance(100)
    assert peer.failed is not None
    assert peer.failed <= cut + 2 * TIMEOUT


def test_patience_begins_anew_after_a_sign_of_life(loop: FakeLoop) -> None:
    manager = HeartbeatManager(CONFIG.with_busy_timeout(2 * TIMEOUT), loop)
    peer = LinuxPeer(loop, delay=None)
    peer.watch(manager)
    for _ in range(10):
        loop.advance(INTERVAL + 2 * TIMEOUT)
        peer.hear()
    assert peer.failed is None
    loop.advance(INTERVAL + 3 * TIMEOUT)
    assert peer.failed is not None


def test_reading_stops_while_a_busy_peer_is_borne_with(loop: FakeLoop) -> None:
    manager = HeartbeatManager(CONFIG.with_busy_timeout(TIMEOUT), loop)
    peer = LinuxPeer(loop, delay=None)
    peer.watch(manager)
    loop.advance(INTERVAL + TIMEOUT)
    assert len(peer.pings) == 2
    peer.is_reading_paused = True
    loop.advance(500)
    assert peer.failed is None


def test_while_we_do_not_read_we_cannot_hear(loop: FakeLoop, manager: HeartbeatManager) -> None:
    peer = Peer(loop, delay=None).watch(manager)
    peer.is_reading_paused = True
    born = loop.now
    loop.advance(600)
    assert peer.failed is None
    # Our pings prove our life to the peer, whose own pings we leave unread.
    moments = [born, *(moment for moment, _ in peer.pings)]
    assert max(b - a for a, b in itertools.pairwise(moments)) <= INTERVAL
    assert len(peer.pings) >= 20
    peer.is_reading_paused = False
    resumed = loop.now
    loop.advance(100)
    assert peer.failed is not None
    assert peer.failed <= resumed + INTERVAL + 2 * TIMEOUT


def test_reading_stops_just_before_the_verdict(loop: FakeLoop, manager: HeartbeatManager) -> None:
    peer = Peer(loop, delay=None).watch(manager)
    while not peer.pings:
        loop.advance(0.01)
    loop.advance(peer.pings[0][0] + TIMEOUT + 0.01 - loop.now)
    peer.is_reading_paused = True
    loop.advance(INTERVAL)
    assert peer.failed is None
    assert len(peer.pings) == 2


@pytest.mark.parametrize("pause", [3.0, 60.0, 86_400.0])
def test_a_machine_that_slept(loop: FakeLoop, manager: HeartbeatManager, pause: float) -> None:
    peers = [Peer(loop).watch(manager) for _ in range(10)]
    for phase in range(60):  # at whatever moment of the cycle
        loop.advance(0.7 + phase / 10)
        loop.stand_still(pause)
        loop.ring()  # the timers ring before the sockets are read, as uvloop does it
        loop.advance(INTERVAL + TIMEOUT)
    assert [peer.failed for peer in peers] == [None] * 10


def test_a_pong_that_lies_unread_while_the_loop_is_blocked(loop: FakeLoop, manager: HeartbeatManager) -> None:
    peer = Peer(loop, delay=None).watch(manager)
    while not peer.pings:
        loop.advance(0.01)
    loop.advance(TIMEOUT - 0.2)
    loop.stand_still(0.5)  # not long enough to forgive
    loop.ring()
    loop.call_in(0, peer.hear)
    loop.advance(5)
    assert peer.failed is None


def test_a_dead_peer_is_found_after_the_sleep(loop: FakeLoop, manager: HeartbeatManager) -> None:
    silent, asked = Peer(loop, delay=None).watch(manager), Peer(loop, delay=None)
    loop.advance(INTERVAL + TIMEOUT / 2)
    asked.watch(manager)
    assert silent.pings
    loop.stand_still(3600)
    woke = loop.now
    loop.advance(INTERVAL + TIMEOUT + 0.1)
    assert silent.failed is not None
    assert woke + TIMEOUT <= silent.failed <= woke + TIMEOUT + 1
    assert asked.failed is not None
    assert woke + TIMEOUT <= asked.failed


# The timer, and peers that come and go.


def test_no_peers_no_timer(loop: FakeLoop, manager: HeartbeatManager) -> None:
    assert loop.pending == 0
    peers = [Peer(loop).watch(manager) for _ in range(3)]
    assert loop.pending == 1
    assert len(manager) == 3
    for peer in peers:
        assert peer in manager
        manager.remove(peer)
    assert loop.pending == 0
    assert len(manager) == 0
    manager.remove(peers[0])
    loop.advance(100)
    assert loop.rings == 0


def test_exactly_one_timer(loop: FakeLoop, manager: HeartbeatManager, rng: random.Random) -> None:
    peers: list[Peer] = []
    for _ in range(500):
        loop.advance(rng.random() * 2)
        if rng.random() < 0.6:
            peers.append(Peer(loop, delay=None).watch(manager))
        elif peers:
            manager.remove(peers.pop(rng.randrange(len(peers))))
        peers = [peer for peer in peers if peer.failed is None]
        assert len(manager) == len(peers)
        assert loop.pending == (1 if peers else 0)


def test_stop(loop: FakeLoop, manager: HeartbeatManager) -> None:
    peer = Peer(loop, delay=None).watch(manager)
    loop.advance(INTERVAL)
    manager.stop()
    assert loop.pending == 0
    assert len(manager) == 0
    loop.advance(1000)
    assert peer.failed is None
    peer.watch(manager)  # and on again
    loop.advance(INTERVAL + TIMEOUT)
    assert peer.failed is not None


def test_added_again_starts_afresh(loop: FakeLoop, manager: HeartbeatManager) -> None:
    peer = Peer(loop, delay=None).watch(manager)
    loop.advance(INTERVAL + TIMEOUT / 2)
    manager.add(peer)
    assert len(manager) == 1
    again = loop.now
    loop.advance(INTERVAL * 0.8)
    assert peer.failed is None
    loop.advance(INTERVAL * 0.2 + TIMEOUT)
    assert peer.failed is not None
    assert peer.failed >= again + INTERVAL * 0.8 + TIMEOUT


def test_disabled_watches_nobody(loop: FakeLoop) -> None:
    manager = HeartbeatManager(CONFIG.with_enabled(False), loop)
    Peer(loop, delay=None).watch(manager)
    assert len(manager) == 0
    assert loop.pending == 0


def test_callbacks_may_add_and_remove(loop: FakeLoop, manager: HeartbeatManager) -> None:
    others: list[Peer] = []

    class Last(Peer):
        def fail(self, reason: str) -> None:
            super().fail(reason)
            manager.remove(self)
            others.append(Peer(loop).watch(manager))

    peers = [Last(loop, delay=None).watch(manager) for _ in range(3)]
    loop.advance(INTERVAL + TIMEOUT)
    assert all(peer.failed for peer in peers)
    assert len(manager) == len(others) == 3
    assert loop.pending == 1
    loop.advance(INTERVAL)
    assert all(len(peer.pings) == 1 for peer in others)


def test_a_target_that_removes_others_in_its_ping(loop: FakeLoop, manager: HeartbeatManager) -> None:
    class Removes(Peer):
        def send_ping(self, payload: bytes) -> None:
            manager.stop()

    peers = [Removes(loop).watch(manager) for _ in range(3)]
    loop.advance(INTERVAL + TIMEOUT)
    assert [peer.failed for peer in peers] == [None] * 3
    assert loop.pending == 0


def test_a_target_that_raises_harms_nobody(loop: FakeLoop, manager: HeartbeatManager, broken_log: list[str]) -> None:
    """Nor does a log that raises."""

    class Broken(Peer):
        def send_ping(self, payload: bytes) -> None:
            raise RuntimeError("cannot send")

        def fail(self, reason: str) -> None:
            super().fail(reason)
            raise RuntimeError("cannot fail")

    broken, healthy = Broken(loop, delay=None).watch(manager), Peer(loop).watch(manager)
    loop.advance(INTERVAL + TIMEOUT)
    assert broken.failed is not None
    assert len(healthy.pings) == 1
    cannot_send, cannot_fail = broken_log
    assert "could not be sent" in cannot_send
    assert "could not be dropped" in cannot_fail


def test_many_peers_share_few_timers(loop: FakeLoop, manager: HeartbeatManager) -> None:
    for _ in range(2000):
        Peer(loop, delay=None).watch(manager)
        loop.advance(0.01)
    loop.rings = 0
    loop.advance(2 * INTERVAL / 16)
    assert 0 < loop.rings <= 2 * 16 + 2


def test_a_crowd_is_done_in_slices(loop: FakeLoop, manager: HeartbeatManager) -> None:
    looked: list[int] = []

    class Counts(Peer):
        @property
        def inbound_seen(self) -> bool:
            looked[-1] += 1
            return True

        @inbound_seen.setter
        def inbound_seen(self, value: bool) -> None: ...

    peers = [Counts(loop).watch(manager) for _ in range(1234)]
    for _ in range(3):
        looked.append(0)
        loop.now = max(loop.now, loop.queue[0][0])
        _, _, timer = heapq.heappop(loop.queue)
        timer.callback()
    assert looked == [500, 500, 234]
    assert len(manager) == len(peers)


def test_a_removed_peer_is_let_go(loop: FakeLoop, manager: HeartbeatManager) -> None:
    Peer(loop).watch(manager)
    peer = Peer(loop, delay=None).watch(manager)
    loop.advance(INTERVAL)
    gone = weakref.ref(peer)
    manager.remove(peer)
    del peer
    gc.collect()
    assert gone() is None


def test_managers_can_be_referred_to_weakly(manager: HeartbeatManager) -> None:
    assert weakref.ref(manager)() is manager


def test_sweep_alone_needs_no_timer() -> None:
    """Time passed in by hand: `sweep` says when it wants to be called next."""
    loop = FakeLoop()
    manager = HeartbeatManager(CONFIG, loop)
    assert manager.sweep(loop.now) is None
    peer = Peer(loop, delay=None).watch(manager)
    now: float | None = loop.now
    while now is not None:
        loop.now, then = now, now
        now = manager.sweep(then)
        assert now is None or now > then
    assert peer.failed == loop.now
    assert peer.failed <= 1000 + INTERVAL + TIMEOUT


def test_repr(manager: HeartbeatManager) -> None:
    assert repr(manager) == "<HeartbeatManager 0 peers, interval 30 s, timeout 10 s>"
    assert manager.config == CONFIG


async def test_on_a_real_loop() -> None:
    failed = asyncio.get_running_loop().create_future()

    class Dead:
        inbound_seen = False
        is_reading_paused = False
        ping_is_queued = False

        def send_ping(self, payload: bytes) -> None: ...

        def fail(self, reason: str) -> None:
            failed.set_result(reason)

    manager = HeartbeatManager(HeartbeatConfig(ping_interval=0.02, ping_timeout=0.01))
    manager.add(Dead())
    assert "0.01 s" in await failed
    assert len(manager) == 0
