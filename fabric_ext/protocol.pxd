from libc.stdint cimport uint8_t


cdef enum:                       # State
    CONNECTING = 0
    OPEN = 1
    CLOSING = 2                  # a close frame was sent or received; the TCP connection still stands
    RECONNECTING = 3             # the transport is gone and another one is being sought
    CLOSED = 4


cdef enum:                       # Event
    OPENED = 0                   # the handshake is complete
    CLOSE_BEGUN = 1              # a close frame was sent or received
    LOST = 2                     # the transport is gone; another one will be sought
    ENDED = 3                    # the transport is gone for good, or never came


cpdef enum:
    MAX_REASON = 123             # bytes of a close reason: RFC 6455 §5.5, 125 less the code

cdef int next_state(int state, int event) noexcept nogil

# The close code with which a `frames.Fault` fails the connection (RFC 6455 §7.4.1).
cdef int fault_code(int fault) noexcept nogil
cdef str fault_text(int fault)


cdef class CloseFrame:
    cdef readonly int code       # 1005 when the frame has no body (RFC 6455 §7.1.5)
    cdef readonly str reason
    cdef readonly int fault      # 0, or the `frames.Fault` of a malformed frame


cdef CloseFrame read_close(const uint8_t* p, Py_ssize_t n)
