"""A broker in memory that several servers of one test use, and that loses what the test wants."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from fabric._topics.settings import fits
from fabric.broker import Broker, BrokerUnavailable, Node


class Hub:
    """What the brokers of a test are connected to.

    Attributes:
        is_lost: asked with a topic for each message; what it says True to is delivered to nobody.
        said: topics and envelopes of all that was published.
    """

    def __init__(self) -> None:
        self.brokers: list[FakeBroker] = []
        self.is_lost: Callable[[str], bool] = lambda _: False
        self.said: list[tuple[str, bytes]] = []


class FakeBroker(Broker):
    """One server's connection to a `Hub`.

    Attributes:
        is_away: nothing comes and nothing goes.
        limit: bytes of an envelope.
    """

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.is_away = False
        self.limit = 1 << 20
        self.patterns: set[str] = set()
        self.node: Node | None = None
        hub.brokers.append(self)

    async def start(self, node: Node) -> None:
        self.node = node

    async def close(self) -> None:
        self.node = None

    def subscribe(self, patterns: Iterable[str]) -> None:
        self.patterns.update(patterns)

    def unsubscribe(self, patterns: Iterable[str]) -> None:
        self.patterns.difference_update(patterns)

    def publish(self, topic: str, envelope: bytes) -> None:
        if len(envelope) > self.limit:
            raise BrokerUnavailable("too large")
        if self.is_away:
            raise BrokerUnavailable("away")
        self.hub.said.append((topic, envelope))
        if self.hub.is_lost(topic):
            return
        for other in self.hub.brokers:
            if other is not self and any(fits(pattern, topic) for pattern in other.patterns):
                asyncio.get_running_loop().call_soon(other.deliver, topic, envelope)

    def deliver(self, topic: str, envelope: bytes) -> None:
        if self.node is not None and not self.is_away:
            self.node.deliver([(topic, envelope)])

    async def flush(self) -> None:
        if self.is_away:
            raise BrokerUnavailable("away")

    @property
    def is_healthy(self) -> bool:
        return not self.is_away
