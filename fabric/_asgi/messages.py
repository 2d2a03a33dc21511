"""HTTP as ASGI applications see it: the scope of a WebSocket, and the response of a server that denies one.

Owns what of an application's events may become a response. Touches no transport.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from fabric._http.messages import WITHOUT_BODY, phrase
from fabric.subprotocol import HEADER as SUBPROTOCOL

if TYPE_CHECKING:
    from fabric_ext.http_head import RequestHead

__all__ = ["BODY", "START", "Denial", "header_lines", "plain_response", "scope_of"]

Headers = Iterable[tuple[bytes, bytes]]

START = "websocket.http.response.start"
BODY = "websocket.http.response.body"

_AUTHORITY = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*://[^/?]*")  # of a target in absolute form, RFC 9112 §3.2.2
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 §5.1
_VALUE = re.compile(rb"[^\x00-\x08\x0a-\x1f\x7f]*")  # RFC 9110 §5.5


def scope_of(head: RequestHead, root_path: str) -> dict[str, Any]:
    """What of the scope of a connection is in its request: path, query, headers, subprotocols."""
    line, *fields = head.data.split(b"\r\n")
    target = line.split(b" ")[1]
    authority = _AUTHORITY.match(target)
    raw_path, _, query = target[authority.end() if authority else 0 :].partition(b"?")
    offers = [token.strip() for offered in head.get_all(SUBPROTOCOL) for token in offered.split(",")]
    return {
        "type": "websocket",
        "http_version": "1.1",
        "root_path": root_path,
        "path": root_path + (unquote_to_bytes(raw_path).decode("utf-8", "replace") or "/"),
        "raw_path": root_path.encode() + (raw_path or b"/"),
        "query_string": query,
        "headers": [(name.lower(), value.strip(b" \t")) for name, _, value in [f.partition(b":") for f in fields]],
        "subprotocols": [token for token in offers if token],
    }


def header_lines(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The headers of an event, checked: names in lower case and values, both bytes.

    Raises:
        TypeError: a name or value is something else.
        ValueError: a name is no token, or a value holds a control character (RFC 9110 §5).
    """
    lines = []
    for name, value in headers:
        if not isinstance(name, bytes) or not isinstance(value, bytes):
            kinds = f"{type(name).__name__} and {type(value).__name__}"
            raise TypeError(f"names and values of headers are bytes in ASGI, not {kinds}")
        if not _NAME.fullmatch(name):
            raise ValueError(f"the name of a header must be a token, not {name[:40]!r}")
        if not _VALUE.fullmatch(value):
            raise ValueError(f"the value of the header {name.decode()!r} holds a control character")
        lines.append((name.lower(), value))
    return lines


def encode_lines(lines: Headers) -> bytes:
    """Header lines on the wire, each with its CR LF."""
    return b"".join([b"%b: %b\r\n" % line for line in lines])


def _head(status: int, lines: Headers) -> bytes:
    return b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, phrase(status).encode(), encode_lines(lines))


def plain_response(status: int, default_headers: Headers) -> bytes:
    """A response that says no more than its status; the connection closes after it."""
    text = phrase(status).encode()
    lines = [
        *default_headers,
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(text)),
        (b"connection", b"close"),
    ]
    return _head(status, lines) + text


class Denial:
    """An application's response to the request for a WebSocket that it denies; the connection closes after it.

    The head waits for the first part of the body: if that is the only one, its length is that of the response.

    Args:
        start: the event `websocket.http.response.start`.
        default_headers: of every response of the server.

    Attributes:
        status: of the response.
        is_complete: its last part is there.

    Raises:
        RuntimeError: the status is none of a final response.
        TypeError, ValueError: a header cannot be sent.
    """

    def __init__(self, start: Mapping[str, Any], default_headers: Headers) -> None:
        self.status: int = start["status"]
        if not 200 <= self.status < 600:
            raise RuntimeError(f"Invalid HTTP status code '{self.status}' in response.")
        lines = header_lines(start.get("headers") or ())
        framing = (b"content-length", b"transfer-encoding", b"connection")
        self._lines = [*default_headers, *(line for line in lines if line[0] not in framing)]
        lengths = [value for name, value in lines if name == b"content-length"]
        if lengths and not lengths[-1].isdigit():
            raise ValueError(f"Content-Length is {lengths[-1][:40]!r}, not a number")
        self._left = int(lengths[-1]) if lengths else None  # bytes of the body to come, where that is known
        self._has_body = self.status not in WITHOUT_BODY
        self._is_chunked = False
        self._head_sent = False
        self.is_complete = False

    def body(self, event: Mapping[str, Any]) -> bytes:
        """What is to be written for an event `websocket.http.response.body`.

        Raises:
            RuntimeError: the body is longer than the Content-Length says.
        """
        data = bytes(event.get("body") or b"")
        self.is_complete = not event.get("more_body", False)
        if not self._head_sent and self._left is None and self.is_complete:
            self._left = len(data)
        if self._has_body and self._left is not None and len(data) > self._left:
            raise RuntimeError("Response content longer than Content-Length")
        head = self._take_head()
        if not self._has_body:
            return head
        if self._is_chunked:  # RFC 9112 §7.1
            chunk = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            return head + chunk + (b"0\r\n\r\n" if self.is_complete else b"")
        assert self._left is not None
        self._left -= len(data)
        return head + data

    def cut_off(self) -> bytes:
        """What is to be written of a response whose last part does not come: its head, unless it has been sent."""
        return self._take_head()

    def _take_head(self) -> bytes:
        if self._head_sent:
            return b""
        self._head_sent = True
        lines = [*self._lines, (b"connection", b"close")]
        if self._has_body and self._left is None:
            self._is_chunked = True
            lines.append((b"transfer-encoding", b"chunked"))
        elif self.status != HTTPStatus.NO_CONTENT and self._left is not None:  # RFC 9110 §8.6
            lines.append((b"content-length", b"%d" % self._left))
        return _head(self.status, lines)
