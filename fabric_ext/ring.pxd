cdef class Ring:
    cdef void** _slots          # owned references; malloc'ed on the first push, freed by the last item to leave a grown ring
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
