"""The thread that looks after blocking clients while no thread of the application waits on them.

Owns that thread: a process has one as long as it has such clients. It has their pings answered, their pongs seen and
the end of a connection noticed, by stepping their loops when a descriptor or a timer asks for it. A client on which a
thread waits, or has waited a moment ago, is left alone.

It looks only at clients of which there is something to say: their descriptor is ready, their time has come, or they
have asked for it. So a thousand idle ones cost what happens on them, and nothing for each other.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import selectors
import threading
import time
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from fabric._connection.events import log_event

if TYPE_CHECKING:
    from fabric_ext.driver import Driver

__all__ = ["Keeper", "keeper"]

logger = logging.getLogger("fabric.client")

MISTAKE_NS = 100_000_000  # after which what could not be done is tried again
LONG = 86400.0  # seconds that a selector surely takes


class Watch:
    """What the thread waits for: the descriptors of drivers, moments in ns of `time.monotonic_ns`, and being woken."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._reading, self._writing = os.pipe()
        for descriptor in (self._reading, self._writing):
            os.set_blocking(descriptor, False)
        self._selector.register(self._reading, selectors.EVENT_READ)
        self._descriptors: dict[Driver, int] = {}  # those that are waited for
        self._moments: dict[Driver, int] = {}
        self._heap: list[tuple[int, int, Driver]] = []  # of the moments, with some that hold no more
        self._number = 0  # of its latest entry: drivers have no order

    def put(self, driver: Driver, is_watched: bool, moment: int | None) -> None:
        """Wait for the descriptor of `driver` or not, and for `moment` if there is one."""
        if not is_watched:
            self._forget_descriptor(driver)
        elif driver not in self._descriptors:
            self._selector.register(driver.descriptor, selectors.EVENT_READ, driver)
            self._descriptors[driver] = driver.descriptor
        if moment is None:
            self._moments.pop(driver, None)
        elif self._moments.get(driver) != moment:
            self._moments[driver] = moment
            self._number += 1
            heappush(self._heap, (moment, self._number, driver))
            if len(self._heap) > 2 * len(self._moments) + 64:
                self._heap = [entry for entry in self._heap if self._moments.get(entry[2]) == entry[0]]
                heapify(self._heap)

    def forget(self, driver: Driver) -> None:
        """Wait for nothing of `driver`. Its descriptor may be closed then."""
        self.put(driver, False, None)

    def _forget_descriptor(self, driver: Driver) -> None:
        descriptor = self._descriptors.pop(driver, None)
        if descriptor is not None:
            self._selector.unregister(descriptor)

    def wake(self) -> None:
        """Have `wait` return."""
        with contextlib.suppress(OSError):  # full: it is about to return
            os.write(self._writing, b"!")

    def wait(self) -> tuple[set[Driver], set[Driver]]:
        """Wait until something comes; return the drivers whose descriptor is ready, and those whose moment has come."""
        seconds = None
        if self._heap:
            seconds = min(max(self._heap[0][0] - time.monotonic_ns(), 0) * 1e-9, LONG)
        ready: set[Driver] = set()
        due: set[Driver] = set()
        for key, _ in self._selector.select(seconds):
            if key.data is not None:
                ready.add(key.data)
            else:
                os.read(self._reading, 4096)
        now = time.monotonic_ns()
        while self._heap and self._heap[0][0] <= now:
            moment, _, driver = heappop(self._heap)
            if self._moments.get(driver) == moment:
                del self._moments[driver]
                due.add(driver)
        return ready, due

    def close(self) -> None:
        """Close its own descriptors. Those of the drivers stay as they are, and in a child those of the parent."""
        with contextlib.suppress(OSError):  # a child does not inherit kqueue's
            self._selector.close()
        os.close(self._reading)
        os.close(self._writing)


