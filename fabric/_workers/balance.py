"""Spreads connections over workers: the parent accepts each, and hands it over to the worker that has the fewest."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Iterable

from fabric._connection.events import log_event
from fabric._handshake.descriptors import SHORTAGE
from fabric._server.handover import Handover

__all__ = ["Balancer"]

AT_ONCE = 64  # connections accepted in a row
MAX_UNRECEIVED = 64  # connections on their way to one worker; a busy one gets no more for now
RETRY = 1.0  # seconds until it is tried again whether descriptors have become free

logger = logging.getLogger("fabric.workers")


class Balancer:
    """Accepts connections while a worker can take them; further ones wait in the listen queue of the kernel."""

    def __init__(self, listening: Iterable[socket.socket]) -> None:
        self._loop = asyncio.get_running_loop()
        self._listening = list(listening)
        self._workers: dict[Handover, float] = {}  # until when (loop.time()) each is to get none
        # Accepted connections that no worker can take for now: the worker that they were sent to has ended before it
        # received them. While there are any, no further connection is accepted, so these and those on their way are
        # never more than MAX_UNRECEIVED for each process.
        self._unplaced: deque[socket.socket] = deque()
        self._is_accepting = False
        self._later: asyncio.TimerHandle | None = None

    def add(self, handover: Handover) -> None:
        """A worker is ready."""
        self._workers[handover] = 0.0
        self._loop.add_reader(handover.fileno(), self._hear, handover)
        self._resume()

    def retire(self, handover: Handover) -> None:
        """Give a worker no more connections; it still receives those on their way."""
        if self._workers.pop(handover, None) is not None:
            handover.finish()

    def remove(self, handover: Handover) -> None:
        """A worker has ended, or takes no more: connections that it has not received go to others."""
        self._workers.pop(handover, None)
        if handover.fileno() >= 0:
            self._loop.remove_reader(handover.fileno())
            self._place(handover.close())

    def close(self) -> None:
        """Accept no more, and close the connections that no worker has received."""
        self._pause()
        for sock in self._listening:
            sock.close()
        self._listening.clear()
        if self._later is not None:
            self._later.cancel()
        self._place([])

    def _pause(self) -> None:
        if self._is_accepting:
            self._is_accepting = False
            for sock in self._listening:
                self._loop.remove_reader(sock.fileno())

    def _resume(self) -> None:
        """Accept again: there is a new worker, or a pause is over."""
        if self._later is not None:
            self._later.cancel()
            self._later = None
        self._go_on()

    def _go_on(self) -> None:
        """Place the connections that wait, and accept more, unless there is a pause."""
        self._place([])
        if self._later is None and not self._is_accepting and self._choose() is not None:
            self._is_accepting = True
            for sock in self._listening:
                self._loop.add_reader(sock.fileno(), self._accept, sock)

    def _go_on_later(self) -> None:
        self._pause()
        if self._later is None and self._listening:
            self._later = self._loop.call_later(RETRY, self._resume)

    def _choose(self) -> Handover | None:
        """The worker with the fewest connections, of those that take any."""
        now = self._loop.time()
        able = [each for each, since in self._workers.items() if since <= now and each.unreceived < MAX_UNRECEIVED]
        return min(able, key=lambda each: each.count, default=None)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(AT_ONCE):
            if self._choose() is None:
                self._pause()  # until a worker reports that it has received a connection
                return
            try:
                connection, _peer = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno not in SHORTAGE:
                    raise
                log_event(
                    logger,
                    logging.ERROR,
                    "no connection can be accepted: %s; those who come have to wait",
                    error.strerror,
                )
                self._go_on_later()
                return
            connection.setblocking(False)
            self._place([connection])

    def _place(self, connections: Iterable[socket.socket]) -> None:
        """Hand connections to workers, after those that wait already. If no worker can take them, they wait too."""
        self._unplaced.extend(connections)
        while self._unplaced and self._listening and (chosen := self._choose()) is not None:
            if chosen.hand(self._unplaced[0]):
                self._unplaced.popleft()
            else:
                self._workers[chosen] = self._loop.time() + RETRY  # its process has ended; `remove` follows
        if self._unplaced and self._listening:
            self._go_on_later()
        while self._unplaced and not self._listening:  # closed
            self._unplaced.popleft().close()

    def _hear(self, handover: Handover) -> None:
        try:
            refused = handover.read()
        except EOFError:
            self.remove(handover)
            return
        if refused and handover in self._workers:
            self._workers[handover] = self._loop.time() + RETRY  # it has no descriptors left
        self._place(refused)
        self._go_on()
