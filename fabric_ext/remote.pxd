from libc.stdint cimport uint64_t

from fabric_ext.topics cimport Index


cdef class Incoming:
    cdef Index _index
    cdef bytes _node
    cdef Py_ssize_t _fragment_size
    cdef public bint hold        # give back what there is, do not send it
    cdef bint _is_due            # connections are to be sent something
    cdef readonly Py_ssize_t taken     # messages that the latest deliver() has come to the end of
    cdef dict _latest            # node -> the number of the latest message from it
    cdef readonly uint64_t messages    # delivered, whether anybody has subscribed or not
    cdef readonly uint64_t malformed   # left out: no envelope of ours


cdef class Reader:
    cdef list _parts             # of what was fed, the beginning of what is not all there yet
    cdef Py_ssize_t _size        # bytes of those
    cdef Py_ssize_t _needed      # so many bytes are needed at least to go on
    cdef Py_ssize_t _prefix      # bytes before the topic
    cdef str _topic              # of the latest message

    cdef bytes joined(self, bytes data)
    cdef int keep(self, bytes data, Py_ssize_t at, Py_ssize_t needed) except -1
    cdef str topic_of(self, const char* p, Py_ssize_t n)


cdef class NatsReader(Reader):
    pass


cdef class RedisReader(Reader):
    pass
