"""Redis, or Valkey, as the broker.

There are two connections: one subscribes, one publishes. Compiled code (`fabric_ext.remote.RedisReader`) takes messages
out of what is read, one batch for each read of the socket; the package hiredis reads the other replies. Commands are
gathered over a turn of the event loop. Redis has no `>`, and its `*` stands for any text, so it may send more than was
subscribed to; what has no subscriber on this server is ignored. Histories have a connection of their own, see
`fabric.broker.streams`.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import os
import re
import ssl
import time
from collections.abc import Callable, Iterable
from typing import Any

import hiredis

from fabric._connection.events import log_event
from fabric.broker import Broker, BrokerUnavailable, Node, Window, is_pattern
from fabric.broker.address import parse_address
from fabric.broker.echo import Echo
from fabric.broker.losses import MOST, Losses
from fabric.broker.patience import answered
from fabric.broker.streams import Replies, Streams, pack
from fabric_ext.outgoing import Publisher, RedisOutgoing, redis_commands
from fabric_ext.remote import RedisReader

__all__ = ["RedisBroker"]

logger = logging.getLogger("fabric.broker")

PREFIX = "fabric:"  # of all channels
CONNECT_TIMEOUT = 5.0  # seconds
RECONNECT_WAIT = 0.1  # seconds between attempts
PROBE_INTERVAL = 2.0  # seconds
MAX_QUEUED = 8 << 20  # bytes that wait for the broker, or for its socket
LARGEST = 512 << 20  # bytes of a message, as Redis takes them by default
OLDEST = (5, 0)  # version of Redis
DIGITS = 19  # of a number of 64 bits
CHUNK = 2000  # subscriptions that are written at a time after a reconnection
PER_SECOND = 10_000  # subscriptions that a slow server takes
LAST_MOMENT = 0.5  # seconds for what was published last
VERSION = re.compile(rb"redis_version:(\d+)\.(\d+)")
SPECIAL = re.compile(r"([*?\[\]\\^-])")  # of Redis' patterns


class _Connection(asyncio.Protocol):
    """One connection: replies in the order of the commands, and messages of subscriptions."""

    def __init__(self, on_messages: Callable[[list[tuple[str, bytes]]], None]) -> None:
        self._on_messages = on_messages
        self._reader = RedisReader(PREFIX.encode())
        self._replies = hiredis.Reader()
        self._waiting: collections.deque[tuple[bytes | None, asyncio.Future[Any]]] = collections.deque()  # see `ask`
        self._pings = 0
        self.refusals = 0  # commands that were forbidden
        self.refusal: hiredis.ReplyError | None = None  # the last one
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.error: BaseException | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = self.error or exc
        for _, waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(self.error or ConnectionResetError("the connection was lost"))
                waiter.exception()  # the task that waited may have been cancelled
        if not self.lost.done():
            self.lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        try:
            batch, others = self._reader.feed(data)
            if others:
                self._replies.feed(others)
                while (reply := self._replies.gets()) is not False:
                    self._take(reply)
        except (ValueError, hiredis.ProtocolError) as error:
            self.error = hiredis.ProtocolError(f"what it says is malformed: {error}")
            self._transport.abort()
            return
        if batch:
            self._on_messages(batch)

    def _take(self, reply: Any) -> None:
        """A reply that is no message: an error, the answer to a ping or to a question."""
        if isinstance(reply, hiredis.ReplyError):
            # Only NOPERM concerns a single command. After other errors no ping is answered either.
            if str(reply).startswith("NOPERM") and "'ping'" not in str(reply) and not self._is_asked():
                if self.refusal is None or str(reply) != str(self.refusal):
                    log_event(logger, logging.WARNING, "the broker refuses: %s", reply)
                self.refusals += 1
                self.refusal = reply
            elif self._waiting:
                self._answer(error=reply)
            return
        mark = reply[1] if type(reply) is list and len(reply) == 2 and reply[0] == b"pong" else reply
        if self._waiting and self._waiting[0][0] in (None, mark):
            self._answer(reply)

    def _is_asked(self) -> bool:
        return bool(self._waiting) and self._waiting[0][0] is None

    def _answer(self, reply: Any = None, error: hiredis.ReplyError | None = None) -> None:
        _, waiter = self._waiting.popleft()
        if waiter.done():
            return
        if error is None:
            waiter.set_result(reply)
        else:
            waiter.set_exception(error)

    def write(self, data: bytes) -> None:
        if not self.lost.done() and not self._transport.is_closing():  # uvloop would raise
            self._transport.write(data)

    def unwritten(self) -> int:
        return self._transport.get_write_buffer_size()

    async def ping(self, seconds: float = PROBE_INTERVAL) -> None:
        """Wait until the broker has read everything before; raise the error that keeps it from answering."""
        self._pings += 1
        mark = b"fabric-%d" % self._pings
        await self._reply(mark, pack("PING", mark), seconds)

    async def ask(self, *words: str) -> Any:
        """The reply to a command, while no others are under way; None if it is forbidden, or unknown."""
        try:
            return await self._reply(None, pack(*words), PROBE_INTERVAL)
        except hiredis.ReplyError:
            return None

    async def _reply(self, mark: bytes | None, command: bytes, seconds: float) -> Any:
        if self.lost.done():
            raise self.error or ConnectionResetError("the connection was lost")
        waiter: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((mark, waiter))
        self.write(command)
        return await answered(waiter, seconds)

    def abort(self) -> None:
        self._transport.abort()


class RedisBroker(Publisher, Broker):
    """An adapter for Redis and Valkey, from version 5 on.

    Args:
        url: `redis://[[user]:password@]host[:port]`; `rediss://` for TLS. No database but 0: channels have none.
        ssl_context: for TLS; by default the system's certificates are trusted.
    """

    keeps_histories = True

    def __init__(self, url: str, *, ssl_context: ssl.SSLContext | None = None) -> None:
        address = parse_address(url, "Redis", ("redis", "rediss"), 6379, path="/0")
        self._host, self._port, self._login, self._where = address[1:]
        self._ssl = (ssl_context or ssl.create_default_context()) if address.scheme == "rediss" else None
        self._node: Node | None = None
        self._hears: _Connection | None = None
        self._speaks: _Connection | None = None
        self._topics: dict[str, None] = {}
        self._in = RedisOutgoing(PREFIX.encode(), MAX_QUEUED, MOST)  # subscriptions
        super().__init__(RedisOutgoing(PREFIX.encode(), MAX_QUEUED, MOST))  # messages
        self._out.largest = min(LARGEST, MAX_QUEUED)
        self._is_answering = True
        self._losses = Losses()
        self._heard = 0.0
        self._error: BaseException | None = None
        self._echo = Echo()
        self._life: asyncio.Task[None] | None = None
        self._streams: Streams | None = None  # with the first topic that has a history
        self._name = os.urandom(8).hex()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._where} {'healthy' if self.is_healthy else 'unavailable'}>"

    # -- life

    async def start(self, node: Node) -> None:
        """Connect; see `Broker.start`."""
        self._node = node
        try:
            await self._connect()
        except (OSError, TimeoutError, hiredis.HiredisError) as error:
            self._error = error
            self._disconnect()
            if isinstance(error, (hiredis.HiredisError, ssl.SSLError)):
                raise self._unavailable("it refuses us") from error
            late = "it has not answered in time" + (", perhaps as it has no TLS" if self._ssl is not None else "")
            raise self._unavailable("it cannot be reached", late=late) from error
        self._life = asyncio.ensure_future(self._live())

    async def close(self) -> None:
        """Send what was published, and disconnect."""
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait([self._life])
            self._life = None
        streams, self._streams = self._streams, None
        if streams is not None:
            await streams.close(LAST_MOMENT)
        if self._out.is_open:
            with contextlib.suppress(BrokerUnavailable, TimeoutError):
                await asyncio.wait_for(self.flush(), LAST_MOMENT)
        self._disconnect()

    def _disconnect(self) -> None:
        self._in.close()
        self._out.close()
        for connection in (self._hears, self._speaks):
            if connection is not None:
                connection.abort()
        self._hears = self._speaks = None

    async def _connect(self) -> None:
        """Connect, subscribe, wait until the broker has done so, and only then send what waits."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_TIMEOUT):
            for name in ("_hears", "_speaks"):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self._deliver), self._host, self._port, ssl=self._ssl
                )
                setattr(self, name, connection)
                if self._login:
                    connection.write(pack("AUTH", *self._login))
                await connection.ping()
        hears, speaks = self._hears, self._speaks
        assert hears is not None
        assert speaks is not None
        await self._check_server(speaks)
        hears.write(_subscription("SUBSCRIBE", [self._echo.topic]))
        await hears.ping()
        speaks.write(pack("PUBLISH", PREFIX + self._echo.topic, self._echo.begin()))
        await speaks.ping()
        for connection in (hears, speaks):
            if connection.refusal is not None:
                raise connection.refusal
        await self._echo.heard(PROBE_INTERVAL)
        before = dict(self._topics)
        topics = list(before)
        for start in range(0, len(topics), CHUNK):
            hears.write(_subscription("SUBSCRIBE", topics[start : start + CHUNK]))
            await asyncio.sleep(0)  # for handlers and pings
        await hears.ping(CONNECT_TIMEOUT + len(before) / PER_SECOND)
        after = self._topics  # some have come and gone meanwhile
        hears.write(_subscription("SUBSCRIBE", [topic for topic in after if topic not in before]))
        hears.write(_subscription("UNSUBSCRIBE", [topic for topic in before if topic not in after]))
        self._is_answering = True
        self._heard = time.time()
        self._error = None
        self._in.open(hears.write, hears.unwritten)
        self._out.open(speaks.write, speaks.unwritten)

    async def _check_server(self, connection: _Connection) -> None:
        """Check the version, and ask for the largest message; if these commands are forbidden, assume the defaults."""
        about = await connection.ask("INFO", "server")
        found = VERSION.search(about) if isinstance(about, bytes) else None
        if found is not None and (int(found[1]), int(found[2])) < OLDEST:
            version = b".".join(found.groups()).decode()
            raise hiredis.ReplyError(f"it is version {version}, needed is 5.0 or a newer one")
        reply = await connection.ask("CONFIG", "GET", "proto-max-bulk-len")
        number = reply[1] if isinstance(reply, list) and len(reply) == 2 else None
        largest = int(number) if isinstance(number, bytes) and len(number) <= DIGITS and number.isdigit() else LARGEST
        self._out.largest = min(largest, MAX_QUEUED)

    async def _live(self) -> None:
        """Check every two seconds whether the broker answers, and connect anew if it does not."""
        while True:
            try:
                await self._look()
            except Exception as error:  # noqa: BLE001  (else it would never connect again)
                log_event(logger, logging.ERROR, "broker %s: what was not expected", self._where, exc_info=error)
                await asyncio.sleep(PROBE_INTERVAL)

    async def _look(self) -> None:
        lost = [connection.lost for connection in (self._hears, self._speaks) if connection is not None]
        if lost:
            await asyncio.wait(lost, timeout=PROBE_INTERVAL, return_when=asyncio.FIRST_COMPLETED)
        if await self._is_well():
            return
        log_event(logger, logging.WARNING, "broker %s: connection lost", self._where)
        since = self._heard
        self._losses.disconnected(since, self._out.take_topics())
        await self._connect_again()
        log_event(logger, logging.INFO, "broker %s: connected again", self._where)
        if self._node is not None:
            self._node.gap(since)
        self._losses.report(self._node)

    async def _is_well(self) -> bool:
        """Does the broker answer, and deliver what this server publishes to itself?"""
        try:
            await self._round_trip()
            if self._speaks is not None:
                self._speaks.write(pack("PUBLISH", PREFIX + self._echo.topic, self._echo.begin()))
            await self._echo.heard(PROBE_INTERVAL)
        except (BrokerUnavailable, TimeoutError):
            self._is_answering = False
            return False
        return True

    async def _connect_again(self) -> None:
        while True:
            self._disconnect()
            try:
                return await self._connect()
            except (OSError, TimeoutError, hiredis.HiredisError) as error:
                self._error = error
                await asyncio.sleep(RECONNECT_WAIT)

    def _unavailable(
        self, what: str, error: BaseException | None = None, late: str = "it has not answered in time"
    ) -> BrokerUnavailable:
        error = error or self._error
        text = late if isinstance(error, TimeoutError) else str(error or "")
        why = f": {text}" if text else ""
        return BrokerUnavailable(f"the broker {self._where} is unavailable: {what}{why}")

    @property
    def is_healthy(self) -> bool:
        """Is it connected, and has it answered lately?"""
        return self._out.is_open and self._is_answering

    # -- what goes out

    def subscribe(self, patterns: Iterable[str]) -> None:
        """Receive these; see `Broker.subscribe`."""
        new = [topic for topic in patterns if topic not in self._topics]
        self._topics.update(dict.fromkeys(new))
        self._tell("SUBSCRIBE", new)

    def unsubscribe(self, patterns: Iterable[str]) -> None:
        """Receive them no more."""
        gone = [topic for topic in patterns if topic in self._topics]
        for topic in gone:
            del self._topics[topic]
        self._tell("UNSUBSCRIBE", gone)

    def _tell(self, command: str, topics: list[str]) -> None:
        if not self._in.is_open:
            return
        self._in.add(_subscription(command, topics))
        if self._hears is not None and self._in.is_overfull:  # subscriptions have no limit of their own
            log_event(logger, logging.WARNING, "broker %s does not read", self._where)
            self._in.close()
            self._hears.abort()

    def _refuse(self, topic: str, envelope: bytes) -> None:
        self._losses.refused(topic)
        self._check_size(envelope)
        raise self._unavailable("what waits for it is up to its bound")

    def _check_size(self, envelope: bytes) -> None:
        limit = self._out.largest
        if len(envelope) > limit:
            raise BrokerUnavailable(f"the broker takes messages of {limit} bytes, not of {len(envelope)}")

    async def flush(self) -> None:
        """Wait until the broker has all that went before; see `Broker.flush`."""
        connections = [each for each in (self._hears, self._speaks) if each is not None]
        refusals = [each.refusals for each in connections]
        await self._round_trip()
        for connection, before in zip(connections, refusals, strict=True):
            if connection.refusals != before:
                raise BrokerUnavailable(f"the broker {self._where} refuses: {connection.refusal}")

    async def _round_trip(self) -> None:
        """Wait for the answers to all that went before."""
        hears, speaks = self._hears, self._speaks
        if hears is None or speaks is None or not self._out.is_open:
            raise self._unavailable("there is no connection")
        self._in.flush()
        self._out.flush()
        question = self._losses.asked(self._out.take_topics())
        try:
            await speaks.ping()
            await hears.ping()
        except (OSError, TimeoutError, hiredis.HiredisError) as error:
            self._error = error
            self._is_answering = False
            raise self._unavailable("it does not answer") from error
        self._is_answering = True
        self._heard = time.time()
        self._losses.confirmed(question)
        self._losses.report(self._node)

    # -- histories

    def _histories(self) -> Streams:
        if self._life is None:
            raise self._unavailable("it is not connected")
        if self._streams is None:
            self._streams = Streams(self._open, self._unavailable, self._name, MAX_QUEUED)
        return self._streams

    async def _open(self, make: Callable[[], Replies]) -> Replies:
        """Another connection."""
        loop = asyncio.get_running_loop()
        connecting = loop.create_connection(make, self._host, self._port, ssl=self._ssl)
        _, connection = await answered(connecting, CONNECT_TIMEOUT)
        if self._login:
            try:
                await connection.call("AUTH", *self._login)
            except BaseException:
                connection.abort()
                raise
        return connection

    def append(
        self, topic: str, envelope: bytes, number: int, size: int, ttl: float, known: tuple[str, int] | None
    ) -> asyncio.Future[tuple[str, int]]:
        """Keep a message; see `Broker.append`."""
        self._check_size(envelope)  # Redis would close the connection, each time that it is sent again
        return self._histories().append(topic, (PREFIX + topic).encode(), envelope, number, size, ttl, known)

    async def read(
        self, topic: str, size: int, ttl: float, known: tuple[str, int] | None, after: int, *, wait: bool
    ) -> Window:
        """What is kept of a topic; see `Broker.read`."""
        return await self._histories().read(topic, size, ttl, known, after, wait=wait)

    async def peek(
        self,
        topic: str,
        size: int,
        ttl: float,
        since: tuple[str, int] | None,
        limit: int | None,
        *,
        reverse: bool,
    ) -> Window:
        """What is kept of a topic, which need not be subscribed to; see `Broker.peek`."""
        return await self._histories().peek(topic, ttl, since, limit, reverse=reverse)

    # -- what comes in

    def _deliver(self, batch: list[tuple[str, bytes]]) -> None:
        batch = self._echo.taken_out(batch)
        if self._node is not None and batch:
            self._node.deliver(batch)


def _subscription(command: str, topics: Iterable[str]) -> bytes:
    """SUBSCRIBE or UNSUBSCRIBE for topics, PSUBSCRIBE or PUNSUBSCRIBE for patterns: one command for each, because Redis
    refuses a command as a whole if one of its channels is forbidden.
    """
    names: list[str] = []
    globs: list[str] = []
    for topic in topics:
        if is_pattern(topic):
            globs.append(glob(topic))
        else:
            names.append(topic)
    encoded = command.encode()
    return redis_commands(encoded, PREFIX.encode(), names) + redis_commands(b"P" + encoded, b"", globs)


def glob(pattern: str) -> str:
    """The pattern of Redis that matches all that `pattern` matches, and perhaps more."""
    return PREFIX + ".".join(
        "*" if token in ("*", ">") else SPECIAL.sub(r"\\\1", token) for token in pattern.split(".")
    )
