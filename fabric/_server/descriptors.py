"""Tells that file descriptors run short: before clients are turned away, and while they are.

Owns the moment at which it was told, and the timer. The process has them all together, so other parts of a program may
use them up as well.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import sys
import time
from collections.abc import Callable

__all__ = ["DescriptorWatch"]

SPARE = 8  # file descriptors; with so few left, clients are about to be turned away
INTERVAL = 1.0  # seconds between two looks whether there are any again


class DescriptorWatch:
    """Watches the file descriptors of this process, by the numbers that new connections get.

    Args:
        logger: where it tells.
        connections: how many there are, those in their opening handshake too.
        turns_away: does what accepts connections turn them away in silence where there is no descriptor, as uvloop
            does? Then each second without one is told.
    """

    def __init__(self, logger: logging.Logger, connections: Callable[[], int], turns_away: Callable[[], bool]) -> None:
        self._logger = logger
        self._connections = connections
        self._turns_away = turns_away
        self._is_short = False  # and has said so
        self._plenty = 0  # a number below this one means that there are many more
        self._none_since: float | None = None  # time.monotonic()
        self._timer: asyncio.TimerHandle | None = None

    def note(self, descriptor: int) -> None:
        """A connection has this descriptor: the lowest one that was free."""
        if descriptor < self._plenty and not self._is_short:
            return
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._plenty = sys.maxsize if limit == resource.RLIM_INFINITY else limit - 4 * SPARE
        if descriptor < self._plenty:
            self._is_short = False
        elif descriptor >= limit - SPARE and not self._is_short:
            self._is_short = True
            text = "file descriptors run short: %d connections, and hardly one of %d left; then clients are turned away"
            self._logger.error(text, self._connections(), limit)
            if self._turns_away() and self._timer is None:
                self._look_later()

    def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._look)

    def _look(self) -> None:
        self._timer = None
        try:
            descriptor = os.open(os.devnull, os.O_RDONLY)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            now = time.monotonic()
            if self._none_since is None:
                self._none_since = now - INTERVAL
            self._logger.error(
                "for %.0f s no file descriptor was free: clients are turned away", now - self._none_since
            )
        else:
            os.close(descriptor)
            self.note(descriptor)
            if self._none_since is not None:
                self._none_since = None
                self._logger.info("there are file descriptors again")
        if self._is_short:
            self._look_later()
