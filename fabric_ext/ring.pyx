"""A first-in first-out queue of objects that costs next to nothing while it is empty.

Owns one array of references: none while it is empty, sixteen slots at first, doubled when full. So ten thousand idle
connections keep no queue memory. Its callers bound it: they look at `size` before they push. The garbage collector does
not look into it: what is queued must not refer back.
"""

from cpython.exc cimport PyErr_NoMemory
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdlib cimport free, malloc

cdef enum:
    FIRST = 16                   # slots: as many as the messages for which a waiting task is resumed once


cdef class Ring:
    """First-in first-out queue; `len()` is the number of items."""

    def __dealloc__(self):
        self.clear()

    def __len__(self):
        return self.size

    cdef int push_front(self, object item) except -1:
        if self.size == self._capacity:
            self._grow()
        self._head = (self._head - 1) & (self._capacity - 1)
        Py_INCREF(item)                                # held by the slot, as by push()
        self._slots[self._head] = <PyObject*>item
        self.size += 1
        return 0

    cdef object pop(self):
        if self.size == 0:
            raise IndexError("pop from an empty Ring")
        cdef object item = <object>self.take()
        Py_DECREF(item)                                # the slot's reference; `item` holds its own
        return item

    cdef object peek(self):
        if self.size == 0:
            raise IndexError("peek into an empty Ring")
        return <object>self.first()

    cdef void clear(self) noexcept:
        cdef PyObject** slots = self._slots
        cdef Py_ssize_t i, head = self._head, size = self.size, mask = self._capacity - 1
        self._slots = NULL                             # a finaliser that runs below sees an empty ring
        self._capacity = self._head = self.size = 0
        for i in range(size):
            Py_DECREF(<object>slots[(head + i) & mask])
        free(slots)

    cdef int _grow(self) except -1:
        cdef Py_ssize_t i, capacity = self._capacity * 2 if self._capacity else FIRST
        cdef PyObject** slots = <PyObject**>malloc(capacity * sizeof(PyObject*))
        if slots == NULL:
            PyErr_NoMemory()
        for i in range(self.size):
            slots[i] = self._slots[(self._head + i) & (self._capacity - 1)]
        free(self._slots)
        self._slots = slots
        self._capacity = capacity
        self._head = 0
        return 0

    cdef void _release(self) noexcept:
        free(self._slots)
        self._slots = NULL
        self._capacity = self._head = 0

    # The same operations for Python, so that the queue is tested alone.

    def append(self, item):
        """Add `item` at the end."""
        self.push(item)

    def popleft(self):
        """Take the oldest item; `IndexError` when there is none."""
        return self.pop()
