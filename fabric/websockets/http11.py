"""Requests and responses of opening handshakes, and how they are read from the wire, within limits.

`HeadReader` reads a first line and header lines as they come; `ResponseReader` a response with its body. They do no
I/O. The limits can be set by the environment variables that `websockets` has.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys

from fabric.websockets.datastructures import Headers
from fabric.websockets.exceptions import (
    HeaderLineTooLong,
    RequestLineTooLong,
    SecurityError,
    StatusLineTooLong,
    TooManyHeaders,
)
from fabric.websockets.version import version

__all__ = ["SERVER", "USER_AGENT", "Request", "Response"]

_PRODUCT = "Python/{}.{} websockets/{}".format(*sys.version_info[:2], version)
USER_AGENT = os.environ.get("WEBSOCKETS_USER_AGENT", _PRODUCT)
SERVER = os.environ.get("WEBSOCKETS_SERVER", _PRODUCT)

MAX_NUM_HEADERS = int(os.environ.get("WEBSOCKETS_MAX_NUM_HEADERS", "128"))
MAX_LINE_LENGTH = int(os.environ.get("WEBSOCKETS_MAX_LINE_LENGTH", "8192"))  # bytes, of a header or first line
MAX_BODY_SIZE = int(os.environ.get("WEBSOCKETS_MAX_BODY_SIZE", "1_048_576"))  # bytes, of a response

_is_token = re.compile(rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]+").fullmatch
_is_value = re.compile(rb"[\x09\x20-\x7e\x80-\xff]*").fullmatch
_is_number = re.compile(rb"[0-9]{1,18}").fullmatch
_is_hexadecimal = re.compile(rb"[0-9a-fA-F]{1,15}").fullmatch


@dataclasses.dataclass
class Request:
    """A request.

    Attributes:
        path: with the query, as it was sent.
        headers: its header lines.
        method: such as "GET".
        protocol: "HTTP/1.1" or "HTTP/1.0".
    """

    path: str
    headers: Headers
    method: str = "GET"
    protocol: str = "HTTP/1.1"

    def serialize(self) -> bytes:
        """The request as it goes over the wire."""
        return f"{self.method} {self.path} {self.protocol}\r\n".encode("ascii") + self.headers.serialize()


@dataclasses.dataclass
class Response:
    """A response.

    Attributes:
        status_code: 100 to 599.
        reason_phrase: such as "OK".
        headers: its header lines.
        body: its content.
    """

    status_code: int
    reason_phrase: str
    headers: Headers
    body: bytes | bytearray = b""

    def serialize(self) -> bytes:
        """The response as it goes over the wire."""
        status = f"HTTP/1.1 {self.status_code} {self.reason_phrase}\r\n".encode("iso-8859-1")
        return status + self.headers.serialize() + self.body


def _shown(value: bytes) -> str:
    return value.decode(errors="backslashreplace")


class HeadReader:
    """Reads the head of a request or response.

    Args:
        is_request: it is a request's.
        is_proxy: it is a response of a proxy, which may speak HTTP/1.0.

    Attributes:
        rest: what came behind the head.
    """

    def __init__(self, *, is_request: bool, is_proxy: bool = False) -> None:
        self._is_request = is_request
        self._is_proxy = is_proxy
        self._buffer = bytearray()
        self._first: tuple[str, ...] | None = None
        self.headers = Headers()
        self._lines = 0

    def feed(self, data: bytes) -> bool:
        """Read on; True when the head is complete.

        Raises:
            SecurityError: RequestLineTooLong, StatusLineTooLong, HeaderLineTooLong, TooManyHeaders.
            ValueError: it is malformed.
            EOFError: a line does not end with CR LF.
            NotImplementedError: a request with Transfer-Encoding.
        """
        self._buffer += data
        while (line := self._line()) is not None:
            if self._first is None:
                self._first = self._read_request_line(line) if self._is_request else self._read_status_line(line)
            elif line:
                self._read_header(line)
            else:
                if self._is_request:
                    self._check_body()
                return True
        return False

    def end(self) -> EOFError:
        """The error for a connection that ends before the head does."""
        what = "headers" if self._first else "request line" if self._is_request else "status line"
        return EOFError(f"connection closed while reading HTTP {what}")

    @property
    def rest(self) -> bytes:
        return bytes(self._buffer)

    def request(self) -> Request:
        """The request whose head is complete."""
        assert self._first is not None
        method, path, protocol = self._first
        return Request(path, self.headers, method, protocol)

    def response(self) -> Response:
        """The response whose head is complete."""
        assert self._first is not None
        status, reason = self._first
        return Response(int(status), reason, self.headers)

    def _line(self) -> bytes | None:
        """The next line without its end, or None if it is not all there."""
        end = self._buffer.find(b"\n") + 1
        size = end or len(self._buffer)
        if size > MAX_LINE_LENGTH:
            kind = HeaderLineTooLong
            if self._first is None:
                kind = RequestLineTooLong if self._is_request else StatusLineTooLong  # type: ignore[assignment]
            raise kind(f"read {size} bytes, expected no more than {MAX_LINE_LENGTH} bytes")
        if not end:
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[:end]
        if not line.endswith(b"\r\n"):
            raise self.end() from EOFError("line without CRLF")
        return line[:-2]

    def _read_request_line(self, line: bytes) -> tuple[str, ...]:
        parts = line.split(b" ", 2)
        if len(parts) < 3:
            raise ValueError(f"invalid HTTP request line: {_shown(line)}")
        if parts[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
            raise ValueError(f"unsupported protocol; expected HTTP/1.1 or HTTP/1.0: {_shown(line)}")
        return tuple(part.decode("ascii") for part in parts)

    def _read_status_line(self, line: bytes) -> tuple[str, ...]:
        parts = line.split(b" ", 2)
        if len(parts) < 3:
            raise ValueError(f"invalid HTTP status line: {_shown(line)}")
        protocol, status, reason = parts
        if protocol != b"HTTP/1.1" and not (self._is_proxy and protocol == b"HTTP/1.0"):
            expected = "HTTP/1.1 or HTTP/1.0" if self._is_proxy else "HTTP/1.1"
            raise ValueError(f"unsupported protocol; expected {expected}: {_shown(line)}")
        if not _is_number(status):
            raise ValueError(f"invalid status code; expected integer; got {_shown(status)}")
        if not 100 <= int(status) < 600:
            raise ValueError(f"invalid status code; expected 100–599; got {_shown(status)}")
        if not _is_value(reason):
            raise ValueError(f"invalid HTTP reason phrase: {_shown(reason)}")
        return status.decode(), reason.decode("iso-8859-1")

    def _read_header(self, line: bytes) -> None:
        self._lines += 1
        if self._lines > MAX_NUM_HEADERS:
            raise TooManyHeaders(f"expected no more than {MAX_NUM_HEADERS} headers")
        name, colon, value = line.partition(b":")
        if not colon:
            raise ValueError(f"invalid HTTP header line: {_shown(line)}")
        if not _is_token(name):
            raise ValueError(f"invalid HTTP header name: {_shown(name)}")
        value = value.strip(b" \t")
        if not _is_value(value):
            raise ValueError(f"invalid HTTP header value: {_shown(value)}")
        self.headers.set_insecure(name.decode("ascii"), value.decode("iso-8859-1"))

    def _check_body(self) -> None:
        """The request of an opening handshake has none."""
        if "Transfer-Encoding" in self.headers:
            raise NotImplementedError("transfer codings aren't supported")
        if not set(self.headers.get_all("Content-Length")) <= {"0"}:
            raise ValueError("unsupported request body")


class ResponseReader:
    """Reads a response with its body.

    Args:
        is_proxy: it is that of a proxy to CONNECT: its body is not read.

    Attributes:
        response: once it is complete.
        rest: what came behind it.
    """

    def __init__(self, *, is_proxy: bool = False) -> None:
        self._head = HeadReader(is_request=False, is_proxy=is_proxy)
        self._is_proxy = is_proxy
        self._partial: Response | None = None
        self._buffer = bytearray()
        self._body = bytearray()
        self._size: int | None = None  # of the body; None: chunked, or up to the end of the connection
        self._chunked = False
        self._trailer: HeadReader | None = None
        self.response: Response | None = None

    @property
    def rest(self) -> bytes:
        return bytes(self._buffer)

    def feed(self, data: bytes) -> bool:
        """Read on; True when the response is complete. Raises what `HeadReader.feed` does, and LookupError."""
        if self._partial is None:
            if not self._head.feed(data):
                return False
            self._partial = self._head.response()
            data = self._head.rest
            self._begin_body()
        self._buffer += data
        return self._read_body()

    def feed_eof(self) -> bool:
        """The connection has ended; True if that ends the response.

        Raises:
            EOFError: the response is not complete.
        """
        if self._partial is None:
            raise self._head.end()
        if self._size is None and not self._chunked:
            return self._finish(bytes(self._body))
        expected = "" if self._size is None else f", expected {self._size} bytes"
        raise EOFError(f"stream ends after {len(self._buffer)} bytes{expected}")

    def _begin_body(self) -> None:
        assert self._partial is not None
        status, headers = self._partial.status_code, self._partial.headers
        if self._is_proxy or 100 <= status < 200 or status in (204, 304):
            self._size = 0
        elif (coding := headers.get("Transfer-Encoding")) is not None:
            if coding != "chunked":
                raise NotImplementedError(f"transfer coding {coding} isn't supported")
            self._chunked = True
        elif (length := headers.get("Content-Length")) is not None:
            if not _is_number(length.encode("iso-8859-1")):
                raise SecurityError(f"invalid content length: {length}")
            if int(length) > MAX_BODY_SIZE:
                raise SecurityError(f"body too large: {int(length)} bytes")
            self._size = int(length)

    def _read_body(self) -> bool:
        if self._chunked:
            return self._read_chunks()
        if self._size is None:
            self._body += self._buffer
            self._buffer.clear()
            if len(self._body) > MAX_BODY_SIZE:
                raise SecurityError(f"read {len(self._body)} bytes, expected no more than {MAX_BODY_SIZE} bytes")
            return False
        return len(self._buffer) >= self._size and self._finish(self._take(self._size))

    def _read_chunks(self) -> bool:
        """RFC 9112 §7.1."""
        while self._trailer is None:
            end = self._buffer.find(b"\r\n")
            if end < 0:
                if len(self._buffer) > MAX_LINE_LENGTH:
                    size = len(self._buffer)
                    raise SecurityError(f"read {size} bytes, expected no more than {MAX_LINE_LENGTH} bytes")
                return False
            text = bytes(self._buffer[:end]).split(b";", 1)[0]
            if not _is_hexadecimal(text):
                raise SecurityError(f"invalid chunk size: {_shown(text)}")
            size = int(text, 16)
            if len(self._body) + size > MAX_BODY_SIZE:
                raise SecurityError(f"chunk too large: {size} bytes after {len(self._body)} bytes")
            if size == 0:
                self._take(end + 2)
                self._trailer = HeadReader(is_request=False)
                self._trailer._first = ("",)  # only header lines follow
                break
            if len(self._buffer) < end + 2 + size + 2:
                return False
            self._take(end + 2)
            self._body += self._take(size)
            if self._take(2) != b"\r\n":
                raise ValueError("chunk without CRLF")
        if not self._trailer.feed(self._take(len(self._buffer))):
            return False
        self._buffer += self._trailer.rest
        return self._finish(bytes(self._body))

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _finish(self, body: bytes) -> bool:
        assert self._partial is not None
        self.response, self._partial.body = self._partial, body
        return True
