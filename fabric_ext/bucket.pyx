"""Token buckets that never drift: integers only, and the time is an argument.

Owns: how many tokens there are at a given nanosecond, and how long until there are enough. Never reads a
clock, never sleeps, never raises after construction, knows nothing of messages beyond a count and a size.

The arithmetic. A rate is a fraction: p tokens in q nanoseconds. Time is counted in ticks of 1/p nanosecond,
so a nanosecond is p ticks, a token takes q ticks to grow, and both are whole numbers: nothing is ever
rounded. A bucket is one number, the tick at which it will be full again. Taking n tokens moves that tick
n*q later; it is allowed if the bucket would then still be full within burst*q ticks from now. Time passes
without any work, and no division is done unless a caller has to wait. (This is the virtual scheduling form
of the Generic Cell Rate Algorithm, ITU-T I.371 annex A.) Ticks need 128 bits: 63 bits of nanoseconds times
a rate.

A clock that goes back is harmless: the bucket then looks emptier than it is, never fuller.
"""

cimport cython

from fabric_ext.clock cimport monotonic_ns

import math
import time

NEVER = WAIT_NEVER

# Bounds that keep every sum of ticks within 127 bits: now * p < 2**125, burst * q < 2**123, and a reservation
# adds at most 2**62 * p < 2**124.
cdef object MAX_RATE = 10**18               # tokens per second
cdef object MAX_RATE_DENOMINATOR = 10**9    # so q < 2**60
cdef object MAX_TICKS_PER_NS = 2**62
cdef object MAX_BURST = 2**63 - 1
cdef int64_t LONGEST_WAIT = 2**62           # ns, 146 years
cdef int128 LONG_AGO = -(<int128> 1 << 126)


