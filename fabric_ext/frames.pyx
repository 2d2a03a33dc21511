"""Reads WebSocket frames (RFC 6455 §5): bytes in, unmasked payloads out, as soon as they are there.

Owns the place inside the frame that is being read, and the bytes of a header or a control frame that was cut off: 139
at most. Never does I/O, never keeps payloads of data, never raises for what a peer sent.

`feed` names bytes, `next` is called until it answers D_MORE; then all of them have been taken. Payloads are unmasked
where they lie. A frame that is not all there is reported in parts, so that a receiver can judge and store them while
the rest is on its way, and need not keep more than it wants. Every limit is checked when a header is read, before
there is a payload.
"""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from fabric_ext.mask cimport apply_mask
from fabric_ext.message cimport K_CLOSE, K_CONTINUATION, K_PONG, K_BINARY, MAX_CONTROL, MAX_HEADER
from fabric_ext.sequence cimport V_MESSAGE, sequence_next

cdef extern from *:
    """
    #define fabric_unlikely(x) __builtin_expect(!!(x), 0)
    """
    bint unlikely "fabric_unlikely"(bint x) nogil

cdef enum:
    FIN = 0x80
    RSV1 = 0x40
    RSV2_RSV3 = 0x30
    MASK = 0x80
    MAX_HELD = MAX_HEADER + MAX_CONTROL

cdef Py_ssize_t MAX_SIZE = (<Py_ssize_t>1 << (8 * sizeof(Py_ssize_t) - 2))

# The fault that a refusal of `sequence_next` is.
cdef int[7] FAULTS
FAULTS[:] = [NO_FAULT, NO_FAULT, UNEXPECTED_CONTINUATION, EXPECTED_CONTINUATION, BAD_UTF8, TOO_LARGE, TOO_MANY_FRAGMENTS]


cdef inline Py_ssize_t header_size(uint8_t second) noexcept nogil:
    """The size of a header, by its second byte."""
    cdef int n = second & 0x7F
    return 2 + (0 if n < 126 else 2 if n == 126 else 8) + (4 if second & MASK else 0)


