from cpython.pythread cimport PyThread_type_lock
from cython cimport final
from libc.stdint cimport int64_t

from fabric_ext.session_user cimport SessionUser
from fabric_ext.writer cimport LoopWriter


cdef int64_t deadline_of(object timeout) except -1

cdef object invalid_state(str text)

cdef object timed_out(str what, object timeout)


cdef class Driver:
    cdef object __weakref__
    cdef readonly object loop
    cdef object _keeper          # told of what is due while no thread waits
    cdef PyThread_type_lock _lock
    cdef unsigned long _owner    # thread that holds it; 0: none
    cdef int _depth              # how often
    cdef unsigned long _home     # thread that the transports are told they belong to
    cdef LoopWriter _writer      # of the loop
    cdef list _connections       # those of the loop
    cdef unsigned long _waiting  # thread that waits for descriptors: it alone steps the loop; 0: none
    cdef bint _for_receiver      # it waits for a message
    cdef unsigned long _received_by    # thread that waited for a message latest
    cdef int64_t _received_ns    # when it left
    cdef int _receivers          # threads that would like to wait for a message, and cannot yet
    cdef bint _stepping
    cdef bint _due               # the loop has something to do at once
    cdef volatile int _woken     # the thread that waits for descriptors is to look at the loop
    cdef int64_t _until          # when that thread looks at the loop at the latest
    cdef list _times             # a heap: when the loop's timers are due, cancelled ones too; ns
    cdef int _loop_fd            # readable when a descriptor of the loop is
    cdef int _reads              # in a row past the loop
    cdef list _followers         # (lock, future) of the threads that wait for another one to bring what they wait for
    cdef list _calls             # (future, function, arguments) that are due, outside of the loop
    cdef readonly int calling    # of these, how many are running
    cdef bint _serving           # the keeper has a thread for them
    cdef unsigned long _turns    # how often a thread has stopped waiting
    cdef unsigned long _seen_turns     # by the keeper
    cdef bint _kept              # the keeper waits for its descriptors
    cdef int64_t _kept_until     # when the keeper looks at this one, if nothing wakes it; 0: before long in any case
    cdef readonly bint is_closed
    cdef bint _forked            # this process is a child of the one that it belongs to

    @final
    cdef int enter(self) except -1
    @final
    cdef int leave(self) except -1
    @final
    cdef int _wake_keeper(self) except -1
    @final
    cdef int gathers(self) except -1
    @final
    cdef int _acquire(self) except -1
    @final
    cdef void _release(self) noexcept
    @final
    cdef int _step(self) except -1
    @final
    cdef int _settle(self) except -1
    @final
    cdef int _wake(self) except -1
    @final
    cdef bint wait(self, Receiver receiver, object future, int64_t until) except -1
    @final
    cdef bint _may_drive(self, bint receives, int64_t now) noexcept
    @final
    cdef int _drive(self, Receiver receiver, int64_t until) except -1
    @final
    cdef int _follow(self, bint receives, object future, int64_t until) except -1
    @final
    cdef int _tell(self, bint everybody) except -1
    @final
    cdef int _call_outside(self) except -1


cdef class Receiver:
    cdef object __weakref__
    cdef readonly Driver _driver
    cdef SessionUser _user       # the connection
    cdef unsigned long _receiver # thread in recv; 0: none
    cdef public bint _closing    # close() was called
    cdef int64_t _busy_ns        # of looking instead of sleeping, after the last byte
    cdef int64_t _arrived_ns     # when that came

    @final
    cdef bint _is_over(self) noexcept
    @final
    cdef bint _is_readable(self) except -1
    @final
    cdef bint _is_put_off(self) except -1
