"""What a client and a server's connection have in common, above the compiled core.

Owns everything that happens once per connection rather than once per message: waiting to send, parts of messages,
pings, the close handshake, and which exception says what. Never opens a connection; that is `fabric.client` and
`fabric.server`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

from fabric._connection import tracing
from fabric._connection.events import FrameLog, log_event
from fabric._connection.liveness import LivenessProbe
from fabric._http.messages import Address, address_of
from fabric.backpressure import BackpressureController
from fabric.error import (
    BackpressureTimeout,
    CompressionError,
    ConnectionClosed,
    Error,
    InvalidFrame,
    InvalidState,
    MessageTooLarge,
    Utf8Error,
)
from fabric.message import Message, MessageType
from fabric.metrics import loop_metrics_of
from fabric_ext import connection, receive_queue
from fabric_ext.connection import Connection
from fabric_ext.frames import Fault
from fabric_ext.poller import PolledSessionProtocol
from fabric_ext.protocol import State, check_close
from fabric_ext.session import SessionProtocol
from fabric_ext.session_user import Part
from fabric_ext.throttle import Throttle

if TYPE_CHECKING:
    from collections.abc import Callable

    from fabric.config import ClientConfig, ServerConfig
    from fabric.heartbeat import HeartbeatManager
    from fabric.message import Sendable
    from fabric.metrics import MetricsCollector
    from fabric_ext.bucket import RateGate
    from fabric_ext.closing import CloseHandshake
    from fabric_ext.deflate import Codec
    from fabric_ext.session import Session

__all__ = ["BaseConnection", "data_message", "is_end", "is_normal", "loss_of"]

receive_queue.bind_errors(concurrent_recv=InvalidState)
connection.bind_errors(wrong_place=InvalidState)

# The messages in parts whose iterators led here: the context of a task is that of the code which made it.
_parts_around: ContextVar[tuple[object, ...]] = ContextVar("messages in parts", default=())

COLLECTIONS = (list, tuple, set, frozenset, dict)

# Close codes that end `recv` and `async for` without an exception (RFC 6455 §7.4.1): done, going away, no code given.
NORMAL_CLOSURE = frozenset({1000, 1001, 1005})


class BaseConnection(Connection):
    """One end of a WebSocket connection; see `WebSocketClient` and `ConnectedClient`.

    Attributes:
        messages_sent, messages_received: data messages so far, over all sessions.
        bytes_sent, bytes_received: their payloads, before compression and after decompression.
    """

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_backpressure_config",
        "_closed_waiter",
        "_config",
        "_cut_off_messages",
        "_ending",
        "_id",
        "_known_loss",
        "_latency",
        "_local_addr",
        "_logger",
        "_masking",
        "_metrics",
        "_on_loss",
        "_parts_lock",
        "_parts_now",
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
        super().__init__(
            loop,
            metrics,
            queue_limit=config.buffer_size,
            queue_byte_limit=config.backpressure.max_buffer_bytes,
            on_message=on_message,
        )
        self._config: Any = config
        self._masking = masking
        self._metrics = metrics
        self._backpressure_config = config.backpressure
        self._logger = logger
        self._id: uuid.UUID | None = None
        self._subprotocol: str | None = None
        self._closed_waiter: asyncio.Future[None] | None = None
        self._latency: float | None = None
        self._ending: tuple[CloseHandshake | None, BaseException | None] | None = None  # of the latest session
        self._known_loss: ConnectionClosed | None = None  # `_loss`, once it was asked for
        self._on_loss: Callable[[ConnectionClosed], None] | None = None  # called with how each session has ended
        self._local_addr: Address | None = None
        self._remote_addr: Address | None = None
        self._parts_lock: asyncio.Lock | None = None
        self._parts_now: object | None = None  # stands for the message that is being sent in parts
        self._undelivered: tuple[Message, ...] = ()
        self._cut_off_messages: tuple[Message, ...] = ()  # of the latest session: a part of each has left, not the end
        self._writable_waiters: list[asyncio.Future[None]] | None = None

    def _open_session(
        self,
        transport: asyncio.BaseTransport,
        codec: Codec | None,
        gate: RateGate | None = None,
        on_exceed: tuple[str, str] = ("slow", "slow"),
        rest: bytes = b"",
    ) -> None:
        """Go on over `transport`, whose opening handshake is done; `rest` is what has been read behind it."""
        config = self._config
        loop = asyncio.get_running_loop()
        session = (PolledSessionProtocol if config.busy_poll else SessionProtocol)(
            self,
            transport,
            loop,
            masking=self._masking,
            max_message_size=config.max_message_size,
            max_fragments=config.max_fragments,
            fragment_size=config.fragment_size or 0,
            close_timeout=config.close_timeout,
            cork=config.cork,
            codec=codec,
            throttle=None
            if gate is None
            else Throttle(gate, *on_exceed, getattr(loop, "time_ns", None)),  # FakeTimeLoop has it
            frame_log=FrameLog.of(self._logger, self),
        )
        if isinstance(session, PolledSessionProtocol):
            session.poll(loop, loop_metrics_of(loop), config.busy_poll)
        self._begin_session(session)
        self._begin_life(session)
        self._tell("is open")
        if rest:
            session.feed_early(rest)

    def _begin_life(self, session: Session) -> None:
        """Do what is to be done when a session has begun; if that raises, the connection says so and ends."""
        if tracing.tracer is not None:
            tracing.tracer.session_began(session, self)
        try:
            self._opened()
        except Exception as error:  # noqa: BLE001  (logged)
            log_event(self._logger, logging.ERROR, "connection %s: opening it failed", self.id, exc_info=error)
            session.begin_close(1011, "internal error")

    def _tell(self, text: str, *args: object, **extra: Any) -> None:
        """Write to the log, at DEBUG, what has become of this connection."""
        if self._logger.isEnabledFor(logging.DEBUG):
            who: dict[str, Any] = {"connection_id": str(self.id), "address": self.remote_addr}
            text = f"connection %s with %s {text}"
            log_event(self._logger, logging.DEBUG, text, *who.values(), *args, **who, **extra)

    def _opened(self) -> None:
        """A session has begun; nothing has been read yet."""

    # -- what it is

    @property
    def id(self) -> uuid.UUID:
        """Identity of this object, the same over all reconnections."""
        if self._id is None:
            self._id = uuid.uuid4()
        return self._id

    @property
    def is_connected(self) -> bool:
        """Can messages be exchanged right now?"""
        transport = self._transport
        return self._is_open and transport is not None and not transport.is_closing()

    @property
    def close_code(self) -> int | None:
        """How the connection ended (RFC 6455 §7.1.5): the code received, 1005 for none, 1006 for no close frame.

        When this end failed the connection (a message too large, bad UTF-8 ...), the code it gave. None until the end.
        """
        end = self._end_now
        return None if end is None else end[0]

    @property
    def close_reason(self) -> str | None:
        """The reason that came with `close_code`; None until the end."""
        end = self._end_now
        return None if end is None else end[1]

    @property
    def _end_now(self) -> tuple[int, str] | None:
        """The close code and the reason, while there is no session and none is sought."""
        if self._session_now is not None or self.state is State.RECONNECTING:
            return None
        if self._ending is None:
            return (1006, "") if self._is_closed else None
        return _code_and_reason(*self._ending)

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol agreed on, or None."""
        return self._subprotocol

    @property
    def local_addr(self) -> Address | None:
        """Address of this end: `(host, port)`, or longer for IPv6; None before the first connection."""
        return self._address("sockname", self._local_addr)

    @property
    def remote_addr(self) -> Address | None:
        """Address of the other end: `(host, port)`, or longer for IPv6; None before the first connection."""
        return self._address("peername", self._remote_addr)

    @property
    def _transport(self) -> Any:
        """asyncio's transport, or None."""
        session = self._session_now
        return None if session is None else session.io

    def _descriptors(self) -> list[int]:
        """The file descriptor of its socket, in a list; none while there is no transport."""
        transport = self._transport
        sock = None if transport is None else transport.get_extra_info("socket")
        return [] if sock is None else [sock.fileno()]

    def _address(self, name: Literal["peername", "sockname"], kept: Address | None) -> Address | None:
        transport = self._transport
        # A transport with TLS refuses to be asked by other threads.
        return kept if kept is not None or transport is None else address_of(transport, name)

    @property
    def is_reading_paused(self) -> bool:
        """Is the socket not being read, because the queue is full or the rate limit says so?"""
        session = self._session_now
        return session is not None and session.is_reading_paused

    @property
    def is_at_rest(self) -> bool:
        """Is nothing unread, half received, half sent or waiting to be sent, and does no task wait in `recv`?"""
        session = self._session_now
        return not (
            self.queued
            or self._is_awaited
            or self._outbox_size
            or (self._parts_lock is not None and self._parts_lock.locked())
            or (session is not None and (session.is_reading_paused or session.has_partial_message))
        )

    @property
    def latency(self) -> float | None:
        """The latest round trip of a ping, in seconds; None before the first."""
        return self._latency

    @property
    def undelivered(self) -> tuple[Message, ...]:
        """After the end: the messages that were accepted and cannot have arrived, oldest first.

        Those that were not written, and those that were cut off before their end was.
        """
        return self._undelivered

    @property
    def metrics(self) -> MetricsCollector:
        """The live counters and latencies that this connection adds to."""
        return self._metrics

    @property
    def backpressure(self) -> BackpressureController:
        """What bounds the messages accepted and not yet written."""
        controller: BackpressureController | None = self._backpressure
        if controller is None:
            controller = self._keep_backpressure(BackpressureController(self._backpressure_config))
            assert controller is not None
        return controller

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.state.name} {self.remote_addr}>"

    # -- sending

    def send_text(self, text: str, *, compress: bool | None = None) -> Coroutine[Any, Any, None]:
        """Send a text message; awaitable like `send`."""
        if not isinstance(text, str):
            raise TypeError(f"text must be str, not {type(text).__name__}")
        return self.send(text, compress=compress)

    def send_binary(
        self, data: bytes | bytearray | memoryview, *, compress: bool | None = None
    ) -> Coroutine[Any, Any, None]:
        """Send a binary message; awaitable like `send`."""
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data must be bytes-like, not {type(data).__name__}")
        return self.send(data, compress=compress)

    def send_json(self, value: Any, *, compress: bool | None = None) -> Coroutine[Any, Any, None]:
        """Send `value` as JSON in a text message; awaitable like `send`."""
        return self.send(Message.json(value), compress=compress)

    async def send_parts(
        self, parts: Iterable[Sendable] | AsyncIterable[Sendable], *, compress: bool | None = None
    ) -> None:
        """Send the items of `parts`, all text or all binary, as one message: each goes out as it comes.

        Raises:
            TypeError: an item is neither text nor binary, or they are mixed; the connection is closed with 1011 if
                some have been sent.
            BackpressureTimeout: another message in parts was not at its end within `BackpressureConfig.timeout`.
            ConnectionClosed: the connection ended before the last one was sent.
            InvalidState: it is called by the iterable of another message in parts, or by a task made there, while that
                message is being sent.
        """
        await self._counted(self._send_parts(parts, compress))

    async def send_many(self, messages: Iterable[Sendable] | AsyncIterable[Sendable]) -> None:
        """Send several messages, gathered into as few system calls as possible."""
        with self.cork():
            async for message in _iterate(messages):
                await self.send(message)

    @contextlib.contextmanager
    def cork(self) -> Iterator[None]:
        """Gather what is sent inside the `with`, up to 64 KB at a time; what was sent before leaves first."""
        self._check_here()
        session = self._session_now
        if session is not None:
            session.cork(1)
        try:
            yield
        finally:
            if session is not None:
                session.cork(-1)

    async def _send_later(self, message: Any, compress: bool | None) -> None:
        """What `send` goes on with when the message could not be written at once."""
        await self._counted(self._send_any(message, compress))

    async def _counted(self, sending: Coroutine[Any, Any, None]) -> None:
        try:
            await sending
        except Error:
            self._metrics.record_send_error()
            raise

    async def _send_any(self, message: Any, compress: bool | None) -> None:
        if isinstance(message, (str, bytes, bytearray, memoryview, Message)):
            await self._send_when_possible(data_message(message), compress)
        elif isinstance(message, COLLECTIONS):
            raise _unclear(message)
        elif isinstance(message, (Iterable, AsyncIterable)):
            await self._send_parts(message, compress)
        else:
            raise TypeError(f"cannot send {type(message).__name__}: str, bytes-like, Message or an iterator of them")

    async def _send_when_possible(self, message: Message, compress: bool | None) -> None:
        self._check_here()
        self._check_sending()
        await self._await_turn()
        self._check_sending()
        size = len(message)
        while self._waits_for_transport() and self.backpressure.waking:
            await asyncio.sleep(0)  # tasks that were admitted when the connection was lost go first
            self._check_sending()
        if self._waits_for_transport() or self._waits_for_itself:
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
        if isinstance(message, COLLECTIONS):
            raise _unclear(message)
        data = data_message(message)
        try:
            self._check_here()
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

    async def _await_turn(self) -> None:
        """In an outage: return to have a message queued; else wait for its end, behind other senders, or raise."""

    async def _send_parts(self, parts: Iterable[Any] | AsyncIterable[Any], compress: bool | None) -> None:
        """Send the items of `parts` as one message, each as a frame, or as several where `fragment_size` says so.

        Whether the message is compressed, its first part decides.
        """
        self._check_here()
        if self._is_within_parts:
            raise InvalidState("a part of a message cannot be a message of its own", state=self.state.name)
        async with self._turn_for_parts():
            self._parts_now = object()
            outer = _parts_around.get()
            _parts_around.set((*outer, self._parts_now))
            opcode: int | None = None
            pending: bytes | None = None
            session: Session | None = None  # that the first part went out by
            try:
                async for part in _iterate(parts):
                    kind, payload = _part(part)
                    if opcode is None:
                        opcode = kind
                    elif opcode != kind:
                        raise TypeError("the parts of one message must be all str or all bytes-like")
                    if pending is not None:
                        session = await self._write_next_part(opcode, pending, session, compress, final=False)
                    pending = payload
                if opcode is None or pending is None:
                    return  # nothing to send: no message
                await self._write_next_part(opcode, pending, session, compress, final=True)
                session = None
            except BaseException:
                if session is not None and not session.has_ended:
                    # Half a message is out and cannot be taken back (RFC 6455 §5.4).
                    self._begin_closing(1011, "message abandoned half-way")
                raise
            finally:
                self._parts_now = None
                _parts_around.set(outer)
                if session is not None and not session.has_ended:
                    self._end_parts()

    @contextlib.asynccontextmanager
    async def _turn_for_parts(self) -> AsyncIterator[None]:
        """Inside it, no other message in parts is being sent. The wait for it is one for room, and bounded likewise.

        It may be without an end: what is waited for may be an iterable that itself waits for this sender.
        """
        if self._parts_lock is None:
            self._parts_lock = asyncio.Lock()
        timeout = self._backpressure_config.timeout
        try:
            async with asyncio.timeout(timeout):
                await self._parts_lock.acquire()
        except TimeoutError:
            assert timeout is not None
            what = "another message in parts is not at its end"
            raise BackpressureTimeout(timeout, self.backpressure.level, what=what) from None
        try:
            yield
        finally:
            self._parts_lock.release()

    @property
    def _is_within_parts(self) -> bool:
        """Is this called by the iterator whose parts are being sent, or by a task that it has made?"""
        return self._parts_now is not None and self._parts_now in _parts_around.get()

    @property
    def _waits_for_itself(self) -> bool:
        """Would there be room in the outbox only when the message has been sent whose iterator asks for it?"""
        session = self._session_now
        return session is not None and session.is_sending_parts and self._is_within_parts

    async def _write_next_part(
        self, opcode: int, payload: bytes, session: Session | None, compress: bool | None, *, final: bool
    ) -> Session:
        """Write one part, the first one if `session` is None; return the session that it went out by."""
        if session is None:
            await self._await_turn()
            while self._waits_for_transport() or (self._is_open and (self._is_blocked or self._outbox_size)):
                await self._writable()
                await self._await_turn()
        else:
            while not session.has_ended and self._is_open and session.is_blocked:
                await self._writable()
        now = self._session_now
        if not self._is_open or now is None or (session is not None and session.has_ended):
            raise self._closed_error()
        if not self._write_part(0 if session is not None else opcode, payload, final, compress):
            raise self._closed_error()
        return now

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

    async def recv_many(self, limit: int = 1000) -> list[Message]:
        """Receive the next message, and those that are there already: 1 to `limit`; [] after a normal close.

        Raises what `recv` raises.
        """
        if limit < 1:
            raise ValueError(f"limit is {limit}, must be at least 1")
        message = await self.recv()
        messages = [] if message is None else [message]
        while messages and len(messages) < limit and (more := self._take_now()) is not None:
            messages.append(more)
        return messages

    async def recv_stream(self) -> AsyncIterator[str | bytes]:
        """Iterate over the next message as it arrives; nothing is yielded after a normal close.

        An item is a frame, or as much of a large one as has come.

        Text is decoded as it comes, characters split between frames included. `max_message_size` holds for the whole.
        Receiving anything else before the end gives up the rest of this message.

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
        if data is not None and not isinstance(data, (str, bytes, bytearray, memoryview)):
            raise TypeError(f"the data of a ping is str or bytes-like, not {type(data).__name__}")
        payload = uuid.uuid4().bytes[:8] if data is None else Message.ping(data).as_bytes()
        self._check_here()
        while self._is_open and self._is_blocked:
            await self._writable()
        session = self._session_now
        if not self._is_open or session is None:
            raise self._closed_error()
        if session.pings is None:
            session.pings = {}
        unanswered: dict[bytes, tuple[asyncio.Future[float], int]] = session.pings
        if payload in unanswered:
            raise InvalidState("a ping with the same data is still unanswered", state=self.state.name)
        answer: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        unanswered[payload] = answer, time.perf_counter_ns()
        try:
            session.write_ping(payload)
            return await answer
        finally:
            unanswered.pop(payload, None)
            del answer  # with an exception in it, it would keep this frame, which keeps it

    def _on_pong(self, payload: bytes) -> None:
        """RFC 6455 §5.5.3: a pong answers its ping, and every one sent before."""
        session = self._session_now
        if session is None:
            return
        beat = None if session.probe is None else session.probe.pong(payload)
        if beat is not None:
            self._record_rtt(beat)
        if not session.pings or payload not in session.pings:
            return
        now = time.perf_counter_ns()
        for sent in list(session.pings):
            answer, at = session.pings.pop(sent)
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
        session = self._session_now
        if manager is not None and session is not None:
            session.probe = LivenessProbe(self, manager)

    # -- closing

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection and wait until it is closed.

        What was sent before is delivered first, as long as the peer takes bytes within each `close_timeout`: see
        `undelivered`. The same bounds the close handshake. A cancelled `close` goes on by itself once it has begun.

        Args:
            code: 1000 to 1003, 1007 to 1014, or 3000 to 4999.
            reason: at most 123 bytes of UTF-8.
        """
        check_close(code, reason)
        self._check_here()
        await self._drain()
        self._begin_closing(code, reason)
        await self._until_closed()

    async def _drain(self) -> None:
        """Wait until the outbox is written, as long as the peer takes bytes within `close_timeout`."""
        while self._is_open and self._outbox_size:
            before = self._standing()
            try:
                async with asyncio.timeout(self._config.close_timeout):
                    await self._writable()
            except TimeoutError:
                if not self._has_moved(before) and self._session_now is not None:
                    self._cut_off()
                    return

    def _left_to_send(self) -> int:
        session = self._session_now
        return self._outbox_bytes + (0 if session is None else session.unsent_bytes)

    def _standing(self) -> tuple[int, int]:
        """How much is sent and how much is not, for `_has_moved`."""
        return self.messages_sent, self._left_to_send()

    def _has_moved(self, before: tuple[int, int]) -> bool:
        """Has the peer taken bytes since? Where more is sent meanwhile, what is left may not be less."""
        sent, left = before
        return self.messages_sent > sent or self._left_to_send() < left

    def _cut_off(self) -> None:
        """End the connection of a peer that takes no bytes; how many it did not get is logged."""
        session = self._session_now
        if session is not None:
            session.cut_off_bytes = self._left_to_send()
            session.abort()

    def _abort(self) -> None:
        """End the connection now, without a close frame."""
        if self._session_now is not None:
            self._session_now.abort()

    def _begin_closing(self, code: int, reason: str) -> None:
        if self._is_open and self._session_now is not None:
            self._session_now.begin_close(code, reason)

    async def wait_closed(self) -> None:
        """Wait until the connection is closed for good."""
        await self._until_closed()

    async def _until_closed(self) -> None:
        """Wait for the end, and for nothing that a subclass has to do about it."""
        self._check_here()
        if self._is_closed:
            return
        if self._closed_waiter is None:
            self._closed_waiter = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._closed_waiter)

    def _on_lost(self, session: Session) -> None:
        if self._is_loop_closed:  # tasks that wait there will not run any more
            self._closed_waiter = self._writable_waiters = self._backpressure = session.pings = None
        self._take_loss(session)
        self._end(None if is_normal(session) else self._loss)

    @property
    def _loss(self) -> ConnectionClosed | None:
        """How the latest session ended; made when it is asked for, as that of most connections never is."""
        if self._known_loss is None and self._ending is not None:
            self._known_loss = _loss_of(*self._ending, self._config.max_message_size)
        return self._known_loss

    def _take_loss(self, session: Session) -> None:
        """`session` has ended: settle the close code, and fail whatever waited for its transport."""
        self._ending, self._known_loss = (session.closing, session.abort_cause), None
        self._cut_off_messages = session.cut_off_messages()
        if session.cut_off_bytes:
            log_event(
                self._logger,
                logging.WARNING,
                "connection %s: %d bytes were not delivered, the peer took none within %g seconds",
                self.id,
                session.cut_off_bytes,
                self._config.close_timeout,
            )
        if session.probe is not None:
            session.probe.stop()
        if session.pings:
            for answer, _ in session.pings.values():
                if not answer.done():
                    answer.set_exception(self._lost_error())
        self._on_writable()
        if self._logger.isEnabledFor(logging.DEBUG):
            self._tell("has ended: %s", self._loss, code=self.close_code, reason=self.close_reason)
        if tracing.tracer is not None:
            tracing.tracer.session_ended(session, self, self._lost())
        if self._on_loss is not None:
            self._on_loss(self._lost())

    def _end(self, error: Exception | None) -> None:
        """The connection is closed for good: receivers get what is queued, then `error` if there is one."""
        if self._backpressure is not None:
            self._backpressure.abort(self._closed_error)
        self._undelivered += self._take_undelivered()
        self._on_writable()
        if self._closed_waiter is not None and not self._closed_waiter.done():
            self._closed_waiter.set_result(None)
        self._finish(error)  # last: a task that waits in recv() is resumed right in there

    def _take_undelivered(self) -> tuple[Message, ...]:
        cut_off, self._cut_off_messages = self._cut_off_messages, ()
        return cut_off + self._empty_outbox()

    def _empty_outbox(self) -> tuple[Message, ...]:
        """Take out what was accepted and not written."""
        messages = tuple(self._outbox_pop()[0] for _ in range(self._outbox_size))
        if self._backpressure is not None:
            for message in messages:
                self._backpressure.release(len(message))
        return messages

    def _closed_error(self) -> ConnectionClosed | InvalidState:
        """What is raised to a caller that needs an open connection; a new one each time: it gathers tracebacks."""
        session = self._session_now
        closing = None if session is None else session.closing
        if closing is not None:
            by = closing.began_by
            return ConnectionClosed(closing.received_code or closing.sent_code, closing.reason, by=by)
        if self._ending is not None:
            return self._lost_error()
        return InvalidState("not connected", state=self.state.name)

    def _lost(self) -> ConnectionClosed:
        """`_loss` of a connection of which a session has ended."""
        loss = self._loss
        assert loss is not None
        return loss

    def _lost_error(self) -> ConnectionClosed:
        return receive_queue.fresh(self._lost())

    # -- what went wrong

    def _is_end(self, error: BaseException) -> bool:
        return is_end(error)

    def _on_failed(self, error: BaseException, in_callback: bool) -> None:
        what = "the message callback raised" if in_callback else "reading failed"
        log_event(self._logger, logging.ERROR, "connection %s: %s", self.id, what, exc_info=error)


