"""The states of a connection. The Sans-I/O protocol of `websockets.protocol` is not here."""

from __future__ import annotations

import enum

from fabric.websockets._lazy import absent

__all__ = ["State"]


class State(enum.IntEnum):
    """A connection is in one of these four states (RFC 6455 §4.1, §7.1.3, §7.1.4)."""

    CONNECTING, OPEN, CLOSING, CLOSED = range(4)


CONNECTING = State.CONNECTING
OPEN = State.OPEN
CLOSING = State.CLOSING
CLOSED = State.CLOSED

__getattr__ = absent(__name__, "Protocol", "Side", "SERVER", "CLIENT", "SEND_EOF", "Event")
