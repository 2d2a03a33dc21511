"""Layout of `fabric_ext.counters` for the modules that count from C: `self.counters.messages_sent += 1`."""


cdef class Counters:
    # The four a message touches, first: they share one cache line with the object's header.
    cdef public long long messages_received
    cdef public long long bytes_received
    cdef public long long messages_sent
    cdef public long long bytes_sent
    # time.monotonic_ns() of the latest traffic or connection event. Code that counts from C stamps it as well;
    # once per read is enough.
    cdef public long long last_activity_ns

    cdef public long long active_connections
    cdef public long long total_connections
    cdef public long long send_errors
    cdef public long long receive_errors
    cdef public long long reconnections
    cdef public long long rate_limit_drops
    cdef public long long slow_peer_drops
    cdef public long long compression_bytes_in
    cdef public long long compression_bytes_out
    cdef public long long decompression_bytes_in
    cdef public long long decompression_bytes_out


cdef class LoopCounters:
    cdef object __weakref__
    cdef public long long passes         # of the poller
    cdef public long long hits           # reads of it that found bytes
    cdef public long long polled_ns      # for which it kept the loop from sleeping
