"""When `async for ... in connect(...)` tries again. The Sans-I/O `ClientProtocol` is not here."""

from __future__ import annotations

import os
import random
from collections.abc import Generator

from fabric.websockets._lazy import lazy
from fabric.websockets.exceptions import InvalidMessage, InvalidStatus

__all__ = ["backoff", "process_exception"]

BACKOFF_INITIAL_DELAY = float(os.environ.get("WEBSOCKETS_BACKOFF_INITIAL_DELAY", "5"))
BACKOFF_MIN_DELAY = float(os.environ.get("WEBSOCKETS_BACKOFF_MIN_DELAY", "3.1"))
BACKOFF_MAX_DELAY = float(os.environ.get("WEBSOCKETS_BACKOFF_MAX_DELAY", "90.0"))
BACKOFF_FACTOR = float(os.environ.get("WEBSOCKETS_BACKOFF_FACTOR", "1.618"))


def process_exception(exc: Exception) -> Exception | None:
    """Say whether a failure to connect is final: return it, or None to try again.

    Tried again are failures of the network (`OSError`, `TimeoutError`, a connection that ended before the response) and
    of servers and proxies (500, 502, 503, 504).
    """
    if isinstance(exc, (OSError, TimeoutError)):
        return None
    if isinstance(exc, InvalidMessage) and isinstance(exc.__cause__, EOFError):
        return None
    if isinstance(exc, InvalidStatus) and exc.response.status_code in (500, 502, 503, 504):
        return None
    return exc


def backoff(
    initial_delay: float = BACKOFF_INITIAL_DELAY,
    min_delay: float = BACKOFF_MIN_DELAY,
    max_delay: float = BACKOFF_MAX_DELAY,
    factor: float = BACKOFF_FACTOR,
) -> Generator[float]:
    """Yield the seconds between attempts: at random up to `initial_delay`, then longer and longer."""
    yield random.random() * initial_delay
    delay = min_delay
    while delay < max_delay:
        yield delay
        delay *= factor
    while True:
        yield max_delay


_CLIENT = "fabric.websockets.asyncio.client"
__getattr__ = lazy(
    __name__,
    {},
    {"connect": _CLIENT, "unix_connect": _CLIENT, "WebSocketClientProtocol": "fabric.websockets.legacy.client"},
    ("ClientProtocol", "ClientConnection"),
)
