"""The rules of RFC 6455 that need no I/O: the states of a connection, what a close may say, how a fault is answered.

Owns the decisions; performs nothing. Sessions and connections ask here and act.
"""

import enum

from libc.stdint cimport uint8_t

from fabric_ext.frames cimport Fault
from fabric_ext.message cimport close_body, is_wire_close_code

cdef extern from "Python.h":
    str PyUnicode_DecodeUTF8(const char* p, Py_ssize_t n, const char* errors)

cdef enum:
    ILLEGAL = -1                               # a fault of ours, never of the peer
    EVENTS = 4

# The next state: a row for each State, a column for each Event, in the order of protocol.pxd.
cdef int[20] MOVES
MOVES[:] = [
    # OPENED   CLOSE_BEGUN  LOST          ENDED
    OPEN,      ILLEGAL,     ILLEGAL,      CLOSED,      # CONNECTING, as long as the first connection is sought
    ILLEGAL,   CLOSING,     RECONNECTING, CLOSED,      # OPEN
    ILLEGAL,   CLOSING,     RECONNECTING, CLOSED,      # CLOSING
    OPEN,      ILLEGAL,     ILLEGAL,      CLOSED,      # RECONNECTING
    ILLEGAL,   ILLEGAL,     ILLEGAL,      CLOSED,      # CLOSED
]


class State(enum.IntEnum):
    """Where a connection stands: the states of RFC 6455 §4.1 and §7.1, and the search for another transport."""

    CONNECTING = 0
    OPEN = 1
    CLOSING = 2
    RECONNECTING = 3
    CLOSED = 4

    def __str__(self):
        return self.name

    def __format__(self, spec):
        return format(self.name, spec)


class Event(enum.IntEnum):
    """What moves a connection from one state to the next."""

    OPENED = 0
    CLOSE_BEGUN = 1
    LOST = 2
    ENDED = 3


cdef int next_state(int state, int event) noexcept nogil:
    """The state after `event`, or -1 where the table has no such move."""
    return MOVES[state * EVENTS + event]


def move(state, event):
    """The state after `event`; `ValueError` where the table has no such move."""
    cdef int after = next_state(state, event)
    if after == ILLEGAL:
        raise ValueError(f"no move from {State(state).name} by {Event(event).name}")
    return State(after)


# For each Fault, in the order of frames.pxd: its close code, and its reason.
cdef tuple FAULTS = (
    (0, ""),
    (1002, "reserved bits set that no extension has given a meaning"),
    (1002, "unknown opcode"),
    (1002, "frame of a client is not masked"),
    (1002, "frame of a server is masked"),
    (1002, "frame length not in its shortest form"),
    (1002, "control frame in fragments"),
    (1002, "control frame of more than 125 bytes"),
    (1002, "continuation frame without a message to continue"),
    (1002, "new message inside an unfinished one"),
    (1007, "text is not UTF-8"),
    (1009, "message over {} bytes"),
    (1008, "message in more than {} fragments"),
    (1007, "message does not inflate"),
    (1002, "malformed close frame"),
    (1007, "malformed close frame"),
    (1008, "rate limit exceeded"),
    (1011, "internal error"),
    (1011, "internal error"),
)

cdef int[19] CODES
for _i, (_code, _) in enumerate(FAULTS):
    CODES[_i] = _code


cdef int fault_code(int fault) noexcept nogil:
    return CODES[fault]


cdef str fault_text(int fault):
    """The reason to give for a fault; `{}` in it stands for the limit."""
    return FAULTS[fault][1]


cdef class CloseFrame:
    """What the body of a close frame says: `code`, `reason`; `fault` is 0, or the `Fault` of a malformed one."""


cdef CloseFrame read_close(const uint8_t* p, Py_ssize_t n):
    cdef CloseFrame close = CloseFrame.__new__(CloseFrame)
    close.reason = ""
    if n == 0:
        close.code = 1005                      # RFC 6455 §7.1.5
        return close
    if n == 1:
        close.fault = Fault.BAD_CLOSE          # RFC 6455 §5.5.1: the first two bytes MUST be the code
        return close
    close.code = (p[0] << 8) | p[1]
    if not is_wire_close_code(close.code):
        close.fault = Fault.BAD_CLOSE          # RFC 6455 §7.4
        return close
    try:
        close.reason = PyUnicode_DecodeUTF8(<const char*>p + 2, n - 2, NULL)
    except UnicodeDecodeError:
        close.fault = Fault.BAD_CLOSE_TEXT     # RFC 6455 §8.1
    return close


def parse_close(bytes body):
    """Read the body of a close frame; see `CloseFrame`."""
    return read_close(<const uint8_t*><const char*>body, len(body))


def check_close(code, reason):
    """Raise ValueError or TypeError unless `close(code, reason)` may be called: RFC 6455 §5.5 and §7.4."""
    if code is None:
        raise ValueError("close code is None: a close frame without one is only for an answer")
    if not isinstance(reason, str):
        raise TypeError(f"close reason must be str, not {type(reason).__name__}")
    close_body(code, reason)
