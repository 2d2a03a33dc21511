"""The transport of a connection until its opening handshake is done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fabric._connection.nodelay import send_without_delay

if TYPE_CHECKING:
    from fabric.websockets.asyncio.connection import Connection

__all__ = ["Opening"]

MAX_REST = 65536  # bytes read behind a request before its client is not read from any more

C = TypeVar("C", bound="Connection")


class Opening(asyncio.Protocol, Generic[C]):
    """Reads one request or response for `connection`, and keeps what comes behind it.

    Args:
        connection: it is told of the transport, and of its end.
        feed: reads on, and tells whether the message is complete (`HeadReader.feed`).
        end: called when the connection ends before the message is complete: returns or raises an exception that says
            so, or returns True where that is the end of the message.
        complete: called when it is.
        fail: called with the exception when it cannot be read.

    Attributes:
        rest: what came behind the message.
        is_over: it is complete, or cannot be.
    """

    def __init__(
        self,
        connection: C,
        feed: Callable[[bytes], bool],
        end: Callable[[], Any],
        complete: Callable[[], None],
        fail: Callable[[Exception], None],
    ) -> None:
        self.connection = connection
        self._feed = feed
        self._at_end = end
        self._complete = complete
        self._fail = fail
        self.rest = b""
        self.is_over = False
        self._failed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        send_without_delay(transport.get_extra_info("socket"))
        self.connection.connection_made(transport)  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        if self._failed:
            return
        if self.is_over:
            self.rest += data
            if len(self.rest) > MAX_REST:
                self.connection.transport.pause_reading()
            return
        try:
            is_complete = self._feed(data)
        except Exception as exc:  # noqa: BLE001  (whatever is wrong with a peer's message)
            self._give_up(exc)
            return
        if is_complete:
            self.is_over = True
            self._complete()

    def eof_received(self) -> None:
        self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        self.connection._lost_before_open(exc)

    def _end(self) -> None:
        if self.is_over:
            return
        try:
            outcome = self._at_end()
        except Exception as exc:  # noqa: BLE001  (as above)
            outcome = exc
        if isinstance(outcome, Exception):
            self._give_up(outcome)
        else:
            self.is_over = True
            self._complete()

    def _give_up(self, exc: Exception) -> None:
        self.is_over = self._failed = True
        self._fail(exc)
