from enum import IntEnum

from typing_extensions import disjoint_base

MAX_REASON: int
"""Bytes of UTF-8 that the reason of a close may have: RFC 6455 §5.5, 125 less the code."""

class State(IntEnum):
    """Where a connection stands: the states of RFC 6455 §4.1 and §7.1, and the search for another transport."""

    CONNECTING = 0
    OPEN = 1
    CLOSING = 2
    RECONNECTING = 3
    CLOSED = 4

class Event(IntEnum):
    """What moves a connection from one state to the next."""

    OPENED = 0
    CLOSE_BEGUN = 1
    LOST = 2
    ENDED = 3

@disjoint_base
class CloseFrame:
    """What the body of a close frame says: `code`, `reason`; `fault` is 0, or the `Fault` of a malformed one."""

    @property
    def code(self) -> int: ...
    @property
    def reason(self) -> str: ...
    @property
    def fault(self) -> int: ...

def move(state: int, event: int) -> State:
    """The state after `event`; `ValueError` where the table has no such move."""

def parse_close(body: bytes) -> CloseFrame:
    """Read the body of a close frame; see `CloseFrame`."""

def check_close(code: int, reason: str) -> None:
    """Raise ValueError or TypeError unless `close(code, reason)` may be called: RFC 6455 §5.5 and §7.4."""