class Keeper:
    """Looks after the drivers that are added, until they are removed."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finalizer or a signal handler may come here too
        self._drivers: set[Driver] = set()
        self._told: set[Driver] = set()  # those that want to be looked at
        self._given_up: set[Driver] = set()  # whose clients were dropped without close()
        self._thread: threading.Thread | None = None
        self._watch: Watch | None = None  # what that thread waits for

    def add(self, driver: Driver) -> None:
        """Look after `driver` from now on, unless it is closed."""
        with self._lock:
            if driver.is_closed:
                return  # by another thread, which has called `remove` already, or will
            self._drivers.add(driver)
            if self._thread is None:
                self._watch = Watch()
                # A daemon: the process does not wait for it.
                self._thread = threading.Thread(target=self._run, args=[self._watch], name="fabric.sync", daemon=True)
                self._thread.start()
            self.wake(driver)

    def remove(self, driver: Driver) -> threading.Thread | None:
        """Look after `driver` no more; the thread ends with the last one, and is then returned, to be joined."""
        with self._lock:
            self._drivers.discard(driver)
            self._told.discard(driver)
            self._given_up.discard(driver)
            self.release(driver)
            ending = None if self._drivers else self._stop()
        return None if ending is threading.current_thread() else ending

    def release(self, driver: Driver) -> None:
        """Wait for nothing of `driver`, until it wants to be looked at: a thread does, or it is closed."""
        with self._lock:
            if self._watch is not None:
                self._watch.forget(driver)

    def give_up(self, driver: Driver) -> None:
        """Close `driver` and what it drives, soon and in the thread: its client is not in use any more."""
        with self._lock:
            self._given_up.add(driver)
            self.wake(driver)

    def wake(self, driver: Driver) -> None:
        """Have the thread look at `driver`."""
        with self._lock:
            if driver in self._drivers and self._watch is not None:
                if not self._told:
                    self._watch.wake()
                self._told.add(driver)

    def _stop(self) -> threading.Thread | None:
        ending, self._thread = self._thread, None
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.wake()
        return ending

    def end(self) -> None:
        """The process ends: let go of every connection that no thread waits on."""
        with self._lock:
            ending = self._stop()
            drivers = list(self._drivers)
        if ending is not None:
            ending.join()
        for driver in drivers:
            with contextlib.suppress(Exception):
                driver.abandon()

    def fork(self) -> None:
        """This is a child: it has none of the connections, nor the thread."""
        drivers, watch = list(self._drivers), self._watch
        self.__init__()  # type: ignore[misc]
        if watch is not None:
            watch.close()
        for driver in drivers:
            driver.fork()

    def _run(self, watch: Watch) -> None:
        try:
            while self._watch is watch:
                try:
                    self._look(watch)
                except Exception as error:  # noqa: BLE001  (logged)
                    log_event(logger, logging.ERROR, "looking after blocking clients failed", exc_info=error)
                    time.sleep(MISTAKE_NS * 1e-9)
        finally:
            with self._lock:
                watch.close()

    def _look(self, watch: Watch) -> None:
        """Wait until there is something to do, and do it."""
        ready, due = watch.wait()
        with self._lock:
            if self._watch is not watch:
                return  # another thread has begun, and is told
            told, self._told = self._told, set()
            given_up = self._given_up & self._drivers
        for driver in given_up:
            self._drop(driver)
        for driver in ready | due | told:
            self._look_at(driver, driver in ready, watch)

    def _drop(self, driver: Driver) -> None:
        try:
            driver.abandon()
        except Exception as error:  # noqa: BLE001  (logged)
            log_event(logger, logging.ERROR, "closing a blocking client failed", exc_info=error)
        self.remove(driver)

    def _look_at(self, driver: Driver, is_ready: bool, watch: Watch) -> None:
        """Do what there is to do for `driver`, and learn what to wait for."""
        try:
            is_watched, moment = self._ask(driver, watch)
            if is_watched and (is_ready or (moment is not None and moment <= time.monotonic_ns())):
                if driver.keep():
                    # What the application gave to be called may wait; the other clients must not.
                    threading.Thread(target=driver.serve, name="fabric.sync callback", daemon=True).start()
                self._ask(driver, watch)
        except Exception as error:  # noqa: BLE001  (logged)
            log_event(logger, logging.ERROR, "looking after a blocking client failed", exc_info=error)
            with self._lock:
                watch.put(driver, False, time.monotonic_ns() + MISTAKE_NS)

    def _ask(self, driver: Driver, watch: Watch) -> tuple[bool, int | None]:
        """Wait for what `driver` says is to be waited for, and return it: its descriptor? A moment?"""
        with self._lock:  # so that a thread that begins to wait on it finds that done, and undoes it
            if self._watch is not watch or driver not in self._drivers:
                return False, None
            is_watched, moment = driver.attention()
            watch.put(driver, is_watched, moment)
            return is_watched, moment


keeper = Keeper()
"""The one of this process."""

atexit.register(keeper.end)
os.register_at_fork(after_in_child=keeper.fork)
