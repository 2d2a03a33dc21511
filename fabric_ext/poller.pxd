from cython cimport final
from libc.stdint cimport int64_t

from fabric_ext.counters cimport LoopCounters
from fabric_ext.read_buffer cimport Block, ReadBuffer
from fabric_ext.session cimport Session


cdef class PolledSession


cdef class Poller:
    cdef object __weakref__
    cdef object _loop
    cdef object _call_soon
    cdef object _context         # of its own calls: nobody's context variables are kept by a poller that never stops
    cdef object _clock           # for tests: tells the time in nanoseconds; None: the system's clock
    cdef LoopCounters _counters
    cdef ReadBuffer _read_buffer
    cdef list _hot               # the sessions that are polled; each knows its place
    cdef Py_ssize_t _next        # place of the one that is looked at next
    cdef int64_t _since          # ns; when the latest pass began, or when there was something to poll again
    cdef bint _scheduled         # the loop is about to call `turn`
    cdef bint _passing           # inside a pass: a handler that lets the loop run comes here again

    @final
    cdef int64_t now(self) except -1
    @final
    cdef int heat(self, PolledSession session, int64_t now) except -1
    @final
    cdef int cool(self, PolledSession session) except -1
    @final
    cdef int schedule(self) except -1
    @final
    cdef int look(self, int64_t now) except -1
    @final
    cdef bint read(self, PolledSession session, int64_t now) except -1


cdef class PolledSession(Session):
    cdef Poller _poller
    cdef object _context         # what deliveries run in, whether the poller or the transport has read
    cdef object _read_error      # what the kernel said to the poller, and will not say to the transport again
    cdef int64_t _busy_ns        # how long it stays hot
    cdef int64_t _heard_ns       # when the latest bytes came
    cdef Py_ssize_t _place       # among the poller's hot ones; -1: it is not polled
    cdef bint _is_direct         # the poller reads its socket; else the transport alone can

    @final
    cdef int warm(self) except -1
    @final
    cdef int deliver_read(self, Block block, Py_ssize_t n) except -1

    @final
    cdef inline bint is_hot(self, int64_t now) noexcept:
        """Is it to be polled? Not while it is not read from, nor once what comes is thrown away."""
        return (now - self._heard_ns <= self._busy_ns and self._read_pauses == 0 and not self._discarding
                and self._user is not None and not self._transport.closed)


cdef Poller poller_of(object loop, LoopCounters counters)
