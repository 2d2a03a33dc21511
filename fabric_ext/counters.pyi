"""Plain C integers that a connection increments while it works."""

from typing import Final, NoReturn

from typing_extensions import disjoint_base

FIELDS: Final[tuple[str, ...]]

@disjoint_base
class Counters:
    """What one connection, server or pool has done so far. Every attribute may be read and written."""

    active_connections: int
    total_connections: int
    messages_sent: int
    messages_received: int
    bytes_sent: int
    """Payload bytes of data messages as the application gave them, before compression."""
    bytes_received: int
    """Payload bytes of data messages as the application gets them, after decompression."""
    send_errors: int
    receive_errors: int
    reconnections: int
    rate_limit_drops: int
    """Messages dropped because the connection was over its rate limit."""
    slow_peer_drops: int
    """Broadcast messages not delivered because the peer did not read fast enough."""
    compression_bytes_in: int
    compression_bytes_out: int
    decompression_bytes_in: int
    decompression_bytes_out: int
    last_activity_ns: int
    """`time.monotonic_ns()` of the latest traffic, at most some milliseconds early; 0 before the first."""

    def record_connection(self) -> None:
        """Count a connection that was opened."""

    def record_disconnection(self) -> None:
        """Count a connection that is no longer open."""

    def record_reconnection(self) -> None:
        """Count a connection that replaced a lost one; `record_connection` counts it as opened."""

    def record_message_sent(self, size: int) -> None:
        """Count one message of `size` payload bytes."""

    def record_message_received(self, size: int) -> None:
        """Count one message of `size` payload bytes."""

    def record_send_error(self) -> None:
        """Count a message that could not be sent."""

    def record_receive_error(self) -> None:
        """Count a message or frame that could not be received."""

    def record_slow_peer_drop(self, messages: int = 1) -> None:
        """Count broadcast messages not delivered because the peer did not read fast enough."""

    def add(self, other: Counters) -> None:
        """Add `other` to these numbers, field by field; `last_activity_ns` becomes the later of the two."""

    def reset(self) -> None:
        """Set every count to zero, except `active_connections`: those connections are still open."""

    def as_dict(self) -> dict[str, int]:
        """The counts as a new dict, in the order of `FIELDS`."""

@disjoint_base
class LoopCounters:
    """How an event loop has polled so far (`busy_poll`). Every attribute may be read and written."""

    passes: int
    """How often the poller has looked at the connections that were hot."""
    hits: int
    """How often it has read bytes from one."""
    polled_ns: int
    """Nanoseconds for which it kept the loop from sleeping."""

    def __reduce__(self) -> NoReturn: ...

def coarse_monotonic_now() -> int:
    """`time.monotonic_ns()`, at most a few milliseconds behind: about 5 ns from C."""
