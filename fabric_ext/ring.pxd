from cpython.ref cimport Py_INCREF

cdef class Ring:
    cdef void** _slots          # owned references; malloc'ed on the first push, freed by the last item to leave a grown ring
    cdef Py_ssize_t _capacity
    cdef Py_ssize_t _head
    cdef Py_ssize_t size

    cdef int push(self, object item) except -1
    cdef int push_front(self, object item) except -1
    cdef object pop(self)
    cdef object peek(self)
    cdef int drop(self) except -1
    cdef void clear(self) noexcept
    cdef int _grow(self) except -1
    cdef void _release(self) noexcept


cdef inline int ring_push(Ring ring, object item) except -1:
    """As `ring.push(item)`, in line while there is room."""
    if ring.size == ring._capacity:
        return ring.push(item)
    Py_INCREF(item)
    ring._slots[(ring._head + ring.size) & (ring._capacity - 1)] = <void*>item
    ring.size += 1
    return 0
