"""HTTP/1.1 requests and responses as an application sees them, and the bytes of a response.

Owns what `Request` and `Response` are, and how header lines are written. Heads that arrive are read by
`fabric_ext.http_head`; whether they are a valid opening handshake is `fabric._handshake.rules`' to say.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import parse_qsl, quote, unquote

from multidict import CIMultiDict

from fabric._http.url import PRINTABLE
from fabric.headers import HeaderMap, valid_headers

if TYPE_CHECKING:
    import asyncio

__all__ = ["Address", "Request", "Response", "address_of"]

Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int] | str
"""Where an end of a connection is: host and port, for IPv6 flow and scope too; or the path of a UNIX-domain socket."""

NAME = "fabric.name"  # where `state` has it: most requests have none, and no room for it
_AUTHORITY = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://[^/?]*")  # of a target in absolute form, RFC 9112 §3.2.2

# What a Response says of its own length and of the connection, whatever headers it was given.
_FRAMING = ("Content-Length", "Transfer-Encoding", "Connection")
WITHOUT_BODY = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)  # RFC 9110 §6.4.1


def address_of(transport: asyncio.BaseTransport, name: Literal["peername", "sockname"]) -> Address | None:
    """Where one end of `transport` is; None where that is not known. Abstract UNIX-domain sockets have bytes for it."""
    found = transport.get_extra_info(name)
    return os.fsdecode(found) if isinstance(found, bytes) else found


class Request:
    """An HTTP request: `method`, `target`, and on demand `path`, `raw_path`, `query`, `headers`.

    Keeps the bytes it came in and takes them apart when asked, so that an idle connection holds little.

    Args:
        head: a request line and header lines that have been found valid, without the empty line.
    Attributes:
        remote_addr: of a request to a server: the client's address, as `ConnectedClient.remote_addr`.
        peer_certificate: likewise, the certificate that the client has shown and TLS has verified, as
            `ssl.SSLSocket.getpeercert` gives it; None without one.
    """

    __slots__ = ("_head", "_state", "peer_certificate", "remote_addr")

    def __init__(self, head: bytes) -> None:
        self._head = head
        self._state: dict[str, Any] | None = None
        self.remote_addr: Address | None = None
        self.peer_certificate: dict[str, Any] | None = None

    @property
    def state(self) -> dict[str, Any]:
        """What `process_request` finds out and the handler needs: the connection's `state_data` is the same dict."""
        if self._state is None:
            self._state = {}
        return self._state

    @property
    def name(self) -> str | None:
        """The name that the client gets (`ConnectedClient.name`); `process_request` sets it, and None is none."""
        return None if self._state is None else self._state.get(NAME)

    @name.setter
    def name(self, name: str | None) -> None:
        self.state[NAME] = name

    @property
    def _line(self) -> list[bytes]:
        return self._head.partition(b"\r\n")[0].split(b" ")

    @property
    def method(self) -> str:
        """`GET`, say."""
        return self._line[0].decode("ascii")

    @property
    def target(self) -> str:
        """Path and query as they were sent; bytes outside ASCII, which no target should have, as `%C3%A9`."""
        return quote(self._line[1], safe=PRINTABLE)

    @property
    def _path_and_query(self) -> tuple[str, str]:
        target = self.target
        authority = _AUTHORITY.match(target)  # not by urlsplit, which takes `//path` for a host
        path, _, query = target[authority.end() if authority else 0 :].partition("?")
        return path, query

    @property
    def raw_path(self) -> str:
        """The path as it was sent, percent-encoded, without the query."""
        return self._path_and_query[0]

    @property
    def path(self) -> str:
        """The path, percent-decoded as UTF-8, without the query."""
        return unquote(self.raw_path)

    @property
    def query(self) -> dict[str, str]:
        """The parameters of the query; the last one wins where a name stands twice."""
        return dict(parse_qsl(self._path_and_query[1], keep_blank_values=True))

    @property
    def headers(self) -> HeaderMap:
        """The headers, as a new map."""
        return headers_of(self._head)

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.raw_path}>"  # a query may hold a token


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Response:
    """An HTTP response: `status`, `headers`, `body`.

    What `process_request` returns to answer plain HTTP; a `(status, headers, body)` tuple serves as well.

    Args:
        status: 200 to 599; or 101, with which `process_request` lets a request pass.
        headers: a mapping or pairs. `Content-Length`, `Transfer-Encoding` and `Connection` among them are not sent:
            the response says itself how long its body is, and the connection closes after it.
        body: a str is sent as UTF-8 text, with that `Content-Type` unless there is one; None is no body. With the
            statuses 204 and 304 none is sent (RFC 9110 §6.4.1).

    Raises:
        ValueError: another status. 100, 102 and 103 are interim (RFC 9110 §15.2): a final response has to follow.
        TypeError: a body of another type.
        InvalidHeader: a header that cannot be sent.
    """

    status: int
    headers: HeaderMap = field(default_factory=HeaderMap)
    body: bytes = b""

    def __init__(
        self,
        status: int,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = (),
        body: bytes | bytearray | memoryview | str | None = b"",
    ) -> None:
        if not isinstance(status, int) or not (200 <= status <= 599 or status == HTTPStatus.SWITCHING_PROTOCOLS):
            interim = ", which is interim" if isinstance(status, int) and 100 <= status < 200 else ""
            raise ValueError(f"HTTP status is {status!r}{interim}: expected 200 to 599, or 101")
        fields = HeaderMap(headers)
        if isinstance(body, str):
            body = body.encode()
            fields.setdefault("Content-Type", "text/plain; charset=utf-8")
        elif not isinstance(body, (bytes, bytearray, memoryview, type(None))):
            raise TypeError(f"the body of a response is {type(body).__name__}: expected bytes-like, str or None")
        object.__setattr__(self, "status", int(status))
        object.__setattr__(self, "headers", fields)
        object.__setattr__(self, "body", b"" if body is None else bytes(body))

    @property
    def reason(self) -> str:
        """The standard phrase of the status."""
        return phrase(self.status)

    def encode(self, *, with_body: bool = True) -> bytes:
        """The response on the wire; the connection closes after it. `with_body=False` answers a HEAD."""
        fields = CIMultiDict(self.headers)
        for name in _FRAMING:
            fields.popall(name, None)
        if self.status != HTTPStatus.NO_CONTENT:  # RFC 9110 §8.6
            fields["Content-Length"] = str(len(self.body))
        fields["Connection"] = "Upgrade, close" if "Upgrade" in fields else "close"
        head = b"HTTP/1.1 %d %b\r\n%b\r\n" % (self.status, self.reason.encode(), encode_headers(fields.items()))
        return head + self.body if with_body and self.status not in WITHOUT_BODY else head

    def __repr__(self) -> str:
        return f"<Response {self.status} {self.reason}, {len(self.body)} bytes>"


def phrase(status: int) -> str:
    """The standard reason phrase of a status (RFC 9110 §15)."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def as_response(value: Any) -> Response:
    """What `process_request` returned, as a `Response`; `TypeError` when it is not one."""
    if isinstance(value, Response):
        return value
    if isinstance(value, tuple) and len(value) == 3:
        return Response(*value)
    raise TypeError(f"process_request returned {type(value).__name__}: expected None, a Response or a 3-tuple")


# Heads that `fabric_ext.http_head` has found valid


def headers_of(head: bytes) -> HeaderMap:
    """The headers of a valid head."""
    lines = head.decode("utf-8", "surrogateescape").split("\r\n")[1:]
    pairs = [(name, value.strip(" \t")) for name, _, value in [line.partition(":") for line in lines]]
    return valid_headers(pairs)


def response_of(head: bytes) -> Response:
    """The response with this valid head, without its body."""
    return Response(int(head[9:12]), headers_of(head))


def encode_headers(fields: Iterable[tuple[str, str]]) -> bytes:
    """Header lines on the wire, each with its CR LF."""
    return "".join([f"{name}: {value}\r\n" for name, value in fields]).encode("utf-8", "surrogateescape")