cdef object exact_rate(rate):
    """`rate` as a fraction of tokens per second: a float is the decimal it prints as, so 0.1 is 1/10."""
    from fractions import Fraction             # here: its import takes longer than all of this package's leaves

    if isinstance(rate, bool) or not isinstance(rate, (int, float, Fraction)):
        raise TypeError(f"rate_per_second must be an int, float or Fraction, not {type(rate).__name__}")
    if not 0 < rate <= MAX_RATE:    # NaN ends here too
        raise ValueError(f"rate_per_second must be above 0 and at most {MAX_RATE}, not {rate!r}")
    exact = Fraction(repr(rate)) if isinstance(rate, float) else Fraction(rate)
    limit = min(MAX_RATE_DENOMINATOR, MAX_TICKS_PER_NS // (int(exact) + 2))
    exact = exact.limit_denominator(limit)
    if not exact:
        raise ValueError(f"rate_per_second must be at least 1e-9, not {rate!r}")
    return exact


@cython.final
@cython.no_gc
cdef class TokenBucket:
    """A bucket of `burst` tokens that refills at `rate_per_second`. It starts full."""

    def __cinit__(self, rate_per_second, burst):
        exact = exact_rate(rate_per_second)
        if isinstance(burst, bool) or not isinstance(burst, int):
            raise TypeError(f"burst must be an int, not {type(burst).__name__}")
        if not 0 < burst <= MAX_BURST:
            raise ValueError(f"burst must be from 1 to {MAX_BURST}, not {burst}")
        per_ns = exact / 10**9
        self.ticks_per_ns = per_ns.numerator
        self.ticks_per_token = per_ns.denominator
        self.burst = burst
        self.capacity = <int128> self.burst * self.ticks_per_token
        self.full_at = LONG_AGO

    @property
    def rate(self):
        from fractions import Fraction

        return Fraction(self.ticks_per_ns, self.ticks_per_token) * 10**9

    cdef int128 missing(self, int64_t n, int64_t now) noexcept:
        """Ticks from `now` until `n` tokens are there (not above 0: they are). Needs 0 <= n <= burst."""
        cdef int128 ticks = <int128> now * self.ticks_per_ns
        cdef int128 full_at = self.full_at if self.full_at > ticks else ticks
        return full_at + <int128> n * self.ticks_per_token - ticks - self.capacity

    cdef void spend(self, int64_t n, int64_t now) noexcept:
        """Move the moment of being full; may go into debt."""
        cdef int128 ticks = <int128> now * self.ticks_per_ns
        if self.full_at < ticks:
            self.full_at = ticks
        self.full_at += <int128> n * self.ticks_per_token

    @cython.cdivision(True)
    cdef int64_t whole_ns(self, int128 ticks) noexcept:
        """Ticks to nanoseconds, rounded up: after that many, and not one fewer, the tokens are there."""
        cdef int128 ns = (ticks + self.ticks_per_ns - 1) / self.ticks_per_ns
        return LONGEST_WAIT if ns > LONGEST_WAIT else <int64_t> ns

    cpdef bint take(self, int64_t n, int64_t now) noexcept:
        if n < 0 or n > self.burst or self.missing(n, now) > 0:
            return False
        self.spend(n, now)
        return True

    cpdef int64_t wait_ns(self, int64_t n, int64_t now) noexcept:
        if n < 0 or n > self.burst:
            return WAIT_NEVER
        cdef int128 missing = self.missing(n, now)
        return 0 if missing <= 0 else self.whole_ns(missing)

    cpdef int64_t queue_ns(self, int64_t ahead, int64_t n, int64_t now) noexcept:
        if n < 0 or n > self.burst:
            return WAIT_NEVER
        # While a caller waits the bucket is never full, so the tokens of all add up, beyond the burst too.
        cdef int128 missing = self.missing(n, now) + <int128> ahead * self.ticks_per_token
        return 0 if missing <= 0 else self.whole_ns(missing)

    cpdef int64_t reserve(self, int64_t n, int64_t now) noexcept:
        cdef int64_t wait = self.wait_ns(n, now)
        if wait == LONGEST_WAIT:
            return WAIT_NEVER
        if wait != WAIT_NEVER:
            self.spend(n, now)
        return wait

    cpdef void give_back(self, int64_t n) noexcept:
        if n <= 0:
            return
        if n > self.burst:
            n = self.burst
        self.full_at -= <int128> n * self.ticks_per_token
        if self.full_at < LONG_AGO:
            self.full_at = LONG_AGO

    @cython.cdivision(True)
    cpdef int64_t available(self, int64_t now) noexcept:
        cdef int128 missing = self.missing(0, now)  # 0 or less, unless in debt
        return 0 if missing > 0 else <int64_t> (-missing / self.ticks_per_token)

    cpdef void reset(self) noexcept:
        self.full_at = LONG_AGO

    def __repr__(self):
        return f"TokenBucket({self.rate}/s, burst={self.burst})"


cdef inline int64_t longer(int64_t a, int64_t b) noexcept:
    """The longer of two waits, where WAIT_NEVER is the longest."""
    if a == WAIT_NEVER or b == WAIT_NEVER:
        return WAIT_NEVER
    return a if a > b else b


@cython.final
@cython.no_gc   # it points at buckets and at an older gate only, so it is never part of a cycle
cdef class RateGate:
    """Up to three buckets, and those of `shared`: a message passes all of them or takes from none."""

    def __cinit__(self, TokenBucket messages=None, TokenBucket bytes_=None, TokenBucket operations=None,
                  RateGate shared=None):
        self.messages = messages
        self.bytes = bytes_
        self.operations = operations
        self.shared = shared

    cpdef int64_t own_wait_ns(self, int64_t size, int64_t now) noexcept:
        cdef int64_t wait = 0
        if size != NO_MESSAGE:
            if self.messages is not None:
                wait = self.messages.wait_ns(1, now)
            if self.bytes is not None:
                wait = longer(wait, self.bytes.wait_ns(size, now))
        if self.operations is not None:
            wait = longer(wait, self.operations.wait_ns(1, now))
        return wait

    cpdef int64_t wait_ns(self, int64_t size, int64_t now) noexcept:
        cdef int64_t wait = self.own_wait_ns(size, now)
        return wait if self.shared is None else longer(wait, self.shared.wait_ns(size, now))

    cpdef int64_t admit(self, int64_t size, int64_t now) noexcept:
        cdef int64_t wait = self.wait_ns(size, now)
        if wait == 0:
            self.spend(size, now)
        return wait

    cpdef int64_t reserve(self, int64_t size, int64_t now) noexcept:
        cdef int64_t wait = self.wait_ns(size, now)
        if wait == LONGEST_WAIT:
            return WAIT_NEVER
        if wait != WAIT_NEVER:
            self.spend(size, now)
        return wait

    cpdef int64_t reserve_bytes(self, int64_t size, int64_t now) noexcept:
        cdef int64_t wait = 0
        if self.bytes is not None:
            wait = self.bytes.wait_ns(min(size, self.bytes.burst), now)
            self.bytes.spend(size, now)
        return wait if self.shared is None else longer(wait, self.shared.reserve_bytes(size, now))

    cdef void spend(self, int64_t size, int64_t now) noexcept:
        if size != NO_MESSAGE:
            if self.messages is not None:
                self.messages.spend(1, now)
            if self.bytes is not None:
                self.bytes.spend(size, now)
        if self.operations is not None:
            self.operations.spend(1, now)
        if self.shared is not None:
            self.shared.spend(size, now)


cdef object KINDS = ("MESSAGES", "BYTES", "OPERATIONS")
cdef object python_clock = time.monotonic_ns


@cython.final
@cython.freelist(16)
@cython.no_gc
cdef class RateLimitStatus:
    """What a rate limit answers."""

    def __init__(self, bint allowed, remaining, double retry_after):
        self.allowed = allowed
        self._remaining = -1 if remaining is None else remaining
        self.retry_after = retry_after

    @property
    def remaining(self):
        return None if self._remaining < 0 else self._remaining

    def __bool__(self):
        return self.allowed

    def __eq__(self, other):
        if not isinstance(other, RateLimitStatus):
            return NotImplemented
        return self._key() == (<RateLimitStatus> other)._key()

    def __hash__(self):
        return hash(self._key())

    def _key(self):
        return self.allowed, self._remaining, self.retry_after

    def __repr__(self):
        return (f"RateLimitStatus(allowed={bool(self.allowed)}, remaining={self.remaining}, "
                f"retry_after={self.retry_after!r})")


cdef inline RateLimitStatus new_status(bint allowed, int64_t remaining, double retry_after):
    cdef RateLimitStatus status = RateLimitStatus.__new__(RateLimitStatus)
    status.allowed = allowed
    status._remaining = remaining
    status.retry_after = retry_after
    return status


cdef class Limiter:
    """The part of `fabric.ratelimit.RateLimiter` that does not wait."""

    def __init__(self, TokenBucket messages=None, TokenBucket bytes_=None, TokenBucket operations=None, clock=None):
        self.messages = messages
        self.bytes = bytes_
        self.operations = operations
        self._clock = None if clock is python_clock else clock

    cdef TokenBucket bucket_of(self, int kind):
        if kind == 0:
            return self.messages
        if kind == 1:
            return self.bytes
        if kind == 2:
            return self.operations
        raise ValueError(f"type must be one of {', '.join(KINDS)}, not {kind}")

    cdef int64_t now(self) except? -1:
        return monotonic_ns() if self._clock is None else self._clock()

    def try_acquire(self, int type, int64_t n=1):
        cdef TokenBucket bucket = self.bucket_of(type)
        if n < 1:
            raise ValueError(f"n must be at least 1, not {n}")
        if bucket is None:
            return new_status(True, -1, 0.0)
        cdef int64_t now = self.now()
        if self._ahead[type] == 0 and bucket.take(n, now):
            return new_status(True, bucket.available(now), 0.0)
        return self._refused(bucket, type, n, now)

    def check(self, int type, int64_t n=1):
        cdef TokenBucket bucket = self.bucket_of(type)
        if n < 1:
            raise ValueError(f"n must be at least 1, not {n}")
        if bucket is None:
            return new_status(True, -1, 0.0)
        cdef int64_t now = self.now()
        if self._ahead[type] == 0 and bucket.wait_ns(n, now) == 0:
            return new_status(True, bucket.available(now), 0.0)
        return self._refused(bucket, type, n, now)

    cdef RateLimitStatus _refused(self, TokenBucket bucket, int type, int64_t n, int64_t now):
        """Not now: tokens are missing, or others wait for theirs."""
        cdef int64_t wait = bucket.queue_ns(self._ahead[type], n, now)
        return new_status(False, bucket.available(now), math.inf if wait == WAIT_NEVER else wait / 1e9)

    def _bucket(self, int type):
        """The bucket of one kind, or None."""
        return self.bucket_of(type)

    def _now(self):
        """Nanoseconds."""
        return self.now()

    def _wait_in_line(self, int type, int64_t n):
        """`n` more tokens are waited for; less, if `n` is negative."""
        self.bucket_of(type)
        self._ahead[type] += n
