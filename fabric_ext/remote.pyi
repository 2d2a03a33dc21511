from typing import Any, final

from typing_extensions import disjoint_base

from fabric_ext.broadcast import Shared
from fabric_ext.topics import Index

def wrap(kind: int, node: bytes, number: int, payload: bytes) -> bytes:
    """The envelope of a message, and its payload.

    Raises:
        ValueError: `kind` is not 1, 2 or 3, or `node` has not 8 bytes.
    """

@final
class Incoming:
    """What other nodes publish, on its way to the subscribers of this one."""

    hold: bool
    def __init__(self, index: Index, node: bytes, fragment_size: int) -> None: ...
    @property
    def messages(self) -> int: ...
    @property
    def malformed(self) -> int: ...
    @property
    def taken(self) -> int: ...
    def deliver(
        self, batch: list[tuple[str, bytes]], start: int = 0, whole: bool = False
    ) -> list[tuple[str, Any, Shared | None, list[Any]]]:
        """Send (topic, envelope) one after the other; return what is left to do as (topic, message, shared, targets).

        See `Index.publish` for the targets. What servers tell each other, and what has an offset, is
        (topic, envelope, None, []); while `hold` is set, messages are (topic, message, None, []), and are not sent.

        Args:
            start: where in `batch` to begin.
            whole: come to its end. Otherwise `taken` tells where this has stopped: where so much is due to connections
                that more would have all of it written at once, or so much is left to do.
        """
    def end_read(self) -> None:
        """All that came in this read was delivered: connections get it now, rather than at the end of the turn.

        The turn may end much later, and its end is another round of the event loop.
        """

@disjoint_base
class Reader:
    """Takes messages out of what a broker sends.

    Args:
        prefix: what stands before the topic.
    """

    def __init__(self, prefix: bytes) -> None: ...

@final
class NatsReader(Reader):
    """Takes the messages out of what a NATS server sends whose subscription begins with `f`; the rest is the client's.

    Those that a stream of `fabric.broker.jetstream` has kept and sent are made what `fabric.broker.Node.deliver` takes.

    Args:
        prefix: what stands before the topic in a subject.
    """

    def feed(self, data: bytes) -> tuple[list[tuple[str, bytes]], bytes]:
        """Return the messages as (topic, payload), and the bytes that are not ours.

        Raises:
            ValueError: this is not NATS' protocol.
        """

@final
class RedisReader(Reader):
    """Takes the messages out of what a Redis server sends; the other replies are for another reader.

    What tells nothing is left out: a number, which answers a PUBLISH, and what confirms a subscription or its end.

    Args:
        prefix: what stands before the topic in a channel.
    """

    def feed(self, data: bytes) -> tuple[list[tuple[str, bytes]], bytes]:
        """Return the messages as (topic, payload), and the bytes of other replies.

        Raises:
            ValueError: this is not Redis' protocol (RESP, version 2).
        """
