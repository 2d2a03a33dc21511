from fabric_ext.counters cimport Counters
from fabric_ext.message cimport Message
from fabric_ext.receive_queue cimport ReceiveQueue

cdef enum:
    BATCH = 16                   # messages of one read for which a waiting task is resumed once;
    BATCH_SIZE = 1024            # for the siblings of `Connection`: each of at most this many characters or bytes


cdef class Part:
    cdef readonly object data    # str or bytes
    cdef readonly bint final
    cdef readonly bint is_cut_off    # no part: the connection was lost, and the rest of the message with it


cdef Part new_part(object data, bint last, bint is_cut_off)


cdef class SessionUser(ReceiveQueue):
    cdef Counters _counters      # shared with the other connections of the owner
    cdef readonly long long messages_received  # these over all sessions
    cdef readonly long long bytes_received
    cdef readonly long long messages_sent
    cdef readonly long long bytes_sent

    cdef int deliver(self, Message message) except -1
    cdef int deliver_part(self, Part part) except -1
    cdef int on_closing(self) except -1
    cdef int on_blocked(self) except -1
    cdef int on_writable(self) except -1
    cdef int on_unsent(self, list messages) except -1
    cdef int on_ended(self) except -1
    cdef object begin_send(self, object message, object option)
    cdef object wrong_thread(self)
    cdef int forget_waiter(self) except -1
    cdef object session_now(self)
