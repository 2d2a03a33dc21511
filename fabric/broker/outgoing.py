"""What a broker is to be sent: gathered over a turn of the event loop, kept while the broker is away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["Outgoing"]


class Outgoing:
    """Commands that leave together at the end of the turn, or once the connection is open.

    Attributes:
        size: bytes that wait.
    """

    def __init__(self) -> None:
        self._commands: list[bytes] = []
        self._write: Callable[[bytes], object] | None = None  # None while there is no connection
        self._is_scheduled = False
        self.size = 0

    @property
    def is_open(self) -> bool:
        """Is there a connection?"""
        return self._write is not None

    def open(self, write: Callable[[bytes], object]) -> None:
        """There is a connection, written to by `write`: what waits leaves now."""
        self._write = write
        self.flush()

    def close(self) -> None:
        """There is none any more: what comes waits."""
        self._write = None

    def add(self, command: bytes) -> None:
        """Send a command."""
        self._commands.append(command)
        self.size += len(command)
        if self._write is not None and not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self._is_scheduled = False
        self.flush()

    def flush(self) -> None:
        """Send now what is gathered, if there is a connection."""
        if self._write is not None and self._commands:
            data = b"".join(self._commands)
            self._commands.clear()
            self.size = 0
            self._write(data)
