from cython cimport final

from fabric_ext.driver cimport Receiver
from fabric_ext.plain_connection cimport PlainConnection


# What became of a message that was to be sent.
cdef enum Outcome:
    NO_DATA = 0                  # it is neither str nor bytes-like
    WRITTEN = 1
    HELD = 2                     # written, and the transport holds some of it
    IN_PARTS = 3                 # another message is being sent in parts
    NOT_OPEN = 4


cdef class PlainBlocking(Receiver):
    cdef readonly PlainConnection _connection
    cdef public bint pending_legacy_warning    # the first call warns

    @final
    cdef inline int _check_made(self) except -1
    @final
    cdef object _take(self, object timeout, int form, bint streams)
    @final
    cdef int _write(self, object message, object text) except -1
