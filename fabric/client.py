"""The client: connects, and stays connected.

Owns the life of a `WebSocketClient` over all its connections: the first one, the loss of each, the attempts
to replace it, and the end. What a connection does while it is open is `fabric._connection.base`'s, how one is opened
`fabric._handshake.client`'s, when to try again `fabric.reconnect`'s.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, TypeVar
from weakref import WeakValueDictionary

from fabric._connection.base import BaseConnection
from fabric._connection.open_context import OpenContext
from fabric._handshake.client import HandshakeResult, open_connection
from fabric._http.messages import Request, Response, parse_response
from fabric.config import ClientConfig
from fabric.error import ConnectionClosed, ReconnectTimeout
from fabric.heartbeat import HeartbeatManager
from fabric.metrics import MetricsCollector
from fabric.ratelimit import connection_gate
from fabric.reconnect import FINAL_CLOSE_CODES, ReconnectState, retry_after, should_retry
from fabric_ext.inbox import iterates_in_c
from fabric_ext.protocol import State

if TYPE_CHECKING:
    from fabric.config import HeartbeatConfig
    from fabric.message import Message

__all__ = ["WebSocketClient"]

logger = logging.getLogger("fabric.client")

_Client = TypeVar("_Client", bound="WebSocketClient")

_heartbeats: WeakValueDictionary[tuple[int, HeartbeatConfig], HeartbeatManager] = WeakValueDictionary()


def _heartbeat_of(loop: asyncio.AbstractEventLoop, config: HeartbeatConfig) -> HeartbeatManager | None:
    """The one sweep of all clients of `loop` with this heartbeat. It keeps its loop, and clients keep it."""
    if not config.enabled:
        return None
    key = id(loop), config
    manager = _heartbeats.get(key)
    if manager is None:
        manager = _heartbeats[key] = HeartbeatManager(config, loop)
    return manager


@iterates_in_c
class WebSocketClient(BaseConnection):
    """A connection to a WebSocket server, made by `connect`.

    When it is lost it is replaced, unless `ClientConfig.auto_reconnect` says otherwise: the object stays the
    same, and so do its queue, its metrics and its callbacks. Meanwhile `recv` and `async for` wait, and
    `send` keeps messages up to the backpressure limits, then raises `BufferFull`. They go out in order once
    there is a connection, before any newer one. What was written to a connection that was then lost may or
    may not have arrived. A message sent in parts and a ping end with their connection, in `ConnectionClosed`.

    Final are a local `close`, the close codes 1000, 1002, 1003, 1007, 1008 and 1010, and an attempt that
    fails in a way that would only repeat itself (401, 403 and most other 4xx, a certificate that is not
    accepted). After the latter, and when `ReconnectConfig.max_attempts` is used up, `recv` and `wait_closed`
    raise `ReconnectTimeout`.
    """

    __slots__ = (
        "_answer",
        "_closers",
        "_config",
        "_given_up",
        "_heartbeat",
        "_interruptible",
        "_keeps_on",
        "_on_connect",
        "_on_disconnect",
        "_on_reconnect",
        "_schedule",
        "_stopping",
        "_task",
    )

    def __init__(
        self,
        config: ClientConfig,
        *,
        on_message: Callable[[Any, Message], Any] | None = None,
        on_connect: Callable[[Any], Any] | None = None,
        on_disconnect: Callable[[Any, ConnectionClosed | ReconnectTimeout], Any] | None = None,
        on_reconnect: Callable[[Any], Any] | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(loop, config, masking=True, metrics=MetricsCollector(), logger=logger, on_message=on_message)
        if config.rate_limit.is_limited:
            on_exceed = config.rate_limit.on_exceed
            self._limit_rate(connection_gate(config.rate_limit), on_exceed, on_exceed)
        self._config = config
        self._on_connect = on_connect
        self._on_disconnect = on_disconnect
        self._on_reconnect = on_reconnect
        self._heartbeat = _heartbeat_of(loop, config.heartbeat)
        self._schedule = ReconnectState(config.reconnect)
        # A socket that was handed to us serves once.
        self._keeps_on = config.auto_reconnect and config.reconnect.enabled and config.sock is None
        self._answer: HandshakeResult | None = None  # of the latest opening handshake
        self._given_up: ReconnectTimeout | None = None
        self._stopping = False  # close() was called
        self._closers: list[asyncio.Task[Any] | None] = []  # the tasks that are in close()
        self._task: asyncio.Task[None] | None = None  # sees to callbacks and reconnecting, one at a time
        self._interruptible = False  # close() cancels what it is doing

    @classmethod
    def connect(
        cls,
        url: str | ClientConfig,
        *,
        on_message: Callable[[Any, Message], Any] | None = None,
        on_connect: Callable[[Any], Any] | None = None,
        on_disconnect: Callable[[Any, ConnectionClosed | ReconnectTimeout], Any] | None = None,
        on_reconnect: Callable[[Any], Any] | None = None,
        **options: Any,
    ) -> Connecting[Self]:
        """Connect to a server.

            client = await WebSocketClient.connect("ws://localhost:8080")

            async with WebSocketClient.connect("ws://localhost:8080") as client:  # closes it at the end
                ...

        The first connection is tried once: what is wrong is raised here. Only one that stood is replaced.

        Args:
            url: the address, or a whole `ClientConfig`.
            on_message: a plain function, called with (client, message) right where a message arrives; then
                `recv` gets none. The fastest path; it must not block.
            on_connect: called with the client before `connect` returns it. What it raises ends the client,
                and is raised by `connect`. As the following, a plain or a coroutine function.
            on_disconnect: called with the client and a `ConnectionClosed` when a connection has ended, before
                a new one is tried; and with a `ReconnectTimeout` when none will be. What it raises is logged.
            on_reconnect: called with the client when there is a connection again and what waited to be sent
                is on its way; cancelled if it is lost meanwhile. What it raises is logged.
            options: fields of `ClientConfig`, instead of those in `url`.

        Raises:
            ValueError, TypeError: a bad URL or option.
            Timeout: `connection_timeout` passed; names the phase.
            ConnectionFailed: name not found, refused, unreachable, closed before an answer.
            Tls: the TLS handshake failed, or the certificate is not accepted.
            HandshakeFailed: the answer is no upgrade, or not a valid one; has `status`, `headers`, `body`.
            AuthenticationFailed: the answer is 401, 403, or 407 of a proxy.
            SubprotocolNegotiationFailed: the server chose a subprotocol that was not offered.
            Io: this process may not open another socket.
        """
        if on_message is not None and inspect.iscoroutinefunction(on_message):
            raise TypeError("on_message must be a plain function; a coroutine can iterate over the client")
        callbacks = {
            "on_message": on_message,
            "on_connect": on_connect,
            "on_disconnect": on_disconnect,
            "on_reconnect": on_reconnect,
        }
        for name, function in callbacks.items():
            if function is not None and not callable(function):
                raise TypeError(f"{name} must be callable, not {type(function).__name__}")
        if isinstance(url, ClientConfig):
            config = replace(url, **options) if options else url
        else:
            config = ClientConfig(url, **options)
        return Connecting(lambda: cls(config, **callbacks)._begin())  # type: ignore[arg-type]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    # -- what it is

    @property
    def config(self) -> ClientConfig:
        """What it was made with."""
        return self._config

    @property
    def url(self) -> str:
        """The address, without credentials."""
        return str(self._config.address)

    @property
    def request(self) -> Request | None:
        """The request of the latest opening handshake; None before it."""
        return None if self._answer is None else Request(self._answer.request)

    @property
    def response(self) -> Response | None:
        """The server's answer to `request`."""
        if self._answer is None:
            return None
        return Response(*parse_response(self._answer.response))

    @property
    def extensions(self) -> tuple[str, ...]:
        """The extensions agreed on, with their parameters."""
        response = self.response
        return () if response is None else tuple(response.headers.get_list("Sec-WebSocket-Extensions"))

    @property
    def heartbeat(self) -> HeartbeatManager | None:
        """What finds out that the server is gone, shared by clients configured alike; None when off."""
        return self._heartbeat

    @property
    def reconnect(self) -> ReconnectState:
        """The schedule of attempts to reconnect."""
        return self._schedule

    # -- opening

    async def _begin(self) -> Self:
        """Connect for the first time."""
        try:
            await self._open()
            if self._on_connect is not None:
                result = self._on_connect(self)
                if inspect.isawaitable(result):
                    await result
        except BaseException:
            # Nobody will get to know this client, even if it is connected by now.
            self._on_disconnect = None
            self._stop()
            self._abort()
            raise
        return self

    async def _open(self) -> None:
        began = time.perf_counter()
        await open_connection(self._config, self._new_link, self._accepted)
        self._metrics.record_handshake(time.perf_counter() - began)
        logger.debug("connected to %s", self.url)

    def _accepted(self, answer: HandshakeResult) -> None:
        self._answer = answer
        self._subprotocol = answer.subprotocol
        self._set_codec(answer.codec)
        answer.codec = None

    def _opened(self, request: Any, response: Any) -> None:
        transport = self._transport_now
        self._local_addr = transport.get_extra_info("sockname")
        self._remote_addr = transport.get_extra_info("peername")
        self._metrics.record_connection()
        if self._loss is not None:
            self._metrics.record_reconnection()
        self._schedule.connected(self._loop_time())
        self._begin_heartbeat(self._heartbeat)
        self._flush_outbox()
        if not self._outbox_size:
            self._on_writable()

    @staticmethod
    def _loop_time() -> float:
        return asyncio.get_running_loop().time()

    # -- losing and replacing

    @property
    def _is_reconnecting(self) -> bool:
        return self.state is State.RECONNECTING

    def _waits_for_transport(self) -> bool:
        return self._is_reconnecting

    def _on_lost(self) -> None:
        closed = self._take_loss()
        self._metrics.record_disconnection()
        self._schedule.disconnected(self._loop_time())
        if self._stopping or not self._keeps_on or closed.code in FINAL_CLOSE_CODES:
            self._look_after(closed)
            self._end(None if self._is_normal(closed) else closed)
        else:
            self._lose()
            if self._backpressure is not None:
                self._backpressure.let_in()  # an outage has room up to the limits
            self._close_code = self._closed_by = None
            self._look_after(closed)

    def _look_after(self, error: ConnectionClosed | ReconnectTimeout) -> None:
        """Start the task that has the callback called, and a replacement sought if there is to be one."""
        previous = self._task
        if previous is not None and previous not in self._closers and previous is not _current_task():
            previous.cancel()
        if self._is_reconnecting or self._on_disconnect is not None:
            self._interruptible = False
            self._task = asyncio.get_running_loop().create_task(self._see_to(error))

    async def _see_to(self, error: ConnectionClosed | ReconnectTimeout) -> None:
        await asyncio.sleep(0)  # let the transport, which has just told of its end, come to it
        await self._notify(self._on_disconnect, error)
        self._interruptible = True
        if self._is_reconnecting:
            await self._replace()
            if self._is_open:
                await self._notify(self._on_reconnect)

    async def _replace(self) -> None:
        """Try until there is a connection, or no more reason to try."""
        failure: Exception | None = self._loss
        while self._is_reconnecting:
            delay = self._schedule.next_delay(retry_after(failure))
            if delay is None:
                attempts = self._config.reconnect.max_attempts
                self._give_up(f"no connection to {self.url} after {attempts} attempts", failure)
                return
            logger.info(
                "attempt %d to reconnect to %s in %.3g s",
                self._schedule.attempts,
                self._config.address.authority,
                delay,
            )
            await asyncio.sleep(delay)
            try:
                await self._open()
            except Exception as error:  # noqa: BLE001  (given up for it or not, it is told)
                failure = error
                logger.info("no connection to %s: %s", self._config.address.authority, error)
                if not should_retry(error):
                    self._give_up(f"reconnecting to {self.url} is of no use", error)

    def _give_up(self, why: str, cause: Exception | None) -> None:
        logger.warning("%s: %s", why, cause)
        undelivered = self._empty_outbox()
        self._undelivered += undelivered
        error = ReconnectTimeout(why, attempts=self._schedule.attempts, undelivered=undelivered, cause=cause)
        self._given_up = error
        self._look_after(error)
        self._end_outage(error)

    def _end_outage(self, error: ReconnectTimeout | None) -> None:
        """There will be no other connection than the one that was lost."""
        assert self._loss is not None
        self._close_code = self._loss.code
        self._end(error)

    async def _notify(self, callback: Callable[..., Any] | None, *args: Any) -> None:
        if callback is None:
            return
        try:
            result = callback(self, *args)
            if inspect.isawaitable(result):
                await result
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise  # not of a task of the callback's, but of this one
            logger.error("%s raised for client %s", callback, self.id, exc_info=error)

    # -- closing

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close for good, and wait until it is done; a search for another connection ends at once.

        What was sent before is delivered first, as far as there is a connection: see `undelivered`. The close
        handshake is bounded by `close_timeout`; a cancelled `close` goes on by itself once it has begun.

        Args:
            code: 1000 to 1003, 1007 to 1014, or 3000 to 4999.
            reason: at most 123 bytes of UTF-8.
        """
        self._check_close(code, reason)
        self._closers.append(_current_task())
        try:
            self._stop()
            await super().close(code, reason)
        finally:
            self._closers.remove(_current_task())
            if self._is_open and not self._closers:
                self._stopping = False  # not begun: it is as if close() had not been called
        await self._settled(self._close_timeout)

    def _stop(self) -> None:
        """Let nothing follow the present connection."""
        self._stopping = True
        if self._task is not None and self._interruptible and self._task is not _current_task():
            self._task.cancel()
        if self._is_reconnecting:
            self._closed_by = "local"
            self._end_outage(None)

    async def wait_closed(self) -> None:
        """Wait until the client is closed for good.

        Raises:
            ReconnectTimeout: the connection was lost, and not replaced.
        """
        await self._until_closed()
        await self._settled()
        if self._given_up is not None and not self._stopping:
            raise self._given_up.with_traceback(None)

    async def _settled(self, timeout: float | None = None) -> None:
        """Wait for the callbacks that tell of the end, `timeout` seconds at most."""
        if self._task is not None and self._task is not _current_task():
            await asyncio.wait([self._task], timeout=timeout)


def _current_task() -> asyncio.Task[Any] | None:
    return asyncio.current_task()


class Connecting(OpenContext[_Client]):
    """What `WebSocketClient.connect` returns: awaitable for the client, or the context of an `async with`."""

    __slots__ = ()

    async def __aexit__(self, *exc: object) -> None:
        assert self._result is not None
        await self._result.close()
