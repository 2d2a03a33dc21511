"""The order, the number and the size of the frames of a message (RFC 6455 §5.4), judged by their headers.

The one place for these rules: the frame decoder of connections and the assembler of `fabric.fragmentation` both ask
here. Nothing but C: a struct, and functions in line.
"""

from libc.stdint cimport uint64_t

# What `sequence_next` decides. From V_UNEXPECTED_CONTINUATION on it is a refusal: fail the connection.
cdef enum:
    V_MORE = 0                      # the message is not finished
    V_MESSAGE = 1                   # it is finished by this frame
    V_UNEXPECTED_CONTINUATION = 2   # nothing to continue (close with 1002)
    V_EXPECTED_CONTINUATION = 3     # a new message inside an unfinished one (1002)
    V_BAD_UTF8 = 4                  # (1007)
    V_TOO_LARGE = 5                 # (1009)
    V_TOO_MANY_FRAGMENTS = 6        # (1008)

ctypedef struct Sequence:
    Py_ssize_t max_size             # payload bytes of a message
    Py_ssize_t max_frames           # of a message, empty ones too
    Py_ssize_t size                 # payload bytes announced for the current message
    Py_ssize_t frames               # frames of the current message
    int kind                        # 1 text, 2 binary, 0 between messages


cdef inline void sequence_reset(Sequence* s) noexcept nogil:
    s.size = s.frames = 0
    s.kind = 0


cdef inline int sequence_next(Sequence* s, int opcode, bint fin, uint64_t n) noexcept nogil:
    """Judge the header of a data frame with `n` payload bytes: V_MORE, V_MESSAGE or a refusal.

    After V_MESSAGE `kind` is 0 again, `size` and `frames` stay until the next frame. After a refusal all stay as they
    were, so that the caller can say by how much a limit was passed.
    """
    if opcode == 0:
        if s.kind == 0:
            return V_UNEXPECTED_CONTINUATION
    elif s.kind != 0:
        return V_EXPECTED_CONTINUATION
    else:
        s.size = s.frames = 0
        s.kind = opcode
    # By subtraction, which cannot overflow.
    if n > <uint64_t>(s.max_size - s.size):
        return V_TOO_LARGE
    if s.frames >= s.max_frames:
        return V_TOO_MANY_FRAGMENTS
    s.size += n
    s.frames += 1
    if not fin:
        return V_MORE
    s.kind = 0
    return V_MESSAGE
