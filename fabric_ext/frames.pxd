# Layout and signatures of fabric_ext.frames; what they mean is in the .pyx and the .pyi.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fabric_ext.mask cimport apply_mask

from fabric_ext.sequence cimport Sequence

# What Decoder.next() found.
cdef enum:
    D_MORE = 0           # nothing: all bytes have been taken
    D_DATA = 1           # a data frame, or a part of one: see `begins` and `ends`
    D_CONTROL = 2        # a whole control frame
    D_FAULT = 3          # the peer broke a rule or a limit: see `fault`; nothing can be read any more


# Why a connection is failed (RFC 6455 §7.1.7); fabric_ext.protocol has the close codes and the sentences.
cpdef enum Fault:
    NO_FAULT = 0
    BAD_RSV = 1
    BAD_OPCODE = 2
    NOT_MASKED = 3
    MASKED = 4
    LONG_LENGTH = 5                  # not in its shortest form, or of more than 63 bits
    CONTROL_FRAGMENTED = 6
    CONTROL_TOO_LONG = 7
    UNEXPECTED_CONTINUATION = 8
    EXPECTED_CONTINUATION = 9
    BAD_UTF8 = 10
    TOO_LARGE = 11
    TOO_MANY_FRAGMENTS = 12
    BAD_COMPRESSION = 13
    BAD_CLOSE = 14
    BAD_CLOSE_TEXT = 15
    RATE_EXCEEDED = 16
    CALLBACK_FAILED = 17
    READ_FAILED = 18


cdef class Decoder:
    cdef readonly bint masked        # the frames must be masked: this is a server
    cdef readonly bint compressing   # an extension gives RSV1 its meaning (RFC 7692)
    cdef readonly Py_ssize_t max_message_size
    cdef readonly Py_ssize_t max_frame_size  # of a frame, at most max_message_size
    cdef readonly Py_ssize_t max_compressed  # payload bytes of a compressed message, before it inflates
    cdef Sequence sequence           # of the message that the frame belongs to
    # the frame being read
    cdef readonly int opcode
    cdef readonly bint fin
    cdef readonly bint compressed    # its message has RSV1 set on the first frame
    cdef readonly uint64_t length    # its payload bytes
    cdef uint64_t taken              # those reported
    cdef uint32_t key
    cdef bint inside                 # its payload is not all there yet
    # what next() found
    cdef uint8_t* data               # unmasked, where it was fed; until the next call of next() or feed()
    cdef Py_ssize_t size
    cdef readonly bint begins        # of a data frame: this is its first part,
    cdef readonly bint ends          # or its last
    cdef readonly int fault          # a Fault; it stays
    # bytes that were fed and not yet taken
    cdef uint8_t* at
    cdef Py_ssize_t left
    # a header or a control frame that was cut off
    cdef uint8_t* held
    cdef Py_ssize_t held_size

    cdef void feed(self, uint8_t* p, Py_ssize_t n) noexcept nogil
    cdef int next(self) noexcept nogil
    cdef int part(self) noexcept nogil
    cdef int judge_start(self, uint8_t first, uint8_t second) noexcept nogil
    cdef int read_header(self, const uint8_t* p) noexcept nogil
    cdef int hold(self) noexcept nogil
    cdef int next_held(self) noexcept nogil
    cdef int fail(self, int fault) noexcept nogil


cdef inline int next_frame(Decoder decoder) noexcept nogil:
    """As `decoder.next()`, but in line for a whole message of up to 125 bytes in one frame, not compressed."""
    cdef uint8_t* p = decoder.at
    cdef Py_ssize_t n, head
    if (decoder.left >= 2 and (p[0] == 0x81 or p[0] == 0x82) and not decoder.inside and decoder.held == NULL
            and decoder.sequence.kind == 0 and not decoder.fault and (p[1] >> 7) == decoder.masked):
        n = p[1] & 0x7F
        head = 6 if decoder.masked else 2
        if n < 126 and decoder.left >= head + n and n <= decoder.max_frame_size:
            decoder.opcode = p[0] & 0x0F
            decoder.fin = decoder.begins = decoder.ends = True
            decoder.compressed = False
            decoder.length = decoder.size = n
            decoder.data = p + head
            decoder.at = p + head + n
            decoder.left -= head + n
            if decoder.masked:
                memcpy(&decoder.key, p + 2, 4)
                apply_mask(decoder.data, decoder.data, n, decoder.key, 0)
            return D_DATA
    return decoder.next()
