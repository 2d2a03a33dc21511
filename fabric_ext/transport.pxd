from cython cimport final
from picows.picows cimport WSTransport

cdef enum:
    T_LOST = -2          # what a send answers when the connection is lost


cdef class Transport(WSTransport):
    cdef object io               # the event loop's transport underneath
    cdef Py_ssize_t _wanted      # bytes that write() was given
    cdef bint closed             # detached: nothing can be written any more
    cdef bint holds              # the loop's transport holds bytes that the kernel has not taken
    cdef bint lost               # the kernel has said that the connection is lost

    @final
    cdef int write(self, char* p, Py_ssize_t n) except -1
    @final
    cdef bint _may_write(self) except -1
    @final
    cdef int write_two(self, const char* head, Py_ssize_t size, const char* p, Py_ssize_t n, object owner) except -1
    @final
    cdef int pass_on(self, object data) except -1
    @final
    cdef int detach(self) except -1
