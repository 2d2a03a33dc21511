"""Topics: messages to those who have subscribed.

    async def handler(client):
        client.subscribe("room.7")
        async for message in client:
            client.server.publish("room.7", message, exclude=client)

A topic is a name of tokens with dots between them. Connections, and the server itself, subscribe to names, or to
patterns: `*` stands for any one token, `>` for one or more at the end. A topic exists while it has a subscriber.

Topics may have a history: see `fabric.history`.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import inspect
import itertools
import logging
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Generator, Iterable
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from fabric._connection.base import BaseConnection
from fabric._connection.callbacks import check_callback
from fabric._connection.events import log_event
from fabric._history.logs import Logs
from fabric._history.shared import SharedLogs
from fabric._topics.arrivals import Arrivals
from fabric._topics.delivery import Delivery
from fabric._topics.gaps import Gaps
from fabric._topics.settings import OnFull, Order, Settings, SettingsByPattern
from fabric.broker import Broker, BrokerUnavailable, MemoryBroker, is_pattern
from fabric.error import Error, InvalidState
from fabric.history import History, Position
from fabric.metrics import MetricsCollector, TopicMetrics
from fabric_ext.remote import Incoming, wrap
from fabric_ext.topics import Index, Subscriber, check_topic, exact

if TYPE_CHECKING:
    from fabric.config import ServerConfig
    from fabric.message import Message
    from fabric_ext.broadcast import Shared

__all__ = ["Listener", "OnFull", "Order", "Outcome", "TooManyTopics", "Topics", "check_topic"]

LISTENER_LIMIT = 1000  # messages that a listener keeps
LOSSES = "$losses"  # where servers tell each other what may be lost
SERVERS = 3  # the kind of such envelopes, see fabric_ext.remote
HEAD = 13  # bytes of an envelope before what it carries: the kind, 8 of the server, 4 of the number
NUMBERED = 4  # the first byte of what comes from a topic with history, see `fabric.broker.Node`

logger = logging.getLogger("fabric.topics")

T = TypeVar("T")


class TooManyTopics(Error):
    """A client has subscribed to as many topics and patterns as it may.

    Args:
        limit: `ServerConfig.max_topics`.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(f"a client may have subscribed to {limit} topics at most (max_topics)")
        self.limit = limit


class Outcome(Generic[T]):
    """What was done at once, and an awaitable for what is still to be confirmed. It need not be awaited.

    Attributes:
        value: the result as far as this server is concerned; `await` returns it.
        position: of a message that was published to a topic with history, once that is known; None otherwise.
    """

    __slots__ = ("_confirm", "position", "value")

    def __init__(
        self, value: T, confirm: Callable[[], Awaitable[Any]] | None = None, position: Position | None = None
    ) -> None:
        self.value = value
        self.position = position
        self._confirm = confirm

    def __await__(self) -> Generator[Any, None, T]:
        if self._confirm is not None:
            yield from self._confirm().__await__()
        return self.value