def loss_of(session: Session, max_message_size: int) -> ConnectionClosed:
    """How `session` ended."""
    return _loss_of(session.closing, session.abort_cause, max_message_size)


def _loss_of(
    closing: CloseHandshake | None, abort_cause: BaseException | None, max_message_size: int
) -> ConnectionClosed:
    code, reason = _code_and_reason(closing, abort_cause)
    if closing is None or abort_cause is not None:
        error = ConnectionClosed(code, by="transport")
        error.__cause__ = abort_cause
        return error
    if closing.fault:
        error = ConnectionClosed(code, reason, by="local", clean=bool(closing.received_code))
        error.__cause__ = _fault_error(closing, max_message_size)
        return error
    if closing.received_code:
        return ConnectionClosed(code, reason, by=closing.began_by, clean=True)
    return ConnectionClosed(code, by="transport")


def _code_and_reason(closing: CloseHandshake | None, abort_cause: BaseException | None) -> tuple[int, str]:
    """What `close_code` and `close_reason` say of a session that has ended."""
    if closing is not None and abort_cause is None:
        if closing.fault:
            return closing.sent_code, closing.reason
        if closing.received_code:
            return closing.received_code, closing.reason
    return 1006, ""


def is_normal(session: Session) -> bool:
    """Do `recv` and `async for` end without an exception?"""
    closing, cause = session.closing, session.abort_cause
    if cause is not None or (closing is not None and closing.fault):
        return False
    code, _ = _code_and_reason(closing, cause)
    return code in NORMAL_CLOSURE or (closing is not None and closing.began_by == "local")


