import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar, final

from typing_extensions import disjoint_base

from fabric_ext.counters import Counters
from fabric_ext.message import Message
from fabric_ext.outlet import Outlet

_S = TypeVar("_S", bound=Sender)

@final
class Shared:
    """A message for many connections of a server: its frame is built once, and compressed once per agreed setting."""

    def __init__(self, message: Message, compress: bool | None, fragment_size: int) -> None: ...
    def send_to(self, peers: list[_S]) -> tuple[int, list[_S]]:
        """Write it to those of `peers` that take it now; return their number, and the open ones that do not."""

@disjoint_base
class Sender(Outlet):
    """An outlet for messages: the sending half of a connection."""

    messages_sent: int
    bytes_sent: int

    def __init__(self, loop: asyncio.AbstractEventLoop, masking: bool, counters: Counters) -> None: ...
    def send(self, message: Any, *, compress: bool | None = None) -> Coroutine[Any, Any, None]:
        """Send a message; see `fabric._connection.base.Peer.send`."""
    def send_nowait(self, message: Any, *, compress: bool | None = None) -> None:
        """Send a message without waiting: `BufferFull` when the outbox is, `InvalidState` when not connected."""

    # For `fabric._connection.base` and the modules beside it.

    _backpressure: Any
    _outbox_bytes: int
    def _write_fragment(self, opcode: int, payload: bytes, fin: bool, compress: bool | None) -> None:
        """Send one part of a message sent in parts; `opcode` 0 continues it.

        Its first part decides whether it is compressed: the size of the whole is not known.
        """
    def _write_ping(self, payload: bytes) -> None:
        """Send a ping now, before whatever waits in the outbox."""
    def _outbox_push(self, message: Message, compress: bool | None) -> None:
        """Keep a message until the transport takes it."""
    def _set_waiting(self, change: int) -> None:
        """One sender more, or one less, waits for room in the outbox."""
    def _outbox_pop(self) -> tuple[Message, bool | None]:
        """The oldest message kept, as (message, compress); `IndexError` when there is none."""
    def _flush_outbox(self) -> None:
        """Write what waits in the outbox, as far as the transport takes it."""
    def _set_fragmenting(self, fragmenting: bool) -> None:
        """While a message is being sent in parts, other data waits in the outbox."""
    def _on_writable(self) -> None: ...
    def _on_taken_back(self, message: Message) -> None: ...
    def _send_later(self, message: Any, compress: bool | None) -> Coroutine[Any, Any, None]: ...
    def _queue_now(self, message: Any, compress: bool | None) -> None: ...
