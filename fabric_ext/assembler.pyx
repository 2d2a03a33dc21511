"""Joins the pieces of a message: its bytes, and whether a text is UTF-8, decided as they come.

Owns the bytes of at most one unfinished message. Never sees control frames, masks or compressed data, never does I/O,
never raises for what a peer sent.

A connection, whose decoder has judged order and size already, calls `begin`, `add` for each piece, and `whole` for
the message or `part` for what can be handed over of it so far. `feed` is for frames that were not judged before: it
answers with a verdict. A refusal is final: it frees the buffer and is repeated for every further frame until `reset()`.
"""

import enum

import cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.object cimport PyObject
from cpython.ref cimport Py_CLEAR
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy, memmove

from fabric_ext.message cimport K_BINARY, K_CONTINUATION, K_TEXT
from fabric_ext.sequence cimport (V_BAD_UTF8, V_EXPECTED_CONTINUATION, V_MESSAGE, V_MORE, V_TOO_LARGE, V_TOO_MANY_FRAGMENTS,
                                  V_UNEXPECTED_CONTINUATION, sequence_next, sequence_reset)

# On raw pointers: while a bytes object is our buffer there must be no other reference, not even a temporary.
cdef extern from "Python.h":
    PyObject* PyBytes_FromStringAndSize(const char* data, Py_ssize_t size) except NULL
    char* PyBytes_AS_STRING(PyObject* bytes) noexcept
    bytes bytes_of "PyBytes_FromStringAndSize"(const char* data, Py_ssize_t size)
    Py_ssize_t PyBytes_GET_SIZE(PyObject* bytes) noexcept
    # On failure *bytes is NULL.
    int _PyBytes_Resize(PyObject** bytes, Py_ssize_t size) except -1


class Verdict(enum.IntEnum):
    MORE = V_MORE
    MESSAGE = V_MESSAGE
    UNEXPECTED_CONTINUATION = V_UNEXPECTED_CONTINUATION
    EXPECTED_CONTINUATION = V_EXPECTED_CONTINUATION
    BAD_UTF8 = V_BAD_UTF8
    TOO_LARGE = V_TOO_LARGE
    TOO_MANY_FRAGMENTS = V_TOO_MANY_FRAGMENTS


cdef tuple VERDICTS = tuple(Verdict)


# Fragments take no memory of their own, so this bounds patience, not memory: a peer that sends empty fragments
# for ever is stopped after about 1 MB of headers. The Autobahn suite (9.3.1, 9.4.1) legitimately cuts 4 MiB into
# pieces of 64 bytes, which is 65,536 fragments; twice that is allowed.
DEFAULT_MAX_FRAGMENTS = 131_072

cdef enum:
    # An unfinished message starts with at least this capacity, so that tiny fragments do not cost a resize each.
    FIRST_CAPACITY = 256


# --- UTF-8 (RFC 3629 §4, Unicode table 3-7) ------------------------------------------------------------------
#
# A deterministic automaton with nine states. The state is a bit offset into a 64-bit row, one row for each byte
# value: the next state is the six bits found there. One load and one shift per byte, and no branch.

cdef enum:
    # UTF8_REJECT = 0 and UTF8_ACCEPT = 6 are in the .pxd.
    TAIL_1 = 12     # one more byte 80..BF
    TAIL_2 = 18     # two more
    TAIL_3 = 24     # three more
    AFTER_E0 = 30   # A0..BF, then one more: no overlong forms
    AFTER_ED = 36   # 80..9F, then one more: no surrogates
    AFTER_F0 = 42   # 90..BF, then two more: no overlong forms
    AFTER_F4 = 48   # 80..8F, then two more: nothing above U+10FFFF
    STATE_MASK = 63

    # Bytes given to the automaton before looking for ASCII again.
    BLOCK = 32

cdef uint64_t HIGH_BITS = 0x8080808080808080
cdef uint64_t[256] rows


cdef void move(uint64_t state, int first, int last, uint64_t target) noexcept:
    """Let bytes first..last lead from state to target; what is not named leads to UTF8_REJECT, which is 0."""
    cdef int byte
    for byte in range(first, last + 1):
        rows[byte] |= target << state


