"""Messages between the parent and a worker: JSON values, each after its length, over a pair of sockets.

No other process has an end of it. When one process has ended, in whatever way, the other reads the end of the stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any, Self

import msgspec

__all__ = ["Channel", "receive_first", "send_last"]

LENGTH = 4  # bytes
LIMIT = 64 << 20  # bytes of a message; the largest are reports with five significant figures


class Channel:
    """One end, in an event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, sock: socket.socket) -> Self:
        """Take over a socket."""
        sock.setblocking(False)
        return cls(*await asyncio.open_unix_connection(sock=sock))

    def send(self, **message: Any) -> None:
        """Send a message; without effect if the other side has ended."""
        if not self._writer.is_closing():
            self._writer.write(_framed(msgspec.json.encode(message)))

    def send_bytes(self, message: bytes) -> None:
        """Send the message that the worker reads by `receive_first`."""
        self._writer.write(_framed(message))

    async def receive(self) -> dict[str, Any] | None:
        """The next message of the other side; None when it has ended."""
        try:
            size = int.from_bytes(await self._reader.readexactly(LENGTH), "big")
            if size > LIMIT:
                return None
            message: dict[str, Any] = msgspec.json.decode(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, OSError):
            return None
        return message

    async def close(self) -> None:
        """Deliver what was sent, and close."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def receive_first(sock: socket.socket) -> bytes:
    """The first message that comes, before there is an event loop.

    Raises:
        EOFError: the other side has ended.
    """
    return _read(sock, int.from_bytes(_read(sock, LENGTH), "big"))


def send_last(sock: socket.socket, **message: Any) -> None:
    """Send a message without an event loop."""
    with contextlib.suppress(OSError):
        sock.sendall(_framed(msgspec.json.encode(message)))


def _read(sock: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = sock.recv(size - len(parts))
        if not part:
            raise EOFError("the other side has ended")
        parts += part
    return bytes(parts)


def _framed(message: bytes) -> bytes:
    return len(message).to_bytes(LENGTH, "big") + message
