# Layout and signatures of fabric_ext.frames; what they mean is in the .pyx and the .pyi.

from cython cimport final
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fabric_ext.mask cimport apply_mask

from fabric_ext.sequence cimport Sequence

# What Decoder.next() found.
cdef enum:
    D_MORE = 0           # nothing: all bytes have been taken
    D_MESSAGE = 1        # a whole message in one frame, not compressed
    D_DATA = 2           # any other data frame, or a part of one: see `begins` and `ends`
    D_CONTROL = 3        # a whole control frame
    D_FAULT = 4          # the peer broke a rule or a limit: see `fault`; nothing can be read any more


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

    @final
    cdef inline void feed(self, uint8_t* p, Py_ssize_t n) noexcept nogil:
        """Read the `n` bytes at `p` next; they are changed where they lie, and must stay there until D_MORE."""
        self.at = p
        self.left = n

    @final
    cdef inline int next(self) noexcept nogil:
        """What comes next, D_MORE to D_FAULT: here for a whole message of up to 125 bytes in one frame, not compressed."""
        cdef uint8_t* p = self.at
        cdef Py_ssize_t n, head
        if self.left == 0 and self.held == NULL:
            return D_MORE
        if (self.left >= 2 and (p[0] == 0x81 or p[0] == 0x82) and not self.inside and self.held == NULL
                and self.sequence.kind == 0 and not self.fault and (p[1] >> 7) == self.masked):
            n = p[1] & 0x7F
            head = 6 if self.masked else 2
            if n < 126 and self.left >= head + n and n <= self.max_frame_size:
                self.opcode = p[0] & 0x0F
                self.fin = self.begins = self.ends = True
                self.compressed = False
                self.length = self.size = n
                self.data = p + head
                self.at = p + head + n
                self.left -= head + n
                if self.masked:
                    memcpy(&self.key, p + 2, 4)
                    apply_mask(self.data, self.data, n, self.key, 0)
                return D_MESSAGE
        return self.next_of_any_kind()

    @final
    cdef int next_of_any_kind(self) noexcept nogil
    @final
    cdef int part(self) noexcept nogil
    @final
    cdef int judge_start(self, uint8_t first, uint8_t second) noexcept nogil
    @final
    cdef int read_header(self, const uint8_t* p) noexcept nogil
    @final
    cdef int hold(self) noexcept nogil
    @final
    cdef int next_held(self) noexcept nogil
    @final
    cdef int fail(self, int fault) noexcept nogil
