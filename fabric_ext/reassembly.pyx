"""Joins the fragments of a message: order, limits and UTF-8, decided frame by frame.

Owns the bytes of at most one unfinished message. Never sees control frames, masks or compressed data, never
does I/O, never raises for what a peer sent: it answers with a verdict, and the caller knows the close code.

A refusal is final. It frees the buffer and is repeated for every further frame until `reset()`.
"""

import enum

import cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.object cimport PyObject
from cpython.ref cimport Py_CLEAR
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

# On raw pointers: while a bytes object is our buffer, nobody else may hold a reference, not even a temporary.
cdef extern from "Python.h":
    PyObject* PyBytes_FromStringAndSize(const char* data, Py_ssize_t size) except NULL
    char* PyBytes_AS_STRING(PyObject* bytes) noexcept
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
    OP_CONTINUATION = 0
    OP_TEXT = 1
    OP_BINARY = 2
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


@cython.final
@cython.no_gc
cdef class Utf8Validator:
    def __cinit__(self):
        self.state = UTF8_ACCEPT

    cdef bint feed(self, const uint8_t* p, Py_ssize_t n) noexcept:
        """Whether everything so far is the beginning of valid UTF-8. A failure stays until reset()."""
        self.state = utf8_advance(self.state, p, n)
        return self.state != UTF8_REJECT

    cpdef bint complete(self) noexcept:
        return self.state == UTF8_ACCEPT

    cpdef void reset(self) noexcept:
        self.state = UTF8_ACCEPT

    def push(self, data):
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            return self.feed(<const uint8_t*>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)


@cython.final
@cython.no_gc
cdef class Assembler:
    def __cinit__(self, Py_ssize_t max_message_size, Py_ssize_t max_fragments=DEFAULT_MAX_FRAGMENTS):
        if max_message_size < 1:
            raise ValueError(f"max_message_size must be at least 1 byte, got {max_message_size}")
        if max_fragments < 1:
            raise ValueError(f"max_fragments must be at least 1, got {max_fragments}")
        self.max_message_size = max_message_size
        self.max_fragments = max_fragments
        self.reset()

    def __dealloc__(self):
        Py_CLEAR(self.buffer)

    cdef int feed(self, int opcode, bint fin, const char* p, Py_ssize_t n) except -1:
        """Take one data frame. p is only read during the call.

        Returns a verdict. Raises ValueError for an opcode that is not 0, 1 or 2, RuntimeError when a finished
        message was not taken, MemoryError (which drops the message).
        """
        if self.verdict != V_MORE:
            if self.verdict == V_MESSAGE:
                raise RuntimeError("take() the finished message before feeding the next frame")
            return self.verdict
        # RFC 6455 §5.4: a message is one frame, or a frame with the opcode and then continuation frames;
        # the fragments of one message are not interleaved with those of another.
        if opcode == OP_CONTINUATION:
            if self.kind == 0:
                return self.refuse(V_UNEXPECTED_CONTINUATION)
        elif opcode == OP_TEXT or opcode == OP_BINARY:
            if self.kind != 0:
                return self.refuse(V_EXPECTED_CONTINUATION)
            self.kind = opcode
        else:
            raise ValueError(f"opcode must be 0, 1 or 2, got {opcode}")
        # Both limits hold before a byte is stored. By subtraction, which cannot overflow.
        if n > self.max_message_size - self.size:
            return self.refuse(V_TOO_LARGE)
        if self.fragments >= self.max_fragments:
            return self.refuse(V_TOO_MANY_FRAGMENTS)
        # RFC 6455 §8.1. A character may be cut by fragments (§5.6), but not by the end of the message.
        if self.kind == OP_TEXT:
            self.utf8 = utf8_advance(self.utf8, <const uint8_t*>p, n)
            if self.utf8 == UTF8_REJECT or (fin and self.utf8 != UTF8_ACCEPT):
                return self.refuse(V_BAD_UTF8)
        if n:
            self.append(p, n, fin)
        self.fragments += 1
        if fin:
            self.verdict = V_MESSAGE
        return self.verdict

    cdef int refuse(self, int verdict) noexcept:
        """size, fragments and kind stay, so that the caller can say by how much a limit was passed."""
        Py_CLEAR(self.buffer)
        self.verdict = verdict
        return verdict

    cdef int append(self, const char* p, Py_ssize_t n, bint last) except -1:
        """Copy n bytes behind those we hold. The caller checked that they fit the limit."""
        cdef Py_ssize_t need = self.size + n
        cdef Py_ssize_t capacity = PyBytes_GET_SIZE(self.buffer) if self.buffer != NULL else 0
        if need > capacity:
            # Double, so that n fragments cost O(log n) resizes; but never hold more than the limit,
            # and nothing that is not needed once the last frame is here.
            if not last:
                capacity = 2 * capacity if capacity <= self.max_message_size // 2 else self.max_message_size
                need = min(max(need, capacity, FIRST_CAPACITY), self.max_message_size)
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

    cpdef object take(self):
        """Hand the finished message over and start again."""
        if self.verdict != V_MESSAGE:
            raise RuntimeError("no finished message to take")
        try:
            if self.buffer == NULL:
                return "" if self.kind == OP_TEXT else b""
            if self.kind == OP_TEXT:
                return PyUnicode_DecodeUTF8(PyBytes_AS_STRING(self.buffer), self.size, NULL)
            # The buffer itself becomes the message: no second copy.
            if PyBytes_GET_SIZE(self.buffer) != self.size:
                _PyBytes_Resize(&self.buffer, self.size)
            return <object>self.buffer
        finally:
            self.reset()

    cpdef bint active(self) noexcept:
        """Whether a message is begun and neither finished nor refused."""
        return self.kind != 0 and self.verdict == V_MORE

    cpdef void reset(self) noexcept:
        """Forget the message and a refusal; free the buffer."""
        Py_CLEAR(self.buffer)
        self.size = 0
        self.fragments = 0
        self.kind = 0
        self.verdict = V_MORE
        self.utf8 = UTF8_ACCEPT

    @property
    def capacity(self):
        return PyBytes_GET_SIZE(self.buffer) if self.buffer != NULL else 0

    def push(self, int opcode, bint fin, data):
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            return VERDICTS[self.feed(opcode, fin, <const char*>view.buf, view.len)]
        finally:
            PyBuffer_Release(&view)
