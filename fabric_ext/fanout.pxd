from libc.stdint cimport uint32_t

cdef struct Node:
    uint32_t next                # the receiver's next one; 0: none
    uint32_t item


cdef class FanOut:
    cdef list items              # what is sent, each once
    cdef list receivers          # in the order in which they are served; one may be there twice
    cdef Py_ssize_t served       # how many of them have been
    cdef Py_ssize_t size         # bytes of one copy of the items
    cdef int walks               # how many chains are being walked: nodes must stay
    cdef Node* nodes             # node 0 is none
    cdef uint32_t count
    cdef uint32_t _capacity

    cdef int add_item(self, object item, Py_ssize_t size) except -1
    cdef uint32_t new_node(self, uint32_t item) except 0
    cdef int clear(self) except -1
