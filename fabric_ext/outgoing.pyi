from collections.abc import Callable
from typing import final

from typing_extensions import disjoint_base

def nats_subscriptions(prefix: bytes, subscriptions: list[tuple[str, int]]) -> bytes:
    """The command to subscribe to each topic or pattern: (its name, the number of the subscription)."""

def redis_commands(command: bytes, prefix: bytes, words: list[str]) -> bytes:
    """A command for each word, which is its one argument, behind the prefix."""

@disjoint_base
class Outgoing:
    """Commands that leave together at the end of the turn, or once the connection is open; a lone message at once.

    Args:
        prefix: what stands before the topic.
        limit: bytes that may wait, here and in the transport together.
        most_topics: of how many `take_topics` tells.

    Attributes:
        largest: bytes of a message that the broker takes.
    """

    largest: int
    def __init__(self, prefix: bytes, limit: int, most_topics: int) -> None: ...
    @property
    def is_open(self) -> bool:
        """Is there a connection?"""
    def open(self, write: Callable[[bytes], object], unwritten: Callable[[], int]) -> None:
        """There is a connection, which `write` writes to and which holds `unwritten()` bytes: send what waits."""
    def close(self) -> None:
        """The connection is gone: what is added waits."""
    @property
    def is_overfull(self) -> bool:
        """Does more than twice the limit wait, as `add` has none? Then the broker does not read."""
    def add(self, commands: bytes) -> None:
        """Send commands, however much waits."""
    def publish(self, topic: str, envelope: bytes) -> bool:
        """Send a message; return False, and do nothing, if it is too large, or too much waits already."""
    def take_topics(self) -> dict[str, None]:
        """What was published to since the last call; `>` stands for those that are too many to be told."""
    def flush(self) -> None:
        """Send what is gathered now, if there is a connection."""

@final
class NatsOutgoing(Outgoing):
    """What is said to a NATS server."""

@final
class RedisOutgoing(Outgoing):
    """What is said to a Redis server."""

@disjoint_base
class Publisher:
    """What an adapter publishes with.

    Args:
        outgoing: what takes messages.
    """

    def __init__(self, outgoing: Outgoing) -> None: ...
    @property
    def _out(self) -> Outgoing: ...
    def publish(self, topic: str, envelope: bytes) -> None:
        """Send a message to the other servers; see `fabric.broker.Broker.publish`."""
    def _refuse(self, topic: str, envelope: bytes) -> None:
        """The message is too large, or too much waits already: raise an error that says so."""
