"""A connection, as both sides have it, and `broadcast`.

A class of its own on the compiled core (`fabric_ext.plain_connection`), not a coat over `fabric.client`: `recv`, `send`
and iteration are C methods that give and take str and bytes. Here is what happens once per connection: the opening
handshake's transport, messages in several frames, pings, keepalive, closing, and which exception says what.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import struct
import time
import traceback
import uuid
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Iterable, Mapping
from types import TracebackType
from typing import Any, Literal, NoReturn, Self, cast, overload

from fabric._connection.events import log_event
from fabric.message import Frame as WireFrame
from fabric.websockets._negotiation import Negotiation
from fabric.websockets.exceptions import (
    ConcurrencyError,
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    PayloadTooBig,
    ProtocolError,
    TooManyFragments,
)
from fabric.websockets.frames import OK_CLOSE_CODES, Close, CloseCode, Frame, Opcode
from fabric.websockets.http11 import Request, Response
from fabric.websockets.protocol import State
from fabric.websockets.typing import BytesLike, Data, DataLike, LoggerLike, Subprotocol
from fabric_ext.frames import Fault
from fabric_ext.plain_connection import Fragments, PlainConnection
from fabric_ext.plain_connection import broadcast as write_to_all
from fabric_ext.receive_queue import fresh
from fabric_ext.session import Session, SessionProtocol
from fabric_ext.session_user import Part

__all__ = ["Connection", "broadcast"]

MAX_FRAGMENTS = int(os.environ.get("WEBSOCKETS_MAX_FRAGMENTS", "4096"))  # frames of a message that `recv` joins

_UNBOUNDED_SIZE = 1 << 62  # bytes
_UNBOUNDED_FRAMES = 1 << 30
_NEVER = 1e9  # seconds: the connection has its own timer for closing
_MAX_CONTROL = 125  # bytes (RFC 6455 §5.5)
_STATES = tuple(State)

# What is said of a peer's faults.
_PROTOCOL_ERRORS = {
    Fault.BAD_RSV: "reserved bits must be 0",
    Fault.BAD_OPCODE: "invalid opcode",
    Fault.NOT_MASKED: "incorrect masking",
    Fault.MASKED: "incorrect masking",
    Fault.CONTROL_FRAGMENTED: "fragmented control frame",
    Fault.CONTROL_TOO_LONG: "control frame too long",
    Fault.UNEXPECTED_CONTINUATION: "unexpected continuation frame",
    Fault.EXPECTED_CONTINUATION: "expected a continuation frame",
    Fault.BAD_COMPRESSION: "decompression failed",
    Fault.BAD_CLOSE: "invalid status code",
}

MaxQueue = int | None | tuple[int | None, int | None]
WriteLimit = int | tuple[int, int | None]


class Connection(PlainConnection):
    """What `ClientConnection` and `ServerConnection` have in common. It is not made directly.

    Args:
        protocol: the configuration of the opening handshake, as `connect` and `serve` make it.
        ping_interval: seconds between keepalive pings; None for no pings.
        ping_timeout: seconds for the pong, after which the connection is failed with 1011; None to wait for ever.
        close_timeout: seconds for the close handshake, after which the transport is dropped; None for no limit.
        max_queue: frames received and not taken above which the socket is not read, or (high, low); None for no limit.
        write_limit: bytes waiting to be written above which `send` waits, or (high, low).

    Attributes:
        request, response: of the opening handshake; None before.
        latency: seconds from the latest answered ping to its pong; 0.0 before the first.
        transport: the event loop's.
    """

    def __init__(
        self,
        protocol: Negotiation,
        *,
        ping_interval: float | None = 20,
        ping_timeout: float | None = 20,
        close_timeout: float | None = 10,
        max_queue: MaxQueue = 16,
        write_limit: WriteLimit = 2**15,
    ) -> None:
        high, low = _marks(max_queue)
        self.loop = asyncio.get_running_loop()
        super().__init__(
            self.loop,
            high=high,
            low=low,
            write_limit=write_limit[0] if isinstance(write_limit, tuple) else write_limit,
            max_fragments=MAX_FRAGMENTS,
        )
        self._negotiation = protocol
        self._is_bounded = high is not None
        self.ping_interval = ping_interval
        self.ping_timeout = ping_timeout
        self.close_timeout = close_timeout
        self.request: Request | None = None
        self.response: Response | None = None
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # set when there is one
        self.latency = 0.0
        self._id: uuid.UUID | None = None
        self._logger: LoggerLike | None = None
        self._addresses: tuple[Any, Any] = (None, None)
        self._pings: dict[bytes, tuple[asyncio.Future[float], float]] | None = None
        self._keepalive: asyncio.TimerHandle | None = None  # until the next ping, or for its pong
        self._close_timer: asyncio.TimerHandle | None = None
        self._closed_waiter: asyncio.Future[None] | None = None
        self._fragments_waiter: asyncio.Future[None] | None = None  # while a message goes out in several frames
        self._cause: BaseException | None = None  # of the end, where this side knows
        self._closed: ConnectionClosed | None = None  # how it ended

    # -- what it is

    @property
    def id(self) -> uuid.UUID:
        """Identity of the connection, for logs."""
        if self._id is None:
            self._id = uuid.uuid4()
        return self._id

    @property
    def logger(self) -> LoggerLike:
        """The logger, whose records have this connection as their attribute `websocket`."""
        if self._logger is None:
            self._logger = logging.LoggerAdapter(
                cast("logging.Logger", self._negotiation.logger), {"websocket": weakref.proxy(self)}
            )
        return self._logger

    @logger.setter
    def logger(self, logger: LoggerLike) -> None:
        self._logger = logger

    @property
    def debug(self) -> bool:
        """Are the details of the handshake and of keepalive logged?"""
        return self._negotiation.debug

    @property
    def protocol(self) -> ProtocolView:
        """What programs look at of the Sans-I/O protocol of `websockets`: `state`, `extensions`, `uri` and such."""
        return ProtocolView(self, self._negotiation)

    @property
    def local_address(self) -> Any:
        """Address of this end: `(host, port)`, or longer for IPv6."""
        return self._addresses[0]

    @property
    def remote_address(self) -> Any:
        """Address of the other end: `(host, port)`, or longer for IPv6."""
        return self._addresses[1]

    @property
    def state(self) -> State:
        """CONNECTING, OPEN, CLOSING or CLOSED."""
        return _STATES[self._phase]

    @property
    def subprotocol(self) -> Subprotocol | None:
        """The subprotocol agreed on, or None."""
        return self._negotiation.subprotocol

    @property
    def close_code(self) -> int | None:
        """The code received (RFC 6455 §7.1.5), 1006 without a close frame; None until the connection is closed."""
        if self._closed is None:
            return None
        return CloseCode.ABNORMAL_CLOSURE if self._closed.rcvd is None else self._closed.rcvd.code

    @property
    def close_reason(self) -> str | None:
        """The reason received, "" without a close frame; None until the connection is closed."""
        if self._closed is None:
            return None
        return "" if self._closed.rcvd is None else self._closed.rcvd.reason

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.state.name} {self.remote_address}>"

    # -- context manager

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close(CloseCode.NORMAL_CLOSURE if exc_type is None else CloseCode.INTERNAL_ERROR)

    # -- receiving

    async def _recv_text(self) -> str:
        data = await self.recv(False)
        try:
            return data.decode()
        except UnicodeDecodeError as exc:
            session = self._session_now
            if session is not None:
                session.fail_connection(CloseCode.INVALID_DATA, f"{exc.reason} at position {exc.start}", exc)
            await self._raise_closed()

    @overload
    def recv_streaming(self, decode: Literal[True]) -> AsyncIterator[str]: ...
    @overload
    def recv_streaming(self, decode: Literal[False]) -> AsyncIterator[bytes]: ...
    @overload
    def recv_streaming(self, decode: bool | None = None) -> AsyncIterator[Data]: ...
    async def recv_streaming(self, decode: bool | None = None) -> AsyncIterator[Data]:
        """Receive the next message frame by frame, as it was sent.

        The iterator is to be read to its end; until then nobody can receive, and if it is given up half-way, nobody can
        any more. Giving it up before the first frame loses nothing.

        Args:
            decode: True for str, False for bytes, None for what was sent.

        Raises:
            ConnectionClosed: the connection is closed, and what came before has been received.
            ConcurrencyError: another task receives.
        """
        if self._is_awaited:
            raise self._concurrent("recv_streaming")
        self._open_stream()
        self._streaming = True
        begun = False
        try:
            while True:
                item = await self._recv_item()
                begun = True
                if isinstance(item, Part):
                    yield _decoded(item.data, decode)
                    if item.final:
                        break
                else:
                    for data in item.parts if isinstance(item, Fragments) else [item]:
                        yield _decoded(data, decode)
                    break
        except ConnectionClosed:
            self._streaming = False
            raise
        except BaseException:
            if not begun:
                self._streaming = False
                self._close_stream()
            raise
        self._streaming = False

    def _concurrent(self, method: str) -> ConcurrencyError:
        return ConcurrencyError(
            f"cannot call {method} while another coroutine is already running recv or recv_streaming"
        )

    def _on_too_many_fragments(self) -> None:
        session = self._session_now
        if session is not None:
            session.fail_connection(CloseCode.MESSAGE_TOO_BIG, "too many fragments", TooManyFragments(MAX_FRAGMENTS))

    # -- sending

    async def _send_later(self, message: Any, text: bool | None) -> None:
        """What `send` goes on with where it could not write at once."""
        while self._fragments_waiter is not None:
            await asyncio.shield(self._fragments_waiter)
        if isinstance(message, (str, bytes, bytearray, memoryview)):
            if self._phase != State.OPEN:
                await self._raise_closed()
            self._write(message, text)
            await self._drain()
        elif isinstance(message, Mapping):
            raise TypeError("data is a dict-like object")
        elif isinstance(message, Iterable):
            await self._send_fragments(_each(message), text, "iterable")
        elif isinstance(message, AsyncIterable):
            await self._send_fragments(aiter(message), text, "async iterable")
        else:
            raise TypeError("data must be str, bytes, iterable, or async iterable")

    async def _send_fragments(self, chunks: AsyncIterator[Any], text: bool | None, kind: str) -> None:
        """Send each item as a frame of one message, and an empty last one."""
        try:
            chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        while self._fragments_waiter is not None:  # an asynchronous iterator has let others begin
            await asyncio.shield(self._fragments_waiter)
        self._fragments_waiter = self.loop.create_future()
        opcode = None
        try:
            is_text = isinstance(chunk, str)
            if not is_text and not isinstance(chunk, BytesLike):
                raise TypeError(f"{kind} must contain bytes or str")
            opcode = Opcode.TEXT if (is_text if text is None else text) else Opcode.BINARY
            await self._send_fragment(opcode, chunk)
            async for chunk in chunks:
                if not isinstance(chunk, str if is_text else BytesLike):
                    raise TypeError(f"{kind} must contain uniform types")
                await self._send_fragment(Opcode.CONT, chunk)
            await self._send_fragment(Opcode.CONT, b"", fin=True)
        except BaseException as exc:
            # Half a message cannot be taken back: the connection is of no use any more.
            session = self._session_now
            if session is not None:
                session.fail_connection(CloseCode.INTERNAL_ERROR, "error in fragmented message")
            if isinstance(exc, Exception):
                await self._until_closed()
            raise
        finally:
            waiter, self._fragments_waiter = self._fragments_waiter, None
            self._end_parts()
            waiter.set_result(None)

    async def _send_fragment(self, opcode: Opcode, chunk: DataLike, *, fin: bool = False) -> None:
        payload = chunk.encode() if isinstance(chunk, str) else bytes(chunk)
        if self._phase != State.OPEN or not self._write_part(opcode, payload, fin):
            await self._raise_closed()
        await self._drain()

    async def _drain(self) -> None:
        """Wait while the transport holds more than `write_limit`."""
        while self._is_congested:
            if self._writable_waiter is None:
                self._writable_waiter = self.loop.create_future()
            await asyncio.shield(self._writable_waiter)

    # -- pings

    async def ping(self, data: DataLike | None = None) -> Awaitable[float]:
        """Send a ping; return a future of the seconds until its pong, which need not be awaited.

        Args:
            data: at most 125 bytes; by default four at random.

        Raises:
            ConnectionClosed: the connection is closed. The future raises it too.
            ConcurrencyError: a ping with the same data has not been answered yet.
        """
        payload = None if data is None else _control_payload(data)
        self._check_here()
        if self._phase != State.OPEN:
            await self._raise_closed()
        return self._send_ping(payload)

    def _send_ping(self, payload: bytes | None) -> asyncio.Future[float]:
        if self._pings is None:
            self._pings = {}
        if payload is not None and payload in self._pings:
            raise ConcurrencyError("already waiting for a pong with the same data")
        while payload is None or payload in self._pings:
            payload = struct.pack("!I", random.getrandbits(32))
        session = self._session_now
        assert session is not None
        answer: asyncio.Future[float] = self.loop.create_future()
        self._pings[payload] = answer, time.perf_counter()
        session.write_ping(payload)
        return answer

    async def pong(self, data: DataLike = b"") -> None:
        """Send a pong that nobody asked for (RFC 6455 §5.5.3).

        Raises:
            ConnectionClosed: the connection is closed.
        """
        payload = _control_payload(data)
        self._check_here()
        session = self._session_now
        if self._phase != State.OPEN or session is None:
            await self._raise_closed()
        session.write_pong(payload)
        await self._drain()

    def _on_pong(self, payload: bytes) -> None:
        """A pong answers its ping, and every one sent before (RFC 6455 §5.5.3)."""
        if not self._pings or payload not in self._pings:
            return
        now = time.perf_counter()
        for sent in list(self._pings):
            answer, at = self._pings.pop(sent)
            if not answer.done():
                answer.set_result(now - at)
            if sent == payload:
                self.latency = now - at
                return

    def start_keepalive(self) -> None:
        """Begin to send a ping every `ping_interval` seconds, unless it is None."""
        if self.ping_interval is not None and self._phase == State.OPEN:
            self._keepalive = self.loop.call_later(self.ping_interval, self._keep_alive)

    def _keep_alive(self) -> None:
        assert self.ping_interval is not None
        self._keepalive = None
        if self._phase != State.OPEN:
            return
        answer = self._send_ping(None)
        if self.debug:
            log_event(self.logger, logging.DEBUG, "%% sent keepalive ping")
        if self.ping_timeout is None:
            self._keepalive = self.loop.call_later(self.ping_interval, self._keep_alive)
        else:
            self._keepalive = self.loop.call_later(self.ping_timeout, self._keepalive_timed_out)
            answer.add_done_callback(self._keepalive_answered)

    def _keepalive_answered(self, answer: asyncio.Future[float]) -> None:
        if self._keepalive is not None:
            self._keepalive.cancel()
            self._keepalive = None
        if answer.cancelled() or self._phase != State.OPEN:
            return
        error = answer.exception()
        if error is not None:
            log_event(self.logger, logging.ERROR, "keepalive ping failed", exc_info=error)
            return
        if self.debug:
            log_event(self.logger, logging.DEBUG, "%% received keepalive pong")
        assert self.ping_interval is not None
        self._keepalive = self.loop.call_later(max(self.ping_interval - answer.result(), 0), self._keep_alive)

    def _keepalive_timed_out(self) -> None:
        self._keepalive = None
        session = self._session_now
        if self.debug:
            log_event(self.logger, logging.DEBUG, "- timed out waiting for keepalive pong")
        if session is not None and self._phase == State.OPEN:
            session.fail_connection(CloseCode.INTERNAL_ERROR, "keepalive ping timeout")

    # -- closing

    async def close(self, code: CloseCode | int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Close the connection and wait until it is closed, for `close_timeout` at most; again has no effect.

        Raises:
            ProtocolError: the code may not be sent, or the reason has more than 123 bytes.
        """
        self._check_here()
        session = self._session_now
        if self._phase == State.OPEN and session is not None:
            if self._fragments_waiter is not None:
                session.fail_connection(CloseCode.INTERNAL_ERROR, "close during fragmented message")
            else:
                if len(Close(code, reason).serialize()) > _MAX_CONTROL:
                    raise ProtocolError("control frame too long")
                session.begin_close(int(code), reason)
        elif self._phase == State.CONNECTING:
            self._on_closing()
        await self._until_closed()

    async def wait_closed(self) -> None:
        """Wait until the connection is closed."""
        await self._until_closed()

    async def _until_closed(self) -> None:
        if self._phase == State.CLOSED:
            return
        if self._closed_waiter is None:
            self._closed_waiter = self.loop.create_future()
        await asyncio.shield(self._closed_waiter)

    async def _raise_closed(self) -> NoReturn:
        """Wait for the end, and raise what tells of it."""
        await self._until_closed()
        assert self._closed is not None
        raise fresh(self._closed)

    def _on_closing(self) -> None:
        if self._keepalive is not None:
            self._keepalive.cancel()
            self._keepalive = None
        if self.close_timeout is not None and self._close_timer is None:
            self._close_timer = self.loop.call_later(self.close_timeout, self._close_timed_out)

    def _close_timed_out(self) -> None:
        self._close_timer = None
        if self._cause is None:
            self._cause = TimeoutError("timed out while closing connection")
        if self.transport is not None:
            self.transport.abort()

    def _explain(
        self, fault: int, length: int, before: int, cause: BaseException | None
    ) -> tuple[int, str, BaseException | None] | None:
        error: Exception
        if fault == Fault.TOO_LARGE:
            error = self._too_big(None if cause is not None else length, before)
            return CloseCode.MESSAGE_TOO_BIG, str(error), error
        if fault in (Fault.BAD_UTF8, Fault.BAD_CLOSE_TEXT):
            reason = "invalid UTF-8"
            if isinstance(cause, UnicodeDecodeError):
                reason = f"{cause.reason} at position {cause.start}"
            return CloseCode.INVALID_DATA, reason, cause
        if fault in _PROTOCOL_ERRORS:
            error = ProtocolError(_PROTOCOL_ERRORS[Fault(fault)])
            error.__cause__ = cause
            return CloseCode.PROTOCOL_ERROR, str(error), error
        return None

    def _too_big(self, size: int | None, before: int) -> PayloadTooBig:
        message, fragment = self._negotiation.max_message_size, self._negotiation.max_fragment_size
        limit = _UNBOUNDED_SIZE if message is None else message - before
        if fragment is not None:
            limit = min(limit, fragment)
        return PayloadTooBig(size, limit, before or None)

    def _on_lost(self, session: Session) -> None:
        if self.loop.is_closed():  # tasks that wait there will not run any more
            self._closed_waiter = self._writable_waiter = self._pings = None
        closing = session.closing
        rcvd = sent = None
        cause = self._cause or session.lost_error
        if closing is not None:
            if closing.sent_code:
                sent = Close(closing.sent_code, closing.sent_reason)
            if closing.received_code:
                rcvd = Close(closing.received_code, closing.received_reason)
            cause = cause or closing.cause
        if cause is None and rcvd is None and (closing is None or not closing.fault):
            cause = EOFError("unexpected end of stream")
        order = None
        if rcvd is not None and sent is not None:
            assert closing is not None
            order = closing.began_by == "remote"
        self._end(rcvd, sent, order, cause)

    def _end(
        self, rcvd: Close | None, sent: Close | None, rcvd_then_sent: bool | None, cause: BaseException | None
    ) -> None:
        """The transport is gone: tell everybody who waits."""
        is_ok = rcvd is not None and sent is not None and {rcvd.code, sent.code} <= OK_CLOSE_CODES
        kind = ConnectionClosedOK if is_ok else ConnectionClosedError
        self._closed = kind(rcvd, sent, rcvd_then_sent)
        self._closed.__cause__ = cause
        for timer in (self._keepalive, self._close_timer):
            if timer is not None:
                timer.cancel()
        self._keepalive = self._close_timer = None
        if not self._negotiation.is_client:
            with contextlib.suppress(Exception):  # of a logging handler: those who wait are told
                log_event(self.logger, logging.INFO, "connection closed")
        for answer, _ in (self._pings or {}).values():
            if not answer.done():
                answer.set_exception(fresh(self._closed))
            answer.exception()  # nobody need ask
        self._pings = None
        if self._writable_waiter is not None and not self._writable_waiter.done():
            self._writable_waiter.set_result(None)
        if self._closed_waiter is not None and not self._closed_waiter.done():
            self._closed_waiter.set_result(None)
        self._finish_with(self._closed, is_ok)  # at last: a task that waits in recv() is resumed right in there

    # -- the opening handshake

    def connection_made(self, transport: asyncio.Transport) -> None:
        """There is a transport, for the opening handshake."""
        self.transport = transport
        self._addresses = transport.get_extra_info("sockname"), transport.get_extra_info("peername")

    def _open(self, rest: bytes) -> None:
        """The opening handshake is done; `rest` was read behind it."""
        negotiation = self._negotiation
        size, frame = negotiation.max_message_size, negotiation.max_fragment_size
        session = SessionProtocol(
            self,
            self.transport,
            self.loop,
            masking=negotiation.is_client,
            max_message_size=_UNBOUNDED_SIZE if size is None else max(size, 1),
            # Without a limit of the queue it is this that bounds what a peer can have kept here.
            max_fragments=_UNBOUNDED_FRAMES if self._is_bounded else 32 * MAX_FRAGMENTS,
            fragment_size=0,
            close_timeout=_NEVER,
            codec=negotiation.codec(),
            max_frame_size=frame or 0,
            frames_apart=True,
            frame_log=_FrameLog(self.logger) if self.debug else None,
        )
        self._begin_session(session)
        if rest:
            session.feed_early(rest)

    def _lost_before_open(self, error: Exception | None) -> None:
        """The transport is gone before the opening handshake was done."""
        if self._phase != State.CLOSED:
            self._end(None, None, None, self._cause or error)


