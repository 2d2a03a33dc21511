from cython cimport final

from fabric_ext.session cimport Session
from fabric_ext.session_user cimport SessionUser

# What a receiver may ask for.
cdef enum Form:
    AS_IT_IS = 0                 # the item of the queue
    MESSAGE = 1                  # str or bytes
    BYTES = 2                    # bytes


cdef class Fragments:
    cdef readonly list parts     # str or bytes, one for each frame of the message


cdef class PlainConnection(SessionUser):
    cdef int _state              # protocol.State
    cdef bint _sendable          # OPEN, and no message is being sent in parts
    cdef Session _session        # None while there is no transport
    cdef Py_ssize_t _high        # frames in the queue from which on the socket is not read
    cdef Py_ssize_t _low         # and down to which it is not
    cdef Py_ssize_t _frames      # in the queue, those of an unfinished message included
    cdef Py_ssize_t _write_limit # bytes that the transport may hold before a sender waits
    cdef Py_ssize_t _max_fragments
    cdef list _unfinished        # the frames so far of a message in several, or None
    cdef bint _dropping          # closing, and the queue is full: what still comes is thrown away
    cdef bint _wanted            # a thread waits for what stands first in the queue, without a Recv
    cdef bint _stream_open       # the next message, or the unfinished one, goes into the queue frame by frame
    cdef public bint _streaming  # a stream has begun and was not read to its end: nobody else may receive
    cdef public object _writable_waiter  # a future for when all is written; None while nobody waits

    @final
    cdef inline int arrived(self, object data) except -1
    @final
    cdef int update_sendable(self) except -1
    @final
    cdef inline int check_here(self) except -1
    @final
    cdef inline int notice_closed_loop(self) except -1
    @final
    cdef bint is_congested(self) except -1
    @final
    cdef inline bint write_data(self, object message, object text) except -1


cdef class Messages:
    cdef PlainConnection _connection
