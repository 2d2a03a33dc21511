"""Brokers: how a message that is published on one server comes to the subscribers of others.

A broker is a separate program that several servers connect to: NATS, or Redis.
`WebSocketServer(..., broker="nats://host")` uses one; `"memory:"`, the default, is none. An adapter is a `Broker`: it
subscribes to the topics and patterns that its server has subscribers for, and receives no others.
"""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from fabric.error import Error

__all__ = [
    "NO_EPOCH",
    "Broker",
    "BrokerUnavailable",
    "Kept",
    "MemoryBroker",
    "Node",
    "Window",
    "is_pattern",
    "make_broker",
]

NO_EPOCH = "0" * 16  # of a topic to which nothing was published


class BrokerUnavailable(Error, ConnectionError):
    """The broker cannot be reached, refuses us, or takes no more."""

    is_retryable = True

    def __init__(self, message: str) -> None:
        super().__init__(message)


class Kept(NamedTuple):
    """A message of a topic with history, as the broker keeps it.

    Attributes:
        offset: its own, which grows from message to message.
        age: seconds since it was published.
        envelope: as it was given to `Broker.append`.
    """

    offset: int
    age: float
    envelope: bytes


class Window(NamedTuple):
    """What the broker keeps of a topic with history.

    Attributes:
        epoch: of the topic, 16 characters; `NO_EPOCH` if nobody has used it.
        top: the offset of its newest message.
        floor: the largest offset that it does not keep any more.
        kept: in the order of their offsets.
    """

    epoch: str
    top: int
    floor: int
    kept: list[Kept]


class Node(Protocol):
    """The topics of one server, to which an adapter delivers and reports."""

    def deliver(self, batch: list[tuple[str, bytes]]) -> None:
        """Messages have arrived: topics and envelopes, as they were published, a read of the socket at a time.

        Before the envelope of one that was given to `Broker.append` stand a byte of 4, its epoch in 16 characters, its
        offset as 16 decimal digits, and likewise that of the message before it on its topic, or a smaller one. It comes
        to the server that has published it, too.
        """

    def gap(self, since: float) -> None:
        """The broker is back: what was published elsewhere after `since` (as `time.time()`) may be lost."""

    def lost(self, told: list[bytes]) -> None:
        """Messages of this server may be lost to others, which are to be told; see `fabric.broker.losses`.

        Raises:
            BrokerUnavailable: they cannot be told now.
        """


