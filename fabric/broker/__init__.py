"""Brokers: how a message that is published on one server comes to the subscribers of others.

A broker is a program of its own that several servers connect to, one that exists: NATS, or Redis.
`WebSocketServer(..., broker="nats://host")` uses it; `"memory:"`, the default, is none. An adapter is a `Broker`: a
server tells it the topics and patterns that it has subscribers for, and hears no others.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable
from typing import Protocol

from fabric.error import Error

__all__ = ["Broker", "BrokerUnavailable", "MemoryBroker", "Node", "make_broker"]


class BrokerUnavailable(Error, ConnectionError):
    """The broker cannot be reached, refuses us, or takes no more."""

    is_retryable = True

    def __init__(self, message: str) -> None:
        super().__init__(message)


class Node(Protocol):
    """What a broker reports to: the topics of one server."""

    def deliver(self, batch: list[tuple[str, bytes]]) -> None:
        """Messages have arrived: topics and envelopes, as they were published, a read of the socket at a time."""

    def gap(self, since: float) -> None:
        """The broker is back: what was published elsewhere after `since` (as `time.time()`) may be lost."""


class Broker(abc.ABC):
    """An adapter for one kind of broker. It serves one server, on its event loop."""

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
        """Hear of these topics and patterns from now on, over reconnections too. Acts at once; `flush` confirms it."""

    @abc.abstractmethod
    def unsubscribe(self, patterns: Iterable[str]) -> None:
        """Hear of them no more."""

    @abc.abstractmethod
    def publish(self, topic: str, envelope: bytes) -> None:
        """Send a message to the other servers; it is kept while the broker is away, up to a bound.

        Raises:
            BrokerUnavailable: the bound is reached, or the message is larger than the broker takes.
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


class MemoryBroker(Broker):
    """No broker: the topics of one server."""

    async def start(self, node: Node) -> None:
        """Nothing is to be connected."""

    async def close(self) -> None:
        """Nothing was connected."""

    def subscribe(self, patterns: Iterable[str]) -> None:
        """There is nothing else to hear."""

    def unsubscribe(self, patterns: Iterable[str]) -> None:
        """There was nothing else to hear."""

    def publish(self, topic: str, envelope: bytes) -> None:
        """There is nobody else."""

    async def flush(self) -> None:
        """All is done."""

    @property
    def is_healthy(self) -> bool:
        """Always."""
        return True


def make_broker(url: str | Broker) -> Broker:
    """The broker for a URL.

    Those are `memory:`, `nats://[user:password@|token@]host[:port]` (`tls://` with TLS), `nats:embedded`, and
    `redis://[[user]:password@]host[:port]` (`rediss://` with TLS).

    Raises:
        ValueError: no such broker.
        BrokerUnavailable: the package that it needs is not installed.
    """
    if isinstance(url, Broker):
        return url
    if not isinstance(url, str):
        raise TypeError(f"broker is a URL or a Broker, not {type(url).__name__}")
    scheme, _, rest = url.partition(":")
    if url == "memory:":
        return MemoryBroker()
    if scheme in ("nats", "tls") and (rest.startswith("//") or url == "nats:embedded"):
        try:
            from fabric.broker.nats import EmbeddedNatsBroker, NatsBroker
        except ModuleNotFoundError as error:
            raise BrokerUnavailable('brokers of NATS need nats-py: pip install "websocket-fabric[nats]"') from error
        return EmbeddedNatsBroker() if url == "nats:embedded" else NatsBroker(url)
    if scheme in ("redis", "rediss") and rest.startswith("//"):
        try:
            from fabric.broker.redis import RedisBroker
        except ModuleNotFoundError as error:
            raise BrokerUnavailable('brokers of Redis need hiredis: pip install "websocket-fabric[redis]"') from error
        return RedisBroker(url)
    raise ValueError(f'broker is "memory:", "nats://…", "nats:embedded" or "redis://…", not {scheme + ":…"!r}')
