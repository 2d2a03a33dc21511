import asyncio
from collections.abc import AsyncIterable, Callable, Coroutine, Iterator
from typing import Any, Self, TypeAlias, final

from typing_extensions import disjoint_base

from fabric_ext.counters import Counters
from fabric_ext.message import Message
from fabric_ext.protocol import State
from fabric_ext.session import Session
from fabric_ext.session_user import Part, SessionUser

_Sendable: TypeAlias = str | bytes | bytearray | memoryview | Message

def bind_errors(*, wrong_place: Callable[[str], Exception]) -> None:
    """Set what is raised for a call from a thread that is not the connection's: a class, called with a text."""

def look_ahead(size: int) -> int:
    """For tests: read `size` bytes on where a queue is full; return how many it was before."""

@disjoint_base
class Connection(SessionUser):
    """One connection over all its sessions; the base of `WebSocketClient` and `ConnectedClient`.

    Args:
        loop: the event loop that it belongs to.
        counters: what its sessions count in, shared with the other connections of the owner.
        queue_limit: messages received and not yet taken: with more, the socket is read for 64 KB still, then no more.
        queue_byte_limit: their bytes in memory.
        on_message: called with (connection, message) where a message arrives; then nothing is queued.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        counters: Counters,
        *,
        queue_limit: int,
        queue_byte_limit: int,
        on_message: Callable[[Any, Message], Any] | None = None,
    ) -> None: ...
    @property
    def state(self) -> State:
        """CONNECTING, OPEN, CLOSING, RECONNECTING or CLOSED."""

    def recv(self) -> Coroutine[Any, Any, Message | None]:
        """Receive the next message: `message = await connection.recv()`.

        Returns None after a normal close. Gives up a stream (`recv_stream`) that is not at its end. Cancelling it loses
        no message.

        Raises:
            ConnectionClosed: after an end that was not normal.
            ReconnectTimeout: a lost connection was not replaced.
            InvalidState: another task waits in `recv` already.
        """

    def __aiter__(self) -> Self: ...
    def __anext__(self) -> Coroutine[Any, Any, Message]: ...
    def send(
        self, message: _Sendable | Iterator[_Sendable] | AsyncIterable[_Sendable], *, compress: bool | None = None
    ) -> Coroutine[Any, Any, None]:
        """Send a message: `await connection.send("text")`.

        A str goes out as text, bytes-like objects as binary; an iterator or async iterator as one message, each item
        as a part of it. It begins when it is awaited. When it returns, the message has been given to the system, or is
        kept until the peer takes it: then it waits while too much is kept (see `BackpressureConfig`).

        Args:
            compress: True or False for this message alone; None as configured.

        Raises:
            TypeError: anything else.
            ConnectionClosed: after the end.
            BackpressureTimeout: room took too long.
            BufferFull: an outage has used it up.
        """

    def send_nowait(self, message: _Sendable, *, compress: bool | None = None) -> None:
        """Send a message without waiting.

        Raises:
            BufferFull: too much is kept.
            InvalidState: not connected, or called from a thread that is not the connection's.
            ConnectionClosed, TypeError: as `send`.
        """

    def flush(self) -> None:
        """Give the system now what has been gathered, rather than at the end of the turn."""

    # For `fabric._connection.base` and the modules beside it.

    _backpressure: Any
    """Told of each message that leaves the outbox; None until needed."""

    @property
    def _session_now(self) -> Session | None: ...
    @property
    def _is_loop_closed(self) -> bool: ...
    @property
    def _is_open(self) -> bool: ...
    @property
    def _is_closed(self) -> bool: ...
    @property
    def _is_awaited(self) -> bool:
        """Does a task wait in `recv`?"""

    @property
    def _is_blocked(self) -> bool:
        """Is there no transport, or does it hold bytes that the kernel has not taken?"""

    @property
    def _is_sendable(self) -> bool:
        """Is it open, and would a new message be written at once?"""

    @property
    def _oldest_ns(self) -> int:
        """`received_ns` of the oldest message in the queue; 0 where there is none, or it is received in parts."""

    @property
    def _outbox_size(self) -> int:
        """Messages accepted and not yet written."""

    @property
    def _outbox_bytes(self) -> int: ...
    def _begin_session(self, session: Session) -> None:
        """`session` has the transport `io` from now on."""

    def _adopt(self, other: Connection) -> None:
        """Go on with the session of `other`, an open one, and with what `other` has received and not taken."""

    def _lose(self) -> None:
        """The transport is gone, another one will be sought."""

    def _finish(self, error: BaseException | None = None) -> None:
        """No transport will come any more: receivers get what is queued, then None or `error`."""

    def _take_now(self) -> Message | None:
        """The next message if there is one already."""

    def _recv_part(self) -> Coroutine[Any, Any, Message | Part | None]:
        """Return an awaitable for the next item of a stream: a Part, or a whole Message that was there before."""

    def _start_stream(self) -> int:
        """Deliver the next message in parts, unless one is queued already; return the number of this stream."""

    def _is_stream(self, number: int) -> bool:
        """Is this still the stream that parts are for?"""

    def _stop_stream(self, number: int) -> None:
        """No more parts are wanted, if they are those of this stream."""

    def _check_here(self) -> None:
        """Raise unless this is the connection's own thread."""

    def _outbox_push(self, message: Message, compress: bool | None) -> None:
        """Keep a message until the transport takes it."""

    def _outbox_pop(self) -> tuple[Message, bool | None]:
        """The oldest message kept, as (message, compress); `IndexError` when there is none."""

    def _flush_outbox(self) -> None:
        """Write what waits in the outbox, as far as the transport takes it."""

    def _keep_backpressure(self, controller: Any) -> Any:
        """Count in `controller` from now on, unless there is one already; return the one that counts."""

    def _set_waiting(self, change: int) -> None:
        """One sender more, or one less, waits for room in the outbox."""

    def _write_part(self, opcode: int, payload: bytes, fin: bool, compress: bool | None) -> bool:
        """Send one part of a message; meanwhile other messages wait in the outbox. False: the connection has ended."""

    def _end_parts(self) -> None:
        """No message is being sent in parts any more."""

    # Hooks, overridden in Python.

    def _on_lost(self, session: Session) -> None:
        """`session` has ended: finish, or find another."""

    def _on_writable(self) -> None:
        """Nothing waits to be written any more."""

    def _on_taken_back(self, message: Message) -> None:
        """A message that counted as sent waits again."""

    def _send_later(self, message: Any, compress: bool | None) -> Coroutine[Any, Any, None]:
        """The coroutine that goes on where `send` could not write at once."""

    def _queue_now(self, message: Any, compress: bool | None) -> None:
        """What `send_nowait` does when it could not write at once."""

@final
class Send(Coroutine[Any, Any, None]):
    """One `send()`: awaitable, and a coroutine for `create_task`, `gather`, `run_coroutine_threadsafe`.

    It begins with its first step. One that is never awaited sends nothing, and warns as a coroutine does.
    """

    def __iter__(self) -> Self: ...
    def __next__(self) -> Any: ...
    def __await__(self) -> Any: ...
    def send(self, value: Any) -> Any: ...
    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> Any: ...
    def close(self) -> None: ...
