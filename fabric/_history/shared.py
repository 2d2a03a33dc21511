"""The histories of a server whose broker keeps them.

For each topic with history that this server has subscribers for, it has a mirror: the window as the broker keeps it, up
to the message that was delivered last. Every message carries its offset. So a message that comes twice is left out; if
one is missing, and after the broker was away, the missing ones are read before anything newer is delivered. A client
that comes back gets what it has missed from the mirror, in the same step in which it becomes a subscriber.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple, Protocol

from fabric._connection.events import log_event
from fabric._history.log import Log
from fabric.broker import Broker, BrokerUnavailable, Window
from fabric.error import ConnectionClosed, Error, InvalidState
from fabric.history import History, Position
from fabric.message import Message, MessageType
from fabric_ext.remote import wrap
from fabric_ext.topics import Subscriber

__all__ = ["FanOut", "SharedLogs"]

HEAD, INNER, NODE = 49, 13, slice(1, 9)  # bytes before an envelope, bytes of that before its payload, its node's name
MOST_PENDING = 10_000  # messages that wait while a window is read
MOST_READS = 64  # windows that are read at a time, as all topics are read anew when the broker is back
RETRY = 1.0  # seconds; when the broker is back it is tried at once

logger = logging.getLogger("fabric.topics")


class FanOut(Protocol):
    """Sends a message to this server's subscribers, and returns how many connections it reaches."""

    def __call__(
        self, topic: str, data: Message, position: Position, compress: bool | None, left_out: Iterable[Subscriber], /
    ) -> int: ...


class _Entry(NamedTuple):
    epoch: str
    offset: int
    before: int  # no message of the topic lies between
    age: float
    envelope: bytes


class _Own(NamedTuple):
    """What this server has published, and has not delivered yet."""

    topic: str
    outcome: Any
    compress: bool | None
    left_out: list[Subscriber]


class _Joiner:
    """A subscriber that waits for the mirror."""

    def __init__(self, since: Position | None, recent: int, serve: Callable[[History], None], outcome: Any) -> None:
        self.since = since
        self.recent = recent
        self.serve = serve
        self.outcome = outcome
        self.is_awaited = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fail(self, error: BaseException) -> None:
        if isinstance(error, StopIteration):  # no future takes it
            cause, error = error, RuntimeError("on_recovery raised StopIteration")
            error.__cause__ = cause
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # perhaps no task waits for it

    async def wait(self) -> None:
        self.is_awaited = True
        await asyncio.shield(self.done)

    def finish(self, log: Log, top: int) -> None:
        """Serve it from `log`. It may be ahead of that, up to `top`, the newest offset that the broker has."""
        since = self.since
        if since is not None and since.epoch == log.epoch and log.top < since.offset <= top:
            history = History(since, True)
        else:
            history = log.catch_up(since, self.recent)
        try:
            self.serve(history)
        except (Exception, asyncio.CancelledError, GeneratorExit) as error:  # noqa: BLE001  (it concerns one client)
            if not self.is_awaited or self.done.done():  # else it is raised in the task that waits
                log_event(logger, logging.ERROR, "a client could not be given what it has missed", exc_info=error)
            self.fail(error)
            return
        self.outcome.value = history
        if not self.done.done():
            self.done.set_result(None)


class _Mirror:
    """A copy of the window that the broker keeps of a topic.

    Attributes:
        log: None until it has been read.
        is_whole: does the log begin where the broker's window begins?
        reading: the task that reads what is missing; messages wait meanwhile.
        heard: the latest `time.time()` at which nothing was missing.
    """

    __slots__ = ("heard", "is_whole", "joiners", "log", "pending", "reading")

    def __init__(self) -> None:
        self.log: Log | None = None
        self.is_whole = False
        self.reading: asyncio.Task[None] | None = None
        self.pending: list[_Entry] = []
        self.joiners: dict[Subscriber, _Joiner] = {}
        self.heard = time.time()


