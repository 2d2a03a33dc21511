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

    cdef Block block(self)
    cdef int note(self, Block block, Py_ssize_t n) except -1


cdef ReadBuffer read_buffer_of(object loop)
