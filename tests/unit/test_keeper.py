"""The thread of blocking clients: which of them it looks at, and what one of them can do to the others."""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fabric._sync.keeper import Keeper, Watch
from support.threads import DEADLINE

NEVER = 1 << 62


class FakeDriver:
    """A driver that notes what is done with it; its descriptor is that of a socket.

    Attributes:
        wants: what `attention` says.
        looks: how often it was asked.
        served: gets an item for each `keep`.
    """

    def __init__(self) -> None:
        self.sock, self.peer = socket.socketpair()
        self.descriptor = self.sock.fileno()
        self.is_closed = False
        self.wants: tuple[bool, int | None] = (True, None)
        self.error: Exception | None = None
        self.looks = 0
        self.served: queue.Queue[None] = queue.Queue()

    def attention(self) -> tuple[bool, int | None]:
        self.looks += 1
        return self.wants

    def keep(self) -> bool:
        error, self.error = self.error, None
        if error is not None:
            raise error
        with contextlib.suppress(BlockingIOError):
            self.sock.recv(100, socket.MSG_DONTWAIT)
        self.wants = (True, None)
        self.served.put(None)
        return False

    def abandon(self) -> None:
        error, self.error = self.error, None
        self.is_closed = True
        self.served.put(None)
        if error is not None:
            raise error

    def is_served(self) -> None:
        self.served.get(timeout=DEADLINE)

    def close(self) -> None:
        self.sock.close()
        self.peer.close()


class Kept:
    """A keeper, and drivers that it has looked at."""

    def __init__(self, number: int) -> None:
        self.keeper: Any = Keeper()
        self.drivers = [FakeDriver() for _ in range(number)]
        self.last = FakeDriver()  # to know that all before it is done
        for driver in (*self.drivers, self.last):
            self.keeper.add(driver)
        self.settle()

    def settle(self) -> None:
        """Wait until the thread has done what it had to do, and waits again."""
        for _ in range(2):  # the second begins behind the whole of the look that brought the first
            self.last.peer.send(b"!")
            self.last.is_served()

    def looks(self) -> list[int]:
        return [driver.looks for driver in self.drivers]

    def end(self) -> None:
        for driver in (*self.drivers, self.last):
            ending = self.keeper.remove(driver)
            driver.close()
        if ending is not None:
            ending.join(DEADLINE)
            assert not ending.is_alive()


@pytest.fixture
def kept() -> Iterator[Kept]:
    made = Kept(200)
    yield made
    made.end()


def test_it_looks_only_at_what_is_ready(kept: Kept) -> None:
    before = kept.looks()
    for driver in kept.drivers[:3]:
        driver.peer.send(b"!")
        driver.is_served()
    kept.settle()
    assert [now - then for now, then in zip(kept.looks(), before, strict=True)] == [2] * 3 + [0] * 197


def test_it_looks_only_at_what_has_asked(kept: Kept) -> None:
    before = kept.looks()
    kept.keeper.wake(kept.drivers[5])
    kept.settle()
    assert [now - then for now, then in zip(kept.looks(), before, strict=True)] == [0] * 5 + [1] + [0] * 194
    assert kept.drivers[5].served.empty(), "there was nothing to do"


def test_it_looks_only_at_what_is_due(kept: Kept) -> None:
    early, late = kept.drivers[:2]
    early.wants, late.wants = (True, time.monotonic_ns() + 20_000_000), (True, NEVER)
    for driver in (early, late):
        kept.keeper.wake(driver)
    early.is_served()
    kept.settle()
    assert late.served.empty()
    assert {driver.looks for driver in kept.drivers[2:]} == {1}
    assert late.looks == 2


def test_what_is_in_use_is_not_waited_for(kept: Kept) -> None:
    """A thread of the application waits for it, and is told."""
    used = kept.drivers[0]
    used.wants = (False, None)
    kept.keeper.wake(used)
    kept.settle()
    looks = used.looks
    used.peer.send(b"!")
    kept.settle()
    assert used.looks == looks
    used.wants = (True, None)
    kept.keeper.wake(used)
    used.is_served()


def test_what_is_released_is_not_waited_for(kept: Kept) -> None:
    used = kept.drivers[0]
    used.wants = (True, time.monotonic_ns() + 3600 * 10**9)
    kept.keeper.wake(used)
    kept.settle()
    looks = used.looks
    kept.keeper.release(used)
    used.peer.send(b"!")
    kept.settle()
    assert used.looks == looks
    kept.keeper.wake(used)
    used.is_served()


def test_a_descriptor_may_have_the_number_of_one_before_it(kept: Kept) -> None:
    old = kept.drivers[0]
    kept.keeper.release(old)
    old.is_closed = True
    old.wants = (False, None)
    number = old.descriptor
    old.close()
    new = FakeDriver()
    kept.drivers.append(new)
    assert number in (new.descriptor, new.peer.fileno())
    kept.keeper.add(new)
    new.peer.send(b"!")
    new.is_served()


def test_one_that_fails_is_tried_again_and_the_others_are_served(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    bad, good = kept.drivers[:2]
    bad.error = LookupError("a fault")
    with caplog.at_level(logging.ERROR, "fabric.client"):
        for driver in (bad, good):
            driver.peer.send(b"!")
        good.is_served()
        bad.is_served()
    assert caplog.text.count("a fault") == 1


@pytest.mark.parametrize("error", [None, LookupError("a fault")])
def test_one_that_is_given_up_is_closed(kept: Kept, error: Exception | None, caplog: pytest.LogCaptureFixture) -> None:
    driver = kept.drivers[0]
    driver.error = error
    with caplog.at_level(logging.CRITICAL, "fabric.client"):
        kept.keeper.give_up(driver)
        driver.is_served()
        kept.settle()
    assert driver.is_closed
    looks = driver.looks
    kept.keeper.wake(driver)
    kept.settle()
    assert driver.looks == looks


def test_one_thread_ends_and_another_begins() -> None:
    """Again and again: what is added while the last thread ends is served by the next."""
    keeper: Any = Keeper()
    driver = FakeDriver()
    endings = []
    for _ in range(100):
        keeper.add(driver)
        driver.peer.send(b"!")
        driver.is_served()
        endings.append(keeper.remove(driver))
    for thread in endings:
        thread.join(DEADLINE)
    assert not any(thread.is_alive() for thread in endings)
    assert threading.active_count() < 100
    driver.close()


def test_moments_that_hold_no_more_are_not_kept() -> None:
    watch: Any = Watch()
    drivers = [object() for _ in range(10)]
    for round_ in range(1000):
        for driver in drivers:
            watch.put(driver, False, NEVER - round_)
    assert len(watch._heap) <= 100
    watch.put(drivers[0], False, 1)
    watch.put(drivers[1], False, 2)
    assert watch.wait() == (set(), set(drivers[:2]))
    watch.put(drivers[2], False, 1)
    watch.forget(drivers[2])
    watch.wake()
    assert watch.wait() == (set(), set())
    watch.close()