class Broker(abc.ABC):
    """An adapter for one kind of broker. It serves one server, on its event loop.

    Attributes:
        keeps_histories: may topics have a history, see `fabric.history`?
    """

    keeps_histories = False

    @abc.abstractmethod
    async def start(self, node: Node) -> None:
        """Connect, and report to `node` from now on.

        Raises:
            BrokerUnavailable: it cannot be reached, or refuses us.
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """Send what was published, and disconnect."""

    @abc.abstractmethod
    def subscribe(self, patterns: Iterable[str]) -> None:
        """Receive these topics and patterns from now on, after reconnections too. Acts at once; `flush` confirms it."""

    @abc.abstractmethod
    def unsubscribe(self, patterns: Iterable[str]) -> None:
        """Receive them no more."""

    @abc.abstractmethod
    def publish(self, topic: str, envelope: bytes) -> None:
        """Send a message to the other servers; while the broker is away it is kept, up to a limit.

        Raises:
            BrokerUnavailable: the limit is reached, or the message is larger than the broker takes.
        """

    @abc.abstractmethod
    async def flush(self) -> None:
        """Wait until the broker has all that was subscribed and published before.

        Raises:
            BrokerUnavailable: the connection was lost meanwhile.
        """

    @property
    @abc.abstractmethod
    def is_healthy(self) -> bool:
        """Is it connected, and has it answered lately?"""

    def append(
        self, topic: str, envelope: bytes, number: int, size: int, ttl: float, known: tuple[str, int] | None
    ) -> asyncio.Future[tuple[str, int]]:
        """Number a message, keep it, and send it to all servers that have subscribed, this one too: all in one step.

        The adapter keeps it until the broker has confirmed it, and sends it again after a loss of the connection. The
        broker leaves out what it has already, by `number`.

        Args:
            number: larger than that of the message before.
            size: how many messages of the topic are kept.
            ttl: for how many seconds a message is kept.
            known: epoch and newest offset that this server has seen, or None.

        Returns:
            Its epoch and offset, once the broker has it; the offset is 0 if it is not known any more. If the broker
            refuses it, the future's exception is BrokerUnavailable.

        Raises:
            BrokerUnavailable: the limit of what waits is reached, or the message is larger than the broker takes.
        """
        raise BrokerUnavailable(f"{self!r} keeps no histories")

    async def read(
        self, topic: str, size: int, ttl: float, known: tuple[str, int] | None, after: int, *, wait: bool
    ) -> Window:
        """What is kept of a topic; after the offset `after` only, if the epoch is that of `known`.

        Args:
            size, ttl, known: as for `append`.
            wait: if the broker is away, wait for the next attempt to connect.

        Raises:
            BrokerUnavailable: the broker is away, or its connection was lost meanwhile.
        """
        raise BrokerUnavailable(f"{self!r} keeps no histories")

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
        """What is kept of a topic, which need not be subscribed to. It creates nothing for a topic without messages.

        Args:
            size, ttl: as for `append`.
            since: epoch and offset: only what comes after it, nothing if the epoch is another one.
            limit: so many messages at most, the oldest of them.
            reverse: of `since` what comes before it, of a limit the newest.

        Returns:
            That, and perhaps more.

        Raises:
            BrokerUnavailable: the broker is away, or its connection was lost meanwhile.
        """
        raise BrokerUnavailable(f"{self!r} keeps no histories")


class MemoryBroker(Broker):
    """No broker: the topics of one server."""

    keeps_histories = True  # in the server's memory

    async def start(self, node: Node) -> None:
        """Nothing is to be connected."""

    async def close(self) -> None:
        """Nothing was connected."""

    def subscribe(self, patterns: Iterable[str]) -> None:
        """Nothing: no other server publishes."""

    def unsubscribe(self, patterns: Iterable[str]) -> None:
        """Nothing: no other server publishes."""

    def publish(self, topic: str, envelope: bytes) -> None:
        """Nothing: there is no other server."""

    async def flush(self) -> None:
        """Nothing waits to be sent."""

    @property
    def is_healthy(self) -> bool:
        """Always true."""
        return True


def is_pattern(topic: str) -> bool:
    """Does it stand for several topics?"""
    return "*" in topic or ">" in topic


def make_broker(url: str | Broker) -> Broker:
    """The broker for a URL.

    Those are `memory:`, `nats://[user:password@|token@]host[:port]` (`tls://` with TLS), `nats:embedded`, and
    `redis://[[user]:password@]host[:port]` (`rediss://` with TLS). User and password are percent-encoded.

    Raises:
        ValueError: no such broker, or the URL has another form; its text has no part of the URL but the scheme.
        BrokerUnavailable: the package that it needs is not installed.
    """
    if isinstance(url, Broker):
        return url
    if not isinstance(url, str):
        raise TypeError(f"broker is a URL or a Broker, not {type(url).__name__}")
    scheme, colon, rest = url.partition(":")
    if url == "memory:":
        return MemoryBroker()
    if scheme in ("nats", "tls") and (rest.startswith("//") or url == "nats:embedded"):
        try:
            from fabric.broker.nats import EmbeddedNatsBroker, NatsBroker
        except ModuleNotFoundError as error:
            extra = "nats-server" if url == "nats:embedded" else "nats"
            raise BrokerUnavailable(f'brokers of NATS need nats-py: pip install "websocket-fabric[{extra}]"') from error
        return EmbeddedNatsBroker() if url == "nats:embedded" else NatsBroker(url)
    if scheme in ("redis", "rediss") and rest.startswith("//"):
        try:
            from fabric.broker.redis import RedisBroker
        except ModuleNotFoundError as error:
            raise BrokerUnavailable('brokers of Redis need hiredis: pip install "websocket-fabric[redis]"') from error
        return RedisBroker(url)
    known = '"memory:", "nats://…", "nats:embedded" or "redis://…"'
    raise ValueError(f"broker is {known}, not {scheme + (':…' if colon else '')!r}")  # the rest may be a password
