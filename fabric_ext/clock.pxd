"""The monotonic clock of `time.monotonic_ns()`, without Python. Header only: what cimports it compiles it in."""

from libc.stdint cimport int64_t


cdef extern from *:
    """
    #include <stdint.h>
    #include <time.h>

    #if defined(CLOCK_UPTIME_RAW)   /* macOS: the clock behind time.monotonic(), and its cached form */
    #define FABRIC_CLOCK CLOCK_UPTIME_RAW
    #define FABRIC_COARSE_CLOCK CLOCK_UPTIME_RAW_APPROX
    #elif defined(CLOCK_MONOTONIC_COARSE)
    #define FABRIC_CLOCK CLOCK_MONOTONIC
    #define FABRIC_COARSE_CLOCK CLOCK_MONOTONIC_COARSE
    #else
    #define FABRIC_CLOCK CLOCK_MONOTONIC
    #define FABRIC_COARSE_CLOCK CLOCK_MONOTONIC
    #endif

    static inline int64_t fabric_clock_ns(clockid_t clock) {
        struct timespec now;
        clock_gettime(clock, &now);
        return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    }

    static inline int64_t fabric_monotonic_ns(void) { return fabric_clock_ns(FABRIC_CLOCK); }
    static inline int64_t fabric_coarse_monotonic_ns(void) { return fabric_clock_ns(FABRIC_COARSE_CLOCK); }
    """
    # About 20 ns.
    int64_t monotonic_ns "fabric_monotonic_ns"() noexcept nogil
    # As the kernel noted it at its last tick: about 5 ns, never ahead, at most a few milliseconds behind. Good enough
    # for the time of the last activity, too coarse for a latency.
    int64_t coarse_monotonic_ns "fabric_coarse_monotonic_ns"() noexcept nogil