class Listener:
    """What the server itself hears: an async iterator of messages, which begins when it is made.

        listener = server.topic("md.*.trades")
        async for message in listener:
            print(listener.topic, message.text)

    It ends with `close()`, with the server, or when nothing refers to it any more. As an async context manager it
    begins when the broker has confirmed the subscription. Messages wait up to a limit; then the oldest is dropped, and
    counted in `Topics.drops`.

    Attributes:
        pattern: what it listens to.
        topic: what the message was published to that was returned last.
        position: of that message, if its topic has a history; None otherwise.
    """

    def __init__(self, topics: Topics, pattern: str, limit: int) -> None:
        self.pattern = pattern
        self.topic = ""
        self.position: Position | None = None
        self._topics = topics
        self._limit = limit
        self._queue: collections.deque[tuple[str, Message, Position | None]] = collections.deque()
        self._waiter: asyncio.Future[None] | None = None
        self._subscriber: Subscriber | None = Subscriber(weakref.ref(self))
        self._begun = topics._subscribe(self._subscriber, pattern)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        while not self._queue:
            if self._subscriber is None:
                raise StopAsyncIteration
            if self._waiter is not None:
                raise InvalidState("another task waits for the next message already")
            self._topics._check_here()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self.topic, message, self.position = self._queue.popleft()
        return message

    async def __aenter__(self) -> Self:
        await self._begun
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Hear nothing more; what waits can still be taken.

        Raises:
            InvalidState: this is another thread than the server's.
        """
        self._topics._check_here()
        subscriber, self._subscriber = self._subscriber, None
        if subscriber is not None:
            self._topics._leave(subscriber)
        self._wake()

    def __del__(self) -> None:
        subscriber: Subscriber | None = getattr(self, "_subscriber", None)
        if subscriber is None:
            return
        if self._topics._is_here():
            self.close()
        elif self._topics._loop is not None:  # the collector runs on any thread
            with contextlib.suppress(RuntimeError):  # closed by now
                self._topics._loop.call_soon_threadsafe(self._topics._leave, subscriber)

    def _put(self, topic: str, message: Message, position: Position | None) -> None:
        if len(self._queue) >= self._limit:
            self._queue.popleft()
            self._topics.drops["listener"] += 1
        self._queue.append((topic, message, position))
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Topics:
    """The topics of a server: `server.topics`.

    Attributes:
        drops: how many messages did not reach a subscriber, by reason: "full" (its outbox was, or with
            on_full="latest" messages of 1,000 topics waited for it), "closed" (its outbox was full, and so its
            connection was closed: one for each, what its outbox held is not counted), "replaced" (a newer one took its
            place), "listener" (the server's own listener was too slow), "broker" (the broker took no more, so other
            servers did not get it).
        broker: see `fabric.broker`.
    """

    def __init__(self, config: ServerConfig, metrics: MetricsCollector, broker: Broker) -> None:
        self.broker = broker
        self._loop: asyncio.AbstractEventLoop | None = None  # these once the server has started
        self._thread = 0
        self._hear: Callable[[str, bytes, bytes], Any] | None = None  # what servers tell each other, see fabric.fleet
        self._on_return: Callable[[], Any] | None = None  # the broker is back
        self._is_shared = not isinstance(broker, MemoryBroker)
        self._node = os.urandom(8)
        self._numbers = itertools.count(1)
        self._index = Index()
        self._incoming = Incoming(self._index, self._node, config.fragment_size or 0)
        self._arrivals = Arrivals(self._incoming, self._deliver_rest)
        self._settings = SettingsByPattern(Settings("close" if config.slow_peer == "close" else "drop"), broker)
        self.drops: collections.Counter[str] = collections.Counter(full=0, closed=0, replaced=0, listener=0, broker=0)
        self._delivery = Delivery(self._index, self._settings, self.drops, metrics, config.fragment_size or 0)
        self._gaps = Gaps(self._index)
        self._logs = Logs(self._index.has_subscribers, self._settings.history_limits)
        self._shared: SharedLogs | None = None  # instead of them, where the broker keeps histories
        if self._is_shared and broker.keeps_histories:
            self._shared = self._gaps.recovered = SharedLogs(
                broker,
                self._node,
                self._index.has_subscribers,
                self._settings.history_limits,
                self._delivery.fan_out,
                self._gaps.report,
            )
        self._listeners: weakref.WeakSet[Listener] = weakref.WeakSet()

    @property
    def on_gap(self) -> Callable[[str, float], Any] | None:
        """A plain function that is called with a topic or pattern of this server, and a time (as `time.time()`): what
        was published on other servers since then may be lost, as the broker was away from this server or from them.
        """
        return self._gaps.on_gap

    @on_gap.setter
    def on_gap(self, function: Callable[[str, float], Any] | None) -> None:
        if function is not None:
            check_callback("on_gap", function, ("topic", "since"))
            if inspect.iscoroutinefunction(function):
                raise TypeError("on_gap must be a plain function; it can make a task")
        self._gaps.on_gap = function

    @property
    def wrap(self) -> Callable[[str, Message, Position | None], Any] | None:
        """A plain function that is called with a topic, a message and its position (None without a history), and
        returns what the connections of this server get instead of the message; None, the default: the message itself.

        It is called once for a message, however many get it, and for each that a client has missed. What
        `server.topic` and `server.history` return is as it was published.
        """
        return self._delivery.wrap

    @wrap.setter
    def wrap(self, function: Callable[[str, Message, Position | None], Any] | None) -> None:
        if function is not None:
            check_callback("wrap", function, ("topic", "message", "position"))
            if inspect.iscoroutinefunction(function):
                raise TypeError("wrap must be a plain function, which returns a message")
        self._delivery.wrap = function
        self._incoming.hold = function is not None

    def __len__(self) -> int:
        """The topics and patterns that have subscribers on this server."""
        return len(self._index)

    def __contains__(self, topic: object) -> bool:
        return topic in self._index

    def names(self) -> list[str]:
        """The topics and patterns that have subscribers on this server."""
        return self._index.names()

    def count(self, topic: str) -> int:
        """The subscriptions of exactly this topic or pattern on this server."""
        return self._index.count(exact(topic))

    def clients(self, topic: str) -> list[Any]:
        """The connections (`ConnectedClient`) of this server that get what is published to `topic`."""
        return [target for target in self._index.subscribers(exact(topic)) if not isinstance(target, weakref.ref)]

    def configure(
        self,
        pattern: str,
        *,
        on_full: OnFull | None = None,
        presence: bool | None = None,
        history: int | None = None,
        ttl: float | timedelta | None = None,
        order: Order | None = None,
    ) -> None:
        """Set what holds for the topics that fit `pattern`; what is set later counts first.

        Args:
            on_full: what becomes of a message for a client whose socket is full and whose outbox is full too: "drop"
                it, or "close" the connection with 1008. "latest" keeps only the newest message of each topic for a
                client whose socket is full, and sends it as soon as it can. By default as `ServerConfig.slow_peer`
                says, where "wait" means "drop": publishing waits for nobody. With a history it is "close" by default:
                such a client gets the rest when it comes back.
            presence: do all servers know which clients with names have subscribed to such a topic? It counts for what
                is subscribed to from now on; see `fabric.fleet`.
            history: how many messages of each topic are kept, with their offsets; 0, the default, is none. See
                `fabric.history`.
            ttl: for how many seconds a message is kept at most, as a number or a timedelta; 300 by default.
            order: "local", the default: this server's own subscribers get a message at once, and messages that two
                servers publish at the same time may come in one order here and in another there. "broker": all
                servers deliver in one order, the broker's. That is so with any history, and keeps one of a single
                message if none is configured.

        Raises:
            NotSupported: the broker keeps no histories.
        """
        self._settings.configure(
            exact(pattern), on_full=on_full, presence=presence, history=history, ttl=ttl, order=order
        )

    def settings(self, topic: str) -> Settings:
        """What holds for a topic."""
        return self._settings.of(topic)

    def __repr__(self) -> str:
        return f"<Topics: {len(self)} topics, {self._index.subscriptions} subscriptions>"

    def measure(self) -> TopicMetrics:
        """How many there are now, what was dropped, and how the broker stands."""
        return TopicMetrics(
            len(self), self._index.subscriptions, dict(self.drops), self.broker.is_healthy, self._is_shared
        )

    # -- called by the server and its connections

    def _is_here(self) -> bool:
        return self._loop is None or self._thread == threading.get_ident() or self._loop.is_closed()

    def _check_here(self) -> None:
        """Raise unless this is the server's own thread."""
        if not self._is_here():
            raise InvalidState("this server belongs to another thread: use loop.call_soon_threadsafe")

    def _listen(self, pattern: str, limit: int) -> Listener:
        self._check_here()
        if type(limit) is not int or limit < 1:
            raise ValueError(f"limit is {limit!r}, allowed is a number of messages from 1")
        listener = Listener(self, exact(pattern), limit)
        self._listeners.add(listener)
        return listener

    def _subscribe(self, subscriber: Subscriber, topic: str) -> Outcome[None]:
        if self._index.subscribe(subscriber, topic):
            self.broker.subscribe((topic,))
        if self._shared is not None and not is_pattern(topic) and self._settings.has_history(topic):
            if self._loop is None:
                self._shared.hear(topic)  # it is read once the server starts
            else:  # confirmed once it is known what is old
                outcome: Outcome[Any] = Outcome(None)
                outcome._confirm = self._shared.join(topic, subscriber, None, 0, _nothing, outcome) or self.broker.flush
                return outcome
        return Outcome(None, self.broker.flush if self._is_shared else None)

    def _check_history(self, topic: str) -> None:
        check_topic(topic)
        if not self._settings.has_history(topic):
            raise InvalidState(f"{topic!r} has no history: say topics.configure({topic!r}, history=...) before")

    def _join(
        self,
        client: Any,
        topic: str,
        since: Position | None,
        recent: int,
        on_recovery: Callable[[History], Any] | None,
    ) -> Outcome[History | None]:
        """Subscribe a client; with a history, give it what it has missed before anything newer."""
        subscriber = client._subscriber
        asks = since is not None or recent or on_recovery is not None
        if not asks and (not self._settings.has_history(topic) or is_pattern(topic)):
            return self._subscribe(subscriber, topic)  # type: ignore[return-value]
        self._check_history(topic)
        if self._shared is not None:
            return self._join_shared(self._shared, client, topic, since, recent, on_recovery)
        if self._index.subscribe(subscriber, topic) is None:
            return Outcome(replace(self._logs.read(topic, None), publications=()))
        history = self._logs.catch_up(topic, since, recent)
        try:
            self._recover(client, topic, history, on_recovery)
        except BaseException:
            self._unsubscribe(subscriber, topic)
            raise
        return Outcome(history)

    def _join_shared(
        self,
        shared: SharedLogs,
        client: Any,
        topic: str,
        since: Position | None,
        recent: int,
        on_recovery: Callable[[History], Any] | None,
    ) -> Outcome[History | None]:
        """The same over a broker: what was missed is given as soon as it is known."""
        subscriber = client._subscriber
        outcome: Outcome[History | None] = Outcome(None)
        is_first = self._index.subscribe(subscriber, topic)
        if is_first is None:
            outcome._confirm = shared.join(topic, subscriber, None, 0, _nothing, outcome)
            return outcome
        if is_first:
            self.broker.subscribe((topic,))

        def serve(history: History) -> None:
            if not client._is_open:
                return
            try:
                self._recover(client, topic, history, on_recovery)
            except BaseException:
                client.unsubscribe(topic)
                raise

        outcome._confirm = shared.join(topic, subscriber, since, recent, serve, outcome)
        return outcome

    def _recover(self, client: Any, topic: str, history: History, on_recovery: Callable[[History], Any] | None) -> None:
        """Give a client what it has missed."""
        if on_recovery is not None:
            on_recovery(history)
            return
        on_full = self._settings.of(topic).on_full if history.publications else "drop"
        for offset, message in history.publications:
            shown = self._delivery.shown(topic, message, Position(history.position.epoch, offset))
            if not self._delivery.keep(client, shown, None, on_full) and on_full == "close":
                break

    async def _read(self, topic: str, since: Position | None, limit: int | None, reverse: bool) -> History:
        """See `WebSocketServer.history`."""
        self._check_here()
        topic = exact(topic)
        self._check_history(topic)
        if self._shared is not None:
            return await self._shared.peek(topic, since, limit, reverse=reverse)
        return self._logs.peek(topic, since, limit, reverse=reverse)

    def _unsubscribe(self, subscriber: Subscriber, topic: str) -> None:
        if self._index.unsubscribe(subscriber, topic):
            self._unhear((topic,))
        if self._shared is not None:
            self._shared.unsubscribed(subscriber, (topic,))

    def _leave(self, subscriber: Subscriber) -> None:
        """Its connection has ended, or nobody listens any more."""
        subscriber.waiting = None
        topics = subscriber.topics if self._shared is not None and len(self._shared) else ()
        gone = self._index.leave(subscriber)
        if self._shared is not None and topics:
            target = subscriber.target
            error = target._closed_error() if isinstance(target, BaseConnection) else None
            self._shared.unsubscribed(subscriber, topics, error)
        if gone:
            try:
                self._unhear(gone)
            except Exception as error:  # noqa: BLE001  (of an adapter: the end of a connection goes on)
                log_event(logger, logging.ERROR, "the broker %r could not unsubscribe", self.broker, exc_info=error)

    def _unhear(self, topics: Iterable[str]) -> None:
        """These have no subscribers any more, unless a finalizer or a signal handler has subscribed since."""
        self._logs.unheard(topics)
        self.broker.unsubscribe(topics)
        if again := [topic for topic in topics if topic in self._index]:
            self.broker.subscribe(again)

    def _publish(
        self,
        topic: str,
        data: Message,
        exclude: Any,
        compress: bool | None,
    ) -> Outcome[int]:
        """Send a message to this server's subscribers, and give it to the broker for those of others."""
        self._check_here()
        if type(topic) is not str:
            topic = exact(topic)
        left_out: Iterable[Subscriber] = ()
        if exclude is not None:
            clients: Iterable[Any] = (exclude,) if isinstance(exclude, BaseConnection) else exclude
            try:
                left_out = [client._subscriber for client in clients if client._subscriber is not None]
            except (AttributeError, TypeError):
                kind = type(exclude).__name__
                raise TypeError(f"exclude is a ConnectedClient of the server, or several, not this {kind}") from None
        if self._settings.has_history(topic):
            check_topic(topic)
            if self._shared is not None:
                return self._append(self._shared, topic, data, compress, left_out)
            position = self._logs.add(topic, data)
            return Outcome(self._delivery.fan_out(topic, data, position, compress, left_out), position=position)
        reached = self._delivery.fan_out(topic, data, None, compress, left_out)
        if not self._is_shared:
            return Outcome(reached)
        number = next(self._numbers) & 0xFFFFFFFF
        try:
            self.broker.publish(topic, wrap(data.msg_type, self._node, number, data.as_bytes()))
        except BrokerUnavailable as error:
            self.drops["broker"] += 1
            return Outcome(reached, _Failure(error))
        return Outcome(reached, self.broker.flush)

    def _append(
        self, shared: SharedLogs, topic: str, data: Message, compress: bool | None, left_out: Iterable[Subscriber]
    ) -> Outcome[int]:
        """Publish to a topic whose history the broker keeps: it comes back from there, in the order of the offsets."""
        outcome = Outcome(0)
        try:
            outcome._confirm = shared.publish(
                topic, data, next(self._numbers), outcome, compress, left_out, self._count_refused
            )
        except BrokerUnavailable as error:
            self._count_refused()
            outcome._confirm = _Failure(error)
        return outcome

    def _count_refused(self) -> None:
        self.drops["broker"] += 1

    # -- what the broker reports

    def deliver(self, batch: list[tuple[str, bytes]]) -> None:
        """Messages of other servers have arrived; see `fabric.broker.Node`."""
        self._arrivals.deliver(batch)

    def _deliver_rest(self, topic: str, data: Any, shared: Shared | None, rest: list[Any]) -> None:
        """Deliver what is not in compiled code; see `Incoming.deliver`."""
        if shared is not None:
            self._delivery.send_to_rest(topic, data, None, data, shared, None, rest)
        elif isinstance(data, bytes):
            if data[0] == NUMBERED:
                if self._shared is not None:
                    self._shared.deliver(topic, data)
            elif topic == LOSSES:
                self._gaps.hear(data[HEAD:])
            elif self._hear is not None:
                self._hear(topic, data[1:9], data[HEAD:])
        else:
            self._delivery.fan_out_safely(topic, data, None)

    def gap(self, since: float) -> None:
        """The broker was away since then; see `fabric.broker.Node`."""
        if self._on_return is not None:
            self._on_return()
        if self._shared is not None:
            self._shared.resume()  # of topics with history, what was missed is read
        self._gaps.was_away(since)

    def lost(self, told: list[bytes]) -> None:
        """What this server has published may be lost to others; see `fabric.broker.Node`."""
        for part in told:
            self._tell(LOSSES, part)

    def _tell(self, topic: str, said: bytes) -> None:
        """Tell other servers something.

        Raises:
            BrokerUnavailable: the broker does not take it.
        """
        number = next(self._numbers) & 0xFFFFFFFF
        self.broker.publish(topic, wrap(SERVERS, self._node, number, said))

    # -- life, as the server's

    async def _start(self) -> None:
        """Connect to the broker."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self.broker.subscribe(self._index.names())
        if self._is_shared:
            self.broker.subscribe((LOSSES,))
        await self.broker.start(self)
        if self._shared is not None:
            self._shared.resume()

    async def _close(self, timeout: float) -> None:
        """The server has shut down, or could not start; any broker has `timeout` seconds to close."""
        for listener in list(self._listeners):
            listener.close()
        self._arrivals.clear()
        if self._shared is not None:
            self._shared.close()
        closing = asyncio.ensure_future(_closed(self.broker))
        try:
            await asyncio.wait([closing], timeout=timeout)
            if not closing.done():
                log_event(
                    logger,
                    logging.WARNING,
                    "the broker %r was left: it did not close within %g seconds",
                    self.broker,
                    timeout,
                )
        finally:
            closing.cancel()


async def _closed(broker: Broker) -> None:
    """Close a broker; what that raises is logged."""
    try:
        await broker.close()
    except Exception as error:  # noqa: BLE001  (logged)
        log_event(logger, logging.ERROR, "closing the broker %r raised", broker, exc_info=error)


def _nothing(_: History) -> None:
    """A client that has subscribed already lacks nothing."""


class _Failure:
    """What a publication comes to that the broker has not taken."""

    def __init__(self, error: BrokerUnavailable) -> None:
        self._error = error

    async def __call__(self) -> None:
        raise self._error
