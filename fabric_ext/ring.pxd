from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF

cdef class Ring:
    cdef PyObject** _slots      # owned references; malloc'ed on the first push, freed by the last item to leave a grown ring
    cdef Py_ssize_t _capacity
    cdef Py_ssize_t _head
    cdef Py_ssize_t size

    cdef int push(self, object item) except -1
    cdef int push_front(self, object item) except -1
    cdef object pop(self)
    cdef object peek(self)
    cdef void clear(self) noexcept
    cdef int _grow(self) except -1
    cdef void _release(self) noexcept


cdef inline int ring_push(Ring ring, object item) except -1:
    """Add an item at the end."""
    if ring.size == ring._capacity:
        ring._grow()
    Py_INCREF(item)                                # held by the slot
    ring._slots[(ring._head + ring.size) & (ring._capacity - 1)] = <PyObject*>item
    ring.size += 1
    return 0


cdef inline PyObject* ring_first(Ring ring) noexcept:
    """The oldest item of a ring that is not empty, which keeps it: a borrowed reference."""
    return ring._slots[ring._head]


cdef inline PyObject* ring_take(Ring ring) noexcept:
    """Take the oldest item out of a ring that is not empty: its reference is the caller's."""
    cdef PyObject* item = ring._slots[ring._head]
    ring._head = (ring._head + 1) & (ring._capacity - 1)
    ring.size -= 1
    if ring.size == 0:
        ring._release()
    return item
