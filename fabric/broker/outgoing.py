"""Commands for a broker: gathered over a turn of the event loop, and kept while the broker is away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["Outgoing"]


class Outgoing:
    """Commands that leave together at the end of the turn, or once the connection is open.

    Args:
        limit: bytes that may wait, here and in the transport together.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._commands: list[bytes] = []
        self._size = 0
        self._write: Callable[[bytes], object] | None = None  # None while there is no connection
        self._unwritten: Callable[[], int] = _nothing
        self._held = 0  # bytes that the transport held when it was last asked
        self._is_scheduled = False

    @property
    def is_open(self) -> bool:
        """Is there a connection?"""
        return self._write is not None

    def open(self, write: Callable[[bytes], object], unwritten: Callable[[], int]) -> None:
        """There is a connection, which `write` writes to and which holds `unwritten()` bytes: send what waits."""
        self._write, self._unwritten = write, unwritten
        self._is_scheduled = False  # the event loop on which it was scheduled may be closed
        self.flush()

    def close(self) -> None:
        """The connection is gone: what is added waits."""
        self._write, self._unwritten = None, _nothing

    def has_room(self, size: int) -> bool:
        """Is there room for so many bytes more? The transport is asked only if the limit seems to be reached."""
        if self._size + self._held + size > self._limit:
            self._held = self._unwritten()
        return self._size + self._held + size <= self._limit

    @property
    def is_overfull(self) -> bool:
        """Does more wait than the limit, as commands were added without `has_room`? Then the broker does not read."""
        return not self.has_room(-self._limit)

    def add(self, command: bytes) -> None:
        """Send a command."""
        self._commands.append(command)
        self._size += len(command)
        if self._write is not None and not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self._is_scheduled = False
        self.flush()

    def flush(self) -> None:
        """Send what is gathered now, if there is a connection."""
        if self._write is not None and self._commands:
            data = b"".join(self._commands)
            self._commands.clear()
            self._size = 0
            self._write(data)
            self._held = self._unwritten()


def _nothing() -> int:
    return 0
