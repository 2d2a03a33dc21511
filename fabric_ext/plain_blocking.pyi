from typing import Any, Literal, NoReturn, overload

from typing_extensions import disjoint_base

from fabric_ext.driver import Driver, Receiver
from fabric_ext.session_user import SessionUser

@disjoint_base
class PlainBlocking(Receiver):
    """The part of a blocking connection that sends and receives."""

    pending_legacy_warning: bool
    @property
    def _connection(self) -> Any: ...
    def _bind(self, driver: Driver, connection: SessionUser, busy_poll: float) -> None: ...
    @overload
    def recv(self, timeout: float | None, decode: Literal[True]) -> str: ...
    @overload
    def recv(self, timeout: float | None, decode: Literal[False]) -> bytes: ...
    @overload
    def recv(self, timeout: float | None = None, *, decode: Literal[True]) -> str: ...
    @overload
    def recv(self, timeout: float | None = None, *, decode: Literal[False]) -> bytes: ...
    @overload
    def recv(self, timeout: float | None = None, decode: bool | None = None) -> str | bytes:
        """Receive the next message.

        Args:
            timeout: seconds to wait; 0 takes only what is there; None waits for ever.
            decode: True for str, False for bytes, None for what was sent.

        Raises:
            TimeoutError: nothing came within `timeout`; nothing is lost.
            ConnectionClosed: the connection is closed, and what came before has been received.
            ConcurrencyError: another thread receives.
        """
    def _recv_item(self) -> Any:
        """What stands first in the queue: a whole message, `Fragments`, or a Part of the stream that has begun."""
    def _begin_stream(self) -> None:
        """Have the next message received frame by frame, by this thread."""
    def send(self, message: Any, *, text: bool | None = None) -> None:
        """Send a message; any thread may. It waits until the system has taken it.

        A str goes out as text, bytes-like objects as binary; an iterable of them as one message, each item as a frame.

        `text`: True or False to send it as text or as binary, whatever its type.

        Raises ConnectionClosed after the end, ConcurrencyError while another thread sends a message in parts, TypeError
        for anything else.
        """
    def _write_now(self, message: Any, text: bool | None) -> bool | None:
        """Write a str or bytes-like object, if the connection is open: True; None while one is sent in parts."""
    def _warn_of_legacy(self, depth: int) -> None:
        """Warn of the use of a client's connection without a `with`: of the caller `depth` calls above this one."""
    def _concurrent(self, method: str) -> Exception:
        """The exception for a call of `method` that another thread's call excludes."""
    def _decoded(self, data: bytes) -> str:
        """The text of `data`, which was received; fail the connection if it is none."""
    def _release(self) -> None:
        """The connection has ended: let go of what it was driven by."""
    def _send_parts(self, message: Any, text: bool | None) -> None:
        """Send an iterable as one message in several frames."""
    def _drain(self) -> None:
        """Wait until the system has taken what was written."""
    def _raise_closed(self) -> NoReturn:
        """Wait for the end, and raise what tells of it."""
