from cython cimport final

from fabric_ext.connection cimport Connection
from fabric_ext.driver cimport Receiver


cdef class Blocking(Receiver):
    cdef readonly Connection _connection

    @final
    cdef bint _write(self, object message, object compress) except -1
    @final
    cdef int _begin_receiving(self) except -1
    @final
    cdef object _next(self, object timeout, bint iterating, list more=*, Py_ssize_t limit=*)
