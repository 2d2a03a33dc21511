from cython cimport final
from libc.stdint cimport int64_t

from fabric_ext.bucket cimport RateGate
from fabric_ext.counters cimport Counters
from fabric_ext.ring cimport Ring

cdef enum Admission:
    ADMIT = 0
    HELD = 1                     # the message waits here
    DROP = 2
    CLOSE = 3                    # fail the connection


cdef class Throttle:
    cdef RateGate _gate
    cdef int _action             # when the connection's own limit refuses: HELD, DROP or CLOSE
    cdef int _shared_action      # the same for the limit that it shares
    cdef Counters _counters
    cdef object _clock           # returns nanoseconds; None: monotonic_ns()
    cdef object _session
    cdef object _loop
    cdef Ring _held              # messages that wait; None until needed
    cdef object _release_timer
    cdef object _repay_timer

    @final
    cdef int64_t _now(self) except? -1
    @final
    cdef int admit(self, object message, Py_ssize_t n, bint closing) except -1
    @final
    cdef int admit_part(self, bint first, Py_ssize_t n) except -1
    @final
    cdef int admit_ping(self) except -1
    @final
    cdef int _refused(self, bint own) noexcept
    @final
    cdef int _overdraw(self, int64_t ns) except -1
    @final
    cdef list stop(self)
