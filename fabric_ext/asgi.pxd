from cython cimport final

from fabric_ext.session cimport Session
from fabric_ext.session_user cimport SessionUser


cdef class AsgiConnection(SessionUser):
    cdef bint _sendable          # there is a session, and no close frame was sent or received
    cdef bint _dropping          # the application has been told of the end: what still comes is thrown away
    cdef Session _session        # None before the opening handshake is done, and after the end
    cdef Py_ssize_t _max_queue   # messages in the queue from which on the socket is not read
    cdef Py_ssize_t _max_queue_bytes   # likewise, characters of texts and bytes
    cdef Py_ssize_t _queued_bytes
    cdef Py_ssize_t _write_limit # bytes that the transport may hold before a sender waits

    @final
    cdef bint write_data(self, dict event) except -1
    @final
    cdef int resume_if_drained(self, Session session) except -1
    @final
    cdef bint is_congested(self) except -1
