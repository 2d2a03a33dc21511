"""What happens to connections, as lines of the log that programs read too.

Owns how such a line is written, and the names of what it carries in `extra`: `connection_id`, `address`, `code`,
`status`, `reason`, and of a frame `direction`, `opcode`, `size`, `final`. Nothing of them holds a payload, a header's
value or a query. Decides nothing.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import uuid
from typing import Any, Protocol

__all__ = ["FrameLog", "FrameReader", "log_event"]

_OPCODES = {0: "CONTINUATION", 1: "TEXT", 2: "BINARY", 8: "CLOSE", 9: "PING", 10: "PONG"}


def log_event(
    logger: logging.Logger | logging.LoggerAdapter[Any],
    level: int,
    text: str,
    *args: object,
    exc_info: BaseException | None = None,
    **extra: Any,
) -> None:
    """Write one line with `extra`. A handler or filter of the log that raises changes nothing for the connection."""
    if logger.isEnabledFor(level):
        with contextlib.suppress(Exception):
            logger.log(level, text, *args, exc_info=exc_info, extra=extra, stacklevel=2)


class FrameReader:
    """Finds the headers of frames (RFC 6455 §5.2) in bytes that come in any cut, and skips what is between them."""

    __slots__ = ("_header", "_left")

    def __init__(self) -> None:
        self._header = bytearray()  # the beginning of one, at most 13 bytes
        self._left = 0  # bytes of payload that are still to come

    def feed(self, data: bytes) -> list[tuple[int, int]]:
        """Read on. Of each frame that begins: its first byte (FIN, RSV, opcode), and the bytes of its payload."""
        found, at = [], 0
        while at < len(data):
            if self._left:
                skipped = min(self._left, len(data) - at)
                self._left -= skipped
                at += skipped
                continue
            self._header.append(data[at])
            at += 1
            if len(self._header) < 2:
                continue
            short, masked = self._header[1] & 0x7F, self._header[1] >> 7
            extended = {126: 2, 127: 8}.get(short, 0)
            if len(self._header) == 2 + extended + 4 * masked:
                size = int.from_bytes(self._header[2 : 2 + extended], "big") if extended else short
                found.append((self._header[0], size))
                self._header.clear()
                self._left = size
        return found


class Identified(Protocol):
    """A connection."""

    @property
    def id(self) -> uuid.UUID: ...


@functools.cache
def _frames_logger(logger: logging.Logger) -> logging.Logger:
    return logging.getLogger(f"{logger.name}.frames")


class FrameLog:
    """A line for each frame of one connection, at DEBUG, in the logger `frames` below the connection's.

    Args:
        logger: of the connection: `fabric.server`, say.
        connection_id: names the connection in each line.
    """

    __slots__ = ("_connection_id", "_logger", "_received", "_sent")

    def __init__(self, logger: logging.Logger, connection_id: str) -> None:
        self._logger = logger
        self._connection_id = connection_id
        self._received = FrameReader()
        self._sent = FrameReader()

    @classmethod
    def of(cls, logger: logging.Logger, connection: Identified) -> FrameLog | None:
        """One for a session of `connection` that begins now; None unless the level is DEBUG by now."""
        frames = _frames_logger(logger)
        return cls(frames, str(connection.id)) if frames.isEnabledFor(logging.DEBUG) else None

    def received(self, data: bytes) -> None:
        """These bytes were read."""
        self._write("received", self._received.feed(data))

    def sent(self, data: bytes) -> None:
        """These bytes were written."""
        self._write("sent", self._sent.feed(data))

    def _write(self, direction: str, frames: list[tuple[int, int]]) -> None:
        for first, size in frames:
            opcode = _OPCODES.get(first & 0x0F, f"opcode {first & 0x0F}")
            final, compressed = bool(first & 0x80), bool(first & 0x40)
            log_event(
                self._logger,
                logging.DEBUG,
                "connection %s: %s %s, %d bytes%s%s",
                self._connection_id,
                direction,
                opcode,
                size,
                ", compressed" if compressed else "",
                "" if final else ", more follows",
                connection_id=self._connection_id,
                direction=direction,
                opcode=opcode,
                size=size,
                final=final,
            )
