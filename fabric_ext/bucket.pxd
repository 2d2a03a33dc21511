from libc.stdint cimport int64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <time.h>

    typedef __int128 fabric_int128;

    #if defined(CLOCK_UPTIME_RAW)   /* macOS: the clock behind time.monotonic() */
    #define FABRIC_CLOCK CLOCK_UPTIME_RAW
    #else
    #define FABRIC_CLOCK CLOCK_MONOTONIC
    #endif

    static inline int64_t fabric_monotonic_ns(void) {
        struct timespec now;
        clock_gettime(FABRIC_CLOCK, &now);
        return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    }
    """
    # time.monotonic_ns() without Python, about 20 ns.
    int64_t monotonic_ns "fabric_monotonic_ns"() noexcept nogil
    # Declared as the widest integer Cython knows, so that mixed expressions keep this type; C sees 128 bits.
    ctypedef long long int128 "fabric_int128"

cdef enum:
    # What wait_ns() and admit() answer when no waiting helps: more is asked for than the burst holds.
    WAIT_NEVER = -1


cdef class TokenBucket:
    cdef int64_t ticks_per_ns       # p and q of the .pyx: p tokens grow in q nanoseconds
    cdef int64_t ticks_per_token
    cdef readonly int64_t burst     # tokens
    cdef int128 capacity            # ticks: burst * ticks_per_token
    cdef int128 full_at             # ticks: the moment at which the bucket is full again

    cdef int128 missing(self, int64_t n, int64_t now) noexcept
    cdef int64_t whole_ns(self, int128 ticks) noexcept
    cdef void spend(self, int64_t n, int64_t now) noexcept
    cpdef bint take(self, int64_t n, int64_t now) noexcept
    cpdef int64_t wait_ns(self, int64_t n, int64_t now) noexcept
    cpdef int64_t queue_ns(self, int64_t ahead, int64_t n, int64_t now) noexcept
    cpdef int64_t reserve(self, int64_t n, int64_t now) noexcept
    cpdef void give_back(self, int64_t n) noexcept
    cpdef int64_t available(self, int64_t now) noexcept
    cpdef void reset(self) noexcept


cdef class RateGate:
    cdef readonly TokenBucket messages      # each may be None: not limited
    cdef readonly TokenBucket bytes
    cdef readonly TokenBucket operations
    cdef readonly RateGate shared           # asked too, e.g. the server's global limit; None if there is none

    cpdef int64_t own_wait_ns(self, int64_t size, int64_t now) noexcept
    cpdef int64_t wait_ns(self, int64_t size, int64_t now) noexcept
    cpdef int64_t admit(self, int64_t size, int64_t now) noexcept
    cpdef int64_t own_operations_wait_ns(self, int64_t n, int64_t now) noexcept
    cpdef int64_t operations_wait_ns(self, int64_t n, int64_t now) noexcept
    cpdef int64_t admit_operations(self, int64_t n, int64_t now) noexcept
    cpdef int64_t reserve_operations(self, int64_t n, int64_t now) noexcept
    cpdef int64_t reserve_bytes(self, int64_t size, int64_t now) noexcept
    cpdef int64_t reserve(self, int64_t size, int64_t now) noexcept
    cpdef void give_back(self, int64_t size) noexcept
    cdef void spend(self, int64_t size, int64_t now) noexcept
    cdef void spend_operations(self, int64_t n, int64_t now) noexcept


cdef class RateLimitStatus:
    cdef readonly bint allowed
    cdef readonly double retry_after        # seconds
    cdef int64_t _remaining                 # tokens; -1: not limited


cdef class Limiter:
    cdef readonly TokenBucket messages      # each may be None: not limited
    cdef readonly TokenBucket bytes
    cdef readonly TokenBucket operations
    cdef object _clock                      # None: monotonic_ns()
    cdef int64_t _ahead[3]                  # tokens that those who wait have asked for

    cdef TokenBucket bucket_of(self, int kind)
    cdef int64_t now(self) except? -1
    cdef RateLimitStatus _refused(self, TokenBucket bucket, int type, int64_t n, int64_t now)
