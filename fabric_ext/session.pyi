import asyncio
from typing import Any, Literal, NoReturn, Self, final

from typing_extensions import disjoint_base

from fabric_ext.deflate import Codec
from fabric_ext.message import Message
from fabric_ext.receive_queue import ReceiveQueue
from fabric_ext.throttle import Throttle
from fabric_ext.writer import Writer

@final
class Part:
    """One part of a message that is received as a stream."""

    @property
    def data(self) -> str | bytes: ...
    @property
    def final(self) -> bool:
        """Is it the last one?"""

    @property
    def is_cut_off(self) -> bool:
        """No part, but the end of the connection inside the message."""

@final
class CloseHandshake:
    """How the end of a session came about (RFC 6455 §7)."""

    @property
    def began_by(self) -> Literal["local", "remote"]: ...
    @property
    def sent_code(self) -> int:
        """Of the close frame we sent; 0: none."""

    @property
    def received_code(self) -> int:
        """Of the close frame received; 0: none, 1005: it had no body."""

    @property
    def reason(self) -> str:
        """What goes with the code that counts: the one received, unless we failed the connection."""

    @property
    def sent_reason(self) -> str:
        """Of the close frame we sent."""

    @property
    def received_reason(self) -> str:
        """Of the close frame received."""

    @property
    def fault(self) -> int:
        """The `fabric_ext.frames.Fault` for which we failed the connection; 0: we did not."""

    @property
    def cause(self) -> Exception | None:
        """The exception behind the fault."""

    @property
    def oversize(self) -> int:
        """Bytes that a message refused with 1009 has, or has at least."""

@disjoint_base
class SessionUser(ReceiveQueue):
    """What a session reports to; the base of a connection."""

    @property
    def messages_received(self) -> int:
        """Over all sessions; so are the following. Bytes are payloads, before compression and after decompression."""

    @property
    def bytes_received(self) -> int: ...
    @property
    def messages_sent(self) -> int: ...
    @property
    def bytes_sent(self) -> int: ...
    def _is_followed(self, session: Session) -> bool:
        """Does another session follow this one, which the peer has closed? Then nothing is worth waiting for."""

    def _on_pong(self, payload: bytes) -> None:
        """A pong arrived."""

    def _explain(
        self, fault: int, length: int, before: int, cause: BaseException | None
    ) -> tuple[int, str, BaseException | None] | None:
        """What to say of a fault of the peer: code, reason, cause; None to say what `fabric_ext.protocol` does.

        `length` is what the frame announces, `before` what its message had before it, in bytes.
        """

    def _on_failed(self, error: BaseException, in_callback: bool) -> None:
        """The application's callback raised, or reading did; the connection is being failed with 1011."""

@disjoint_base
class Session(Writer):
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
        frame_log: its `received(bytes)` and `sent(bytes)` are told of what is read and written; None for nobody.
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
    def is_blocked(self) -> bool:
        """Does the transport hold bytes that the kernel has not taken?"""

    @property
    def is_reading_paused(self) -> bool:
        """Is the socket not being read?"""

    @property
    def is_sending_parts(self) -> bool:
        """Has a message that is sent in parts begun, and not ended?"""

    @property
    def has_partial_message(self) -> bool:
        """Is a message half received?"""

    @property
    def unsent_bytes(self) -> int:
        """Bytes gathered, held by the transport, or not acknowledged by the peer's kernel."""

    def _open(self, in_parts: bool = False) -> None:
        """Take over `io`, an asyncio transport on which the opening handshake is done.

        `in_parts`: the first message is to be delivered in parts.
        """

    def _feed(self, data: bytes) -> None:
        """Read `data`, which came behind the opening handshake, before what the transport brings from now on.

        Not before the application's task has begun: it can answer each message before the next frame, which may be at
        fault, is looked at.
        """

    def _read_early(self) -> None: ...
    def _write_ping(self, payload: bytes) -> None:
        """Send a ping of at most 125 bytes, before whatever waits in the outbox."""

    def _write_pong(self, payload: bytes) -> None:
        """Send a pong that nobody asked for (RFC 6455 §5.5.3)."""

    def _write_part(self, opcode: int, payload: bytes, fin: bool, compress: bool | None) -> None:
        """Send one part of a message sent in parts; `opcode` 0 continues it.

        Its first part decides whether it is compressed: the size of the whole is not known.
        """

    def _stop_parts(self) -> None:
        """The message that was being sent in parts is at its end, or abandoned."""

    def _close(self, code: int, reason: str) -> None:
        """Begin the close handshake: send our close frame and wait for the peer's. 1005 is a frame without a body."""

    def _fail(self, code: int, reason: str, cause: BaseException | None = None) -> None:
        """Fail the connection (RFC 6455 §7.1.7): send a close frame, read no more, hang up."""

    def _abort(self, cause: BaseException | None = None) -> None:
        """Drop the transport now, whatever it still holds; `cause` explains why, where nothing else does."""

    def _release_codec(self) -> None:
        """Give back the memory of compression that an idle connection need not keep."""

    # Called by the transport.

    def connection_made(self, transport: Any) -> None: ...
    def get_buffer(self, hint: int, /) -> memoryview: ...
    def buffer_updated(self, n: int, /) -> None: ...
    def eof_received(self) -> bool: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def connection_lost(self, error: Exception | None) -> None: ...

    # Called by the throttle and by timers.

    def _deliver_held(self, message: Message) -> None:
        """Deliver a message that was held back, by the rate limit or for another receiver."""

    def _read_again(self) -> None: ...
    def _look_for_end(self) -> None:
        """A peer that is not read from may have left: then what it sent fits a socket's buffer, and is read."""

    def _look_at_progress(self) -> None: ...
    def _pause_for_rate(self) -> None: ...
    def _resume_for_rate(self) -> None: ...
    def _pause_overdrawn(self) -> None: ...
    def _resume_overdrawn(self) -> None: ...
    def _fail_for_rate(self) -> None: ...

class SessionProtocol(Session, asyncio.BufferedProtocol):
    """A session, as asyncio knows a protocol that reads into a buffer of its own. The only class to be made."""