@cython.final
@cython.no_gc
cdef class Decoder:
    def __cinit__(self, *, bint masked, Py_ssize_t max_message_size, Py_ssize_t max_fragments, bint compressing=False,
                  Py_ssize_t max_frame_size=0):
        if not 1 <= max_message_size <= MAX_SIZE:
            raise ValueError(f"max_message_size is {max_message_size}, allowed are 1 to {MAX_SIZE} bytes")
        if max_fragments < 1:
            raise ValueError(f"max_fragments is {max_fragments}, must be at least 1")
        self.masked = masked
        self.compressing = compressing
        self.max_message_size = max_message_size
        self.max_frame_size = min(max_frame_size, max_message_size) if max_frame_size > 0 else max_message_size
        # What does not compress may even grow: stored blocks cost 5 bytes in 16 KB (RFC 1951 §3.2.4), a fixed code an
        # eighth at worst.
        self.max_compressed = max_message_size + (max_message_size >> 3) + 1024
        self.sequence.max_frames = max_fragments

    def __dealloc__(self):
        free(self.held)

    cdef int next_of_any_kind(self) noexcept nogil:
        cdef uint8_t* p
        cdef Py_ssize_t head
        cdef int found
        if unlikely(self.inside):
            self.begins = False
            return self.part() if self.left else D_MORE
        if unlikely(self.held != NULL):
            if self.held_size or self.fault:
                return self.next_held()
            free(self.held)                                # a control frame lay there, and has been dealt with
            self.held = NULL
        if unlikely(self.left < 2):
            return self.hold() if self.left else D_MORE
        p = self.at
        head = header_size(p[1])
        found = self.judge_start(p[0], p[1])
        if unlikely(found == D_FAULT):
            return found
        if unlikely(self.left < head or (found == D_CONTROL and self.left < head + (p[1] & 0x7F))):
            return self.hold()
        found = self.read_header(p)
        if unlikely(found == D_FAULT):
            return found
        self.at = p + head
        self.left -= head
        if found == D_DATA:
            self.begins = True
            return self.part()
        self.data = self.at
        self.size = <Py_ssize_t>self.length
        self.at += self.size
        self.left -= self.size
        if self.masked:
            apply_mask(self.data, self.data, self.size, self.key, 0)
        return found

    cdef int part(self) noexcept nogil:
        """Report what is there of the payload of a data frame, if only that it begins: D_MESSAGE or D_DATA."""
        cdef uint64_t rest = self.length - self.taken
        self.data = self.at
        self.size = self.left if <uint64_t>self.left < rest else <Py_ssize_t>rest
        if self.masked:
            apply_mask(self.data, self.data, self.size, self.key, self.taken)
        self.taken += self.size
        self.at += self.size
        self.left -= self.size
        self.ends = self.taken == self.length
        self.inside = not self.ends
        if self.begins and self.ends and self.fin and self.opcode != K_CONTINUATION and not self.compressed:
            return D_MESSAGE
        return D_DATA

    cdef int judge_start(self, uint8_t first, uint8_t second) noexcept nogil:
        """What the first two bytes of a header tell: D_DATA, D_CONTROL or D_FAULT."""
        cdef int opcode = first & 0x0F
        if unlikely(first & RSV2_RSV3):
            return self.fail(BAD_RSV)
        if unlikely((K_BINARY < opcode < K_CLOSE) or opcode > K_PONG):
            return self.fail(BAD_OPCODE)
        # RFC 6455 §5.1: a client masks all its frames, a server none.
        if unlikely(self.masked != ((second & MASK) != 0)):
            return self.fail(NOT_MASKED if self.masked else MASKED)
        if opcode < K_CLOSE:
            # RFC 7692 §6: on the first frame of a message only.
            if unlikely((first & RSV1) and (not self.compressing or opcode == K_CONTINUATION)):
                return self.fail(BAD_RSV)
            return D_DATA
        if first & RSV1:
            return self.fail(BAD_RSV)
        if not first & FIN:                                # RFC 6455 §5.5
            return self.fail(CONTROL_FRAGMENTED)
        if (second & 0x7F) > MAX_CONTROL:
            return self.fail(CONTROL_TOO_LONG)
        return D_CONTROL

    cdef int read_header(self, const uint8_t* p) noexcept nogil:
        """Read a whole header, whose first two bytes have been judged."""
        cdef uint64_t n = p[1] & 0x7F
        cdef int opcode = p[0] & 0x0F, verdict, i
        cdef bint fin = (p[0] & FIN) != 0
        cdef bint marked = (p[0] & RSV1) != 0
        p += 2
        # RFC 6455 §5.2: the length is in the fewest bytes, and its most significant bit is 0.
        if n == 126:
            n = p[0] << 8 | p[1]
            if n < 126:
                return self.fail(LONG_LENGTH)
            p += 2
        elif n == 127:
            n = 0
            for i in range(8):
                n = n << 8 | p[i]
            if n < 0x10000 or n >> 63:
                return self.fail(LONG_LENGTH)
            p += 8
        if self.masked:
            memcpy(&self.key, p, 4)
        self.opcode = opcode
        self.length = n
        self.fin = fin
        if opcode >= K_CLOSE:
            return D_CONTROL
        if opcode != K_CONTINUATION:
            if self.sequence.kind == 0:
                self.compressed = marked
                self.sequence.max_size = self.max_compressed if marked else self.max_message_size
        if unlikely(self.max_frame_size < self.max_message_size and n > <uint64_t>self.max_frame_size):
            return self.fail(TOO_LARGE)
        verdict = sequence_next(&self.sequence, opcode, fin, n)
        if verdict > V_MESSAGE:
            return self.fail(FAULTS[verdict])
        self.taken = 0
        return D_DATA

    cdef int hold(self) noexcept nogil:
        """Keep what there is of a header or a control frame."""
        self.held = <uint8_t*>malloc(MAX_HELD)
        if self.held == NULL:
            return self.fail(READ_FAILED)
        self.held_size = 0
        return self.next_held()

    cdef int next_held(self) noexcept nogil:
        """Go on with a header or a control frame that was cut off."""
        cdef uint8_t* held = self.held
        cdef Py_ssize_t head = 2, wanted = 2, n
        cdef int found = D_MORE
        if self.fault:
            return D_FAULT
        while True:
            if self.held_size >= 2:
                head = wanted = header_size(held[1])
                found = self.judge_start(held[0], held[1])
                if found == D_FAULT:
                    return found
                if found == D_CONTROL:
                    wanted += held[1] & 0x7F
            if self.held_size == wanted:
                break
            n = min(wanted - self.held_size, self.left)
            if n == 0:
                return D_MORE
            memcpy(held + self.held_size, self.at, n)
            self.held_size += n
            self.at += n
            self.left -= n
        found = self.read_header(held)
        if found == D_FAULT:
            return found
        self.held_size = 0                                 # next() frees it
        if found == D_DATA:
            self.begins = True
            return self.part()
        self.data = held + head
        self.size = wanted - head
        if self.masked:
            apply_mask(self.data, self.data, self.size, self.key, 0)
        return found

    cdef int fail(self, int fault) noexcept nogil:
        self.fault = fault
        self.left = 0
        return D_FAULT

    # For Python.

    @property
    def oversize(self):
        return self.sequence.size + self.length

    @property
    def in_message(self):
        return self.sequence.kind != 0 or self.inside

    @property
    def held_bytes(self):
        return self.held_size

    def read(self, data):
        cdef bytearray copy = bytearray(data)
        cdef int found
        cdef list events = []
        self.feed(<uint8_t*>PyByteArray_AS_STRING(copy), len(copy))
        while True:
            found = D_FAULT if self.fault else self.next()
            if found == D_MORE:
                return events
            if found == D_FAULT:
                events.append(Fault(self.fault))
                return events
            payload = PyBytes_FromStringAndSize(<char*>self.data, self.size)
            if found == D_CONTROL:
                events.append((self.opcode, payload))
            else:
                events.append((self.opcode, payload, self.fin, self.compressed, self.begins, self.ends))