class SharedLogs:
    """The mirrors of the topics that a server hears.

    Args:
        broker: which keeps the histories.
        node: 8 bytes that name this server.
        has_subscribers: has a topic subscribers?
        limits: says how many messages of a topic are kept, and for how many seconds.
        fan_out: sends to this server's subscribers.
        report_gap: called with a topic and the time at which it was last heard: messages of about then, and since, are
            lost.
        clock: seconds.
    """

    def __init__(
        self,
        broker: Broker,
        node: bytes,
        has_subscribers: Callable[[str], bool],
        limits: Callable[[str], tuple[int, float]],
        fan_out: FanOut,
        report_gap: Callable[[str, float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._broker = broker
        self._node = node
        self._has_subscribers = has_subscribers
        self._limits = limits
        self._fan_out = fan_out
        self._report_gap = report_gap
        self._clock = clock
        self._mirrors: dict[str, _Mirror] = {}
        self._own: dict[int, _Own] = {}
        self._is_running = False
        self._reads = asyncio.Semaphore(MOST_READS)
        self.malformed = 0

    def __len__(self) -> int:
        return len(self._mirrors)

    def __contains__(self, topic: object) -> bool:
        return topic in self._mirrors

    # -- what this server publishes

    def publish(
        self,
        topic: str,
        data: Message,
        number: int,
        outcome: Any,
        compress: bool | None,
        left_out: Iterable[Subscriber],
        refused: Callable[[], None],
    ) -> Callable[[], Awaitable[None]]:
        """Give a message to the broker, and deliver it here when it has come back, in the order of the offsets.

        Args:
            number: larger than that of the message before.
            outcome: its `position` and `value` are set once they are known.
            refused: called if the broker does not take it.

        Returns:
            A coroutine function that waits until the broker has it.

        Raises:
            BrokerUnavailable: too much waits for the broker.
        """
        size, ttl = self._limits(topic)
        mirror = self._mirrors.get(topic)
        known = None if mirror is None or mirror.log is None else mirror.log.position
        short = number & 0xFFFFFFFF
        envelope = wrap(data.msg_type, self._node, short, data.as_bytes())
        done = self._broker.append(topic, envelope, number, size, ttl, known)
        self._own[short] = _Own(topic, outcome, compress, list(left_out))

        def confirmed(done: asyncio.Future[tuple[str, int]]) -> None:
            if done.cancelled() or done.exception() is not None:
                self._own.pop(short, None)
                refused()
                return
            epoch, offset = done.result()
            if offset:
                outcome.position = Position(epoch, offset)
            mirror = self._mirrors.get(topic)
            if mirror is None or (mirror.reading is None and mirror.log is not None and mirror.log.top >= offset):
                self._own.pop(short, None)

        done.add_done_callback(confirmed)

        async def confirm() -> None:
            epoch, offset = await asyncio.shield(done)
            if offset:  # `confirmed` may be about to be called
                outcome.position = Position(epoch, offset)
            if topic in self._mirrors:
                try:
                    await self._broker.flush()  # what the broker sent before its answer has been delivered by then
                except BrokerUnavailable as error:
                    log_event(logger, logging.DEBUG, "%s", error)

        return confirm

    # -- subscribers

    def hear(self, topic: str) -> None:
        """This server has a subscriber of the topic: keep a mirror of it from now on."""
        if topic not in self._mirrors:
            self._mirrors[topic] = mirror = _Mirror()
            self._read(topic, mirror)

    def join(
        self,
        topic: str,
        subscriber: Subscriber,
        since: Position | None,
        recent: int,
        serve: Callable[[History], None],
        outcome: Any,
    ) -> Callable[[], Awaitable[None]] | None:
        """Give a new subscriber what it has missed, now, or as soon as the mirror is whole.

        Args:
            recent: how many of the latest messages it is given where it cannot be known what it has missed.
            serve: called with what it has missed; newer messages follow.
            outcome: its `value` is set to the same.

        Returns:
            A coroutine function that waits for that; None if it has been done.
        """
        self.hear(topic)
        mirror = self._mirrors[topic]
        first = mirror.joiners.get(subscriber)
        if first is not None:  # it has subscribed before, and waits
            return lambda: _follow(first, outcome)
        joiner = _Joiner(since, recent, serve, outcome)
        log = mirror.log
        is_ahead = log is not None and since is not None and since.epoch == log.epoch and since.offset > log.top
        if (
            mirror.reading is None
            and log is not None
            and (mirror.is_whole or (since is None and not recent))
            and not is_ahead  # another server was faster
        ):
            self._trim(topic, log)
            joiner.is_awaited = True  # an error is raised here
            joiner.finish(log, log.top)
            if (error := joiner.done.exception()) is not None:
                raise error
            return None
        mirror.joiners[subscriber] = joiner
        self._read(topic, mirror)

        async def confirm() -> None:
            if not self._broker.is_healthy:
                raise BrokerUnavailable("the broker is away; what was missed is sent when it is back")
            await joiner.wait()

        return confirm

    def unsubscribed(self, subscriber: Subscriber, topics: Iterable[str], error: Error | None = None) -> None:
        """A subscriber has left topics or patterns; where it waited for one, that fails with `error`."""
        if not self._mirrors:
            return
        for topic in topics:
            if "*" in topic or ">" in topic:
                for name in list(self._mirrors):
                    self._drop_unheard(name)
                continue
            mirror = self._mirrors.get(topic)
            if mirror is not None:
                joiner = mirror.joiners.pop(subscriber, None)
                if joiner is not None:
                    joiner.fail(error or InvalidState(f"unsubscribed from {topic!r} meanwhile"))
                self._drop_unheard(topic)

    def _drop_unheard(self, topic: str) -> None:
        if self._has_subscribers(topic):
            return
        mirror = self._mirrors.pop(topic)
        if mirror.reading is not None:
            mirror.reading.cancel()
        for number in [number for number, own in self._own.items() if own.topic == topic]:
            del self._own[number]

    # -- what the broker says

    def deliver(self, topic: str, data: bytes) -> None:
        """A message of a topic with history has come."""
        try:
            entry = _Entry(data[1:17].decode("ascii"), int(data[17:33]), int(data[33:HEAD]), 0.0, data[HEAD:])
            _message(entry.envelope)
        except ValueError:
            self.malformed += 1
            return
        mirror = self._mirrors.get(topic)
        if mirror is None:
            if not self._has_subscribers(topic):
                return
            # Its subscribers use patterns: the mirror begins with this message.
            mirror = self._mirrors[topic] = _Mirror()
            mirror.log = Log(entry.epoch, entry.offset - 1)
        self._take(topic, mirror, entry)

    def _take(self, topic: str, mirror: _Mirror, entry: _Entry) -> None:
        log = mirror.log
        if mirror.reading is None and log is not None and log.epoch == entry.epoch:
            if entry.offset <= log.top:
                return
            if entry.before <= log.top:
                self._accept(topic, mirror, log, entry, ())
                mirror.heard = time.time()
                return
        if len(mirror.pending) >= MOST_PENDING:
            mirror.pending.clear()  # they are read from the broker
        mirror.pending.append(entry)
        self._read(topic, mirror)

    def _accept(self, topic: str, mirror: _Mirror, log: Log, entry: _Entry, left_out: Iterable[Subscriber]) -> None:
        """Keep and deliver the next message; an entry that holds no message is counted, and left out."""
        try:
            message = _message(entry.envelope)
        except ValueError:
            self.malformed += 1
            log.top = max(log.top, entry.offset)
            return
        log.add(message, self._clock() - entry.age, entry.offset)
        self._trim(topic, log)
        own = None
        if entry.envelope[NODE] == self._node:
            own = self._own.pop(int.from_bytes(entry.envelope[9:INNER], sys.byteorder), None)
        compress = None
        if own is not None:
            own.outcome.position = Position(entry.epoch, entry.offset)
            compress, left_out = own.compress, [*left_out, *own.left_out]
        try:
            reached = self._fan_out(topic, message, Position(entry.epoch, entry.offset), compress, left_out)
        except (Exception, asyncio.CancelledError, GeneratorExit) as error:  # noqa: BLE001  (logged)
            log_event(logger, logging.ERROR, "a message of topic %r was left out", topic, exc_info=error)
            return
        if own is not None:
            own.outcome.value = reached

    def _add(self, log: Log, envelope: bytes, now: float, offset: int) -> None:
        """Keep a message of the broker's window; an entry that holds no message is counted, and left out."""
        try:
            log.add(_message(envelope), now, offset)
        except ValueError:
            self.malformed += 1

    def _trim(self, topic: str, log: Log) -> None:
        size, ttl = self._limits(topic)
        log.trim(size, self._clock() - ttl)

    # -- what is read from the broker

    def resume(self) -> None:
        """The broker is connected, perhaps again: read what was missed of all topics."""
        self._is_running = True
        self._reads = asyncio.Semaphore(MOST_READS)  # those that are cancelled here have the old one
        for topic, mirror in self._mirrors.items():
            if mirror.reading is not None:
                mirror.reading.cancel()  # it may have asked before the subscriptions were made again
                mirror.reading = None
            self._read(topic, mirror)

    def close(self) -> None:
        """The server has shut down."""
        self._is_running = False
        for mirror in self._mirrors.values():
            if mirror.reading is not None:
                mirror.reading.cancel()
            for joiner in mirror.joiners.values():
                joiner.fail(ConnectionClosed(1001, "the server has shut down", by="local"))
        self._mirrors.clear()

    def _read(self, topic: str, mirror: _Mirror) -> None:
        if mirror.reading is None and self._is_running:
            mirror.reading = asyncio.get_running_loop().create_task(self._reading(topic, mirror))

    async def _reading(self, topic: str, mirror: _Mirror) -> None:
        """Read what is missing, and deliver it."""
        reads = self._reads
        while True:
            async with reads:
                size, ttl = self._limits(topic)
                log = mirror.log
                wants_whole = log is None or (not mirror.is_whole and bool(mirror.joiners))
                known = None if log is None else log.position
                after = 0 if log is None or wants_whole else log.top
                window, asked = None, list(mirror.pending)
                try:
                    await self._broker.flush()  # the topic is subscribed to by then
                    window = await self._broker.read(topic, size, ttl, known, after, wait=True)
                    if log is None:
                        await self._broker.flush()  # messages for subscribers by patterns are in `pending` by then
                except Exception as error:  # noqa: BLE001  (logged)
                    window = None
                    if not isinstance(error, BrokerUnavailable):
                        log_event(
                            logger, logging.ERROR, "the history of topic %r cannot be read", topic, exc_info=error
                        )
                    for joiner in mirror.joiners.values():
                        joiner.fail(error)
            if window is None:
                await asyncio.sleep(RETRY)
                continue
            if wants_whole or mirror.is_whole or not mirror.joiners:
                break
        mirror.reading = None
        self._leave_epoch(topic, mirror, window.epoch, asked)
        self._merge(topic, mirror, window, after)

    def _leave_epoch(self, topic: str, mirror: _Mirror, epoch: str, asked: list[_Entry]) -> None:
        """The epoch is this: deliver what has come of the former one, and forget what is even older.

        Args:
            asked: what was pending before the broker was asked. Of that nothing belongs to an epoch that is to come.
        """
        old = mirror.log
        outdated = {id(entry) for entry in asked if entry.epoch != epoch}
        pending, mirror.pending = mirror.pending, []
        for entry in pending:
            if old is not None and entry.epoch == old.epoch != epoch:
                if entry.offset > old.top:
                    self._accept(topic, mirror, old, entry, tuple(mirror.joiners))
            elif id(entry) not in outdated:
                mirror.pending.append(entry)

    def _merge(self, topic: str, mirror: _Mirror, window: Window, after: int) -> None:
        """Bring the mirror up to the window: deliver what subscribers have missed, and serve those that wait."""
        old = mirror.log
        is_same = old is not None and old.epoch == window.epoch
        if old is None:
            base = window.top
            if mirror.pending and mirror.pending[0].epoch == window.epoch:  # subscribers by patterns get these
                base = min(base, mirror.pending[0].offset - 1)
        elif old.epoch == window.epoch and window.floor <= old.top:
            base = old.top
        else:  # the broker does not keep all that is missing
            base = window.floor
        is_lost = old is not None and (not is_same or base != old.top)
        if old is not None and after and is_same and not is_lost:
            log = old
        else:
            log = Log(window.epoch, min(window.floor, base))
            mirror.is_whole = True
        newer = []
        for offset, age, envelope in window.kept:
            if offset > base:
                newer.append(_Entry(window.epoch, offset, base, age, envelope))
            elif offset > log.top:
                self._add(log, envelope, self._clock() - age, offset)
        log.top = max(log.top, base)
        mirror.log = log
        lost_since = mirror.heard
        mirror.heard = time.time()
        joiners, mirror.joiners = mirror.joiners, {}
        pending, mirror.pending = mirror.pending, []
        ahead = {}
        top = max(base, window.top)
        for subscriber, joiner in joiners.items():
            joiner.finish(log, top)
            since = joiner.since
            if since is not None and since.epoch == window.epoch and since.offset <= top:
                ahead[subscriber] = since.offset
        for entry in newer:
            left_out = [subscriber for subscriber, offset in ahead.items() if offset >= entry.offset]
            self._accept(topic, mirror, log, entry, left_out)
        log.top = max(log.top, window.top)
        for entry in pending:
            if self._mirrors.get(topic) is mirror:
                self._take(topic, mirror, entry)
        for number in [
            number
            for number, own in self._own.items()
            if own.topic == topic and own.outcome.position is not None and own.outcome.position <= log.position
        ]:
            del self._own[number]
        if is_lost:
            self._report_gap(topic, lost_since)

    async def peek(self, topic: str, since: Position | None, limit: int | None, *, reverse: bool) -> History:
        """What the broker keeps of a topic; see `WebSocketServer.history`."""
        size, ttl = self._limits(topic)
        window = await self._broker.peek(topic, size, ttl, since, limit, reverse=reverse)
        log = Log(window.epoch)
        for offset, age, envelope in window.kept:
            self._add(log, envelope, -age, offset)
        log.floor, log.top = window.floor, window.top
        return log.read(since, limit, reverse=reverse)


async def _follow(joiner: _Joiner, outcome: Any) -> None:
    await joiner.wait()
    outcome.value = joiner.outcome.value


def _message(envelope: bytes) -> Message:
    """The message in an envelope; ValueError if there is none."""
    if len(envelope) >= INNER:
        if envelope[0] == MessageType.TEXT:
            return Message.text(envelope[INNER:].decode())
        if envelope[0] == MessageType.BINARY:
            return Message.binary(envelope[INNER:])
    raise ValueError("no message")
