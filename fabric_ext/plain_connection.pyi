import asyncio
from collections.abc import AsyncIterable, Coroutine, Iterable
from typing import Any, Literal, Self, TypeAlias, TypeVar, final, overload

from typing_extensions import disjoint_base

from fabric_ext.session import Session
from fabric_ext.session_user import SessionUser

_BytesLike: TypeAlias = bytes | bytearray | memoryview
_C = TypeVar("_C", bound=PlainConnection)

@final
class Fragments:
    """A message that came in several frames."""

    @property
    def parts(self) -> list[str] | list[bytes]:
        """What each frame brought."""

@final
class Messages:
    """What `async for` over a connection iterates over."""

    def __aiter__(self) -> Self: ...
    def __anext__(self) -> Coroutine[Any, Any, str | bytes]: ...
    async def aclose(self) -> None:
        """There is nothing to close: this is for `contextlib.aclosing`."""

def broadcast(connections: list[_C], message: str | _BytesLike, text: bool | None) -> list[tuple[_C, Exception | None]]:
    """Write a str or bytes-like object to those of `connections` that are open; wait for none of them.

    Of servers' connections the frame is built once, and compressed once for each setting that was agreed on. Returns
    those that it was not written to, as pairs with the exception, or None where a message is being sent in parts.
    """

@disjoint_base
class PlainConnection(SessionUser):
    """The base of the connections of `fabric.websockets`.

    Args:
        loop: the event loop.
        high: frames in the queue above which the socket is not read; None for no limit.
        low: frames down to which it is not.
        write_limit: bytes that the transport may hold before a sender waits.
        max_fragments: frames of one message that is received as a whole.
    """

    _streaming: bool
    """A stream has begun and was not read to its end: nobody else may receive."""
    _writable_waiter: asyncio.Future[None] | None
    """For when all is written; None while nobody waits."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        high: int | None,
        low: int,
        write_limit: int,
        max_fragments: int,
    ) -> None: ...
    @overload
    def recv(self, decode: Literal[True]) -> Coroutine[Any, Any, str]: ...
    @overload
    def recv(self, decode: Literal[False]) -> Coroutine[Any, Any, bytes]: ...
    @overload
    def recv(self, decode: bool | None = None) -> Coroutine[Any, Any, str | bytes]: ...
    def __aiter__(self) -> Messages: ...  # type: ignore[override]
    def send(
        self,
        message: str | _BytesLike | Iterable[str | _BytesLike] | AsyncIterable[str | _BytesLike],
        *,
        text: bool | None = None,
    ) -> Coroutine[Any, Any, None]:
        """Send a message: `await connection.send("text")`. It begins when it is awaited.

        A str goes out as text, bytes-like objects as binary; an iterable or asynchronous iterable of them as one
        message, each item as a frame. Waits afterwards while the transport holds more than `write_limit`.

        `text`: True or False to send it as text or as binary, whatever its type.

        Raises ConnectionClosed after the end, TypeError for anything else.
        """

    # For the class above.

    @property
    def _phase(self) -> int:
        """0 to 3: before the opening handshake has ended, open, closing, closed."""

    @property
    def _session_now(self) -> Session | None:
        """The session, or None."""

    @property
    def _is_awaited(self) -> bool:
        """Does a task receive?"""

    @property
    def _is_congested(self) -> bool:
        """Does the transport hold so much that a sender is to wait?"""

    def _begin_session(self, session: Session) -> None:
        """Exchange messages over `session`; nothing has been read yet."""

    def _finish_with(self, error: BaseException, quiet: bool) -> None:
        """There is no transport any more: receivers get what is queued, then `error`, or an end if it is `quiet`."""

    def _recv_item(self) -> Coroutine[Any, Any, Any]:
        """Return an awaitable for what stands first in the queue: a message, `Fragments`, or a Part of a stream."""

    def _open_stream(self) -> None:
        """Have the next message put into the queue frame by frame, unless there is one already."""

    def _close_stream(self) -> None:
        """The stream was given up before its first frame was taken: put its frames together again."""

    def _check_here(self) -> None:
        """Raise unless this is the connection's own thread."""

    def _write(self, message: str | _BytesLike, text: bool | None) -> None:
        """Write a str or bytes-like object as one message."""

    def _write_part(self, opcode: int, payload: bytes, fin: bool) -> bool:
        """Send one frame of a message in several; meanwhile other messages wait. False: the connection has ended."""

    def _end_parts(self) -> None:
        """No message is being sent in several frames any more."""

    # Hooks.

    def _on_closing(self) -> None:
        """A close frame was sent or received, or the connection failed."""

    def _on_lost(self, session: Session) -> None:
        """The session has ended: `_finish_with` is to be called."""

    def _on_too_many_fragments(self) -> None:
        """A message has more frames than allowed: fail the connection."""

    def _concurrent(self, method: str) -> Exception:
        """The exception for a call of `method` while another task receives."""

    async def _refuse(self, method: str) -> Any: ...
    def _recv_text(self) -> Coroutine[Any, Any, str]:
        """The coroutine of `recv(decode=True)`."""

    def _send_later(self, message: Any, text: bool | None) -> Coroutine[Any, Any, None]:
        """The coroutine that goes on where send() could not write at once."""

    def _drain(self) -> Coroutine[Any, Any, None]:
        """The coroutine that waits until the transport holds less."""
