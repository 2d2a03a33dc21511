"""A transport for tests without a network: its kernel is one end of a socket pair, or refuses everything."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from fabric_ext.session import SessionProtocol


class _Socket:
    """What a connection asks of a socket."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        return self._number


class FakeTransport:
    """As much of asyncio's transport as a session uses; what is written through it ends up in `written`.

    Args:
        kernel: the socket for direct writes; None refuses them all.
        secure: it says that it encrypts, so that nothing may be written past it.

    Attributes:
        keeps: what is written through it stays in it until `release()`, as when the kernel is full.
        write_error: what `write` raises.
        on_write: called with the data in the midst of each `write`.
    """

    def __init__(self, kernel: socket.socket | None = None, *, secure: bool = False) -> None:
        self.protocol: Any = None
        self.written: list[Any] = []
        self.write_error: BaseException | None = None
        self.on_write: Any = None
        self.keeps = False
        self.held = 0
        self.reading = True
        self.closing = self.aborted = self.eof = False
        self.secure = secure
        # A number that is no descriptor: every send() fails.
        self._socket = _Socket(kernel.fileno() if kernel is not None else 1_000_000)

    def connect(self, connection: Any, **options: Any) -> FakeTransport:
        """Open a session of `connection`, a server's, on this transport; `options` are those of `Session`."""
        defaults: dict[str, Any] = {
            "masking": False,
            "max_message_size": 1 << 30,
            "max_fragments": 1000,
            "fragment_size": 0,
            "close_timeout": 1,
        }
        session = SessionProtocol(connection, self, asyncio.get_running_loop(), **(defaults | options))
        connection._begin_session(session)
        return self

    def feed(self, data: bytes) -> None:
        """`data` arrives, in one read where it fits, as long as it is read."""
        while data and self.reading and not self.closing:
            buffer = self.protocol.get_buffer(-1)
            size = min(len(buffer), len(data))
            buffer[:size] = data[:size]
            self.protocol.buffer_updated(size)
            data = data[size:]

    def lose(self, error: Exception | None = None) -> None:
        """The transport is gone."""
        self.closing = True
        self.protocol.connection_lost(error)

    def release(self) -> None:
        """The kernel takes what was kept, and what comes next; the session goes on in the next turn."""
        self.keeps = False
        if self.held:
            self.held = 0
            self.protocol.resume_writing()

    @property
    def output(self) -> bytes:
        """All that was written through the transport."""
        return b"".join(bytes(piece) for piece in self.written)

    # -- for the session

    def get_extra_info(self, name: str) -> Any:
        return {"socket": self._socket, "ssl_object": self if self.secure else None}.get(name)

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_write_buffer_size(self) -> int:
        return self.held

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert low == 0, "resume_writing() must mean that nothing is left"

    def write(self, data: Any) -> None:
        if self.write_error is not None:
            raise self.write_error
        self.written.append(data)
        if self.keeps:
            pause = not self.held
            self.held += len(data)
            if pause:
                self.protocol.pause_writing()
        if self.on_write is not None:
            self.on_write(data)

    def pause_reading(self) -> None:
        self.reading = False

    def is_reading(self) -> bool:
        return self.reading

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True

    def can_write_eof(self) -> bool:
        return not self.secure

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