class _FrameLog:
    """Writes each frame that is received or sent to the log, at DEBUG; of a compressed one the compressed payload."""

    def __init__(self, logger: LoggerLike) -> None:
        self._logger = logger
        self._bytes: dict[str, bytes | None] = {"<": b"", ">": b""}  # not all there yet; None: no frames

    def received(self, data: bytes) -> None:
        self._write("<", data)

    def sent(self, data: bytes) -> None:
        self._write(">", data)

    def _write(self, arrow: str, data: bytes) -> None:
        rest = self._bytes[arrow]
        if rest is None:
            return
        rest += data
        try:
            while (found := WireFrame.parse(rest)) is not None:
                frame, size = found
                rest = rest[size:]
                shown = Frame(Opcode(frame.opcode), frame.payload, frame.fin, frame.rsv1, frame.rsv2, frame.rsv3)
                self._logger.debug("%s %s", arrow, shown)
            self._bytes[arrow] = rest
        except Exception:  # noqa: BLE001  (what is wrong with it is said elsewhere)
            self._bytes[arrow] = None


class ProtocolView:
    """A connection as the `protocol` that programs look at: state, and what was agreed on."""

    def __init__(self, connection: Connection, negotiation: Negotiation) -> None:
        self._connection = connection
        self._negotiation = negotiation

    @property
    def state(self) -> State:
        """See `Connection.state`."""
        return self._connection.state

    @property
    def close_code(self) -> int | None:
        """See `Connection.close_code`."""
        return self._connection.close_code

    @property
    def close_reason(self) -> str | None:
        """See `Connection.close_reason`."""
        return self._connection.close_reason

    @property
    def close_exc(self) -> ConnectionClosed:
        """What `recv` raises now that the connection is closed."""
        closed = self._connection._closed
        assert closed is not None, "connection isn't closed yet"
        return closed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._negotiation, name)