cdef void build_rows() noexcept:
    move(UTF8_ACCEPT, 0x00, 0x7F, UTF8_ACCEPT)
    move(UTF8_ACCEPT, 0xC2, 0xDF, TAIL_1)
    move(UTF8_ACCEPT, 0xE0, 0xE0, AFTER_E0)
    move(UTF8_ACCEPT, 0xE1, 0xEC, TAIL_2)
    move(UTF8_ACCEPT, 0xED, 0xED, AFTER_ED)
    move(UTF8_ACCEPT, 0xEE, 0xEF, TAIL_2)
    move(UTF8_ACCEPT, 0xF0, 0xF0, AFTER_F0)
    move(UTF8_ACCEPT, 0xF1, 0xF3, TAIL_3)
    move(UTF8_ACCEPT, 0xF4, 0xF4, AFTER_F4)
    move(TAIL_1, 0x80, 0xBF, UTF8_ACCEPT)
    move(TAIL_2, 0x80, 0xBF, TAIL_1)
    move(TAIL_3, 0x80, 0xBF, TAIL_2)
    move(AFTER_E0, 0xA0, 0xBF, TAIL_1)
    move(AFTER_ED, 0x80, 0x9F, TAIL_1)
    move(AFTER_F0, 0x90, 0xBF, TAIL_2)
    move(AFTER_F4, 0x80, 0x8F, TAIL_2)


build_rows()


cdef inline uint64_t word_at(const uint8_t* p) noexcept nogil:
    cdef uint64_t word
    memcpy(&word, p, 8)  # p has no alignment; compilers turn this into one load
    return word


cdef inline const uint8_t* skip_ascii(const uint8_t* p, const uint8_t* end) noexcept nogil:
    """The first place from p on, in steps of 32 and then 8 bytes, where a byte may not be ASCII."""
    while end - p >= 32 and not ((word_at(p) | word_at(p + 8) | word_at(p + 16) | word_at(p + 24)) & HIGH_BITS):
        p += 32
    while end - p >= 8 and not (word_at(p) & HIGH_BITS):
        p += 8
    return p


cdef uint64_t utf8_advance(uint64_t state, const uint8_t* p, Py_ssize_t n) noexcept nogil:
    cdef const uint8_t* end = p + n
    cdef const uint8_t* stop
    while p < end:
        if state == UTF8_ACCEPT:
            p = skip_ascii(p, end)
        stop = p + BLOCK if end - p > BLOCK else end
        # The mask is applied to the old state: a shift instruction does that by itself.
        while p < stop:
            state = rows[p[0]] >> (state & STATE_MASK)
            p += 1
        state &= STATE_MASK
        if state == UTF8_REJECT:
            break
    return state


cdef Assembler new_assembler(Py_ssize_t max_message_size, int kind):
    cdef Assembler assembler = Assembler.__new__(Assembler)
    assembler.max_message_size = max_message_size
    assembler.begin(kind)
    return assembler