def is_end(error: BaseException) -> bool:
    """Does it say that a connection is closed, and nothing else?"""
    if isinstance(error, BaseExceptionGroup):
        return all(is_end(each) for each in error.exceptions)
    return isinstance(error, ConnectionClosed)


def _fault_error(closing: CloseHandshake, max_message_size: int) -> Exception:
    """The exception that explains why this end failed the connection."""
    fault = Fault(closing.fault)
    error: Exception
    if fault is Fault.BAD_COMPRESSION:
        error = CompressionError(closing.reason)
    elif fault is Fault.TOO_LARGE:
        error = MessageTooLarge(closing.oversize, max_message_size)
    elif fault in (Fault.BAD_UTF8, Fault.BAD_CLOSE_TEXT):
        error = Utf8Error(closing.reason)
    else:
        error = InvalidFrame(closing.reason, code=closing.sent_code)
    error.__cause__ = closing.cause
    return error


def data_message(message: Any) -> Message:
    """`message` as a Message that can be sent as data; `TypeError` for anything else."""
    if not isinstance(message, Message):
        return Message(message)
    if not (message.is_text or message.is_binary):
        raise TypeError(f"cannot send a {message.msg_type.name} message as data; use ping() or close()")
    return message


def _unclear(message: Any) -> TypeError:
    """What a list raises, which could be meant as one message or as several."""
    return TypeError(
        f"cannot send a {type(message).__name__}: send_parts() sends its items as one message,"
        " send_many() as several, send_json() the whole as JSON"
    )


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
