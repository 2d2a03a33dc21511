"""Redis, or Valkey, as the broker.

Two connections: one hears, one publishes. Replies are read by the package hiredis, messages as one batch for each read
of the socket; commands leave gathered over a turn of the event loop. Redis knows no `>` and takes `*` for any text, so
it may send more than was asked for; what fits is decided here. Histories are kept over a connection of their own, see
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
from urllib.parse import unquote, urlsplit

import hiredis

from fabric.broker import Broker, BrokerUnavailable, Node, Window
from fabric.broker.outgoing import Outgoing
from fabric.broker.streams import Replies, Streams, pack

__all__ = ["RedisBroker"]

logger = logging.getLogger("fabric.broker")

PREFIX = "fabric:"  # of all channels
CONNECT_TIMEOUT = 5.0  # seconds
RECONNECT_WAIT = 0.1  # seconds between attempts
PROBE_INTERVAL = 2.0  # seconds
MAX_QUEUED = 8 << 20  # bytes that wait for the broker, or for its socket
LARGEST = 512 << 20  # bytes of a message, as Redis takes them by default
CHUNK = 2000  # subscriptions in one command
PER_SECOND = 10_000  # subscriptions that a slow server takes
LAST_MOMENT = 0.5  # seconds for what was published last
PUBLISH = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"  # as `pack` would make it, faster
SPECIAL = re.compile(r"([*?\[\]\\^-])")  # of Redis' patterns


class _Connection(asyncio.Protocol):
    """One connection: replies in the order of the commands, and messages of subscriptions."""

    def __init__(self, on_messages: Callable[[list[tuple[str, bytes]]], None]) -> None:
        self._on_messages = on_messages
        self._reader = hiredis.Reader()
        self._waiting: collections.deque[tuple[bytes, asyncio.Future[None]]] = collections.deque()  # pings
        self._pings = 0
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
                waiter.exception()  # whoever waited may have gone
        if not self.lost.done():
            self.lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        gets, batch, start = self._reader.gets, [], len(PREFIX)
        latest, topic = b"", ""
        self._reader.feed(data)
        try:
            while (reply := gets()) is not False:
                if type(reply) is list and len(reply) >= 3 and reply[0] in (b"message", b"pmessage"):
                    channel, payload = reply[-2:]
                    if channel != latest:
                        latest, topic = channel, channel[start:].decode(errors="replace")
                    batch.append((topic, payload))
                else:
                    self._take(reply)
        except hiredis.ProtocolError as error:
            self.error = error
            self._transport.abort()
        if batch:
            self._on_messages(batch)

    def _take(self, reply: Any) -> None:
        """A reply that is no message: an error, or the answer to a ping."""
        if isinstance(reply, hiredis.ReplyError):
            self.error = reply
            # One that forbids a command is told by the next ping; others mean that no ping is answered.
            if self._waiting and not str(reply).startswith("NOPERM"):
                _, waiter = self._waiting.popleft()
                if not waiter.done():
                    waiter.set_exception(reply)
            return
        mark = reply[1] if type(reply) is list and len(reply) == 2 and reply[0] == b"pong" else reply
        if self._waiting and mark == self._waiting[0][0]:
            _, waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def unwritten(self) -> int:
        return self._transport.get_write_buffer_size()

    async def ping(self, seconds: float = PROBE_INTERVAL) -> None:
        """Wait until the broker has had everything before; raise what it has objected to since the last time."""
        if self.lost.done():
            raise self.error or ConnectionResetError("the connection was lost")
        self._pings += 1
        mark = b"fabric-%d" % self._pings
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((mark, waiter))
        self.write(pack("PING", mark))
        async with asyncio.timeout(seconds):
            await waiter
        error, self.error = self.error, None
        if error is not None:
            raise error

    def abort(self) -> None:
        self._transport.abort()


class RedisBroker(Broker):
    """An adapter for Redis and Valkey.

    Args:
        url: `redis://[[user]:password@]host[:port]`; `rediss://` for TLS.
        ssl_context: for TLS; by default the system's certificates count.
    """

    keeps_histories = True

    def __init__(self, url: str, *, ssl_context: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("redis", "rediss") or not parts.hostname:
            raise ValueError("the URL of a Redis server is redis://host[:port]")
        self._host, self._port = parts.hostname, parts.port or 6379
        self._login = tuple(unquote(word) for word in (parts.username, parts.password) if word)
        self._where = f"{parts.scheme}://{self._host}:{self._port}"  # without the password
        self._ssl = (ssl_context or ssl.create_default_context()) if parts.scheme == "rediss" else None
        self._node: Node | None = None
        self._hears: _Connection | None = None
        self._speaks: _Connection | None = None
        self._topics: dict[str, None] = {}
        self._in, self._out = Outgoing(MAX_QUEUED), Outgoing(MAX_QUEUED)  # subscriptions, messages
        self._is_answering = True
        self._heard = 0.0
        self._error: BaseException | None = None
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
            refused = isinstance(error, hiredis.HiredisError)
            raise self._unavailable("it refuses us" if refused else "it cannot be reached") from error
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
        """Connect, subscribe, wait until the broker has done so, and only then let go of what waits."""
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
        before = dict(self._topics)
        topics = list(before)
        for start in range(0, len(topics), CHUNK):
            hears.write(_subscription("SUBSCRIBE", topics[start : start + CHUNK]))
        await hears.ping(CONNECT_TIMEOUT + len(before) / PER_SECOND)
        after = self._topics  # some have come and gone meanwhile
        hears.write(_subscription("SUBSCRIBE", [topic for topic in after if topic not in before]))
        hears.write(_subscription("UNSUBSCRIBE", [topic for topic in before if topic not in after]))
        self._is_answering = True
        self._heard = time.time()
        self._error = None
        self._in.open(hears.write, hears.unwritten)
        self._out.open(speaks.write, speaks.unwritten)

    async def _live(self) -> None:
        """Look every two seconds whether the broker is there, and connect anew where it is not."""
        while True:
            assert self._hears is not None
            assert self._speaks is not None
            await asyncio.wait(
                [self._hears.lost, self._speaks.lost],
                timeout=PROBE_INTERVAL,
                return_when=asyncio.FIRST_COMPLETED,
            )
            with contextlib.suppress(BrokerUnavailable):
                await self.flush()
                continue
            logger.warning("broker %s: connection lost", self._where)
            since = self._heard
            await self._connect_again()
            logger.info("broker %s: connected again", self._where)
            if self._node is not None:
                self._node.gap(since)

    async def _connect_again(self) -> None:
        while True:
            self._disconnect()
            try:
                return await self._connect()
            except (OSError, TimeoutError, hiredis.HiredisError) as error:
                self._error = error
                await asyncio.sleep(RECONNECT_WAIT)

    def _unavailable(self, what: str, error: BaseException | None = None) -> BrokerUnavailable:
        error = error or self._error
        why = f": {error}" if error is not None and str(error) else ""
        return BrokerUnavailable(f"the broker {self._where} is unavailable: {what}{why}")

    @property
    def is_healthy(self) -> bool:
        """Is it connected, and has it answered lately?"""
        return self._out.is_open and self._is_answering

    # -- what goes out

    def subscribe(self, patterns: Iterable[str]) -> None:
        """Hear of these; see `Broker.subscribe`."""
        new = [topic for topic in patterns if topic not in self._topics]
        self._topics.update(dict.fromkeys(new))
        if self._in.is_open:
            self._in.add(_subscription("SUBSCRIBE", new))

    def unsubscribe(self, patterns: Iterable[str]) -> None:
        """Hear of them no more."""
        gone = [topic for topic in patterns if topic in self._topics]
        for topic in gone:
            del self._topics[topic]
        if self._in.is_open:
            self._in.add(_subscription("UNSUBSCRIBE", gone))

    def publish(self, topic: str, envelope: bytes) -> None:
        """Send a message to the other servers; see `Broker.publish`."""
        if len(envelope) > LARGEST:
            raise BrokerUnavailable(f"the broker takes messages of {LARGEST} bytes, not of {len(envelope)}")
        if not self._out.has_room(len(envelope)):
            raise self._unavailable("what waits for it is up to its bound")
        channel = (PREFIX + topic).encode()
        self._out.add(PUBLISH % (len(channel), channel, len(envelope), envelope))

    async def flush(self) -> None:
        """Wait until the broker has all that went before; see `Broker.flush`."""
        hears, speaks = self._hears, self._speaks
        if hears is None or speaks is None or not self._out.is_open:
            raise self._unavailable("there is no connection")
        self._in.flush()
        self._out.flush()
        try:
            await speaks.ping()
            await hears.ping()
        except (OSError, TimeoutError, hiredis.HiredisError) as error:
            self._error = error
            self._is_answering = False
            raise self._unavailable("it does not answer") from error
        self._is_answering = True
        self._heard = time.time()

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
        async with asyncio.timeout(CONNECT_TIMEOUT):
            _, connection = await loop.create_connection(make, self._host, self._port, ssl=self._ssl)
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
        return self._histories().append(topic, (PREFIX + topic).encode(), envelope, number, size, ttl, known)

    async def read(
        self, topic: str, size: int, ttl: float, known: tuple[str, int] | None, after: int, *, wait: bool
    ) -> Window:
        """What is kept of a topic; see `Broker.read`."""
        return await self._histories().read(topic, size, ttl, known, after, wait=wait)

    # -- what comes in

    def _deliver(self, batch: list[tuple[str, bytes]]) -> None:
        if self._node is not None:
            self._node.deliver(batch)


def _subscription(command: str, topics: list[str]) -> bytes:
    """SUBSCRIBE or UNSUBSCRIBE for topics, and PSUBSCRIBE or PUNSUBSCRIBE for patterns; nothing for none."""
    names = [PREFIX + topic for topic in topics if not _is_pattern(topic)]
    patterns = [glob(topic) for topic in topics if _is_pattern(topic)]
    packed = [pack(command, *names)] if names else []
    return b"".join([*packed, pack(f"P{command}", *patterns)] if patterns else packed)


def _is_pattern(topic: str) -> bool:
    return "*" in topic or ">" in topic


def glob(pattern: str) -> str:
    """The pattern of Redis that fits all that `pattern` does, and perhaps more."""
    return PREFIX + ".".join(
        "*" if token in ("*", ">") else SPECIAL.sub(r"\\\1", token) for token in pattern.split(".")
    )
