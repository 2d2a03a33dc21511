from cpython.object cimport PyObject
from cython cimport final

from fabric_ext.ring cimport Ring


cdef class Recv


cdef class ReceiveQueue:
    cdef Ring _items
    cdef Recv _waiter            # the one wait in progress, or None
    cdef object _future          # what its task waits for; kept, while pending, for the next wait
    cdef object _wakeup          # of the waiter, if its task was resumed here before: that task's callback,
    cdef object _context         # and the context to call it in
    cdef object _loop
    cdef object _end             # None while open; then True (ended normally) or the exception that ended it
    cdef bint _woken             # something came for the waiter: its task runs now or soon
    cdef bint _knows_tasks       # of this delivery: has `_may_step` been found out?
    cdef bint _may_step          # no task runs on this thread, so a waiting one may be stepped in place
    cdef bint _quiet_end         # iteration ends without the exception that ended the queue

    cdef int put(self, object item) except -1
    cdef int hand_over(self) except -1
    cdef int finish(self, object error) except -1
    cdef int wake(self) except -1
    cdef bint _step_in_place(self) except -1
    cdef PyObject* take(self) except? NULL
    cdef object shaped(self, object item, int form)
    cdef int on_wait(self) except -1
    cdef int on_closed_loop(self) except -1
    cdef object concurrent_recv(self)
    @final
    cdef int displace(self) except -1

    @final
    cdef inline void begin_delivery(self) noexcept:
        """Items come now, maybe several. Whether a task runs on this thread is looked up when one finds a waiter."""
        self._knows_tasks = False


cdef class Recv:
    cdef ReceiveQueue _queue
    cdef bint _iterating         # the end is StopAsyncIteration rather than None
    cdef bint _spent             # returned, raised, cancelled or closed
    cdef int _form               # of what it returns: 0 the item as it is, else see `shaped`

    cdef object _wait(self)
    cdef int _end(self) except -1
    cdef void _detach(self) noexcept
    cdef void _give_up(self) noexcept


cpdef object fresh(error)
cdef bint nobody_runs(object loop) except -1
