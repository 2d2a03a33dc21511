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

    cdef int put(self, object item) except -1
    cdef int hand_over(self) except -1
    cdef int finish(self, object error) except -1
    cdef int wake(self) except -1
    cdef bint _step_in_place(self) except -1
    cdef void begin_delivery(self) noexcept
    cdef int taken(self, object item) except -1


cdef class Recv:
    cdef ReceiveQueue _queue
    cdef bint _iterating         # the end is StopAsyncIteration rather than None
    cdef bint _spent             # returned, raised, cancelled or closed

    cdef object _wait(self)
    cdef int _displace(self) except -1
    cdef int _end(self) except -1
    cdef void _detach(self) noexcept
    cdef void _give_up(self) noexcept


cpdef object fresh(error)
cdef bint nobody_runs(object loop) except -1
