from collections.abc import Coroutine, Iterable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Self, TypeVar

from typing_extensions import disjoint_base

from fabric_ext.driver import Driver, Receiver
from fabric_ext.message import Message
from fabric_ext.session_user import SessionUser

_T = TypeVar("_T")

@disjoint_base
class Blocking(Receiver):
    """The part of a blocking connection that sends and receives, over an asyncio one."""

    @property
    def _connection(self) -> Any: ...
    def _bind(self, driver: Driver, connection: SessionUser, busy_poll: float) -> None: ...
    def recv(self, timeout: float | timedelta | None = None) -> Message | None:
        """Receive the next message; None after a normal close.

        Args:
            timeout: seconds to wait, a float or timedelta; 0 takes only what is there; None waits for ever.

        Raises:
            Timeout: nothing came within `timeout`; nothing is lost.
            ConnectionClosed: the connection ended otherwise than normally, and is not replaced.
            ReconnectTimeout: it was lost and could not be replaced.
            InvalidState: another thread is in `recv`.
        """
    def recv_many(self, limit: int = 1000, timeout: float | timedelta | None = None) -> list[Message]:
        """Receive the next message, and those that are there already: 1 to `limit`; [] after a normal close.

        Raises what `recv` raises.
        """
    @property
    def _is_awaited(self) -> bool:
        """Does a thread wait for a message?"""
    def __iter__(self) -> Self: ...
    def __next__(self) -> Message: ...
    def _receive_by(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run `coroutine`, which receives, in the loop."""
    def _end_waits(self) -> None:
        """The connection is being closed here: a thread in recv() need not wait any more."""
    def send(self, message: Any, *, compress: bool | None = None) -> None:
        """Send a message; any thread may.

        A str goes out as text, bytes-like objects as binary; an iterator as one message, each item as a part of it.
        When it returns, the message has been given to the system, or is kept until the peer takes it: then it waits
        while too much is kept (see `BackpressureConfig`).

        `compress`: True or False for this message alone; None as configured.

        Raises TypeError for anything else, ConnectionClosed after the end, BackpressureTimeout when room took too long,
        BufferFull when an outage has used it up.
        """
    def send_nowait(self, message: Any, *, compress: bool | None = None) -> None:
        """Send a message without waiting: `BufferFull` when too much is kept; `InvalidState` when not connected."""
    def cork(self) -> AbstractContextManager[None]:
        """Gather what is sent inside the `with`, up to 64 KB at a time; what was sent before leaves first."""
    def send_many(self, messages: Iterable[Any]) -> None:
        """Send several messages, gathered into as few system calls as possible."""
    def _send_later(self, message: Any, compress: bool | None) -> None:
        """What send() does when the message could not be written at once."""
