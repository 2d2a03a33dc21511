# Layout and signatures of fabric_ext.assembler; what they mean is in the .pyx and the .pyi.

from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint64_t

from fabric_ext.sequence cimport Sequence

# States of the UTF-8 automaton that callers need; every other value is "inside a character".
cdef enum:
    UTF8_REJECT = 0
    UTF8_ACCEPT = 6

# The state after n more bytes. UTF8_REJECT is absorbing.
cdef uint64_t utf8_advance(uint64_t state, const uint8_t* p, Py_ssize_t n) noexcept nogil


cdef class Assembler:
    cdef readonly Py_ssize_t max_message_size
    cdef Sequence sequence              # for feed(); a connection's decoder has judged already
    cdef int verdict                    # of the latest frame; a refusal stays until reset()
    cdef readonly int kind              # of the message that is being joined: 1 text, 2 binary, 0 none
    cdef readonly Py_ssize_t size       # bytes held
    cdef uint64_t utf8                  # of all bytes so far, those handed over included
    cdef PyObject* buffer               # a bytes object that only we hold, or NULL

    cdef int feed(self, int opcode, bint fin, const char* p, Py_ssize_t n) except -1
    cdef void begin(self, int kind) noexcept
    cdef bint add(self, const char* p, Py_ssize_t n, bint last, Py_ssize_t expected) except -1
    cdef bint check(self, const char* p, Py_ssize_t n, bint last) noexcept
    cdef object whole(self)
    cdef object part(self)
    cpdef void reset(self) noexcept
    cdef int append(self, const char* p, Py_ssize_t n, Py_ssize_t expected) except -1
    cdef int shrink(self) except -1
    cdef int refuse(self, int verdict) noexcept


# To join a message of this opcode. It allocates nothing that the collector tracks: no finalizer comes between.
cdef Assembler new_assembler(Py_ssize_t max_message_size, int kind)
