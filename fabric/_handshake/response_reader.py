"""Reads the HTTP response to an upgrade or CONNECT request from a transport.

Owns the bytes of the head, and of the body of a refusal, with a limit for each. What an acceptable answer is
and what follows it, its subclasses say. The deadline is the caller's.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any

from fabric._handshake.rules import malformed_response, refusal
from fabric._handshake.tls import tls_failure
from fabric._http.messages import headers_of
from fabric.error import ConnectionFailed, HandshakeFailed
from fabric_ext.http_head import ResponseHead

if TYPE_CHECKING:
    from fabric.headers import HeaderMap

__all__ = ["ResponseReader"]

MAX_HEAD = 16 * 1024  # bytes
MAX_BODY = 64 * 1024  # bytes kept of the body of a refusal


class ResponseReader(asyncio.Protocol):
    """The protocol of a transport until its peer has answered; `wait` tells how it went.

    Args:
        who: the peer, as error messages call it.
        url: the address that is being connected to, without credentials.
    """

    def __init__(self, who: str, url: str) -> None:
        self._who = who
        self._url = url
        self._buffer = b""
        self._head = ResponseHead()
        self._refused: tuple[int, HeaderMap] | None = None  # while the body is being read
        # None once it is known: with an exception in it, it would keep the frames which that went through.
        self._outcome: asyncio.Future[None] | None = asyncio.get_running_loop().create_future()
        self.transport: Any = None

    # -- for the caller

    async def wait(self) -> None:
        """Return when the answer was accepted.

        Raises:
            HandshakeFailed: it was not.
            ConnectionFailed: there was none.
        """
        assert self._outcome is not None
        try:
            await self._outcome
        finally:
            self._outcome = None

    def abort(self) -> None:
        """Give up: drop the transport, if there is one."""
        if self._outcome is not None:
            if self._outcome.done() and not self._outcome.cancelled():
                self._outcome.exception()  # or the loop would log that it was never retrieved
            self._outcome.cancel()
        if self.transport is not None:
            self.transport.abort()

    def refusal_so_far(self) -> HandshakeFailed | None:
        """The refusal whose body has not come to its end, if there is one."""
        return None if self._refused is None else self._refusal(*self._refused, self._body(ended=True) or b"")

    @property
    def _is_over(self) -> bool:
        return self._outcome is None or self._outcome.done()

    # -- for subclasses

    def _is_success(self, status: int) -> bool:
        raise NotImplementedError

    def _accept(self, head: ResponseHead, rest: bytes) -> None:
        """The answer is a success, with `head`, followed by `rest`. What this raises is the outcome."""

    # -- called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            return
        self._buffer += data
        try:
            if self._refused is not None or self._read_head():
                self._read_body(ended=False)
        except Exception as error:  # noqa: BLE001  (it is raised by `wait`)
            self._fail(error)

    def eof_received(self) -> bool:
        self._ended(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended(exc)

    def _ended(self, exc: Exception | None) -> None:
        if self._is_over:
            return
        if self._refused is not None:
            self._read_body(ended=True)
            return
        if isinstance(exc, ssl.SSLError):  # TLS 1.3: an alert about our certificate comes after the handshake
            self._fail(tls_failure(f"TLS connection to {self._who}", exc))
            return
        why = f": {exc}" if exc is not None else ""
        text = f"{self._who} closed the connection before it answered{why}"
        self._fail(ConnectionFailed(text, url=self._url))

    def _fail(self, error: Exception) -> None:
        if self._outcome is not None and not self._outcome.done():
            self._outcome.set_exception(error)
        if self.transport is not None:  # behind a proxy the TLS handshake comes first
            self.transport.abort()

    def _read_head(self) -> bool:
        """Take the head off the buffer; is a body to follow?"""
        while True:
            head = self._head
            end = head.feed(self._buffer)
            if head.fault:
                raise malformed_response(head, self._who)
            if (end or len(self._buffer)) > MAX_HEAD:
                raise HandshakeFailed(f"the head of the answer of {self._who} is over {MAX_HEAD} bytes")
            if not end:
                return False
            self._buffer = self._buffer[end:]
            if self._is_success(head.status):
                rest, self._buffer = self._buffer, b""
                self._accept(head, rest)
                if self._outcome is not None and not self._outcome.done():
                    self._outcome.set_result(None)
                return False
            if head.status >= 200 or head.status == 101:  # others are interim, RFC 9110 §15.2
                self._refused = head.status, headers_of(head.data)
                return True
            self._head = ResponseHead()

    def _read_body(self, *, ended: bool) -> None:
        assert self._refused is not None
        status, headers = self._refused
        # Where a redirect leads stands in its head: its body, which may never end, is not waited for.
        body = self._body(ended=ended or (300 <= status < 400 and "Location" in headers))
        if body is not None:
            self._fail(self._refusal(*self._refused, body))

    def _refusal(self, status: int, headers: HeaderMap, body: bytes) -> HandshakeFailed:
        return refusal(status, headers, body[:MAX_BODY], self._who)

    def _body(self, *, ended: bool) -> bytes | None:
        """The body (RFC 9112 §6.3), or None when more of it may come."""
        assert self._refused is not None
        status, headers = self._refused
        if status in (101, 204, 304):
            return b""
        if "chunked" in headers.get("Transfer-Encoding", "").lower():
            body, complete = _join_chunks(self._buffer)
            return body if complete or ended or len(self._buffer) >= 2 * MAX_BODY else None
        length = headers.get("Content-Length", "")
        known = length.isascii() and length.isdecimal() and len(length) < 20
        limit = min(int(length), MAX_BODY) if known else MAX_BODY
        return self._buffer[:limit] if ended or len(self._buffer) >= limit else None


def _join_chunks(data: bytes) -> tuple[bytes, bool]:
    """The data of the chunks (RFC 9112 §7.1) in `data`, and whether no more are to be expected."""
    parts: list[bytes] = []
    at = 0
    while (end := data.find(b"\r\n", at)) >= 0:
        try:
            size = int(data[at:end].partition(b";")[0], 16)
        except ValueError:
            return b"".join(parts), True
        if size <= 0:
            return b"".join(parts), True
        parts.append(data[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    return b"".join(parts), False
