from cython cimport final

cdef enum:
    SMALLEST = 65536             # bytes of a block


cdef class Block:
    cdef char* data
    cdef Py_ssize_t size
    cdef object view             # a memoryview of it all
    cdef bint taken              # what was read into it is being delivered


cdef class ReadBuffer:
    cdef object __weakref__
    cdef object _loop
    cdef Block current
    cdef Py_ssize_t _quiet       # reads in a row that a quarter of it would have held

    @final
    cdef Block block(self)
    @final
    cdef int _resize(self, Block block, Py_ssize_t n) except -1

    @final
    cdef inline int note(self, Block block, Py_ssize_t n) except -1:
        """`n` bytes were read into `block` and have been delivered: the next one may better be larger or smaller."""
        if block is self.current and block.size == SMALLEST and n < SMALLEST:
            return 0
        return self._resize(block, n)


cdef ReadBuffer read_buffer_of(object loop)
