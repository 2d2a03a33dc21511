from libc.stdint cimport uint8_t


cpdef enum State:
    CONNECTING = 0
    OPEN = 1
    CLOSING = 2                  # a close frame was sent or received; the TCP connection still stands
    RECONNECTING = 3             # the transport is gone and another one is being sought
    CLOSED = 4


cpdef enum Event:
    OPENED = 0                   # the handshake is complete
    CLOSE_BEGUN = 1              # a close frame was sent or received
    LOST = 2                     # the transport is gone; another one will be sought
    ENDED = 3                    # the transport is gone for good, or never came


cdef enum Refusal:               # of a frame by its header
    ACCEPT = 0
    BAD_RSV = 1
    BAD_RSV1 = 2


cdef int next_state(int state, int event) noexcept nogil
cdef int check_data_frame(int opcode, bint rsv1, bint rsv2, bint rsv3, bint compressing, bint continuing) noexcept nogil


cdef class CloseFrame:
    cdef readonly int code       # 1005 when the frame has no body (RFC 6455 §7.1.5)
    cdef readonly str reason
    cdef readonly int fault      # 0, or the close code that this malformed frame deserves


cdef CloseFrame read_close(const uint8_t* p, Py_ssize_t n)
