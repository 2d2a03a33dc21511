"""What a client and a server's connection have in common, above the compiled core.

Owns everything that happens once per connection rather than once per message: waiting to send, parts of messages,
pings, the close handshake, and which exception says what. Never opens a connection; that is `fabric.client` and
`fabric.server`.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import time
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any

from fabric._connection.liveness import LivenessProbe
from fabric.backpressure import BackpressureController
from fabric.error import (
    CompressionError,
    ConnectionClosed,
    Error,
    InvalidFrame,
    InvalidState,
    MessageTooLarge,
    Utf8Error,
)
from fabric.message import Message, MessageType
from fabric_ext import inbox
from fabric_ext.connection import Connection, Part

if TYPE_CHECKING:
    from collections.abc import Callable

    from fabric.config import ClientConfig, ServerConfig
    from fabric.heartbeat import HeartbeatManager
    from fabric.metrics import MetricsCollector
    from fabric_ext.protocol import State

__all__ = ["BaseConnection", "data_message"]

inbox.bind_errors(concurrent_recv=InvalidState)

MAX_REASON = 123  # bytes of UTF-8 (RFC 6455 §5.5: 125 less the close code)
MAX_PING = 125  # bytes (RFC 6455 §5.5)

# Close codes that end `recv` and `async for` without an exception (RFC 6455 §7.4.1): done, going away, no code given.
NORMAL_CLOSURE = frozenset({1000, 1001, 1005})

Sendable = str | bytes | bytearray | memoryview | Message


@inbox.iterates_in_c
class BaseConnection(Connection):
    """One end of a WebSocket connection; see `WebSocketClient` and `ConnectedClient`."""

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_backpressure_config",
        "_close_code",
        "_closed_by",
        "_closed_waiter",
        "_id",
        "_latency",
        "_local_addr",
        "_logger",
        "_loss",
        "_metrics",
        "_parts_lock",
        "_pings",
        "_pulse",
        "_remote_addr",
        "_subprotocol",
        "_undelivered",
        "_writable_waiters",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        config: ClientConfig | ServerConfig,
        *,
        masking: bool,
        metrics: MetricsCollector,
        logger: logging.Logger,
        on_message: Callable[[Any, Message], Any] | None,
    ) -> None:
        super().__init__(loop, masking, metrics)
        self._configure(
            max_message_size=config.max_message_size,
            max_fragments=config.max_fragments,
            queue_limit=config.buffer_size,
            queue_byte_limit=config.backpressure.max_buffer_bytes,
            fragment_size=config.fragment_size or 0,
            close_timeout=config.close_timeout,
            on_message=on_message,
        )
        self._metrics = metrics
        self._backpressure_config = config.backpressure
        self._logger = logger
        self._id: uuid.UUID | None = None
        self._subprotocol: str | None = None
        self._close_code: int | None = None
        self._closed_by: str | None = None  # "local" once we have begun to close
        self._closed_waiter: asyncio.Future[None] | None = None
        self._latency: float | None = None
        self._loss: ConnectionClosed | None = None  # how the latest transport was lost
        self._local_addr: Any = None
        self._remote_addr: Any = None
        self._parts_lock: asyncio.Lock | None = None
        self._pings: dict[bytes, tuple[asyncio.Future[float], int]] | None = None
        self._pulse: LivenessProbe | None = None  # while the heartbeat watches this connection
        self._undelivered: tuple[Message, ...] = ()
        self._writable_waiters: list[asyncio.Future[None]] | None = None

    # -- what it is

    @property
    def id(self) -> uuid.UUID:
        """Identity of this object, the same over all reconnections."""
        if self._id is None:
            self._id = uuid.uuid4()
        return self._id

    @property
    def state(self) -> State:
        """CONNECTING, OPEN, CLOSING, RECONNECTING or CLOSED."""
        return self._state_now

    @property
    def is_connected(self) -> bool:
        """Can messages be exchanged right now?"""
        transport = self._transport_now
        return self._is_open and transport is not None and not transport.is_closing()

    @property
    def close_code(self) -> int | None:
        """How the connection ended (RFC 6455 §7.1.5): the code received, 1005 for none, 1006 for no close frame.

        When this end failed the connection (a message too large, bad UTF-8 ...), the code it gave. None until the end.
        """
        return self._close_code

    @property
    def close_reason(self) -> str | None:
        """The reason that came with `close_code`; None until the end."""
        return None if self._close_code is None else self._close_text

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol agreed on, or None."""
        return self._subprotocol

    @property
    def local_addr(self) -> Any:
        """Address of this end: `(host, port)`, or longer for IPv6."""
        return self._address("sockname", self._local_addr)

    @property
    def remote_addr(self) -> Any:
        """Address of the other end: `(host, port)`, or longer for IPv6."""
        return self._address("peername", self._remote_addr)

    def _address(self, name: str, kept: Any) -> Any:
        transport = self._transport_now
        return kept if transport is None else transport.get_extra_info(name)

    @property
    def latency(self) -> float | None:
        """The latest round trip of a ping, in seconds; None before the first."""
        return self._latency

    @property
    def undelivered(self) -> tuple[Message, ...]:
        """After the end: the messages that were accepted and never written, oldest first."""
        return self._undelivered

    @property
    def metrics(self) -> MetricsCollector:
        """The live counters and latencies that this connection adds to."""
        return self._metrics

    @property
    def backpressure(self) -> BackpressureController:
        """What bounds the messages accepted and not yet written."""
        if self._backpressure is None:
            self._backpressure = BackpressureController(self._backpressure_config)
        controller: BackpressureController = self._backpressure
        return controller

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.state.name} {self.remote_addr}>"

    # -- sending

    def send_text(self, text: str, *, compress: bool | None = None) -> Any:
        """Send a text message; awaitable like `send`."""
        if not isinstance(text, str):
            raise TypeError(f"text must be str, not {type(text).__name__}")
        return self.send(text, compress=compress)

    def send_binary(self, data: bytes | bytearray | memoryview, *, compress: bool | None = None) -> Any:
        """Send a binary message; awaitable like `send`."""
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data must be bytes-like, not {type(data).__name__}")
        return self.send(data, compress=compress)

    def send_json(self, value: Any, *, compress: bool | None = None) -> Any:
        """Send `value` as JSON in a text message; awaitable like `send`."""
        return self.send(Message.json(value), compress=compress)

    async def _send_later(self, message: Any, compress: bool | None) -> None:
        """What `send` returns when the message could not be written at once."""
        try:
            if isinstance(message, (str, bytes, bytearray, memoryview, Message)):
                await self._send_when_possible(data_message(message), compress)
            elif isinstance(message, (Iterable, AsyncIterable)) and not isinstance(message, dict):
                await self._send_parts(message, compress)
            else:
                raise TypeError(
                    f"cannot send {type(message).__name__}: str, bytes-like, Message or an iterable of them"
                )
        except Error:
            self._metrics.record_send_error()
            raise

    async def _send_when_possible(self, message: Message, compress: bool | None) -> None:
        self._check_sending()
        size = len(message)
        while self._waits_for_transport() and self.backpressure.waking:
            await asyncio.sleep(0)  # who waited when the connection was lost, and was let in then, is before us
            self._check_sending()
        if self._waits_for_transport():
            if self.backpressure.waiting or not self.backpressure.try_acquire(size):
                raise self.backpressure.full_error()
            self._outbox_push(message, compress)
        else:
            self._set_waiting(1)  # a later send is not to overtake this one
            try:
                await self.backpressure.acquire(size)
                try:
                    self._check_sending()
                except BaseException:
                    self.backpressure.release(size)
                    raise
                self._outbox_push(message, compress)
            finally:
                self._set_waiting(-1)
        self._flush_outbox()

    def _queue_now(self, message: Any, compress: bool | None) -> None:
        """What `send_nowait` does when the message could not be written at once."""
        data = data_message(message)
        try:
            self._check_sending()
            if not self.backpressure.try_acquire(len(data)):
                raise self.backpressure.full_error()
        except Error:
            self._metrics.record_send_error()
            raise
        self._outbox_push(data, compress)
        self._flush_outbox()

    def _on_taken_back(self, message: Message) -> None:
        self.backpressure.restore(len(message))

    def _check_sending(self) -> None:
        """Raise unless a message may be sent now, or later when a transport comes."""
        if self._is_open or self._waits_for_transport():
            return
        raise self._closed_error()

    def _waits_for_transport(self) -> bool:
        """Is there no transport now, and will there be one?"""
        return False

    async def _send_parts(self, parts: Iterable[Any] | AsyncIterable[Any], compress: bool | None) -> None:
        """Send the items of `parts` as one message, each as a frame, or as several where `fragment_size` says so.

        Whether the message is compressed, its first part decides.
        """
        if self._parts_lock is None:
            self._parts_lock = asyncio.Lock()
        async with self._parts_lock:
            opcode: int | None = None
            pending: bytes | None = None
            carrier: Any = None  # the transport that the first part went out by
            try:
                async for part in _iterate(parts):
                    kind, payload = _part(part)
                    if opcode is None:
                        opcode = kind
                    elif opcode != kind:
                        raise TypeError("the parts of one message must be all str or all bytes-like")
                    if pending is not None:
                        carrier = await self._write_part(opcode, pending, carrier, compress, final=False)
                    pending = payload
                if opcode is None or pending is None:
                    return  # nothing to send: no message
                await self._write_part(opcode, pending, carrier, compress, final=True)
                carrier = None
            except BaseException:
                if self._is_fragmenting and self._is_open and self._transport_now is carrier:
                    # Half a message is out and cannot be taken back (RFC 6455 §5.4).
                    self._begin_closing(1011, b"message abandoned half-way")
                raise
            finally:
                if self._is_fragmenting:
                    self._set_fragmenting(False)

    async def _write_part(
        self, opcode: int, payload: bytes, carrier: Any, compress: bool | None, *, final: bool
    ) -> Any:
        """Write one part, the first one if `carrier` is None; return the transport that it went out by."""
        if carrier is None:
            while self._waits_for_transport() or (self._is_open and (self._is_blocked or self._outbox_size)):
                await self._writable()
        else:
            while self._transport_now is carrier and self._is_open and self._is_blocked:
                await self._writable()
        if not self._is_open or (carrier is not None and carrier is not self._transport_now):
            raise self._closed_error()
        self._set_fragmenting(True)
        self._write_fragment(opcode if carrier is None else 0, payload, final, compress)
        carrier = self._transport_now
        if final:
            self._set_fragmenting(False)
        return carrier

    async def _writable(self) -> None:
        """Wait until nothing waits to be written any more, or the transport is lost."""
        if self._writable_waiters is None:
            self._writable_waiters = []
        waiter = asyncio.get_running_loop().create_future()
        self._writable_waiters.append(waiter)
        await waiter

    def _on_writable(self) -> None:
        if self._writable_waiters is None:
            return
        waiters, self._writable_waiters = self._writable_waiters, None
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # -- receiving

    async def recv_stream(self) -> AsyncIterator[str | bytes]:
        """Iterate over the next message as it arrives, one item per frame; nothing is yielded after a normal close.

        Text is decoded as it comes, characters split between frames included. `max_message_size` holds for the whole.
        Whoever receives anything else before the end gives the rest of this message up.

        Raises:
            ConnectionClosed: the connection ended inside the message.
            InvalidState: the message was given up.
        """
        begun = False
        number = self._start_stream()
        try:
            while True:
                item: Any = await self._recv_part()
                if item is None:
                    if begun:
                        raise self._closed_error()
                    return
                if not isinstance(item, Part):
                    yield item.payload if item.is_binary else item.as_text()
                    return
                if item.is_cut_off:
                    raise self._closed_error()
                begun = True
                yield item.data
                if item.final:
                    return
                if not self._is_stream(number):
                    raise InvalidState("the rest of this message was given up: something else was received")
        finally:
            self._stop_stream(number)

    # -- pings

    async def ping(self, data: str | bytes | None = None) -> float:
        """Send a ping and wait for its pong; return the round trip in seconds.

        Args:
            data: at most 125 bytes, by default unique ones.

        Raises:
            InvalidState: a ping with the same data has not been answered yet.
            ConnectionClosed: the connection is or was closed.
        """
        payload = uuid.uuid4().bytes[:8] if data is None else data.encode() if isinstance(data, str) else bytes(data)
        if len(payload) > MAX_PING:
            raise ValueError(f"the data of a ping is {len(payload)} bytes, at most {MAX_PING} are allowed")
        while self._is_open and self._is_blocked:
            await self._writable()
        if not self._is_open:
            raise self._closed_error()
        if self._pings is None:
            self._pings = {}
        if payload in self._pings:
            raise InvalidState("a ping with the same data is still unanswered", state=self.state.name)
        answer: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        unanswered = self._pings  # of this transport
        unanswered[payload] = answer, time.perf_counter_ns()
        try:
            self._write_ping(payload)
            return await answer
        finally:
            unanswered.pop(payload, None)

    def _on_pong(self, payload: bytes) -> None:
        """RFC 6455 §5.5.3: a pong answers its ping, and every one sent before."""
        beat = None if self._pulse is None else self._pulse.pong(payload)
        if beat is not None:
            self._record_rtt(beat)
        if self._pings is None or payload not in self._pings:
            return
        now = time.perf_counter_ns()
        for sent in list(self._pings):
            answer, at = self._pings.pop(sent)
            if not answer.done():
                answer.set_result((now - at) * 1e-9)
            if sent == payload:
                self._record_rtt((now - at) * 1e-9)
                return

    def _record_rtt(self, seconds: float) -> None:
        self._latency = seconds
        self._metrics.record_heartbeat_rtt(seconds)

    def _begin_heartbeat(self, manager: HeartbeatManager | None) -> None:
        """Have `manager` find out whether the other end is still there, as long as there is this transport."""
        if manager is not None:
            self._pulse = LivenessProbe(self, manager)

    def _fail_silently(self, error: Exception) -> None:
        """The other end does not hear us: drop the connection because of `error`."""
        self._failure = error
        self._abort()

    # -- closing

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection and wait until it is closed.

        What was sent before is delivered first. The close handshake is bounded by `close_timeout`; a cancelled
        `close` goes on by itself once it has begun.

        Args:
            code: 1000 to 1003, 1007 to 1014, or 3000 to 4999.
            reason: at most 123 bytes of UTF-8.
        """
        self._check_close(code, reason)
        if self._is_open and self._outbox_size:
            deadline = asyncio.get_running_loop().time() + self._close_timeout
            try:
                async with asyncio.timeout_at(deadline):
                    while self._is_open and self._outbox_size:
                        await self._writable()
            except TimeoutError:
                self._abort()
        if self._is_open:
            self._begin_closing(code, reason.encode())
        await self._until_closed()

    def _check_close(self, code: int, reason: str) -> None:
        if not isinstance(code, int) or not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
            raise ValueError(f"close code is {code!r}, allowed are 1000-1003, 1007-1014 and 3000-4999")
        if len(reason.encode()) > MAX_REASON:
            raise ValueError(f"close reason is {len(reason.encode())} bytes, at most {MAX_REASON} are allowed")

    def _begin_closing(self, code: int, reason: bytes) -> None:
        self._closed_by = "local"
        self._begin_close(code, reason)

    async def wait_closed(self) -> None:
        """Wait until the connection is closed for good."""
        await self._until_closed()

    async def _until_closed(self) -> None:
        """Wait for the end, and for nothing that a subclass has to do about it."""
        if self.state.name == "CLOSED":
            return
        if self._closed_waiter is None:
            self._closed_waiter = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._closed_waiter)

    def _on_lost(self) -> None:
        closed = self._take_loss()
        self._end(None if self._is_normal(closed) else closed)

    def _take_loss(self) -> ConnectionClosed:
        """The transport is gone: settle the close code, and fail whatever waited for this transport."""
        error = self._loss = self._settle()
        if self._pulse is not None:
            self._pulse.stop()
            self._pulse = None
        if self._pings is not None:
            pings, self._pings = self._pings, None
            for answer, _ in pings.values():
                if not answer.done():
                    answer.set_exception(error)
        self._on_writable()
        return error

    def _settle(self) -> ConnectionClosed:
        code, by = 1006, "transport"
        failure = self._failure
        if failure is not None and self._sent_code:
            code, by = self._sent_code, "local"
        elif self._received_code:
            code, by = self._received_code, self._closed_by or "remote"
        else:
            self._close_text = ""
        self._close_code = code
        clean = bool(self._received_code and self._sent_code)
        error = ConnectionClosed(code, self._close_text, by=by, clean=clean)  # type: ignore[arg-type]
        error.__cause__ = failure
        return error

    def _is_normal(self, closed: ConnectionClosed) -> bool:
        """Do `recv` and `async for` end without an exception?"""
        return self._failure is None and (closed.code in NORMAL_CLOSURE or self._closed_by == "local")

    def _end(self, error: Exception | None) -> None:
        """The connection is closed for good: receivers get what is queued, then `error` if there is one."""
        if self._backpressure is not None:
            self._backpressure.abort(self._closed_error)
        if self._outbox_size:
            self._undelivered += self._empty_outbox()
        self._on_writable()
        if self._closed_waiter is not None and not self._closed_waiter.done():
            self._closed_waiter.set_result(None)
        self._finish(error)  # at last: who waits in recv() is resumed right in there

    def _empty_outbox(self) -> tuple[Message, ...]:
        """Take out what was accepted and not written."""
        return tuple(self._outbox_pop()[0] for _ in range(self._outbox_size))

    def _closed_error(self) -> ConnectionClosed | InvalidState:
        if self._loss is not None and (self._transport_now is None or self._is_open):
            error = copy.copy(self._loss)  # what is raised gathers tracebacks
            error.__cause__ = self._loss.__cause__
            return error
        if self._sent_code or self._received_code:
            by = self._closed_by or ("local" if self._failure is not None else "remote")
            code = self._received_code or self._sent_code
            return ConnectionClosed(code, self._close_text, by=by)  # type: ignore[arg-type]
        return InvalidState("not connected", state=self.state.name)

    # -- what went wrong

    def _on_error(self, error: BaseException) -> None:
        self._logger.error("connection %s: the message callback raised", self.id, exc_info=error)

    def _fault(self, code: int, reason: str) -> Exception:
        """The exception that explains why this end failed the connection."""
        if code == 1007:
            return CompressionError(reason) if "inflate" in reason else Utf8Error(reason)
        if code == 1009:
            return MessageTooLarge(self._oversize, self._max_message_size)
        return InvalidFrame(reason, code=code)


def data_message(message: Any) -> Message:
    """`message` as a Message that can be sent as data; `TypeError` for anything else."""
    if not isinstance(message, Message):
        return Message(message)
    if not (message.is_text or message.is_binary):
        raise TypeError(f"cannot send a {message.msg_type.name} message as data; use ping() or close()")
    return message


def _part(part: Any) -> tuple[int, bytes]:
    if isinstance(part, str):
        return int(MessageType.TEXT), part.encode()
    if isinstance(part, (bytes, bytearray, memoryview)):
        return int(MessageType.BINARY), bytes(part)
    if isinstance(part, Message) and (part.is_text or part.is_binary):
        return int(part.msg_type), part.as_bytes()
    raise TypeError(f"cannot send {type(part).__name__} as part of a message: str, bytes-like or Message")


async def _iterate(parts: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    if isinstance(parts, AsyncIterable):
        async for part in parts:
            yield part
    else:
        for part in parts:
            yield part
