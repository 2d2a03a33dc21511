"""A client's connection, as its server sees it: its request, its topics, and what follows from its end."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from fabric._connection.base import BaseConnection, is_end
from fabric._connection.events import log_event
from fabric._http.messages import Request, address_of
from fabric.history import History, Position
from fabric.topics import Outcome, TooManyTopics
from fabric_ext.receive_queue import inherits_in_c
from fabric_ext.topics import Subscriber, exact

if TYPE_CHECKING:
    from fabric._http.messages import Address
    from fabric.centrifuge import Translator
    from fabric.server import WebSocketServer
    from fabric_ext.session import Session

__all__ = ["ConnectedClient"]

logger = logging.getLogger("fabric.server")


@inherits_in_c
class ConnectedClient(BaseConnection):
    """A client's connection, as its server sees it."""

    __slots__ = ("_ip", "_is_viewer", "_request", "_server", "_subscriber", "_task", "_translator")

    def __init__(self, server: WebSocketServer, request: Request, ip: str | None, *, is_viewer: bool = False) -> None:
        super().__init__(
            server._loop,
            server.config,
            masking=False,
            metrics=server._viewer_metrics if is_viewer else server.metrics,
            logger=logger,
            on_message=server._on_message if server._is_callback and not is_viewer else None,
        )
        self._is_viewer = is_viewer  # a page of the dashboard
        self._server = server
        self._request = request
        self._ip = ip
        self._task: asyncio.Task[Any] | None = None
        self._subscriber: Subscriber | None = None  # with its first subscription
        self._translator: Translator | None = None  # of a protocol; hears of subscriptions

    @property
    def id(self) -> uuid.UUID:
        """Identity of this connection; `server.get_client(id)` finds it while it is open."""
        known = self._id is not None
        own = super().id
        if not known and self in self._server._connections.clients:
            self._server._connections.by_id[own] = self
        return own

    @property
    def remote_addr(self) -> Address:
        """The client's address: `(host, port)`, or longer for IPv6; what a proxy says where `proxy_protocol` is on."""
        return cast("Address", self._remote_addr)  # known since before its handshake

    @property
    def request(self) -> Request:
        """The request that opened this connection: path, query, headers."""
        return self._request

    @property
    def state_data(self) -> dict[str, Any]:
        """Of the application, for this connection; begins as what `process_request` put into `Request.state`."""
        return self._request.state

    @property
    def server(self) -> WebSocketServer:
        """The server that it is connected to."""
        return self._server

    @property
    def name(self) -> str | None:
        """Its name, by which all servers can reach it; None is none. See `fabric.fleet`.

        Setting it raises `NameTaken` if another client has it and `ServerConfig.duplicate_names` is "reject",
        ValueError if it is no name, and `ConnectionClosed` when the connection has ended.
        """
        return self._server._fleet.name_of(self)

    @name.setter
    def name(self, name: str | None) -> None:
        self._check_sending()
        self._server._fleet.set_name(self, name)

    @property
    def topics(self) -> frozenset[str]:
        """The topics and patterns that this client has subscribed to."""
        return frozenset(() if self._subscriber is None else self._subscriber.topics)

    def subscribe(
        self,
        topic: str,
        *,
        since: Position | Sequence[Any] | None = None,
        recent: int = 0,
        on_recovery: Callable[[History], Any] | None = None,
    ) -> Outcome[History | None]:
        """Send this client from now on what is published to a topic, or to those that fit a pattern (`fabric.topics`).

        It acts at once. Awaited, it returns when the broker has confirmed it. Subscribing twice changes nothing. A
        client gets each message once, however many of its subscriptions fit.

        For a topic with history (`fabric.history`) the result is a `History`, whose `position` is what the client has
        or was sent: all that is newer follows. For others, and for patterns, it is None.

        Args:
            since: what the client has of a topic with history: `(epoch, offset)`. What came after that is sent to it,
                in order, before anything newer. If that cannot be done, nothing of it is sent, and `History.recovered`
                is False, as it is for a client that has subscribed already.
            recent: of a topic with history, how many of the latest messages a client gets that has no `since`, or
                cannot be given what came after it: the last lines of a chat, say. They too come before anything newer.
            on_recovery: a plain function that is called with the `History` instead of sending its `publications`. What
                it sends comes before all that is newer. If it raises, the client is not subscribed.

        Raises:
            ValueError: the name is not that of a topic or pattern, or `since` or `recent` is out of range.
            TypeError: `since` is no position.
            InvalidState: `since`, `recent` or `on_recovery` is given, and the topic has no history; where it is
                awaited, also: it was unsubscribed meanwhile.
            BrokerUnavailable: where it is awaited: the broker is away. The client is subscribed, and gets what it has
                missed when the broker is back.
            TooManyTopics: it has subscribed to `ServerConfig.max_topics` others.
            ConnectionClosed: the connection has ended.
        """
        self._check_here()
        self._check_sending()
        position = None if since is None else Position.check(since)
        if type(recent) is not int or recent < 0:
            raise ValueError(f"recent is {recent!r}, allowed is a number of messages from 0")
        if self._subscriber is None:
            self._subscriber = Subscriber(self)
        topic = exact(topic)
        limit = self._server.config.max_topics
        if len(self._subscriber) >= limit and topic not in self._subscriber.topics:
            raise TooManyTopics(limit)
        outcome = self._server.topics._join(self, topic, position, recent, on_recovery)
        self._server._fleet.subscribed(self, topic)
        if self._translator is not None:
            self._translator.subscribed(topic)
        return outcome

    def unsubscribe(self, topic: str) -> None:
        """End a subscription; nothing happens where there is none."""
        self._check_here()
        topic = exact(topic)
        if self._subscriber is not None:
            self._server.topics._unsubscribe(self._subscriber, topic)
            self._server._fleet.unsubscribed(self, topic)
            if self._translator is not None:
                self._translator.unsubscribed(topic)

    def _opened(self) -> None:
        self._local_addr = self._server._connections.local_addr(address_of(self._transport, "sockname"))
        self._server._connected(self)

    def _handler_done(self, task: asyncio.Task[Any]) -> None:
        """The handler has returned or raised: close the connection if it has not."""
        self._server._connections.task_done(task)
        self._task = None
        code, reason = 1000, ""
        error = None if task.cancelled() else task.exception()
        if error is not None and (self._is_open or not is_end(error)):
            log_event(logger, logging.ERROR, "the handler of connection %s raised", self.id, exc_info=error)
            code, reason = 1011, "internal error"
        if self._is_open:
            self._close_when_sent(code, reason)

    def _close_when_sent(self, code: int, reason: str) -> None:
        """Close the connection, after what waits to be sent."""
        if self._outbox_size:
            self._server._connections.spawn(self.close(code, reason), self)
        else:
            self._begin_closing(code, reason)

    def _on_lost(self, session: Session) -> None:
        super()._on_lost(session)
        self._server._disconnected(self)

    def _on_writable(self) -> None:
        if self._subscriber is not None and self._subscriber.waiting:
            self._server.topics._delivery.send_waiting(self, self._subscriber.waiting)
        super()._on_writable()
