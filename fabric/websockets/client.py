"""When `async for ... in connect(...)` tries again. The Sans-I/O `ClientProtocol` is not here."""

from __future__ import annotations

import os
import random
import urllib.parse
from collections.abc import Generator

from fabric.websockets._lazy import lazy
from fabric.websockets.datastructures import Headers, HeadersLike
from fabric.websockets.exceptions import InvalidMessage, InvalidStatus, SecurityError
from fabric.websockets.uri import parse_uri

__all__ = ["backoff", "process_exception", "redirected", "without_credentials"]

BACKOFF_INITIAL_DELAY = float(os.environ.get("WEBSOCKETS_BACKOFF_INITIAL_DELAY", "5"))
BACKOFF_MIN_DELAY = float(os.environ.get("WEBSOCKETS_BACKOFF_MIN_DELAY", "3.1"))
BACKOFF_MAX_DELAY = float(os.environ.get("WEBSOCKETS_BACKOFF_MAX_DELAY", "90.0"))
BACKOFF_FACTOR = float(os.environ.get("WEBSOCKETS_BACKOFF_FACTOR", "1.618"))

_REDIRECTS = (300, 301, 302, 303, 307, 308)
_CREDENTIALS = ("authorization", "cookie", "proxy-authorization")


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


def redirected(
    exc: Exception, uri: str, *, has_socket: bool, is_unix: bool, elsewhere: str | None
) -> tuple[Exception | str, bool]:
    """Where a failed attempt to connect leads: a URI, or the exception to raise; and whether to another origin.

    Args:
        exc: why it failed.
        uri: what it was for.
        has_socket: was it over a socket that the application gave?
        is_unix: was it over a Unix socket?
        elsewhere: what the application gave that says where to connect to, whatever the URI says; or None.
    """
    if not (
        isinstance(exc, InvalidStatus) and exc.response.status_code in _REDIRECTS and "Location" in exc.response.headers
    ):
        return exc, False
    old = parse_uri(uri)
    new_uri = urllib.parse.urljoin(uri, exc.response.headers["Location"])
    new = parse_uri(new_uri)
    is_cross_origin = (old.secure, old.host, old.port) != (new.secure, new.host, new.port)
    if has_socket:
        return ValueError(f"cannot follow redirect to {new_uri} with a preexisting socket"), False
    if old.secure and not new.secure:
        return SecurityError(f"cannot follow redirect to non-secure URI {new_uri}"), False
    if is_cross_origin:
        what = f"cannot follow cross-origin redirect to {new_uri}"
        if is_unix:
            return ValueError(f"{what} with a Unix socket"), False
        if elsewhere is not None:
            return ValueError(f"{what} with {elsewhere}"), False
    return new_uri, is_cross_origin


def without_credentials(headers: HeadersLike) -> Headers:
    """The headers but those that were meant for one server, and are not told another one."""
    return Headers([(name, value) for name, value in Headers(headers).raw_items() if name.lower() not in _CREDENTIALS])


_CLIENT = "fabric.websockets.asyncio.client"
__getattr__ = lazy(
    __name__,
    {},
    {"connect": _CLIENT, "unix_connect": _CLIENT, "WebSocketClientProtocol": "fabric.websockets.legacy.client"},
    ("ClientProtocol", "ClientConnection"),
)
