"""The rules of RFC 6455 that need no I/O: the states of a connection, and what a frame's header and a close may say.

Owns the decisions; performs nothing. `fabric_ext.connection` asks here and acts.
"""

from libc.stdint cimport uint8_t

from fabric_ext.message cimport is_wire_close_code

cdef extern from "Python.h":
    str PyUnicode_DecodeUTF8(const char* p, Py_ssize_t n, const char* errors)

cdef enum:
    ILLEGAL = -1                               # a fault of ours, never of the peer
    EVENTS = 4

# The next state: a row for each State, a column for each Event, in the order of protocol.pxd.
cdef int[20] MOVES
MOVES[:] = [
    # OPENED   CLOSE_BEGUN  LOST          ENDED
    OPEN,      ILLEGAL,     RECONNECTING, CLOSED,      # CONNECTING
    ILLEGAL,   CLOSING,     RECONNECTING, CLOSED,      # OPEN
    ILLEGAL,   CLOSING,     RECONNECTING, CLOSED,      # CLOSING
    OPEN,      ILLEGAL,     RECONNECTING, CLOSED,      # RECONNECTING
    ILLEGAL,   ILLEGAL,     ILLEGAL,      CLOSED,      # CLOSED
]


cdef int next_state(int state, int event) noexcept nogil:
    """The state after `event`, or -1 where the table has no such move."""
    return MOVES[state * EVENTS + event]


def move(state, event):
    """The state after `event`; `ValueError` where the table has no such move."""
    cdef int after = next_state(state, event)
    if after == ILLEGAL:
        raise ValueError(f"no move from {State(state).name} by {Event(event).name}")
    return State(after)


cdef int check_data_frame(int opcode, bint rsv1, bint rsv2, bint rsv3, bint compressing, bint continuing) noexcept nogil:
    """May a data frame carry these reserved bits (RFC 6455 §5.2, RFC 7692 §6)?

    RSV1 marks a compressed message, on its first frame only, once compression has been negotiated.
    """
    if rsv2 or rsv3:
        return BAD_RSV
    if rsv1 and (not compressing or opcode == 0 or continuing):
        return BAD_RSV1
    return ACCEPT


cdef class CloseFrame:
    """What the body of a close frame says: `code`, `reason`; `fault` is 0 or the code to fail the connection with."""


cdef CloseFrame read_close(const uint8_t* p, Py_ssize_t n):
    cdef CloseFrame close = CloseFrame.__new__(CloseFrame)
    close.reason = ""
    if n == 0:
        close.code = 1005                      # RFC 6455 §7.1.5
        return close
    if n == 1:
        close.fault = 1002                     # RFC 6455 §5.5.1: the first two bytes MUST be the code
        return close
    close.code = (p[0] << 8) | p[1]
    if not is_wire_close_code(close.code):
        close.fault = 1002                     # RFC 6455 §7.4
        return close
    try:
        close.reason = PyUnicode_DecodeUTF8(<const char*>p + 2, n - 2, NULL)
    except UnicodeDecodeError:
        close.fault = 1007                     # RFC 6455 §8.1
    return close


def parse_close(bytes body):
    """Read the body of a close frame; see `CloseFrame`."""
    return read_close(<const uint8_t*><const char*>body, len(body))
