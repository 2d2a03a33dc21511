"""The inbound rate limit of one session: which messages pass, wait, are dropped, or fail the connection.

Owns the messages that wait for their tokens, and the two timers. The buckets are `fabric_ext.bucket`'s. Reading is
paused while messages wait; the tokens of the oldest are reserved meanwhile, so where connections share a limit none
overtakes another.
"""

from cython cimport final
from libc.stdint cimport int64_t

from fabric_ext.bucket cimport NO_MESSAGE, RateGate
from fabric_ext.clock cimport monotonic_ns
from fabric_ext.counters cimport Counters
from fabric_ext.ring cimport Ring

cdef dict ACTIONS = {"slow": HELD, "drop": DROP, "close": CLOSE}


@final
cdef class Throttle:
    """Admits messages through `gate`.

    Args:
        on_exceed: "slow", "drop" or "close": what happens when the connection's own limit is exceeded.
        on_shared_exceed: the same for the limit that it shares with others.
        clock: returns nanoseconds; None = the system's monotonic clock.
    """

    def __cinit__(self, RateGate gate not None, str on_exceed not None, str on_shared_exceed not None, clock=None):
        self._gate = gate
        self._action = ACTIONS[on_exceed]
        self._shared_action = ACTIONS[on_shared_exceed]
        self._clock = clock

    def __reduce__(self):
        raise TypeError(f"cannot copy or pickle {type(self).__name__!r} object")

    def start(self, session, loop, Counters counters not None):
        """Throttle `session`, which is asked to pause, resume, deliver and fail."""
        self._session = session
        self._loop = loop
        self._counters = counters

    cdef int64_t _now(self) except? -1:
        return monotonic_ns() if self._clock is None else self._clock()

    cdef int _refused(self, bint own) noexcept:
        cdef int action = self._action if own else self._shared_action
        if action == DROP:
            self._counters.rate_limit_drops += 1
        return action

    cdef int admit(self, object message, Py_ssize_t n, bint closing) except -1:
        """May `message`, of `n` payload bytes, pass? It is kept here where the answer is HELD.

        `closing`: reading goes on, up to the peer's close frame, and nothing more is kept.
        """
        cdef int64_t wait, now
        cdef int action
        if self._held is None or self._held.size == 0:
            now = self._now()
            wait = self._gate.admit(n, now)
            if wait == 0:
                return ADMIT
            action = self._refused(self._gate.own_wait_ns(n, now) != 0)
            if action == DROP:
                return DROP
            if action == CLOSE or wait < 0:        # below 0: larger than the burst, no wait helps
                return CLOSE
            if closing:
                return DROP
            if self._held is None:
                self._held = Ring()
            self._session.pause_for_rate()
            self._release_timer = self._loop.call_later(self._gate.reserve(n, now) * 1e-9, self._release)
        elif closing:
            return DROP
        self._held.push(message)
        return HELD

    cdef int admit_part(self, bint first, Py_ssize_t n) except -1:
        """Charge `n` bytes of a message that is received in parts; with the first part, decide about the message.

        What has begun goes on: a message that is slowed pays for it before more is read.
        """
        cdef int64_t wait, now = self._now()
        cdef int action = HELD
        if not first:
            self._overdraw(self._gate.reserve_bytes(n, now))
            return ADMIT
        wait = self._gate.wait_ns(n, now)
        if wait:
            action = self._refused(self._gate.own_wait_ns(n, now) != 0)
        if action == DROP:
            return DROP
        if action == CLOSE or wait < 0:
            return CLOSE
        self._overdraw(self._gate.reserve(n, now))
        return ADMIT

    cdef int admit_ping(self) except -1:
        """Is a ping, an operation, to be answered?"""
        cdef int64_t now = self._now()
        cdef int action
        if self._gate.admit(NO_MESSAGE, now) == 0:
            return ADMIT
        action = self._action if self._gate.own_wait_ns(NO_MESSAGE, now) else self._shared_action
        if action != HELD:
            return action
        self._overdraw(self._gate.reserve(NO_MESSAGE, now))
        return ADMIT

    cdef int _overdraw(self, int64_t ns) except -1:
        """What was taken will be there in `ns`: read nothing until then."""
        if ns > 0 and self._repay_timer is None and self._session is not None:
            self._session.pause_overdrawn()
            self._repay_timer = self._loop.call_later(ns * 1e-9, self._repay)
        return 0

    def _repay(self):
        cdef int64_t wait = self._gate.wait_ns(0, self._now())      # more may have been taken meanwhile
        self._repay_timer = None
        if wait > 0:
            self._repay_timer = self._loop.call_later(wait * 1e-9, self._repay)
        else:
            self._session.resume_overdrawn()

    def _release(self):
        """Deliver the oldest message that waits, whose turn it is, and what the limit then allows."""
        cdef int64_t wait = 0
        self._release_timer = None
        if self._held is None or self._session is None:
            return
        while self._held.size and wait == 0:
            self._session.deliver_held(self._held.pop())
            if self._session is None:
                return                             # ended by what the message brought about
            if self._held.size:
                wait = self._gate.reserve(len(self._held.peek()), self._now())
        if wait < 0:
            self._held.clear()
            self._session.fail_for_rate()
        elif wait:
            self._release_timer = self._loop.call_later(wait * 1e-9, self._release)
        else:
            self._session.resume_for_rate()

    cdef list stop(self):
        """The session has ended: stop the timers; the messages that waited, oldest first."""
        for timer in (self._release_timer, self._repay_timer):
            if timer is not None:
                timer.cancel()
        self._release_timer = self._repay_timer = self._session = None
        return [] if self._held is None else [self._held.pop() for _ in range(self._held.size)]
