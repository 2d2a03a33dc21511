"""A transport for tests without a network: its kernel is one end of a socket pair, or refuses everything."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from fabric._handshake.upgrade import finish_server

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
"""The key of the example in RFC 6455 §1.3."""


class _Socket:
    """What picows asks of a socket; options of TCP are nothing to a pair."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        return self._number

    def setsockopt(self, *_: Any) -> None:
        pass

    def getsockopt(self, *_: Any) -> int:
        return 0


class FakeTransport:
    """As much of asyncio's transport as a connection uses; what is written through it ends up in `written`.

    Args:
        kernel: the socket for direct writes; None refuses them all.
    """

    def __init__(self, kernel: socket.socket | None = None) -> None:
        self.protocol: Any = None
        self.written: list[Any] = []
        self.write_error: Exception | None = None
        self.reading = True
        self.closing = self.aborted = self.eof = False
        # A number that is no descriptor: every send() fails.
        self._socket = _Socket(kernel.fileno() if kernel is not None else 1_000_000)

    def connect(self, connection: Any, *, max_size: int = 1 << 30) -> FakeTransport:
        """Let `connection` open on this transport; forgets the response of the handshake."""
        finish_server(self, connection._new_link(), KEY, [], b"", max_size)  # type: ignore[arg-type]
        self.written.clear()
        return self

    def feed(self, data: bytes) -> None:
        """`data` arrives, in one read where it fits."""
        while data:
            buffer = self.protocol.get_buffer(-1)
            size = min(len(buffer), len(data))
            buffer[:size] = data[:size]
            self.protocol.buffer_updated(size)
            data = data[size:]

    def lose(self, error: Exception | None = None) -> None:
        """The transport is gone."""
        self.closing = True
        self.protocol.connection_lost(error)

    @property
    def output(self) -> bytes:
        """All that was written through the transport."""
        return b"".join(bytes(piece) for piece in self.written)

    # -- for the connection

    def get_extra_info(self, name: str) -> Any:
        return self._socket if name == "socket" else None

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def write(self, data: Any) -> None:
        if self.write_error is not None:
            raise self.write_error
        self.written.append(data)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof = True


def in_loop(function: Any) -> asyncio.Future[Any]:
    """Call `function` in the next turn of the loop, in no task, as a transport calls its protocol."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def call() -> None:
        try:
            done.set_result(function())
        except Exception as error:  # noqa: BLE001 (it is passed on)
            done.set_exception(error)

    loop.call_soon(call)
    return done
