"""A connection in memory: two transports, each of which gives to its protocol what was written to the other.

Owns the bytes on their way. They arrive in a later turn of the event loop, as from a socket, and the pipe holds only so
many: then the writer is told to pause. Closing, half-closing and aborting do what they do to a TCP connection.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from typing import Any

__all__ = ["PipeTransport", "connected_pair"]

CAPACITY = 64 * 1024  # bytes that have been written at one end and not read at the other; more stay with the writer

_ports = itertools.count(50_000)


class _NoSocket:
    """Stands where a transport has a socket: any system call with its descriptor fails, and is not needed."""

    family = socket.AF_UNIX  # which has no statistics of TCP to be asked for

    def fileno(self) -> int:
        return -1


class PipeTransport(asyncio.Transport):
    """One end. `connected_pair` makes both.

    Args:
        loop: the event loop of both ends.
        own, peer: the addresses that the ends are said to have.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, own: tuple[str, int], peer: tuple[str, int]) -> None:
        super().__init__({"sockname": own, "peername": peer, "socket": _NoSocket()})
        self._loop = loop
        self._protocol: Any = None
        self._other: PipeTransport = self
        self._arriving = bytearray()  # written at the other end, and not given to the protocol yet
        self._held = bytearray()  # written here, and no room at the other end
        self._reading = True
        self._scheduled = False  # `_deliver` is on its way
        self._writing_paused = False
        self._closing = False
        self._ended = False  # no more will be written: half-closed
        self._lost = False
        self._aborted = False

    def open(self, protocol: Any) -> None:
        """Begin: tell `protocol` of its transport."""
        self._protocol = protocol
        protocol.connection_made(self)

    # -- reading

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def get_protocol(self) -> Any:
        return self._protocol

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._schedule()

    def _schedule(self) -> None:
        """Deliver in the next turn, if there is anything to be delivered."""
        news = self._arriving or self._other._lost or (self._other._ended and not self._other._held)
        if news and self.is_reading() and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        if not self.is_reading():
            return
        if self._arriving:
            self._give()
            self._other._move()
            self._schedule()
        elif self._other._aborted:
            self._lose(ConnectionResetError("Connection reset by peer"))
        elif not self._protocol.eof_received():
            self.close()
        else:
            self._reading = False

    def _give(self) -> None:
        """Give the protocol what it takes at once."""
        if isinstance(self._protocol, asyncio.BufferedProtocol):
            buffer = memoryview(self._protocol.get_buffer(-1))
            count = min(len(buffer), len(self._arriving))
            buffer[:count] = self._arriving[:count]
            del self._arriving[:count]
            self._protocol.buffer_updated(count)
        else:
            data = bytes(self._arriving)
            self._arriving.clear()
            self._protocol.data_received(data)

    # -- writing

    def get_write_buffer_size(self) -> int:
        return len(self._held)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Without effect: the protocol is told to pause with the first byte that the pipe does not take."""

    def write(self, data: Any) -> None:
        if self._ended:
            raise RuntimeError("Cannot call write() after write_eof()")
        if not self._closing:
            self._held += data
            self._move()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._ended = True
        self._move()

    def _move(self) -> None:
        """Let the pipe take what it has room for, and tell the protocol how that stands."""
        if self._lost:
            return
        other = self._other
        if other._lost:
            if other._aborted and self._held:
                self._lose(ConnectionResetError("Connection reset by peer"))
                return
            self._held.clear()
        else:
            room = max(CAPACITY - len(other._arriving), 0)
            other._arriving += self._held[:room]
            del self._held[:room]
        other._schedule()
        if self._held and not self._writing_paused:
            self._writing_paused = True
            self._protocol.pause_writing()
        elif not self._held and self._writing_paused:
            self._writing_paused = False
            self._protocol.resume_writing()
        if self._closing and not self._held:
            self._lose(None)

    # -- its end

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._move()

    def abort(self) -> None:
        if not self._lost:
            self._aborted = True
            self._held.clear()
            self._other._arriving.clear()  # a reset overtakes what is on its way
            self._lose(None)

    def _lose(self, error: Exception | None) -> None:
        if not self._lost:
            self._closing = self._lost = True
            self._arriving.clear()
            self._held.clear()
            self._loop.call_soon(self._report, error)
            self._other._schedule()
            self._other._move()

    def _report(self, error: Exception | None) -> None:
        self._protocol.connection_lost(error)


def connected_pair(loop: asyncio.AbstractEventLoop) -> tuple[PipeTransport, PipeTransport]:
    """The two ends of a new connection, a client's and a server's."""
    client, server = ("127.0.0.1", next(_ports)), ("127.0.0.1", 80)
    ours, theirs = PipeTransport(loop, client, server), PipeTransport(loop, server, client)
    ours._other, theirs._other = theirs, ours
    return ours, theirs
