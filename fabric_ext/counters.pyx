"""Plain C integers that a connection increments while it works.

Owns: the numbers. Never: a lock (the event loop's thread is the only writer), a callback, a histogram.
A parent (server, pool) is summed from its parts with `add` when it is read, so a message is counted once.
"""

from fabric_ext.clock cimport coarse_monotonic_ns

# The counted quantities, in the order in which they are reported; `last_activity_ns` is a time, not a count.
FIELDS = (
    "active_connections",
    "total_connections",
    "messages_sent",
    "messages_received",
    "bytes_sent",
    "bytes_received",
    "send_errors",
    "receive_errors",
    "reconnections",
    "rate_limit_drops",
    "slow_peer_drops",
    "compression_bytes_in",
    "compression_bytes_out",
    "decompression_bytes_in",
    "decompression_bytes_out",
)


cdef class Counters:
    """What one connection, server or pool has done so far. Every attribute may be read and written."""

    def record_connection(self):
        """Count a connection that was opened."""
        self.total_connections += 1
        self.active_connections += 1
        self.last_activity_ns = coarse_monotonic_ns()

    def record_disconnection(self):
        """Count a connection that is no longer open."""
        self.active_connections -= 1
        self.last_activity_ns = coarse_monotonic_ns()

    def record_reconnection(self):
        """Count a connection that replaced a lost one; `record_connection` counts it as opened."""
        self.reconnections += 1

    def record_message_sent(self, long long size):
        """Count one message of `size` payload bytes."""
        self.messages_sent += 1
        self.bytes_sent += size
        self.last_activity_ns = coarse_monotonic_ns()

    def record_message_received(self, long long size):
        """Count one message of `size` payload bytes."""
        self.messages_received += 1
        self.bytes_received += size
        self.last_activity_ns = coarse_monotonic_ns()

    def record_send_error(self):
        """Count a message that could not be sent."""
        self.send_errors += 1

    def record_receive_error(self):
        """Count a message or frame that could not be received."""
        self.receive_errors += 1

    def record_slow_peer_drop(self, long long messages=1):
        """Count broadcast messages not delivered because the peer did not read fast enough."""
        self.slow_peer_drops += messages

    def add(self, Counters other not None):
        """Add `other` to these numbers, field by field; `last_activity_ns` becomes the later of the two."""
        self.active_connections += other.active_connections
        self.total_connections += other.total_connections
        self.messages_sent += other.messages_sent
        self.messages_received += other.messages_received
        self.bytes_sent += other.bytes_sent
        self.bytes_received += other.bytes_received
        self.send_errors += other.send_errors
        self.receive_errors += other.receive_errors
        self.reconnections += other.reconnections
        self.rate_limit_drops += other.rate_limit_drops
        self.slow_peer_drops += other.slow_peer_drops
        self.compression_bytes_in += other.compression_bytes_in
        self.compression_bytes_out += other.compression_bytes_out
        self.decompression_bytes_in += other.decompression_bytes_in
        self.decompression_bytes_out += other.decompression_bytes_out
        self.last_activity_ns = max(self.last_activity_ns, other.last_activity_ns)

    def reset(self):
        """Set every count to zero, except `active_connections`: those connections are still open."""
        self.total_connections = 0
        self.messages_sent = 0
        self.messages_received = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        self.send_errors = 0
        self.receive_errors = 0
        self.reconnections = 0
        self.rate_limit_drops = 0
        self.slow_peer_drops = 0
        self.compression_bytes_in = 0
        self.compression_bytes_out = 0
        self.decompression_bytes_in = 0
        self.decompression_bytes_out = 0

    def as_dict(self):
        """The counts as a new dict, in the order of `FIELDS`."""
        return {name: getattr(self, name) for name in FIELDS}

    def __repr__(self):
        counted = ", ".join(f"{name}={value}" for name, value in self.as_dict().items() if value)
        return f"{type(self).__name__}({counted})"


cdef class LoopCounters:
    """How an event loop has polled so far. Every attribute may be read and written."""

    def __reduce__(self):
        raise TypeError(f"cannot copy or pickle {type(self).__name__!r} object")


def coarse_monotonic_now():
    """`coarse_monotonic_ns()` for Python: `time.monotonic_ns()`, at most a few milliseconds behind."""
    return coarse_monotonic_ns()
