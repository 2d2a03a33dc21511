cdef struct Text:
    char* at
    Py_ssize_t size
    Py_ssize_t capacity


cdef class Outgoing:
    cdef Text _text                    # what waits here
    cdef Text _head                    # what stood before the last message, of `_latest`
    cdef Py_ssize_t _head_for          # and the length of that; -1: none
    cdef Py_ssize_t _limit
    cdef Py_ssize_t _held              # bytes that the transport held when it was last asked
    cdef object _write                 # None while there is no connection
    cdef object _unwritten
    cdef bint _is_scheduled
    cdef Py_ssize_t _published         # messages of this turn
    cdef bint _was_alone               # the turn before published no more than one
    cdef dict _topics
    cdef str _latest                   # the last one that was put there
    cdef Py_ssize_t _most_topics
    cdef bytes _prefix
    cdef public Py_ssize_t largest     # bytes of a message that the broker takes

    cdef bint put_if_room(self, str topic, bytes envelope) except -1
    cdef bint has_room(self, Py_ssize_t size) except -1
    cdef int schedule(self) except -1
    cdef int put_head(self, Text* text, const char* topic, Py_ssize_t size, Py_ssize_t length) except -1


cdef class NatsOutgoing(Outgoing):
    pass


cdef class RedisOutgoing(Outgoing):
    pass


cdef class Publisher:
    cdef readonly Outgoing _out
