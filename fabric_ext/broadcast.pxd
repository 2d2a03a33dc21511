from libc.stdint cimport uint8_t

from fabric_ext.deflate cimport Codec


cdef class Shared:
    cdef int opcode
    cdef object message          # the Message, kept by connections that cannot write it yet
    cdef bytes payload
    cdef Py_ssize_t size
    cdef object compress         # as send() has it
    cdef Py_ssize_t fragment_size
    cdef bytes plain             # the frame without compression
    cdef dict packed             # Codec.group() -> (compressed payload, its frame)

    cdef bytes frame_for(self, Codec codec)
    cdef bytes _frame(self, bytes payload, uint8_t rsv)
