"""TCP_NODELAY, on every TCP connection of either side: a small message does not wait for an acknowledgement.

The event loops set it only where the socket was made with the protocol number of TCP. It is 0 for sockets that are
given to a server or a client, and for all that such a listening socket accepts.
"""

from __future__ import annotations

import socket
from typing import Any

__all__ = ["send_without_delay"]


def send_without_delay(sock: Any) -> None:
    """Have TCP send what is small at once; a socket of another kind, or None, is left alone.

    Args:
        sock: a socket, or what `get_extra_info("socket")` of a transport gives. One that listens passes the option on
            to those that it accepts.
    """
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
