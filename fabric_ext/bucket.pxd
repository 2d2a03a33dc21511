from libc.stdint cimport int64_t

cdef extern from *:
    """
    typedef __int128 fabric_int128;
    """
    # Declared as the widest integer Cython knows, so that mixed expressions keep this type; C sees 128 bits.
    ctypedef long long int128 "fabric_int128"

cdef enum:
    # What wait_ns() and admit() answer when no waiting helps: more is asked for than the burst holds.
    WAIT_NEVER = -1

cpdef enum:
    # In place of a message's size, to a RateGate: an operation that is no message.
    NO_MESSAGE = -1


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
    cpdef int64_t reserve(self, int64_t size, int64_t now) noexcept
    cpdef int64_t reserve_bytes(self, int64_t size, int64_t now) noexcept
    cdef void spend(self, int64_t size, int64_t now) noexcept


cdef class RateLimitStatus:
    cdef readonly bint allowed
    cdef readonly double retry_after        # seconds
    cdef int64_t _remaining                 # tokens; -1: not limited


cdef class Limiter:
    cdef readonly TokenBucket messages      # each may be None: not limited
    cdef readonly TokenBucket bytes
    cdef readonly TokenBucket operations
    cdef object _clock                      # None: monotonic_ns()
    cdef int64_t _ahead[3]                  # tokens that the waiting callers have asked for

    cdef TokenBucket bucket_of(self, int kind)
    cdef int64_t now(self) except? -1
    cdef RateLimitStatus _refused(self, TokenBucket bucket, int type, int64_t n, int64_t now)