@cython.final
@cython.no_gc
cdef class Assembler:
    def __init__(self, Py_ssize_t max_message_size, Py_ssize_t max_fragments=DEFAULT_MAX_FRAGMENTS):
        if max_message_size < 1:
            raise ValueError(f"max_message_size must be at least 1 byte, got {max_message_size}")
        if max_fragments < 1:
            raise ValueError(f"max_fragments must be at least 1, got {max_fragments}")
        self.max_message_size = max_message_size
        self.sequence.max_size = max_message_size
        self.sequence.max_frames = max_fragments
        self.reset()

    def __dealloc__(self):
        Py_CLEAR(self.buffer)

    cdef int feed(self, int opcode, bint fin, const char* p, Py_ssize_t n) except -1:
        """Take one data frame that has not been judged. p is only read during the call.

        Returns a verdict. Raises ValueError for an opcode that is not 0, 1 or 2, RuntimeError when a finished
        message was not taken, MemoryError (which drops the message).
        """
        cdef int verdict
        if self.verdict != V_MORE:
            if self.verdict == V_MESSAGE:
                raise RuntimeError("take() the finished message before feeding the next frame")
            return self.verdict
        if opcode < 0 or opcode > K_BINARY:
            raise ValueError(f"opcode must be 0, 1 or 2, got {opcode}")
        # Both limits hold before a byte is stored.
        verdict = sequence_next(&self.sequence, opcode, fin, n)
        if verdict > V_MESSAGE:
            return self.refuse(verdict)
        if opcode != K_CONTINUATION:
            self.begin(opcode)
        if not self.add(p, n, fin, self.sequence.size if fin else 0):
            self.sequence.frames -= 1
            self.sequence.size -= n
            return self.refuse(V_BAD_UTF8)
        self.verdict = verdict
        return verdict

    cdef int refuse(self, int verdict) noexcept:
        """What was accepted before stays counted, so that the caller can say by how much a limit was passed."""
        Py_CLEAR(self.buffer)
        self.verdict = verdict
        return verdict

    cdef void begin(self, int kind) noexcept:
        """Join a new message of this opcode."""
        Py_CLEAR(self.buffer)
        self.size = 0
        self.kind = kind
        self.utf8 = UTF8_ACCEPT

    cdef bint check(self, const char* p, Py_ssize_t n, bint last) noexcept:
        """Is everything so far the beginning of a message, or all of it with the `last` piece (RFC 6455 §8.1)?"""
        if self.kind == K_TEXT:
            # A character may be cut by fragments (§5.6), but not by the end of the message.
            self.utf8 = utf8_advance(self.utf8, <const uint8_t*>p, n)
            return self.utf8 != UTF8_REJECT and (not last or self.utf8 == UTF8_ACCEPT)
        return True

    cdef bint add(self, const char* p, Py_ssize_t n, bint last, Py_ssize_t expected) except -1:
        """Check and keep one more piece; `expected`, if not 0, is what the whole will have. False: it is not UTF-8."""
        if not self.check(p, n, last):
            return False
        if n:
            self.append(p, n, expected)
        return True

    cdef int append(self, const char* p, Py_ssize_t n, Py_ssize_t expected) except -1:
        """Copy n bytes behind those we hold. The caller checked that they fit the limit."""
        cdef Py_ssize_t need = self.size + n
        cdef Py_ssize_t capacity = PyBytes_GET_SIZE(self.buffer) if self.buffer != NULL else 0
        if need > capacity:
            # Double, so that n pieces cost O(log n) resizes; but never hold more than the limit, nor more than is
            # expected. What is expected is a claim of the peer: it never makes us hold more than doubling does.
            capacity = 2 * capacity if capacity <= self.max_message_size // 2 else self.max_message_size
            capacity = max(need, capacity, FIRST_CAPACITY)
            if expected >= need:
                capacity = min(capacity, expected)
            need = max(need, min(capacity, self.max_message_size))
            try:
                if self.buffer == NULL:
                    self.buffer = PyBytes_FromStringAndSize(NULL, need)
                else:
                    _PyBytes_Resize(&self.buffer, need)
            except MemoryError:
                self.reset()
                raise
        memcpy(PyBytes_AS_STRING(self.buffer) + self.size, p, n)
        self.size += n
        return 0

    cdef object whole(self):
        """Hand over all that is held, str or bytes, as the whole message; then nothing is held."""
        try:
            if self.buffer == NULL:
                return "" if self.kind == K_TEXT else b""
            if self.kind == K_TEXT:
                return PyUnicode_DecodeUTF8(PyBytes_AS_STRING(self.buffer), self.size, NULL)
            # The buffer itself becomes the message: no second copy.
            if PyBytes_GET_SIZE(self.buffer) != self.size:
                _PyBytes_Resize(&self.buffer, self.size)
            return <object>self.buffer
        finally:
            self.reset()

    cdef object part(self):
        """Hand over what is held of a message that goes on, all but the beginning of a character that is cut off."""
        cdef Py_ssize_t whole = self.size
        cdef object part
        cdef char* p
        if self.buffer == NULL:
            return "" if self.kind == K_TEXT else b""
        p = PyBytes_AS_STRING(self.buffer)
        if self.kind != K_TEXT:
            part = bytes_of(p, whole)
        else:
            if self.utf8 != UTF8_ACCEPT:
                whole -= 1
                while whole > 0 and (<uint8_t>p[whole] & 0xC0) == 0x80:
                    whole -= 1
            part = PyUnicode_DecodeUTF8(p, whole, NULL)
        memmove(p, p + whole, self.size - whole)
        self.size -= whole
        if self.size == 0 or whole > FIRST_CAPACITY:
            self.shrink()
        return part

    cdef int shrink(self) except -1:
        """Let the buffer go, but for the three bytes at most of a character."""
        if self.size == 0:
            Py_CLEAR(self.buffer)
        else:
            _PyBytes_Resize(&self.buffer, self.size)
        return 0

    cpdef void reset(self) noexcept:
        """Forget the message and a refusal; free the buffer."""
        Py_CLEAR(self.buffer)
        self.size = 0
        self.kind = 0
        self.verdict = V_MORE
        self.utf8 = UTF8_ACCEPT
        sequence_reset(&self.sequence)

    # For Python.

    @property
    def max_fragments(self):
        return self.sequence.max_frames

    @property
    def fragments(self):
        return self.sequence.frames

    @property
    def capacity(self):
        return PyBytes_GET_SIZE(self.buffer) if self.buffer != NULL else 0

    def active(self):
        return self.kind != 0 and self.verdict == V_MORE

    def push(self, int opcode, bint fin, data):
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            return VERDICTS[self.feed(opcode, fin, <const char*>view.buf, view.len)]
        finally:
            PyBuffer_Release(&view)

    def take(self):
        if self.verdict != V_MESSAGE:
            raise RuntimeError("no finished message to take")
        return self.whole()
