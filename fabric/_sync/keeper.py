"""The thread that looks after blocking clients while no thread of the application waits on them.

Owns that thread: a process has one as long as it has such clients. It has their pings answered, their pongs seen and
the end of a connection noticed, by stepping their loops when a descriptor or a timer asks for it. A client on which a
thread waits, or has waited a moment ago, is left alone.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import select
import threading
from typing import TYPE_CHECKING

from fabric._connection.events import log_event

if TYPE_CHECKING:
    from fabric_ext.driver import Driver

__all__ = ["Keeper", "keeper"]

logger = logging.getLogger("fabric.client")

MISTAKE = 0.1  # seconds after which what could not be done is tried again


class Keeper:
    """Looks after the drivers that are added, until they are removed."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finalizer or a signal handler may come here too
        self._drivers: set[Driver] = set()
        self._given_up: set[Driver] = set()  # whose clients were dropped without close()
        self._thread: threading.Thread | None = None
        self._pipe: tuple[int, int] | None = None  # what is written to it wakes the thread

    def add(self, driver: Driver) -> None:
        """Look after `driver` from now on, unless it is closed."""
        with self._lock:
            if driver.is_closed:
                return  # by another thread, which has called `remove` already, or will
            self._drivers.add(driver)
            if self._thread is None:
                self._pipe = os.pipe()
                os.set_blocking(self._pipe[1], False)
                # A daemon: the process does not wait for it.
                self._thread = threading.Thread(target=self._run, args=self._pipe, name="fabric.sync", daemon=True)
                self._thread.start()
        self.wake()

    def remove(self, driver: Driver) -> threading.Thread | None:
        """Look after `driver` no more; the thread ends with the last one, and is then returned, to be joined."""
        with self._lock:
            self._drivers.discard(driver)
            self._given_up.discard(driver)
            ending = None if self._drivers else self._stop()
        self.wake()
        return None if ending is threading.current_thread() else ending

    def give_up(self, driver: Driver) -> None:
        """Close `driver` and what it drives, soon and in the thread: its client is not in use any more."""
        with self._lock:
            self._given_up.add(driver)
        self.wake()

    def wake(self) -> None:
        """Have the thread look at all of them again."""
        with self._lock:
            if self._pipe is not None:
                with contextlib.suppress(OSError):  # full: it is about to look
                    os.write(self._pipe[1], b"!")

    def _stop(self) -> threading.Thread | None:
        ending, self._thread = self._thread, None
        self.wake()
        self._pipe = None
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
                driver._abandon()

    def fork(self) -> None:
        """This is a child: it has none of the connections, nor the thread."""
        drivers, pipe = list(self._drivers), self._pipe
        self.__init__()  # type: ignore[misc]
        for descriptor in pipe or ():
            os.close(descriptor)
        for driver in drivers:
            driver._fork()

    def _run(self, reading: int, writing: int) -> None:
        try:
            while self._thread is threading.current_thread():
                try:
                    self._look(reading)
                except Exception as error:  # noqa: BLE001  (logged)
                    log_event(logger, logging.ERROR, "looking after blocking clients failed", exc_info=error)
                    select.select([reading], [], [], MISTAKE)
        finally:
            with self._lock:
                os.close(reading)
                os.close(writing)

    def _look(self, reading: int) -> None:
        """Wait until there is something to do, and do it."""
        poll = select.poll()
        poll.register(reading, select.POLLIN)
        wait: float | None = None
        watched: dict[int, Driver] = {}
        for driver in list(self._drivers):
            watches, seconds = driver._attention()
            if watches:
                watched[driver.descriptor] = driver
                poll.register(driver.descriptor, select.POLLIN)
            if seconds is not None:
                wait = seconds if wait is None else min(wait, seconds)
        ready = dict(poll.poll(None if wait is None else wait * 1000))
        if reading in ready:
            os.read(reading, 4096)
        for driver in self._given_up & self._drivers:
            self._given_up.discard(driver)
            driver._abandon()
            self.remove(driver)
        for descriptor, driver in watched.items():
            if (descriptor in ready or driver._is_late()) and driver._keep():
                # What the application gave to be called may wait; the other clients must not.
                threading.Thread(target=driver._serve, name="fabric.sync callback", daemon=True).start()


keeper = Keeper()
"""The one of this process."""

atexit.register(keeper.end)
os.register_at_fork(after_in_child=keeper.fork)
