from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from cython cimport final

cdef class Ring:
    cdef PyObject** _slots       # owned references; malloc'ed by the first item to come, freed by the last to leave
    cdef Py_ssize_t _capacity
    cdef Py_ssize_t _head
    cdef Py_ssize_t size

    @final
    cdef inline int push(self, object item) except -1:
        """Add an item at the end."""
        if self.size == self._capacity:
            self._grow()
        Py_INCREF(item)                                # held by the slot
        self._slots[(self._head + self.size) & (self._capacity - 1)] = <PyObject*>item
        self.size += 1
        return 0

    @final
    cdef inline PyObject* first(self) noexcept:
        """The oldest item, which the ring keeps; it must not be empty."""
        return self._slots[self._head]

    @final
    cdef inline PyObject* take(self) noexcept:
        """Take the oldest item out, with its reference; the ring must not be empty."""
        cdef PyObject* item = self._slots[self._head]
        self._head = (self._head + 1) & (self._capacity - 1)
        self.size -= 1
        if self.size == 0:
            self._release()
        return item

    @final
    cdef int push_front(self, object item) except -1
    @final
    cdef object pop(self)
    @final
    cdef object peek(self)
    @final
    cdef void clear(self) noexcept
    @final
    cdef int _grow(self) except -1
    @final
    cdef void _release(self) noexcept
