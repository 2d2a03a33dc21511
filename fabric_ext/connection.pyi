import asyncio
from collections.abc import Coroutine
from typing import Any, Self, final

from typing_extensions import disjoint_base

from fabric_ext.bucket import RateGate
from fabric_ext.deflate import Codec
from fabric_ext.message import Message
from fabric_ext.protocol import State
from fabric_ext.sender import Sender

@final
class Part:
    """One part of a message that is received as a stream."""

    @property
    def data(self) -> str | bytes: ...
    @property
    def final(self) -> bool: ...
    @property
    def is_cut_off(self) -> bool: ...

@final
class Link:
    """What picows calls: ties one transport to its connection. picows' logger too, and the transport it sees."""

    transport: Any
    """asyncio's transport, under picows'; set before picows takes it over."""

    def on_ws_connected(self, transport: Any) -> None: ...
    def on_ws_frame(self, transport: Any, frame: Any) -> None: ...
    def on_ws_disconnected(self, transport: Any) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def isEnabledFor(self, level: Any) -> bool: ...  # noqa: N802  # logging's name
    def log(self, *args: Any) -> None: ...
    def debug(self, *args: Any) -> None: ...
    def info(self, *args: Any) -> None: ...
    def warning(self, *args: Any) -> None: ...
    def error(self, text: Any, fault: Any) -> None: ...
    def exception(self, text: Any) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...

class Reader:
    """picows' protocol, with a bound on what one read takes."""

    link: Link
    def __init__(self, *args: Any) -> None: ...
    def get_buffer(self, size_hint: int) -> memoryview: ...
    def buffer_updated(self, nbytes: int) -> None: ...
    def connection_made(self, transport: Any) -> None: ...

class Drain(asyncio.Protocol):
    """The protocol of a transport whose connection has been failed: throws away what still comes."""

    def __init__(self, link: Link, transport: Any) -> None: ...

@disjoint_base
class Connection(Sender):
    """The base of `WebSocketClient` and `ConnectedClient`."""

    _inbound_seen: bool
    _close_timeout: float
    _sent_code: int
    _received_code: int
    _close_text: str
    _failure: Any

    messages_received: int
    bytes_received: int

    def recv(self) -> Coroutine[Any, Any, Message | None]: ...
    def __aiter__(self) -> Self: ...
    def __anext__(self) -> Coroutine[Any, Any, Message]: ...

    # For `fabric._connection.base` and the modules beside it.

    _oversize: int
    _max_message_size: int
    @property
    def _state_now(self) -> State: ...
    @property
    def _is_open(self) -> bool: ...
    @property
    def _is_blocked(self) -> bool: ...
    @property
    def _is_fragmenting(self) -> bool: ...
    @property
    def _is_reading_paused(self) -> bool: ...
    @property
    def _outbox_size(self) -> int: ...
    @property
    def _transport_now(self) -> Any: ...
    @property
    def _codec_now(self) -> Codec | None: ...
    def _configure(
        self,
        *,
        max_message_size: int,
        max_fragments: int,
        queue_limit: int,
        queue_byte_limit: int,
        fragment_size: int,
        close_timeout: float,
        on_message: Any = None,
    ) -> None:
        """Set what stays the same over all transports. Sizes in bytes; `fragment_size` 0 never splits."""
    def _limit_rate(self, gate: RateGate | None, on_exceed: str, on_shared_exceed: str) -> None:
        """Ask `gate` for what arrives; say what to do when its own buckets refuse, and when the shared ones do."""
    def _new_link(self) -> Link:
        """The listener for the next transport; severs the one before."""
    def _set_codec(self, codec: Codec | None) -> None:
        """Compression as negotiated for the transport that is about to open; None for none."""
    def _release_transport(self) -> None:
        """Let go of the transport; what it still reports is ignored."""
    def _lose(self) -> None:
        """The transport is gone, another one will be sought."""
    def _finish(self, error: BaseException | None = None) -> None:
        """No transport will come any more: receivers get what is queued, then None or `error`."""
    def _begin_close(self, code: int, reason: bytes) -> None:
        """Send our close frame and wait for the peer's; the transport is aborted when that takes too long."""
    def _abort(self) -> None:
        """Drop the transport now, whatever it still holds."""
    def _release_codec(self) -> None:
        """Give back the memory of compression that an idle connection need not keep."""
    def _has_partial_message(self) -> bool:
        """Is a message half received?"""
    def _recv_part(self) -> Coroutine[Any, Any, Message | Part | None]: ...
    def _start_stream(self) -> int: ...
    def _is_stream(self, number: int) -> bool: ...
    def _stop_stream(self, number: int) -> None: ...
    def _opened(self, request: Any, response: Any) -> None: ...
    def _on_lost(self) -> None: ...
    def _on_pong(self, payload: bytes) -> None: ...
    def _on_error(self, error: BaseException) -> None: ...
    def _fault(self, code: int, reason: str) -> Exception: ...
