"""How a message gets to the subscribers of one server: at once in compiled code, or as `on_full` says to slow clients.

Owns what is counted as dropped for clients, and the newest message of each topic that a slow client is to get.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from fabric._connection.base import data_message
from fabric._connection.events import log_event
from fabric._topics.settings import OnFull, SettingsByPattern
from fabric.error import BufferFull, ConnectionClosed, InvalidState
from fabric_ext.broadcast import Shared
from fabric_ext.topics import Index, Subscriber

if TYPE_CHECKING:
    from fabric.history import Position
    from fabric.message import Message
    from fabric.metrics import MetricsCollector

__all__ = ["Delivery"]

logger = logging.getLogger("fabric.topics")

MOST_LATEST = 1000  # topics of which a slow client is kept the newest message


class Delivery:
    """Gives messages to the clients and listeners of one server.

    Args:
        index: which client has subscribed to what.
        settings: of the topics.
        drops: `Topics.drops`, where it counts.
        metrics: of the server.
        fragment_size: `ServerConfig.fragment_size`, or 0.

    Attributes:
        wrap: see `Topics.wrap`.
    """

    def __init__(
        self,
        index: Index,
        settings: SettingsByPattern,
        drops: Counter[str],
        metrics: MetricsCollector,
        fragment_size: int,
    ) -> None:
        self.wrap: Callable[[str, Message, Position | None], Any] | None = None
        self._index = index
        self._settings = settings
        self._drops = drops
        self._metrics = metrics
        self._fragment_size = fragment_size

    def shown(self, topic: str, message: Message, position: Position | None) -> Message:
        """What connections get instead of a message."""
        return message if self.wrap is None else data_message(self.wrap(topic, message, position))

    def fan_out(
        self,
        topic: str,
        data: Message,
        position: Position | None,
        compress: bool | None,
        left_out: Iterable[Subscriber],
    ) -> int:
        """Send a message to this server's subscribers; return how many connections it is sent to or kept for."""
        if self.wrap is None and not self._index.has_subscribers(topic):
            return 0  # all subscribers are on other servers: no frame is made
        shown = data if self.wrap is None else self.shown(topic, data, position)
        shared = Shared(shown, compress, self._fragment_size)
        reached, rest = self._index.publish(topic, shared, left_out)
        if rest:
            reached += self.send_to_rest(topic, data, position, shown, shared, compress, rest)
        return reached

    def fan_out_safely(self, topic: str, data: Message, position: Position | None) -> None:
        """As `fan_out`, for what came from elsewhere: what the application's `wrap` raises is logged."""
        try:
            self.fan_out(topic, data, position, None, ())
        except (Exception, asyncio.CancelledError, GeneratorExit) as error:  # noqa: BLE001  (logged)
            log_event(logger, logging.ERROR, "a message of topic %r was left out", topic, exc_info=error)

    def send_to_rest(
        self,
        topic: str,
        data: Message,
        position: Position | None,
        shown: Message,
        shared: Shared,
        compress: bool | None,
        rest: list[Any],
    ) -> int:
        """The same for clients that cannot be written to in compiled code."""
        peers = []
        for target in rest:
            if isinstance(target, weakref.ref):
                listener = target()
                if listener is not None:
                    listener._put(topic, data, position)
            else:
                peers.append(target)
        reached, later = shared.send_to(peers)
        on_full = self._settings.of(topic).on_full if later else "drop"
        for client in later:
            reached += (
                self._keep_latest(client, topic, shown, compress)
                if on_full == "latest"
                else self.keep(client, shown, compress, on_full)
            )
        return reached

    def keep(self, client: Any, data: Message, compress: bool | None, on_full: OnFull) -> bool:
        """Put the message into the outbox of a client that cannot take it now, if there is room."""
        try:
            client.send_nowait(data, compress=compress)
        except BufferFull:
            self._metrics.record_slow_peer_drop()
            self._drops["closed" if on_full == "close" else "full"] += 1
            if on_full == "close":
                client._begin_closing(1008, "too slow")
        except (ConnectionClosed, InvalidState):
            pass
        else:
            return True
        return False

    def _keep_latest(self, client: Any, topic: str, data: Message, compress: bool | None) -> bool:
        """Remember it as the one message of its topic that the client gets when it can take one."""
        assert client._subscriber is not None
        waiting = client._subscriber.waiting
        if waiting is None:
            waiting = client._subscriber.waiting = {}
        if waiting.pop(topic, None) is not None:
            self._drops["replaced"] += 1
        elif len(waiting) >= MOST_LATEST:
            del waiting[next(iter(waiting))]
            self._metrics.record_slow_peer_drop()
            self._drops["full"] += 1
        waiting[topic] = data, compress
        return True

    def send_waiting(self, client: Any, waiting: dict[str, Any]) -> None:
        """Nothing stands before a new message any more: send what is kept for the client, as far as that goes."""
        while waiting and client._is_sendable:
            data, compress = waiting.pop(next(iter(waiting)))
            client.send_nowait(data, compress=compress)
