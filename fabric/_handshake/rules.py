"""The rules of the opening handshake (RFC 6455 §4) on both sides: what is accepted, and the words for what is not.

Owns the HTTP status and the sentence for each fault of a request (`Rejection`), and for a response the error that a
client raises (`HandshakeFailed`). Heads are read by `fabric_ext.http_head`. Never touches a socket, never waits.
"""

from __future__ import annotations

import hashlib
from binascii import b2a_base64
from collections.abc import Iterable
from typing import TYPE_CHECKING

from fabric._http.messages import Response, headers_of, phrase
from fabric.error import AuthenticationFailed, HandshakeFailed, InvalidHeader
from fabric_ext.http_head import MAX_HEADERS, Fault

if TYPE_CHECKING:
    from fabric.headers import HeaderMap
    from fabric_ext.http_head import RequestHead, ResponseHead

__all__ = [
    "Rejection",
    "accept_key",
    "check_response",
    "check_upgrade",
    "malformed_response",
    "refusal",
    "rejection_of",
    "switching_protocols",
    "unavailable",
]

HEAD_END = b"\r\n\r\n"
RETRY_AFTER = ("Retry-After", "5")  # seconds, told to clients that find the server full or closing

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
_SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
_BAD_HEADER = "not a header line, or a control character in its value"

_WANTED = (("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"))  # with a 426: RFC 9110 §15.5.22, RFC 6455 §4.2.2
_ANSWERS: dict[int, tuple[int, str, Iterable[tuple[str, str]]]] = {
    Fault.BAD_START_LINE: (400, "malformed request line", ()),
    Fault.BAD_METHOD: (405, "method {0} is not allowed, use GET", [("Allow", "GET, HEAD")]),
    Fault.BAD_VERSION: (505, "HTTP/1.1 is spoken here", ()),
    Fault.TOO_MANY_HEADERS: (431, f"more than {MAX_HEADERS} header lines", ()),
    Fault.BAD_HOST: (400, "exactly one Host header is required", ()),
    Fault.HAS_BODY: (400, "a request with a body is not accepted", ()),
    Fault.NO_UPGRADE: (426, "this is a WebSocket server: an upgrade to websocket is required", _WANTED),
    Fault.BAD_UPGRADE_REQUEST: (400, "a WebSocket upgrade is a GET of HTTP/1.1 or later", ()),
    Fault.BAD_WEBSOCKET_VERSION: (426, "only version 13 of the WebSocket protocol is spoken", _WANTED),
    Fault.BAD_KEY: (400, "Sec-WebSocket-Key must be 16 bytes in base64, once", ()),
}


def accept_key(key: str) -> str:
    """The `Sec-WebSocket-Accept` that answers a `Sec-WebSocket-Key` (RFC 6455 §4.2.2)."""
    return _accept(key).decode("ascii")


def _accept(key: str) -> bytes:
    digest = hashlib.sha1(key.encode("ascii") + _GUID, usedforsecurity=False).digest()
    return b2a_base64(digest, newline=False)


# Server


class Rejection(Exception):
    """A request that is not upgraded, and the answer it gets: status, headers, plain text.

    Args:
        status, headers: of the response.
        message: its text, and why; only the client sees it where it quotes the request.
        logged: what stands in the log instead of such a message.
    """

    def __init__(
        self, status: int, message: str, headers: Iterable[tuple[str, str]] = (), *, logged: str | None = None
    ) -> None:
        super().__init__(message)
        self.response = Response(status, headers, message + "\n")
        self.logged = message if logged is None else logged


def rejection_of(fault: int, wrong: bytes | None = None) -> Rejection:
    """The answer to a request with a `Fault`; `wrong` is what the head says of it."""
    text = "" if wrong is None else wrong.decode("latin-1")
    if fault == Fault.BAD_HEADER:
        return Rejection(400, str(InvalidHeader(text, _BAD_HEADER)), logged=_BAD_HEADER)
    status, message, headers = _ANSWERS[fault]
    return Rejection(status, message.format(text[:20]), headers, logged=message.format("of the request"))


def unavailable(why: str) -> Rejection:
    """The answer to a client that may try again soon."""
    return Rejection(503, why, [RETRY_AFTER])


def check_upgrade(head: RequestHead) -> None:
    """Check that a request is a valid opening handshake (RFC 6455 §4.2.1); then `head.key` is its key.

    Raises:
        Rejection: it is none, or one of a version that is not 13.
    """
    fault = head.check_upgrade()
    if fault:
        raise rejection_of(fault)


def switching_protocols(key: str, fields: bytes, subprotocol: str | None, extensions: str | None) -> bytes:
    """The response that accepts an opening handshake (RFC 6455 §4.2.2).

    Args:
        key: that of the request.
        fields: other header lines, as `encode_headers` writes them.
        subprotocol, extensions: what was agreed on.
    """
    parts = [_SWITCHING, _accept(key), b"\r\n", fields]
    if subprotocol is not None:
        parts += (b"Sec-WebSocket-Protocol: ", subprotocol.encode("ascii"), b"\r\n")
    if extensions is not None:
        parts += (b"Sec-WebSocket-Extensions: ", extensions.encode("ascii"), b"\r\n")
    parts.append(b"\r\n")
    return b"".join(parts)


# Client


def malformed_response(head: ResponseHead, who: str) -> HandshakeFailed:
    """The error for an answer of `who`, a server or a proxy, whose head has a fault."""
    wrong = head.wrong or b""
    if head.fault == Fault.BAD_START_LINE:
        return HandshakeFailed(f"{who} does not speak HTTP/1.1: its answer begins with {wrong!r}")
    if head.fault == Fault.TOO_MANY_HEADERS:
        return HandshakeFailed(f"the answer of {who} has more than {MAX_HEADERS} header lines", status=head.status)
    error = InvalidHeader(wrong.decode("latin-1"), _BAD_HEADER)
    return HandshakeFailed(f"malformed response of {who}: {error}", status=head.status)


def check_response(head: ResponseHead, key: str) -> None:
    """Check that this is the answer to the opening handshake that was sent with `key` (RFC 6455 §4.1).

    Raises:
        HandshakeFailed: it is not an upgrade, or not ours.
    """
    if head.status != 101:
        why = f"the server answered {head.status} instead of 101 Switching Protocols"
    elif not head.has_token("Upgrade", "websocket"):
        upgrades = ", ".join(head.get_all("Upgrade")) or "nothing"
        why = f"the server upgrades to {upgrades!r} instead of websocket"
    elif not head.has_token("Connection", "upgrade"):
        why = f"the Connection header of the answer is {', '.join(head.get_all('Connection'))!r}: no upgrade"
    elif head.get_all("Sec-WebSocket-Accept") != [accept_key(key)]:
        why = "the Sec-WebSocket-Accept of the answer does not belong to our key"
    else:
        return
    raise HandshakeFailed(why, status=head.status, headers=headers_of(head.data))


def refusal(status: int, headers: HeaderMap, body: bytes, who: str = "the server") -> HandshakeFailed:
    """The error for an answer of `who`, a server or a proxy, that is a refusal."""
    text = f"{who} answered {status}" + (f" {phrase(status)}" if 100 <= status <= 599 else "")
    if status in (401, 403, 407):
        lines = headers.getall("Proxy-Authenticate" if status == 407 else "WWW-Authenticate", ())
        challenge = ", ".join(lines)  # RFC 9110 §5.3
        return AuthenticationFailed(text, status=status, headers=headers, body=body, challenge=challenge)
    return HandshakeFailed(text, status=status, headers=headers, body=body)