def _marks(max_queue: MaxQueue) -> tuple[int | None, int]:
    """High and low water of the queue."""
    high, low = max_queue if isinstance(max_queue, tuple) else (max_queue, None)
    if high is None:
        high = None if low is None else low * 4
    if high is None:
        return None, 0
    if low is None:
        low = high // 4
    if low < 0:
        raise ValueError("low must be positive or equal to zero")
    if high < low:
        raise ValueError("high must be greater than or equal to low")
    return high, low


def _decoded(data: Data, decode: bool | None) -> Data:
    if decode is None or isinstance(data, str if decode else bytes):
        return data
    return data.encode() if isinstance(data, str) else data.decode()


def _control_payload(data: DataLike) -> bytes:
    if not isinstance(data, (str, bytes, bytearray, memoryview)):
        raise TypeError("data must be str or bytes-like")
    payload = data.encode() if isinstance(data, str) else bytes(data)
    if len(payload) > _MAX_CONTROL:
        raise ProtocolError("control frame too long")
    return payload


async def _each(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


def broadcast(
    connections: Iterable[Connection],
    message: DataLike,
    *,
    text: bool | None = None,
    raise_exceptions: bool = False,
) -> None:
    """Write a message to all of `connections` that are open, without waiting for any of them.

    One that is sending a message in several frames is left out, with a warning in its log.

    Args:
        connections: clients' or servers'.
        message: str or bytes-like.
        text: True or False to send it as text or as binary, whatever its type.
        raise_exceptions: raise an ExceptionGroup instead of writing warnings.

    Raises:
        TypeError: for another message.
    """
    if not isinstance(message, (str, bytes, bytearray, memoryview)):
        raise TypeError("data must be str or bytes")
    errors: list[Exception] = []
    for connection, cause in write_to_all(list(connections), message, text):
        error: Exception = ConcurrencyError("sending a fragmented message")
        what = str(error)
        if cause is not None:
            error = RuntimeError("failed to write message")
            error.__cause__ = cause
            what = f"failed to write message: {traceback.format_exception_only(cause)[0].strip()}"
        if raise_exceptions:
            errors.append(error)
        else:
            connection.logger.warning("skipped broadcast: %s", what)
    if errors:
        raise ExceptionGroup("skipped broadcast", errors)
