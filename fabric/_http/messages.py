"""The opening handshake (RFC 6455 §4) as HTTP/1.1 text: what a request and a response say, and whether they are valid.

Owns parsing and building; never touches a socket, never waits. `fabric._handshake.upgrade` carries the bytes.
A fault of the peer is a `Rejection` on the server, which knows its HTTP answer, and a `HandshakeFailed` on the client.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote

from multidict import CIMultiDict, istr

from fabric.error import AuthenticationFailed, HandshakeFailed, InvalidHeader
from fabric.headers import HeaderMap, parse_list

__all__ = [
    "Rejection",
    "Request",
    "Response",
    "accept_key",
    "check_response",
    "check_upgrade",
    "parse_request",
    "parse_response",
]

# Names that are looked up in each handshake: an istr has its case folded once.
HOST = istr("Host")
UPGRADE = istr("Upgrade")
CONNECTION = istr("Connection")
KEY = istr("Sec-WebSocket-Key")
ACCEPT = istr("Sec-WebSocket-Accept")
VERSION = istr("Sec-WebSocket-Version")
CONTENT_LENGTH = istr("Content-Length")
TRANSFER_ENCODING = istr("Transfer-Encoding")

HEAD_END = b"\r\n\r\n"
MAX_HEADERS = 128  # lines

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # RFC 9110 §5.6.2
_VALUE = r"[^\x00-\x08\x0a-\x1f\x7f]*"  # RFC 9110 §5.5
_HEADERS = re.compile(rf"(?:\r\n{_TOKEN}:{_VALUE})*")  # and no obsolete folding: RFC 9112 §5.2
_HEADER = re.compile(rf"{_TOKEN}:{_VALUE}")
_REQUEST_LINE = re.compile(rf"({_TOKEN}) [\x21-\x7e\x80-\xff]+ HTTP/(\d)\.(\d)".encode("latin-1"))
_AUTHORITY = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://[^/?]*")  # of a target in absolute form, RFC 9112 §3.2.2


class Rejection(Exception):
    """A request that is not upgraded, and the answer it gets: status, headers, plain text."""

    def __init__(self, status: int, message: str, headers: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.response = Response(status, headers, message + "\n")


class Request:
    """An HTTP request: `method`, `target`, `version`, and on demand `path`, `query`, `headers`.

    Keeps the bytes it came in and takes them apart when asked, so that an idle connection holds little.
    """

    __slots__ = ("_head",)

    def __init__(self, head: bytes) -> None:
        self._head = head

    @property
    def _line(self) -> list[bytes]:
        return self._head.partition(b"\r\n")[0].split(b" ")

    @property
    def method(self) -> str:
        return self._line[0].decode("ascii")

    @property
    def target(self) -> str:
        """Path and query as they were sent."""
        return self._line[1].decode("latin-1")

    @property
    def _path_and_query(self) -> tuple[str, str]:
        target = self.target
        authority = _AUTHORITY.match(target)  # not by urlsplit, which takes `//path` for a host
        path, _, query = target[authority.end() if authority else 0 :].partition("?")
        return path, query

    @property
    def path(self) -> str:
        """The path, percent-decoded, without the query."""
        return unquote(self._path_and_query[0])

    @property
    def query(self) -> dict[str, str]:
        """The parameters of the query; the last one wins where a name stands twice."""
        return dict(parse_qsl(self._path_and_query[1], keep_blank_values=True))

    @property
    def headers(self) -> HeaderMap:
        """The headers, as a new map."""
        return _parse_headers(self._head)

    def __repr__(self) -> str:
        return f"<Request {self.method} {self._path_and_query[0]}>"  # a query may hold a token


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Response:
    """An HTTP response: `status`, `headers`, `body`.

    What `process_request` returns to answer plain HTTP; a `(status, headers, body)` tuple serves as well. A `body`
    given as str is sent as UTF-8 text.
    """

    status: int
    headers: HeaderMap = field(default_factory=HeaderMap)
    body: bytes = b""

    def __init__(
        self,
        status: int,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        body: bytes | str = b"",
    ) -> None:
        if not isinstance(status, int) or not 100 <= status <= 599:
            raise ValueError(f"HTTP status is {status!r}, expected an integer from 100 to 599")
        fields = HeaderMap(headers)
        if isinstance(body, str):
            body = body.encode()
            fields.setdefault("Content-Type", "text/plain; charset=utf-8")
        object.__setattr__(self, "status", int(status))
        object.__setattr__(self, "headers", fields)
        object.__setattr__(self, "body", bytes(body))

    @property
    def reason(self) -> str:
        """The standard phrase of the status."""
        try:
            return HTTPStatus(self.status).phrase
        except ValueError:
            return "Unknown"

    def encode(self, *, with_body: bool = True) -> bytes:
        """The response on the wire; the connection closes after it. `with_body=False` answers a HEAD."""
        fields = CIMultiDict(self.headers)
        fields["Content-Length"] = str(len(self.body))
        fields["Connection"] = "Upgrade, close" if "Upgrade" in fields else "close"
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        head = f"HTTP/1.1 {self.status} {self.reason}\r\n{lines}\r\n".encode("utf-8", "surrogateescape")
        return head + (self.body if with_body else b"")

    def __repr__(self) -> str:
        return f"<Response {self.status} {self.reason}, {len(self.body)} bytes>"


def as_response(value: Any) -> Response:
    """What `process_request` returned, as a `Response`; `TypeError` when it is not one."""
    if isinstance(value, Response):
        return value
    if isinstance(value, tuple) and len(value) == 3:
        return Response(*value)
    raise TypeError(f"process_request returned {type(value).__name__}: expected None, a Response or a 3-tuple")


def accept_key(key: str) -> str:
    """The `Sec-WebSocket-Accept` that answers a `Sec-WebSocket-Key` (RFC 6455 §4.2.2)."""
    return base64.b64encode(hashlib.sha1(key.encode("ascii") + _GUID, usedforsecurity=False).digest()).decode("ascii")


def _parse_headers(head: bytes) -> HeaderMap:
    text = head.decode("utf-8", "surrogateescape")
    start, *lines = text.split("\r\n")
    if len(lines) > MAX_HEADERS:
        raise InvalidHeader("", f"{len(lines)} header lines, at most {MAX_HEADERS} are allowed")
    if not _HEADERS.fullmatch(text, len(start)):
        wrong = next(line for line in lines if not _HEADER.fullmatch(line))
        raise InvalidHeader(wrong.partition(":")[0], "not a header line, or a control character in its value")
    pairs = [(name, value.strip(" \t")) for name, _, value in [line.partition(":") for line in lines]]
    headers = HeaderMap.__new__(HeaderMap)  # they are checked: HeaderMap() would do it again, one by one
    CIMultiDict.__init__(headers, pairs)
    return headers


# Server


def parse_request(head: bytes) -> tuple[Request, HeaderMap]:
    """Check the head of a request (without its empty line) as HTTP; whether it is an upgrade is not asked yet.

    Raises:
        Rejection: it is malformed, has a body, or asks for what only a web server does.
    """
    line = _REQUEST_LINE.fullmatch(head.partition(b"\r\n")[0])
    if line is None:
        raise Rejection(400, "malformed request line")
    method, major, minor = line.groups()
    if method not in (b"GET", b"HEAD"):
        raise Rejection(405, f"method {method.decode()[:20]} is not allowed, use GET", [("Allow", "GET, HEAD")])
    try:
        headers = _parse_headers(head)
    except InvalidHeader as error:
        raise Rejection(431 if "header lines" in str(error) else 400, str(error)) from None
    if major != b"1":
        raise Rejection(505, "HTTP/1.1 is spoken here")
    if minor != b"0" and len(headers.getall(HOST, ())) != 1:  # RFC 9112 §3.2
        raise Rejection(400, "exactly one Host header is required")
    if TRANSFER_ENCODING in headers or any(n.strip("0") for n in headers.getall(CONTENT_LENGTH, ())):
        raise Rejection(400, "a request with a body is not accepted")
    return Request(head), headers


def check_upgrade(request: Request, headers: HeaderMap) -> str:
    """The `Sec-WebSocket-Key` of a valid opening handshake (RFC 6455 §4.2.1).

    Raises:
        Rejection: it is none, or a version that is not 13.
    """
    wanted = [("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")]
    if not _has_token(headers, UPGRADE, "websocket") or not _has_token(headers, CONNECTION, "upgrade"):
        raise Rejection(426, "this is a WebSocket server: an upgrade to websocket is required", wanted)
    method, _, version = request._line
    if version == b"HTTP/1.0" or method != b"GET":
        raise Rejection(400, "a WebSocket upgrade is a GET of HTTP/1.1 or later")
    if headers.getall(VERSION, ()) != ["13"]:
        raise Rejection(426, "only version 13 of the WebSocket protocol is spoken", wanted)
    keys = headers.getall(KEY, ())
    if len(keys) != 1 or not _is_key(keys[0]):
        raise Rejection(400, "Sec-WebSocket-Key must be 16 bytes in base64, once")
    return keys[0]


def _is_key(key: str) -> bool:
    try:
        return len(binascii.a2b_base64(key.encode("ascii"), strict_mode=True)) == 16
    except (UnicodeEncodeError, binascii.Error):
        return False


def _has_token(headers: HeaderMap, name: str, token: str) -> bool:
    """Is `token` in the list header `name`? Firefox sends `Connection: keep-alive, Upgrade`, over one line or two."""
    values = headers.getall(name, ())
    if len(values) == 1 and values[0].lower() == token:
        return True
    try:
        return token in (element.lower() for element in parse_list(name, values))
    except InvalidHeader:
        return False


# Client


def parse_response(head: bytes) -> tuple[int, HeaderMap]:
    """Status and headers of the head of a response (without its empty line).

    Raises:
        HandshakeFailed: it is not HTTP/1.1.
    """
    line = head.partition(b"\r\n")[0]
    parts = line.split(b" ", 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not re.fullmatch(rb"\d{3}", parts[1]):
        raise HandshakeFailed(f"the server does not speak HTTP/1.1: its answer begins with {line[:60]!r}")
    try:
        return int(parts[1]), _parse_headers(head)
    except InvalidHeader as error:
        raise HandshakeFailed(f"malformed response: {error}", status=int(parts[1])) from None


def check_response(status: int, headers: HeaderMap, key: str) -> None:
    """Is this the answer to the opening handshake that was sent with `key` (RFC 6455 §4.1)?

    Raises:
        HandshakeFailed: it is not an upgrade, or not ours.
    """

    def failed(why: str) -> HandshakeFailed:
        return HandshakeFailed(why, status=status, headers=headers)

    if status != 101:
        raise failed(f"the server answered {status} instead of 101 Switching Protocols")
    if not _has_token(headers, UPGRADE, "websocket"):
        raise failed(f"the server upgrades to {headers.get('Upgrade', 'nothing')!r} instead of websocket")
    if not _has_token(headers, CONNECTION, "upgrade"):
        raise failed(f"the Connection header of the answer is {headers.get('Connection')!r}: no upgrade")
    if headers.getall(ACCEPT, []) != [accept_key(key)]:
        raise failed("the Sec-WebSocket-Accept of the answer does not belong to our key")


def refusal(status: int, headers: HeaderMap, body: bytes, who: str = "the server") -> HandshakeFailed:
    """The error for an answer of `who`, a server or a proxy, that is a refusal."""
    phrase = f" {Response(status).reason}" if 100 <= status <= 599 else ""
    text = f"{who} answered {status}{phrase}"
    if status in (401, 403, 407):
        lines = headers.getall("Proxy-Authenticate" if status == 407 else "WWW-Authenticate", ())
        challenge = ", ".join(lines)  # RFC 9110 §5.3
        return AuthenticationFailed(text, status=status, headers=headers, body=body, challenge=challenge)
    return HandshakeFailed(text, status=status, headers=headers, body=body)
