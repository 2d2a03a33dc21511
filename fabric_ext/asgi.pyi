import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any

from typing_extensions import disjoint_base

from fabric_ext.session import Session
from fabric_ext.session_user import SessionUser

@disjoint_base
class AsgiConnection(SessionUser):
    """The base of the connections of `fabric.asgi`.

    Args:
        loop: the event loop.
        max_queue: messages in the queue above which the socket is not read, down to half of them.
        max_queue_bytes: likewise, characters of texts and bytes.
        write_limit: bytes that the transport may hold before a sender waits.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, max_queue: int, max_queue_bytes: int, write_limit: int
    ) -> None: ...
    def receive(self) -> Coroutine[Any, Any, dict[str, Any]]:
        """ASGI's `receive`: an awaitable for the next event.

        Raises `ClientDisconnected` after the event `websocket.disconnect`, RuntimeError while another task waits in it.
        """

    def send(self, event: Mapping[str, Any]) -> Coroutine[Any, Any, None]:
        """ASGI's `send`: an awaitable that sends `event`, a dict. It begins when it is awaited.

        Waits afterwards while the transport holds more than `write_limit`.

        Raises `ClientDisconnected`, an OSError, once the client has gone; RuntimeError for an event that is not
        expected now.
        """

    # For the class above.

    @property
    def _session_now(self) -> Session | None:
        """The session, or None."""

    def _begin_session(self, session: Session) -> None:
        """Exchange messages over `session`; nothing has been read yet."""

    def _finish_with(self, event: Mapping[str, Any], error: BaseException) -> None:
        """The application gets what is queued, then `event`, then `error`, raised; what still comes is thrown away."""

    def _hang_up(self) -> None:
        """End the connection, without more of a close handshake, once what was sent has left."""

    # Hooks.

    def _on_closing(self) -> None:
        """A close frame was sent or received, or the connection failed."""

    def _on_lost(self, session: Session | None) -> None:
        """The session has ended."""

    def _on_writable(self) -> None:
        """The transport holds nothing any more."""

    async def _send_event(self, event: Mapping[str, Any]) -> None:
        """What `send` does with all that is not a message on an open connection."""

    async def _drain(self) -> None:
        """Wait until the transport holds less."""
