"""Two transports joined by a pipe that the test holds in its hand: what arrives when, what gets stuck, what breaks.

Nothing moves by itself: `deliver` moves bytes, `stuck` holds the writer up, `reset` breaks both ends.
"""

from __future__ import annotations

import asyncio
from typing import Any

from support.fake_transport import FakeTransport


class PipeTransport(FakeTransport):
    """One end."""

    def __init__(self) -> None:
        super().__init__()
        self.other: PipeTransport = None  # type: ignore[assignment]
        self.arriving = bytearray()  # written by the other end, and not delivered yet
        self.held = bytearray()  # written while the pipe was stuck
        self.stuck = False
        self.lost = False
        self._paused_writer = False
        self._loop = asyncio.get_running_loop()

    # -- for the connection

    def get_write_buffer_size(self) -> int:
        return len(self.held)

    def write(self, data: Any) -> None:
        if self.eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self.lost or self.closing or not len(data):
            return
        if self.stuck or self.held:
            self.held += data
            if not self._paused_writer:
                self._paused_writer = True
                self.protocol.pause_writing()
        else:
            self.other.arriving += data

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self._end_when_written()

    def abort(self) -> None:
        self.held.clear()
        if not self.lost:
            self.closing = self.aborted = True
            self._lose(None)
            self.other.arriving.clear()  # a reset overtakes what is on its way

    def write_eof(self) -> None:
        self.eof = True

    # -- for the test

    @property
    def has_news(self) -> bool:
        """Would `deliver` do anything?"""
        ended = self.other.lost or (self.other.eof and not self.other.held)
        return not self.lost and self.reading and bool(self.arriving or ended)

    def deliver(self, most: int) -> bool:
        """Let up to `most` bytes arrive here, or the end; was there anything?"""
        if self.lost or not self.reading:
            return False
        if self.arriving:
            data = bytes(self.arriving[:most])
            del self.arriving[:most]
            self._give(data)
            return True
        if self.other.aborted:
            self.closing = True
            self._lose(ConnectionResetError())
            return True
        if self.other.lost or (self.other.eof and not self.other.held):
            self.protocol.eof_received()
            self.close()
            return True
        return False

    def _give(self, data: bytes) -> None:
        while data and not self.lost:
            buffer = self.protocol.get_buffer(-1)
            size = min(len(buffer), len(data))
            buffer[:size] = data[:size]
            self.protocol.buffer_updated(size)
            data = data[size:]
            if data and not self.reading:
                self.arriving[:0] = data
                return

    def unstick(self) -> None:
        """The pipe takes what was held, and more."""
        self.stuck = False
        if self.lost:
            return
        self.other.arriving += self.held
        self.held.clear()
        if self._paused_writer:
            self._paused_writer = False
            self.protocol.resume_writing()
        if self.closing:
            self._end_when_written()

    def _end_when_written(self) -> None:
        if not self.held:
            self._lose(None)

    def _lose(self, error: Exception | None) -> None:
        if not self.lost:
            self.lost = True
            self._loop.call_soon(self._report, error)

    def _report(self, error: Exception | None) -> None:
        self.protocol.connection_lost(error)


def join(server: Any, client: Any) -> tuple[PipeTransport, PipeTransport]:
    """Connect two connections by a pipe; their transports."""
    ours, theirs = PipeTransport(), PipeTransport()
    ours.other, theirs.other = theirs, ours
    server._open_session(ours, None)
    client._open_session(theirs, None)
    return ours, theirs
