"""What connections and calls report to, where they are traced: `tracer`, which is None unless `fabric.otel` is on.

Owns nothing but that name. It is looked at once for each attempt to connect, session, handler and call, and never for
a message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import asyncio

    from fabric.error import ConnectionClosed
    from fabric.headers import HeaderMap
    from fabric_ext.session import Session

__all__ = ["Tracer", "tracer"]


class Tracer(Protocol):
    """What `fabric.otel` implements. Connections are `WebSocketClient` or `ConnectedClient`."""

    def connecting(self, client: Any) -> AbstractContextManager[None]:
        """Around one attempt of a client to connect, redirects and `on_session` included."""

    def add_context(self, headers: HeaderMap) -> None:
        """Add the trace context of the running attempt to the headers of its request."""

    def session_began(self, session: Session, connection: Any) -> None:
        """An opening handshake is done; a session that is known already is left alone."""

    def session_ended(self, session: Session, connection: Any, loss: ConnectionClosed) -> None:
        """The transport of a session is gone."""

    def handling(self, client: Any) -> AbstractContextManager[Callable[[asyncio.Future[Any]], None]]:
        """Around the start of a handler; gives the callback for the end of its task."""

    def calling(self, connection: Any, method: str) -> AbstractContextManager[Mapping[str, str]]:
        """Around a call of the other end's method; gives the members that its request carries."""

    def serving(self, connection: Any, method: str, carried: Mapping[str, Any]) -> AbstractContextManager[None]:
        """Around a method that runs for the other end, whose request has carried these members."""


tracer: Tracer | None = None
