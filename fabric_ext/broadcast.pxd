from libc.stdint cimport uint8_t

from fabric_ext.deflate cimport Codec
from fabric_ext.session cimport Session
from fabric_ext.writer cimport Item


cdef class Shared(Item):
    cdef int opcode
    cdef object entry            # the Message as a writer keeps it until its bytes have left
    cdef bytes payload
    cdef Py_ssize_t size
    cdef object compress         # as send() has it
    cdef Py_ssize_t fragment_size
    cdef bytes plain             # the frame without compression
    cdef dict packed             # Codec.group() -> (compressed payload, its frame)

    cdef bytes frames_for(self, Session session)
    cdef bytes _packed_for(self, Codec codec)
    cdef bytes _frame(self, bytes payload, uint8_t rsv)
