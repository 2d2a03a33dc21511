"""One incoming TCP connection until it is a WebSocket: reads the request, lets the server judge it, answers.

Owns the bytes, the deadline and the limits of the opening handshake on the server's side. Who may connect is the
server's to say (`Acceptor`).
"""

from __future__ import annotations

import asyncio
import inspect
import time
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

from fabric._http.messages import HEAD_END, Rejection, Request, as_response, check_upgrade, parse_request

if TYPE_CHECKING:
    import logging

    from fabric._http.messages import Response
    from fabric.headers import HeaderMap

__all__ = ["Acceptor", "ServerHandshake"]


LINGER = 1.0  # seconds that a client has to hang up once it was told to

_EMPTY_LINES = b"\r\n"  # before a request, RFC 9112 §2.2


class Acceptor(Protocol):
    """What an `ServerHandshake` asks of its server."""

    handshake_timeout: float  # seconds
    max_header_size: int  # bytes
    logger: logging.Logger
    pending: set[ServerHandshake]

    def accepted(self, descriptor: int) -> None:
        """A connection was accepted, by the socket with this file descriptor."""

    def process_request(self, request: Request) -> Any:
        """The answer to plain HTTP, None or a 101 to go on, or an awaitable of one of them."""

    def upgrade(
        self,
        acceptance: ServerHandshake,
        request: Request,
        headers: HeaderMap,
        key: str,
        rest: bytes,
        more: HeaderMap | None,
    ) -> None:
        """Take the transport over, with `more` in the answer, or raise Rejection."""


class ServerHandshake(asyncio.Protocol):
    """The protocol of a transport during its opening handshake."""

    __slots__ = ("_acceptor", "_buffer", "_task", "_timer", "began", "transport")

    def __init__(self, acceptor: Acceptor) -> None:
        self._acceptor = acceptor
        self._buffer = b""
        self._task: asyncio.Future[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.began = time.perf_counter()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "pause_reading")
        self.transport = transport  # type: ignore[assignment]
        loop = asyncio.get_running_loop()
        left = self._acceptor.handshake_timeout - (time.perf_counter() - self.began)  # TLS has taken some of it
        self._timer = loop.call_later(max(left, 0), self._timed_out)
        self._acceptor.pending.add(self)
        self._acceptor.accepted(transport.get_extra_info("socket").fileno())

    def connection_lost(self, exc: Exception | None) -> None:
        self._done()
        if self._task is not None:
            self._task.cancel()

    def _done(self) -> asyncio.Transport | None:
        """This handshake is over: the transport, once, or None."""
        transport, self.transport = self.transport, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._acceptor.pending.discard(self)
        return transport

    def data_received(self, data: bytes) -> None:
        if self.transport is None:
            return  # answered: what still comes is thrown away
        if self._task is not None:
            self._buffer += data  # of a client that does not wait for the answer: read no further
            self.transport.pause_reading()
            return
        buffer = self._buffer = (self._buffer + data if self._buffer else data).lstrip(_EMPTY_LINES)
        end = buffer.find(HEAD_END)
        if end > self._acceptor.max_header_size or (end < 0 and len(buffer) > self._acceptor.max_header_size):
            limit = self._acceptor.max_header_size
            self.answer(Rejection(431, f"the request head is over {limit} bytes").response)
        elif end >= 0:
            self._buffer = buffer[end + len(HEAD_END) :]
            self._judge(buffer[:end])

    def _judge(self, head: bytes) -> None:
        try:
            request, headers = parse_request(head)
            answer = self._acceptor.process_request(request)
            if answer is not None and inspect.isawaitable(answer):
                # A task of the awaitable itself: cancelled before it began, it would leave one never awaited.
                self._task = asyncio.ensure_future(answer)
                self._task.add_done_callback(partial(self._judged, request, headers))
            else:
                self._decide(answer, request, headers)
        except Rejection as rejection:
            self.answer(rejection.response)
        except Exception as error:  # noqa: BLE001  (of the application; logged)
            self._fail(error)

    def _judged(self, request: Request, headers: HeaderMap, task: asyncio.Future[Any]) -> None:
        if task.cancelled():
            return
        try:
            self._decide(task.result(), request, headers)
        except Rejection as rejection:
            self.answer(rejection.response)
        except Exception as error:  # noqa: BLE001  (of the application; logged)
            self._fail(error)

    def _decide(self, answer: Any, request: Request, headers: HeaderMap) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        more = None
        if answer is not None:
            response = as_response(answer)
            if response.status != HTTPStatus.SWITCHING_PROTOCOLS:
                self.answer(response, head_only=request.method == "HEAD")
                return
            more = response.headers
        key = check_upgrade(request, headers)
        rest, self._buffer = self._buffer, b""
        self._acceptor.upgrade(self, request, headers, key, rest, more)

    def take_transport(self) -> asyncio.Transport:
        """End this handshake and hand its transport over."""
        transport = self._done()
        assert transport is not None
        if self._task is not None:
            transport.resume_reading()
        return transport

    def answer(self, response: Response, *, head_only: bool = False) -> None:
        """Send `response` and close."""
        transport = self._done()
        self._buffer = b""
        if transport is not None and not transport.is_closing():
            transport.write(response.encode(with_body=not head_only))
            if transport.can_write_eof():
                # Closing with bytes unread would reset the connection, and the answer with it.
                transport.write_eof()
                self._linger(transport)
            else:
                transport.close()

    def _linger(self, transport: asyncio.Transport, unsent: int | None = None) -> None:
        """Wait for the client to hang up, and as long as it takes more of the answer."""
        left = transport.get_write_buffer_size()
        if unsent is None or 0 < left < unsent:
            self._timer = asyncio.get_running_loop().call_later(LINGER, self._linger, transport, left)
        else:
            transport.abort()

    def _fail(self, error: Exception) -> None:
        self._acceptor.logger.error("the opening handshake failed", exc_info=error)
        self.answer(Rejection(500, "internal error").response)

    def _timed_out(self) -> None:
        seconds = self._acceptor.handshake_timeout
        self.answer(Rejection(408, f"no request within {seconds:g} seconds").response)
        if self._task is not None:
            self._task.cancel()

    def eof_received(self) -> bool:
        return False
