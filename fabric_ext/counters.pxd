"""Layout of `fabric_ext.counters` for the modules that count from C: `self.counters.messages_sent += 1`."""

from libc.stdint cimport int64_t


cdef extern from *:
    """
    #include <stdint.h>
    #include <time.h>

    #if defined(CLOCK_MONOTONIC_COARSE)
    #define FABRIC_COARSE_CLOCK CLOCK_MONOTONIC_COARSE
    #elif defined(CLOCK_UPTIME_RAW_APPROX)   /* macOS: the clock behind time.monotonic(), cached */
    #define FABRIC_COARSE_CLOCK CLOCK_UPTIME_RAW_APPROX
    #else
    #define FABRIC_COARSE_CLOCK CLOCK_MONOTONIC
    #endif

    static inline int64_t fabric_coarse_monotonic_ns(void) {
        struct timespec now;
        clock_gettime(FABRIC_COARSE_CLOCK, &now);
        return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    }
    """
    # The clock of time.monotonic_ns(), as the kernel noted it at its last tick: about 5 ns, never ahead,
    # at most a few milliseconds behind. Good enough for `last_activity_ns`, too coarse for a latency.
    int64_t coarse_monotonic_ns "fabric_coarse_monotonic_ns"() noexcept nogil


cdef class Counters:
    # The four a message touches, first: they share one cache line with the object's header.
    cdef public long long messages_received
    cdef public long long bytes_received
    cdef public long long messages_sent
    cdef public long long bytes_sent
    # time.monotonic_ns() of the latest traffic or connection event. Whoever counts from C stamps it as well;
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
