cdef class Watermarks:
    cdef readonly Py_ssize_t messages    # counted
    cdef readonly Py_ssize_t bytes
    cdef readonly bint is_active         # past the high mark, and not yet back at the low one
    cdef Py_ssize_t _max_messages
    cdef Py_ssize_t _max_bytes
    cdef double _high
    cdef double _low

    cpdef double level(self) noexcept
    cpdef bint fits(self, Py_ssize_t size) noexcept
    cpdef bint add(self, Py_ssize_t size) noexcept
    cpdef int add_if_room(self, Py_ssize_t size, bint unless_active=*) noexcept
    cpdef bint remove(self, Py_ssize_t size) except? -1
