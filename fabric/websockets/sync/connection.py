"""A connection for threads, as both sides have it, and `broadcast`.

It is a connection of `fabric.websockets.asyncio` on an event loop that no thread runs, and this class around it:
`recv` and `send` are C methods (`fabric_ext.plain_blocking`) that read and write the socket in the thread that calls
them. Pings, keepalive, closing, and which exception says what are the connection's inside.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import logging
import socket
import threading
import traceback
import uuid
import weakref
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Literal, NoReturn, Self, TypeVar, cast, overload

from fabric.websockets._negotiation import Negotiation
from fabric.websockets.asyncio.connection import Connection as AsyncConnection
from fabric.websockets.asyncio.connection import MaxQueue, ProtocolView
from fabric.websockets.exceptions import ConcurrencyError, ConnectionClosed, ConnectionClosedOK
from fabric.websockets.frames import CloseCode, Opcode
from fabric.websockets.http11 import Request, Response
from fabric.websockets.protocol import State
from fabric.websockets.sync._wire import TransportSocket, Wire
from fabric.websockets.sync.utils import Deadline
from fabric.websockets.typing import BytesLike, Data, DataLike, LoggerLike, Subprotocol
from fabric_ext.plain_blocking import PlainBlocking
from fabric_ext.plain_connection import Fragments
from fabric_ext.receive_queue import fresh
from fabric_ext.session_user import Part

__all__ = ["Connection", "Inside", "broadcast"]

T = TypeVar("T")

_POOL_ARGUMENTS = {"max_workers", "thread_name_prefix", "initializer", "initargs"}


class Inside(AsyncConnection):
    """What an asyncio connection has in addition where threads drive it."""

    wire: Wire | None = None

    def _end(self, *how: Any) -> None:
        super()._end(*how)
        if self.wire is not None:
            self.wire.ended()

    def _stop(self) -> None:
        """There is no other connection to look for."""

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Connection(PlainBlocking):
    """What `ClientConnection` and `ServerConnection` have in common. It is not made directly.

    Any thread may call any method; one at a time receives.

    Args:
        sock: what stands for the connected socket, or the socket.
        protocol: the configuration of the opening handshake, as `connect` and `serve` make it.
        ping_interval: seconds between keepalive pings; None for no pings.
        ping_timeout: seconds for the pong, after which the connection is failed with 1011; None to wait for ever.
        close_timeout: seconds for the close handshake, after which the transport is dropped; None for no limit.
        max_queue: frames received and not taken above which the socket is not read, or (high, low); None for no limit.

    Attributes:
        socket: for addresses, options and what TLS agreed on.
    """

    def __init__(
        self,
        sock: TransportSocket | socket.socket,
        protocol: Negotiation,
        *,
        ping_interval: float | None = 20,
        ping_timeout: float | None = 20,
        close_timeout: float | None = 10,
        max_queue: MaxQueue = 16,
    ) -> None:
        if not isinstance(sock, TransportSocket):
            sock = Wire().open(sock)
        wire = self._wire = sock._wire
        self.socket = sock
        inside = wire.driver.run(
            _call(
                self._make,
                protocol,
                ping_interval=ping_interval,
                ping_timeout=ping_timeout,
                close_timeout=close_timeout,
                max_queue=max_queue,
                write_limit=0,
            )
        )
        inside.wire = wire
        inside.logger = logging.LoggerAdapter(
            cast("logging.Logger", protocol.logger), {"websocket": weakref.proxy(self)}
        )
        wire.driver.add(inside)
        self._bind(wire.driver, inside, 0.0)
        wire.attach(inside._opening)

    def _make(self, protocol: Negotiation, **options: Any) -> Any:
        """The connection inside."""
        raise NotImplementedError

    def __del__(self) -> None:
        driver = self._driver
        if driver is not None and not driver.is_closed:
            self._wire.abandon()

    # -- what it is

    @property
    def id(self) -> uuid.UUID:
        """Identity of the connection, for logs."""
        return cast("uuid.UUID", self._connection.id)

    @property
    def logger(self) -> LoggerLike:
        """The logger, whose records have this connection as their attribute `websocket`."""
        return cast("LoggerLike", self._connection.logger)

    @logger.setter
    def logger(self, logger: LoggerLike) -> None:
        self._connection.logger = logger

    @property
    def debug(self) -> bool:
        """Are the details of the handshake and of keepalive logged?"""
        return cast("bool", self._connection.debug)

    @property
    def protocol(self) -> ProtocolView:
        """What programs look at of the Sans-I/O protocol of `websockets`: `state`, `extensions`, `uri` and such."""
        return cast("ProtocolView", self._connection.protocol)

    @property
    def ping_interval(self) -> float | None:
        """Seconds between keepalive pings; None for no pings."""
        return cast("float | None", self._connection.ping_interval)

    @ping_interval.setter
    def ping_interval(self, seconds: float | None) -> None:
        self._connection.ping_interval = seconds

    @property
    def ping_timeout(self) -> float | None:
        """Seconds for the pong of a keepalive ping; None to wait for ever."""
        return cast("float | None", self._connection.ping_timeout)

    @ping_timeout.setter
    def ping_timeout(self, seconds: float | None) -> None:
        self._connection.ping_timeout = seconds

    @property
    def close_timeout(self) -> float | None:
        """Seconds for the close handshake; None for no limit."""
        return cast("float | None", self._connection.close_timeout)

    @close_timeout.setter
    def close_timeout(self, seconds: float | None) -> None:
        self._connection.close_timeout = seconds

    @property
    def request(self) -> Request | None:
        """The request of the opening handshake; None before."""
        return cast("Request | None", self._connection.request)

    @property
    def response(self) -> Response | None:
        """The response of the opening handshake; None before."""
        return cast("Response | None", self._connection.response)

    @property
    def latency(self) -> float:
        """Seconds from the latest answered ping to its pong; 0.0 before the first."""
        return cast("float", self._connection.latency)

    @property
    def local_address(self) -> Any:
        """Address of this end: `(host, port)`, or longer for IPv6."""
        return self._connection.local_address

    @property
    def remote_address(self) -> Any:
        """Address of the other end: `(host, port)`, or longer for IPv6."""
        return self._connection.remote_address

    @property
    def state(self) -> State:
        """CONNECTING, OPEN, CLOSING or CLOSED."""
        return cast("State", self._connection.state)

    @property
    def subprotocol(self) -> Subprotocol | None:
        """The subprotocol agreed on, or None."""
        return cast("Subprotocol | None", self._connection.subprotocol)

    @property
    def close_code(self) -> int | None:
        """The code received (RFC 6455 §7.1.5), 1006 without a close frame; None until the connection is closed."""
        return cast("int | None", self._connection.close_code)

    @property
    def close_reason(self) -> str | None:
        """The reason received, "" without a close frame; None until the connection is closed."""
        return cast("str | None", self._connection.close_reason)

    # -- context manager

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(CloseCode.NORMAL_CLOSURE if exc_type is None else CloseCode.INTERNAL_ERROR)

    # -- running what the connection inside does

    def _run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run `coroutine`, of the connection inside, until it is done; TimeoutError after `timeout` seconds."""
        inside = self._connection
        try:
            return self._driver.run(coroutine, timeout)
        except ConcurrencyError:
            raise
        except RuntimeError:  # the connection has ended, and a thread that saw it has closed the loop
            if inside._closed is None:
                raise
            raise fresh(inside._closed) from None
        finally:
            self._release()

    def _release(self) -> None:
        if self._connection._closed is not None:
            self._wire.close()

    def _raise_closed(self) -> NoReturn:
        self._run(self._connection._raise_closed())
        raise AssertionError("unreachable")

    def _concurrent(self, method: str) -> ConcurrencyError:
        running = "send" if method == "send" else "recv or recv_streaming"
        return ConcurrencyError(f"cannot call {method} while another thread is already running {running}")

    def _fail(self, code: int, reason: str, cause: BaseException | None = None) -> None:
        """Fail the connection, if it is open."""
        session = self._connection._session_now
        if session is not None:
            self._driver.soon(session.fail_connection, code, reason, cause)

    # -- receiving

    def __iter__(self) -> Iterator[Data]:
        """Iterate over messages: until a normal end, or ConnectionClosedError."""
        try:
            while True:
                yield self.recv()
        except ConnectionClosedOK:
            return

    def _decoded(self, data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError as exc:
            self._fail(CloseCode.INVALID_DATA, f"{exc.reason} at position {exc.start}", exc)
            self._raise_closed()

    @overload
    def recv_streaming(self, decode: Literal[True]) -> Iterator[str]: ...
    @overload
    def recv_streaming(self, decode: Literal[False]) -> Iterator[bytes]: ...
    @overload
    def recv_streaming(self, decode: bool | None = None) -> Iterator[Data]: ...
    def recv_streaming(self, decode: bool | None = None) -> Iterator[Data]:
        """Receive the next message frame by frame, as it was sent.

        The iterator is to be read to its end; until then nobody can receive, and if it is given up half-way, nobody can
        any more.

        Args:
            decode: True for str, False for bytes, None for what was sent.

        Raises:
            ConnectionClosed: the connection is closed, and what came before has been received.
            ConcurrencyError: another thread receives.
        """
        self._warn_of_legacy(2)
        self._begin_stream()
        inside = self._connection
        shaped = _Shape(decode)
        begun = False
        try:
            is_last = False
            while not is_last:
                item = self._recv_item()
                begun = True
                if isinstance(item, Part):
                    is_last = item.final
                    yield shaped(item.data, is_last)
                else:
                    parts = item.parts if isinstance(item, Fragments) else [item]
                    for number, data in enumerate(parts, 1):
                        yield shaped(data, number == len(parts))
                    is_last = True
        except ConnectionClosed:
            inside._streaming = False
            raise
        except UnicodeDecodeError as exc:
            self._fail(CloseCode.INVALID_DATA, f"{exc.reason} at position {exc.start}", exc)
            self._raise_closed()
        except BaseException:
            if not begun:
                inside._streaming = False
                self._driver.soon(inside._close_stream)
            raise
        inside._streaming = False

    # -- sending

    def _send_parts(self, message: Any, text: bool | None) -> None:
        if isinstance(message, Mapping):
            raise TypeError("data is a dict-like object")
        if not isinstance(message, Iterable):
            raise TypeError("data must be str, bytes, or iterable")
        chunks = iter(message)
        try:
            chunk = next(chunks)
        except StopIteration:
            return
        if self.state is not State.OPEN:
            self._raise_closed()
        inside = self._connection
        self._driver.soon(self._begin_parts)
        try:
            is_text = isinstance(chunk, str)
            if not is_text and not isinstance(chunk, BytesLike):
                raise TypeError("iterable must contain bytes or str")
            opcode = Opcode.TEXT if (is_text if text is None else text) else Opcode.BINARY
            self._run(inside._send_fragment(opcode, chunk))
            for chunk in chunks:
                if not isinstance(chunk, str if is_text else BytesLike):
                    raise TypeError("iterable must contain uniform types")
                self._run(inside._send_fragment(Opcode.CONT, chunk))
            self._run(inside._send_fragment(Opcode.CONT, b"", fin=True))
        except BaseException as exc:
            # Half a message cannot be taken back: the connection is of no use any more.
            self._fail(CloseCode.INTERNAL_ERROR, "error in fragmented message")
            if isinstance(exc, Exception):
                self.wait_closed()
            raise
        finally:
            self._driver.soon(self._end_parts)

    def _begin_parts(self) -> None:
        inside = self._connection
        if inside._fragments_waiter is not None:
            raise self._concurrent("send")
        inside._fragments_waiter = inside.loop.create_future()

    def _end_parts(self) -> None:
        self._connection._fragments_waiter = None
        self._connection._end_parts()

    def _drain(self) -> None:
        try:
            self._run(self._connection._drain())
        except ConnectionClosed:
            return
        if self._connection._closed is not None:  # what was written may be lost
            raise fresh(self._connection._closed)

    # -- pings

    def ping(self, data: DataLike | None = None, *, ack_on_close: bool = False) -> PongReceived:
        """Send a ping; return an event that is set when its pong comes.

        Args:
            data: at most 125 bytes; by default four at random.
            ack_on_close: set the event at the end of the connection too.

        Raises:
            ConnectionClosed: the connection is closed.
            ConcurrencyError: a ping with the same data has not been answered yet.
        """
        self._warn_of_legacy(2)
        answer: Any = self._run(self._connection.ping(data))
        return PongReceived(self, answer, ack_on_close)

    def pong(self, data: DataLike = b"") -> None:
        """Send a pong that nobody asked for (RFC 6455 §5.5.3).

        Raises:
            ConnectionClosed: the connection is closed.
        """
        self._warn_of_legacy(2)
        self._run(self._connection.pong(data))

    def start_keepalive(self) -> None:
        """Begin to send a ping every `ping_interval` seconds, unless it is None."""
        self._driver.soon(self._connection.start_keepalive)
        self._wire.keep()

    # -- closing

    def close(self, code: CloseCode | int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Close the connection and wait until it is closed, for `close_timeout` at most; again has no effect.

        Raises:
            ProtocolError: the code may not be sent, or the reason has more than 123 bytes.
        """
        self._warn_of_legacy(2)
        with contextlib.suppress(ConnectionClosed):
            self._run(self._connection.close(code, reason))

    def wait_closed(self, timeout: float | None = None) -> bool:
        """Wait until the connection is closed, for `timeout` seconds at most; return whether it is."""
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            self._run(self._connection.wait_closed(), None if timeout is None else max(timeout, 0))
        return self._connection._closed is not None

    def close_socket(self) -> None:
        """Drop the connection, without a close frame."""
        self._wire.abort()
        self.wait_closed()


async def _call(function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    return function(*arguments, **options)


async def _until(future: asyncio.Future[Any]) -> None:
    await asyncio.wait([future])


class PongReceived(threading.Event):
    """The event that `ping` returns: it is set when the pong has come.

    A thread that waits for it works on the connection meanwhile.
    """

    def __init__(self, connection: Connection, answer: asyncio.Future[float], ack_on_close: bool) -> None:
        super().__init__()
        self._connection = connection
        self._answer = answer
        self._ack_on_close = ack_on_close

    def is_set(self) -> bool:
        """Has the pong come?"""
        answer = self._answer
        if super().is_set():
            return True
        return answer.done() and (self._ack_on_close or (not answer.cancelled() and answer.exception() is None))

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the pong, for `timeout` seconds at most; return whether it has come."""
        deadline = Deadline(timeout)
        if not self._answer.done():
            with contextlib.suppress(ConnectionClosed, TimeoutError):
                self._connection._run(_until(self._answer), None if timeout is None else max(timeout, 0))
        if self.is_set():
            return True
        left = deadline.timeout(raise_if_elapsed=False)
        return super().wait(None if left is None else max(left, 0))  # it will not come any more


class _Shape:
    """Makes frames of a message str or bytes; a character may be in several of them."""

    def __init__(self, decode: bool | None) -> None:
        self._decode = decode
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def __call__(self, data: Data, is_last: bool) -> Data:
        if isinstance(data, str):
            return data.encode() if self._decode is False else data
        return self._decoder.decode(data, is_last) if self._decode else data


def broadcast(
    connections: Iterable[Connection],
    message: DataLike,
    *,
    raise_exceptions: bool = False,
    text: bool | None = None,
    **kwargs: Any,
) -> None:
    """Send a message to all of `connections` that are open, and wait until the system has taken it.

    One that is sending a message in several frames is left out, with a warning in its log. It is written to all before
    any of them is waited for.

    Args:
        connections: clients' or servers'.
        message: str or bytes-like.
        raise_exceptions: raise an ExceptionGroup instead of writing warnings.
        text: True or False to send it as text or as binary, whatever its type.
        kwargs: of ThreadPoolExecutor, for programs that give them: no threads are needed here.

    Raises:
        TypeError: for another message.
    """
    if not isinstance(message, (str, bytes, bytearray, memoryview)):
        raise TypeError("data must be str or bytes")
    for name in kwargs:
        if name not in _POOL_ARGUMENTS:
            raise TypeError(f"broadcast() got an unexpected keyword argument {name!r}")
    errors: list[Exception] = []
    held = []
    for connection in connections:
        cause = written = None
        try:
            written = connection._write_now(message, text)
        except Exception as exc:  # noqa: BLE001  (the others are to have it)
            cause = exc
        if written is not None:
            if written:
                held.append(connection)
            continue
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
    for connection in held:
        with contextlib.suppress(ConnectionClosed):
            connection._drain()
    if errors:
        raise ExceptionGroup("skipped broadcast", errors)
