import asyncio
from typing import Any, NoReturn, Self

from typing_extensions import disjoint_base

from fabric_ext.closing import CloseHandshake
from fabric_ext.deflate import Codec
from fabric_ext.message import Message
from fabric_ext.sender import Sender
from fabric_ext.session_user import SessionUser
from fabric_ext.throttle import Throttle

def stop_loop(loop: asyncio.AbstractEventLoop, error: BaseException) -> None:
    """Have `error`, KeyboardInterrupt or SystemExit, end `loop.run_forever()`."""

@disjoint_base
class Session(Sender):
    """One transport's life as a WebSocket. `SessionProtocol` is the class to make one of.

    Args:
        user: the connection.
        loop: its loop.
        masking: this is a client.
        max_message_size: payload bytes of a message received; more fails the connection with 1009.
        max_fragments: frames of a message received; more fails it with 1008.
        fragment_size: payload bytes per outbound frame; 0 never splits.
        close_timeout: seconds for which the close handshake may make no progress.
        cork: False writes every message at once.
        codec: compression as negotiated; None for none.
        throttle: the inbound rate limit; None for none.
        max_frame_size: payload bytes of a frame received, more fails the connection with 1009; 0 for as many as a
            message may have.
        frames_apart: a message in several frames is delivered frame by frame, each a Part.
        frame_log: its `received(bytes)` and `sent(bytes)` are told of what is read and written; None: there is none.
    """

    def __new__(
        cls,
        user: SessionUser,
        io: Any,
        loop: asyncio.AbstractEventLoop,
        *,
        masking: bool,
        max_message_size: int,
        max_fragments: int,
        fragment_size: int,
        close_timeout: float,
        cork: bool = True,
        codec: Codec | None = None,
        throttle: Throttle | None = None,
        max_frame_size: int = 0,
        frames_apart: bool = False,
        frame_log: Any = None,
    ) -> Self: ...
    def __reduce__(self) -> NoReturn: ...

    # For the connection.

    cut_off_bytes: int
    """Bytes that the peer had not taken when the transport was dropped for that; 0 otherwise."""
    inbound_seen: bool
    """Something arrived since the heartbeat last looked."""
    pings: dict[bytes, tuple[asyncio.Future[float], int]] | None
    """The application's pings that have no pong yet; None until needed."""
    probe: Any
    """What a heartbeat watches it by; None where there is no heartbeat."""
    is_renewed: bool
    """This end has closed it, to have another one."""
    is_judged: bool
    """Its user has decided whether another one follows."""

    def cork(self, change: int) -> None:
        """One more (1), or one less (-1), asks that what is sent is gathered. Without effect once it has ended."""

    @property
    def closing(self) -> CloseHandshake | None:
        """How the close handshake stands; None while nothing has been said of an end."""

    @property
    def abort_cause(self) -> BaseException | None:
        """Why the transport was dropped without a close frame, where nothing else explains it."""

    @property
    def lost_error(self) -> Exception | None:
        """What the event loop said of the transport's end; None while it lives, and when nothing was wrong."""

    @property
    def io(self) -> Any:
        """asyncio's transport; None once it is gone."""

    @property
    def has_ended(self) -> bool:
        """Is its transport gone?"""

    @property
    def is_blocked(self) -> bool:
        """Does the transport hold bytes that the kernel has not taken?"""

    @property
    def is_reading_paused(self) -> bool:
        """Is the socket not being read?"""

    @property
    def has_partial_message(self) -> bool:
        """Is a message half received?"""

    @property
    def unsent_bytes(self) -> int:
        """Bytes gathered, held by the transport, or not acknowledged by the peer's kernel."""

    def open(self, in_parts: bool = False) -> None:
        """Take over `io`, an asyncio transport on which the opening handshake is done.

        `in_parts`: the first message is to be delivered in parts.
        """

    def feed_early(self, data: bytes) -> None:
        """Read `data`, which came behind the opening handshake, before what the transport brings from now on.

        Not before the application's task has begun: it can answer each message before the next frame, which may be at
        fault, is looked at.
        """

    def _read_early(self) -> None: ...
    def begin_close(self, code: int, reason: str) -> None:
        """Begin the close handshake: send our close frame and wait for the peer's. 1005 is a frame without a body."""

    def fail_connection(self, code: int, reason: str, cause: BaseException | None = None) -> None:
        """Fail the connection (RFC 6455 §7.1.7): send a close frame, read no more, hang up."""

    def abort(self, cause: BaseException | None = None) -> None:
        """Drop the transport now, whatever it still holds; `cause` explains why, where nothing else does."""

    def cut_off_messages(self) -> tuple[Message, ...]:
        """The messages of which a part has left, but not the end: the peer cannot have them."""

    # Called by the transport.

    def connection_made(self, transport: Any) -> None: ...
    def get_buffer(self, hint: int, /) -> memoryview: ...
    def buffer_updated(self, n: int, /) -> None: ...
    def eof_received(self) -> bool: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def connection_lost(self, error: Exception | None) -> None: ...

    # Called by the throttle and by timers.

    def deliver_held(self, message: Message) -> None:
        """Deliver a message that was held back, by the rate limit or for another receiver."""

    def _read_again(self) -> None: ...
    def _look_for_end(self) -> None:
        """A peer that is not read from may have left: then what it sent fits a socket's buffer, and is read."""

    def _look_at_progress(self) -> None: ...
    def pause_for_rate(self) -> None: ...
    def resume_for_rate(self) -> None: ...
    def pause_overdrawn(self) -> None: ...
    def resume_overdrawn(self) -> None: ...
    def fail_for_rate(self) -> None: ...

class SessionProtocol(Session, asyncio.BufferedProtocol):
    """A session, as asyncio knows a protocol that reads into a buffer of its own. The only class to be made."""

    data_received: None
    """Has uvloop let go of the protocol that the transport had before."""
