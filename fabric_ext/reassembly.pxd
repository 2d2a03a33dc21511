# Layout and signatures of fabric_ext.reassembly; what they mean is in the .pyx and the .pyi.

from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint64_t

# What Assembler.feed() decides. From V_UNEXPECTED_CONTINUATION on it is a refusal: fail the connection.
cdef enum:
    V_MORE = 0                      # stored; the message is not finished
    V_MESSAGE = 1                   # the message is finished: take() it
    V_UNEXPECTED_CONTINUATION = 2   # nothing to continue (close with 1002)
    V_EXPECTED_CONTINUATION = 3     # a new message inside an unfinished one (1002)
    V_BAD_UTF8 = 4                  # (1007)
    V_TOO_LARGE = 5                 # (1009)
    V_TOO_MANY_FRAGMENTS = 6        # (1008)

# States of the UTF-8 automaton that callers need; every other value is "inside a character".
cdef enum:
    UTF8_REJECT = 0
    UTF8_ACCEPT = 6

# The state after n more bytes. UTF8_REJECT is absorbing.
cdef uint64_t utf8_advance(uint64_t state, const uint8_t* p, Py_ssize_t n) noexcept nogil


cdef class Utf8Validator:
    cdef uint64_t state

    cdef bint feed(self, const uint8_t* p, Py_ssize_t n) noexcept
    cpdef bint complete(self) noexcept
    cpdef void reset(self) noexcept


cdef class Assembler:
    cdef readonly Py_ssize_t max_message_size
    cdef readonly Py_ssize_t max_fragments
    cdef readonly Py_ssize_t size       # payload bytes accepted for the current message
    cdef readonly Py_ssize_t fragments  # frames accepted for the current message, empty ones too
    cdef readonly int kind              # 1 text, 2 binary, 0 between messages
    cdef int verdict                    # of the last frame; a refusal stays until reset()
    cdef uint64_t utf8
    cdef PyObject* buffer               # a bytes object that only we hold, or NULL; freed by take, reset and refusals

    cdef int feed(self, int opcode, bint fin, const char* p, Py_ssize_t n) except -1
    cdef int refuse(self, int verdict) noexcept
    cdef int append(self, const char* p, Py_ssize_t n, bint last) except -1
    cpdef object take(self)
    cpdef bint active(self) noexcept
    cpdef void reset(self) noexcept
