"""Ports that a test keeps for what listens on them later, or again."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port of the loopback that nobody else gets, although nothing listens on it.

    Bound with SO_REUSEADDR it refuses connections, and Linux lets another socket with that option bind it, as servers
    do, but gives it to none that asks for a free port. Elsewhere it is only one that was free.
    """
    with socket.socket() as keeper:
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind(("127.0.0.1", 0))
        port: int = keeper.getsockname()[1]
        if sys.platform != "linux":
            keeper.close()
        yield port
