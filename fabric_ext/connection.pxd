from cython cimport final

from fabric_ext.message cimport Message
from fabric_ext.ring cimport Ring
from fabric_ext.session cimport Session
from fabric_ext.session_user cimport Part, SessionUser


cdef class Connection(SessionUser):
    # what a broadcast looks at, side by side
    cdef int _state              # protocol.State
    cdef bint _sendable          # OPEN, and nothing waits to be sent before a new message
    cdef Session _session        # None while there is no transport

    # messages accepted and not yet written, because the transport is blocked or away
    cdef Ring _outbox
    cdef readonly Py_ssize_t _outbox_bytes
    cdef bint _draining          # it is being written
    cdef int _waiting            # senders that wait for room in it
    cdef public object _backpressure   # told of each message that leaves the outbox; None until needed

    # messages received and not yet taken
    cdef Py_ssize_t _queue_limit       # before reading stops
    cdef Py_ssize_t _queue_byte_limit
    cdef Py_ssize_t _queued_bytes
    cdef Py_ssize_t _ahead             # bytes read since the queue has been full
    cdef Py_ssize_t _batch_limit       # messages for which a waiting task is resumed once
    cdef Py_ssize_t _batch_byte_limit
    cdef object _on_message

    cdef bint _streaming         # a task receives parts, and has not given up
    cdef bint _wants_parts       # the first message of the next session is to be delivered in parts
    cdef int _stream_number      # of the latest stream

    @final
    cdef object pop_outbox(self)
    @final
    cdef bint write_object(self, object message, object compress) except -1
    @final
    cdef inline int enqueue(self, object item, Py_ssize_t n) except -1
    @final
    cdef int on_full(self, Session session, Py_ssize_t n) except -1
    @final
    cdef int resume_if_drained(self, Session session, Py_ssize_t items, Py_ssize_t n) except -1
    @final
    cdef inline int check_here(self) except -1
    @final
    cdef inline int notice_closed_loop(self) except -1
    @final
    cdef int move(self, int event) except -1
    @final
    cdef void update_sendable(self) noexcept
    @final
    cdef int callback_raised(self) except -1
    @final
    cdef int drain_outbox(self) except -1
    @final
    cdef int go_on(self) except -1
    @final
    cdef bint can_drain(self) except -1
    @final
    cdef int give_up_stream(self) except -1


cdef class Send:
    cdef SessionUser _connection
    cdef object _message
    cdef object _option          # what the connection's own send() was given besides
    cdef object _later           # the coroutine that goes on where it could not be written at once
    cdef bint _begun
