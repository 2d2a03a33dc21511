from libc.stdint cimport uint64_t

from fabric_ext.topics cimport Index


cdef class Incoming:
    cdef Index _index
    cdef bytes _node
    cdef Py_ssize_t _fragment_size
    cdef public bint hold        # give back what there is, do not send it
    cdef dict _latest            # node -> the number of the latest message from it
    cdef readonly uint64_t messages    # delivered, whether anybody has subscribed or not
    cdef readonly uint64_t malformed   # left out: no envelope of ours


cdef class NatsReader:
    cdef bytes _tail             # of what was fed, the beginning of what is not all there yet
    cdef Py_ssize_t _prefix      # bytes of a subject before the topic
    cdef str _topic              # of the latest message

    cdef str topic_of(self, const char* p, Py_ssize_t n)
