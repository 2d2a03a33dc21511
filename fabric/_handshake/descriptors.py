"""Tells that file descriptors run short: before clients are turned away or have to wait, and while they do.

Owns the moments at which it was told, and the timers: one line when it begins, then at most one a second. The process
has its descriptors all together, so other parts of a program may use them up as well.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import sys
from collections.abc import Callable

from fabric._connection.events import log_event

__all__ = ["EARLY", "SHORTAGE", "DescriptorWatch"]

SPARE = 8  # file descriptors; with so few left, clients are about to be turned away
INTERVAL = 1.0  # seconds between two lines, and between two looks whether there are any again
CALM = 60.0  # seconds without a shortage after which a shortage is told again
EARLY = 0.005  # seconds by which a loop may call a timer too early; uvloop counts in whole milliseconds

# What the system says when it is this process that has no descriptor or memory for another socket.
SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class DescriptorWatch:
    """Watches the file descriptors of this process, by the numbers that new connections get.

    Args:
        logger: where it tells.
        connections: how many there are, those in their opening handshake too.
        turns_away: does what accepts connections turn them away in silence where there is no descriptor, as uvloop
            does? Then each second without one is told. Others tell by `ran_out` and `accepted`.
    """

    def __init__(self, logger: logging.Logger, connections: Callable[[], int], turns_away: Callable[[], bool]) -> None:
        self._logger = logger
        self._connections = connections
        self._turns_away = turns_away
        self._is_short = False
        self._plenty = 0  # a number below this one means that there are many more
        # Times are the event loop's.
        self._told_at = float("-inf")
        self._short_at = float("-inf")  # when a descriptor was last one of the last
        self._none_since: float | None = None  # clients have been turned away, or have to wait
        self._timer: asyncio.TimerHandle | None = None  # looks again
        self._end: asyncio.TimerHandle | None = None  # says that connections are accepted again

    def note(self, descriptor: int) -> None:
        """A connection has this descriptor: the lowest one that was free."""
        if descriptor < self._plenty and not self._is_short:
            return
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._plenty = sys.maxsize if limit == resource.RLIM_INFINITY else limit - 4 * SPARE
        if descriptor < self._plenty:
            self._is_short = False
        elif descriptor >= limit - SPARE:
            now = asyncio.get_running_loop().time()
            is_news = now - self._short_at >= CALM
            self._short_at, self._is_short = now, True
            if is_news:
                text = "file descriptors run short: %d connections, hardly one of %d left; then clients are turned away"
                self._tell(logging.ERROR, text, self._connections(), limit)
            if self._turns_away() and self._timer is None:
                self._look_later()

    def ran_out(self, error: OSError) -> None:
        """No connection can be accepted, for want of descriptors or memory; new ones wait."""
        now = asyncio.get_running_loop().time()
        if self._end is not None:
            self._end.cancel()
            self._end = None
        if self._none_since is None:
            self._none_since = now
            text = "no connection can be accepted: %s; those who come have to wait"
            self._tell(logging.ERROR, text, error.strerror)
        else:
            text = "for %.0f s connections have had to wait: %s"
            self._tell(logging.ERROR, text, now - self._none_since, error.strerror)

    def accepted(self) -> None:
        """A connection was accepted: a shortage is over, unless it comes back within a second."""
        if self._none_since is not None and self._end is None:
            self._end = asyncio.get_running_loop().call_later(INTERVAL, self._tell_end)

    def stop(self) -> None:
        """Watch no more."""
        for timer in (self._timer, self._end):
            if timer is not None:
                timer.cancel()
        self._timer = self._end = None

    def _tell(self, level: int, text: str, *args: object) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._told_at >= INTERVAL - EARLY:
            self._told_at = now
            log_event(self._logger, level, text, *args)

    def _tell_end(self) -> None:
        self._end = self._none_since = None
        self._tell(logging.INFO, "connections are accepted again")

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._look)

    def _look(self) -> None:
        self._timer = None
        try:
            descriptor = os.open(os.devnull, os.O_RDONLY)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            now = asyncio.get_running_loop().time()
            if self._none_since is None:
                self._none_since = now - INTERVAL
            text = "for %.0f s no file descriptor was free: clients are turned away"
            self._tell(logging.ERROR, text, now - self._none_since)
        else:
            os.close(descriptor)
            self.note(descriptor)
            if self._none_since is not None:
                self._none_since = None
                self._tell(logging.INFO, "there are file descriptors again")
        if self._is_short and self._timer is None:
            self._look_later()
