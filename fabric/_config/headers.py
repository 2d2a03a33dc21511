"""Which headers of a request or a response are the user's to set."""

from __future__ import annotations

from fabric.error import InvalidHeader
from fabric.headers import HeaderMap, HeadersLike

__all__ = ["own_headers"]

# Written by us: a second value would break the request (RFC 6455 §4.1, RFC 9112 §3.2).
_OF_CONNECT = frozenset({"connection", "content-length", "host", "transfer-encoding"})
_OF_HANDSHAKE = _OF_CONNECT | {"upgrade"}


def own_headers(headers: HeadersLike, *, for_proxy: bool = False) -> HeaderMap:
    """A copy of headers for the opening handshake, or for the CONNECT request to a proxy.

    Raises:
        InvalidHeader: one of them is written by the handshake, or the request, itself.
    """
    own = HeaderMap() if headers is None else HeaderMap(headers)
    for name in own:
        folded = name.lower()
        if for_proxy and folded in _OF_CONNECT:
            raise InvalidHeader(name, "the CONNECT request writes this one itself")
        if not for_proxy and (folded in _OF_HANDSHAKE or folded.startswith("sec-websocket-")):
            raise InvalidHeader(name, "the opening handshake writes this one itself")
    return own
