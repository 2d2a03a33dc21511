"""The client: connects, and stays connected.

Owns the life of a `WebSocketClient` over all its connections: the first one, the loss of each, the attempts
to replace it, and the end. What a connection does while it is open is `fabric._connection.base`'s, how one is opened
`fabric._handshake.client`'s, when to try again `fabric.reconnect`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Never, Self, TypeVar, Unpack

from fabric._client.heartbeats import heartbeat_of
from fabric._client.report import is_cancelled, log, told
from fabric._config.client import ClientConfig
from fabric._connection import tracing
from fabric._connection.base import BaseConnection, is_normal, loss_of
from fabric._connection.callbacks import check_callback
from fabric._connection.fork import stays_with_parent
from fabric._connection.open_context import OpenContext
from fabric._handshake.client import HandshakeResult, open_connection
from fabric._http.messages import Request, Response, address_of, response_of
from fabric.error import ConnectionClosed, Error, InvalidState, ReconnectTimeout
from fabric.metrics import MetricsCollector, loop_metrics_of
from fabric.ratelimit import connection_gate
from fabric.reconnect import ReconnectState, retry_after, should_retry
from fabric_ext.protocol import State, check_close
from fabric_ext.receive_queue import fresh, inherits_in_c

if TYPE_CHECKING:
    from fabric._config.options import ClientOptions
    from fabric._http.url import Url
    from fabric.heartbeat import HeartbeatManager
    from fabric.message import Message
    from fabric_ext.session import Session

__all__ = ["WebSocketClient"]

logger = logging.getLogger("fabric.client")

_Client = TypeVar("_Client", bound="WebSocketClient")

WAITS_FOR_ITSELF = "on_disconnect waits for the connection that is looked for once it has returned"

# What each callback is called with.
CALLED_WITH = {
    "on_message": ("client", "message"),
    "on_session": ("client",),
    "on_connect": ("client",),
    "on_disconnect": ("client", "error"),
    "on_reconnect": ("client",),
}


@inherits_in_c
class WebSocketClient(BaseConnection):
    """A connection to a WebSocket server, made by `connect`.

    When it is lost it is replaced, unless `ClientConfig.auto_reconnect` says otherwise: the object stays the
    same, and so do its queue, its metrics and its callbacks. Meanwhile `recv` and `async for` wait, and
    `send` keeps messages up to the backpressure limits, then raises `BufferFull` (or see `ClientConfig.outage`). They
    go out in order once there is a connection, before any newer one; `clear_queue` takes them back. What
    was written to a connection that was then lost may or may not have arrived. A message sent in parts and a ping
    end with their connection, in `ConnectionClosed`.

    A child that is forked lets go of the connection: it stays the parent's.

    What is final is said in `fabric.reconnect.should_retry`, and can be overruled by `ReconnectConfig.decide`. When
    an attempt fails for good, and when `ReconnectConfig.max_attempts` is used up, `recv` and `wait_closed` raise
    `ReconnectTimeout`.
    """

    __slots__ = (
        "_closers",
        "_connected_waiter",
        "_given_up",
        "_handshake",
        "_heartbeat",
        "_in_line",
        "_is_handed_over",
        "_keeps_on",
        "_line",
        "_on_connect",
        "_on_disconnect",
        "_on_reconnect",
        "_on_session",
        "_outage",
        "_repair",
        "_retry_now",
        "_schedule",
        "_session_end",
        "_session_refused",
        "_stopping",
        "_task",
        "_thread",
        "_verdict",
    )

    def __init__(
        self,
        config: ClientConfig,
        *,
        on_message: Callable[[Any, Message], Any] | None = None,
        on_session: Callable[[Any], Any] | None = None,
        on_connect: Callable[[Any], Any] | None = None,
        on_disconnect: Callable[[Any, ConnectionClosed | ReconnectTimeout], Any] | None = None,
        on_reconnect: Callable[[Any], Any] | None = None,
        _by_connect: bool = False,
        _stands_for: WebSocketClient | None = None,
    ) -> None:
        if not _by_connect:
            raise TypeError("a client is made by `await WebSocketClient.connect(...)`, or in `async with`")
        loop = asyncio.get_running_loop()
        metrics = MetricsCollector() if _stands_for is None else _stands_for.metrics
        metrics.loop = loop_metrics_of(loop)
        super().__init__(loop, config, masking=True, metrics=metrics, logger=logger, on_message=on_message)
        stays_with_parent(self)
        self._thread = threading.get_ident()
        self._on_session = on_session
        self._on_connect = on_connect
        self._on_disconnect = on_disconnect
        self._on_reconnect = on_reconnect
        self._heartbeat: HeartbeatManager | None = heartbeat_of(loop, config.heartbeat)
        self._schedule = ReconnectState(config.reconnect)
        # A socket that was handed to us serves once.
        self._keeps_on = config.auto_reconnect and config.reconnect.enabled and config.sock is None
        self._handshake: HandshakeResult | None = None  # of the latest session
        self._given_up: ReconnectTimeout | None = None
        self._is_handed_over = False  # `connect` has returned it
        self._stopping = False  # close() was called
        self._outage = config.outage
        self._line = asyncio.Lock()  # of senders that wait for the end of an outage
        self._in_line = 0  # how many they are
        self._retry_now: asyncio.Event | None = None  # set: the next attempt begins now
        self._connected_waiter: asyncio.Future[None] | None = None  # done when there is a connection, and at the end
        self._session_refused: BaseException | None = None  # what on_session raised latest
        self._closers = 0  # calls of close() that have not returned
        self._session_end: asyncio.Future[ConnectionClosed] | None = None  # how the present session ends
        self._task: asyncio.Task[None] | None = None  # see _live
        self._repair: asyncio.Task[None] | None = None  # the search for another session, while it lasts
        self._verdict: bool | float = True  # on the latest error: does another attempt follow?

    @classmethod
    def connect(
        cls,
        url: str | Callable[[], str | Awaitable[str]] | ClientConfig,
        *wrong: Never,
        on_message: Callable[[Self, Message], object] | None = None,
        on_session: Callable[[Self], object] | None = None,
        on_connect: Callable[[Self], object] | None = None,
        on_disconnect: Callable[[Self, ConnectionClosed | ReconnectTimeout], object] | None = None,
        on_reconnect: Callable[[Self], object] | None = None,
        **options: Unpack[ClientOptions],
    ) -> Connecting[Self]:
        """Connect to a server.

            client = await WebSocketClient.connect("ws://localhost:8080")

            async with WebSocketClient.connect("ws://localhost:8080") as client:  # closes it at the end
                ...

        The first connection is tried once, and what is wrong is raised here, unless `first_connect` is "retry".

        Args:
            url: the address, or a whole `ClientConfig`.
            on_message: a plain function, called with (client, message) right where a message arrives; then
                `recv` gets none. The fastest path; it must not block.
            on_session: called after each opening handshake, the first too, before anything that waits is sent and
                before anyone else receives: for a login, or to subscribe again. Its argument is a client of its
                own for this session, and good only until it returns: `send` and `recv` speak with the server.
                What it raises fails this attempt: `connect` raises it, and a client that reconnects tries again
                (see `fabric.reconnect.should_retry` for errors of this library). It ends with the connection.
            on_connect: called with the client before `connect` returns it. What it raises ends the client,
                and is raised by `connect`. As the following, a plain or a coroutine function.
            on_disconnect: called with the client and a `ConnectionClosed` when a connection has ended, before
                a new one is tried; and with a `ReconnectTimeout` when none will be. What it raises is logged. It
                cannot wait for the new one, which is tried once it has returned; a task that it makes can.
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
        callbacks: dict[str, Any] = {
            "on_message": on_message,
            "on_session": on_session,
            "on_connect": on_connect,
            "on_disconnect": on_disconnect,
            "on_reconnect": on_reconnect,
        }
        for name, function in callbacks.items():
            if function is not None:
                check_callback(name, function, CALLED_WITH[name])
        if inspect.iscoroutinefunction(on_message):
            raise TypeError("on_message must be a plain function; a coroutine can iterate over the client")
        if wrong:
            raise TypeError(f'the address is one argument, connect("ws://{url}:{wrong[0]}"); all others have names')
        if isinstance(url, ClientConfig):
            config = replace(url, **options) if options else url
        else:
            config = ClientConfig(url, **options)
        return Connecting("connect()", lambda: cls(config, **callbacks, _by_connect=True)._begin())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    # -- what is known of it

    @property
    def config(self) -> ClientConfig:
        """What it was made with."""
        config: ClientConfig = self._config
        return config

    @property
    def url(self) -> str:
        """The address, without credentials: the latest one that was connected to, where a function gives it."""
        address = self._where
        return "" if address is None else address.full

    @property
    def _where(self) -> Url | None:
        if self._handshake is not None:
            return self._handshake.address
        return None if callable(self._config.url) else self._config.address

    @property
    def request(self) -> Request | None:
        """The request of the latest opening handshake; None before it."""
        return None if self._handshake is None else Request(self._handshake.request)

    @property
    def response(self) -> Response | None:
        """The server's answer to `request`."""
        if self._handshake is None:
            return None
        return response_of(self._handshake.response)

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
    def reconnect_state(self) -> ReconnectState:
        """The schedule of attempts to reconnect."""
        return self._schedule

    @property
    def _authority(self) -> str:
        address = self._where
        return "the server" if address is None else address.authority

    # -- opening

    async def _begin(self) -> Self:
        """Connect for the first time."""
        try:
            try:
                await self._open()
            except Exception as error:
                retry = self._config.first_connect == "retry" and self._keeps_on
                if not retry or self._decide(error) is False:
                    raise
                log(logging.WARNING, "no connection to %s: %s", self._authority, str(error))
                failed = await self._search(error)
                if failed is not None:
                    raise fresh(failed[1]) from None
            await self._introduce()
        except BaseException:
            # The caller will not get this client, even if it is connected by now.
            self._on_disconnect = None
            self._stop()
            if self._session_now is not None:
                self._session_now.abort()
            raise
        self._is_handed_over = True
        session = self._session_now
        if session is not None and session.closing is not None and self._waits_for_transport():
            session.io.close()  # the server has closed it already: nothing is worth waiting for
        self._task = asyncio.get_running_loop().create_task(self._live())
        return self

    async def _introduce(self) -> None:
        """Call `on_connect`; not for longer than the connection lasts."""
        if self._on_connect is None:
            return
        result = self._on_connect(self)
        if not inspect.isawaitable(result):
            return
        assert self._session_end is not None
        callback = asyncio.ensure_future(result)
        try:
            await asyncio.wait([callback, self._session_end], return_when=asyncio.FIRST_COMPLETED)
            if not callback.done() and not self._stopping:
                raise self._lost_error()
            await asyncio.wait([callback])
        finally:
            if not callback.done():
                callback.cancel()
                await asyncio.wait([callback])
        try:
            callback.result()
        finally:
            del callback  # with an exception in it, it would keep this frame, which keeps it

    async def _open(self) -> None:
        began = time.perf_counter()
        with contextlib.nullcontext() if tracing.tracer is None else tracing.tracer.connecting(self):
            if self._on_session is None:
                await open_connection(self._config, self._accepted)
            else:
                await self._open_introduced(self._on_session)
        self._metrics.record_handshake(time.perf_counter() - began)

    async def _open_introduced(self, on_session: Callable[[Any], Any]) -> None:
        """Open a session, have `on_session` speak on it, then go on with it.

        Until then the session is another client's: what is sent and received by this one cannot get in between.
        """
        other = type(self)(self._config, on_connect=on_session, _by_connect=True, _stands_for=self)
        other._keeps_on = False
        other._id = self.id
        other.__dict__ = self.__dict__  # what the application keeps at its client, it finds there
        try:
            await open_connection(self._config, other._accepted)
            try:
                await other._introduce()
            except BaseException as error:
                self._session_refused = error
                raise
            await other._drain()
            session = other._session_now
            if session is None or not other._is_open:
                raise other._closed_error()
            if session.is_sending_parts:
                raise InvalidState("on_session has returned inside a message in parts", state=other.state.name)
            self._handshake, self._subprotocol = other._handshake, other._subprotocol
            if session.probe is not None:
                session.probe.stop()
            self._adopt(other)
        except BaseException:
            other._stop()
            other._abort()
            raise
        self._begin_life(session)
        other._end(InvalidState("a client for on_session is good until that returns", state=self.state.name))

    def _accepted(self, transport: asyncio.BaseTransport, handshake: HandshakeResult, rest: bytes) -> None:
        """An opening handshake has succeeded: begin a session."""
        self._handshake = handshake
        self._subprotocol = handshake.subprotocol
        codec, handshake.codec = handshake.codec, None
        limit = self._config.rate_limit
        gate = connection_gate(limit) if limit.is_limited else None
        self._open_session(transport, codec, gate, (limit.on_exceed, limit.on_exceed), rest)
        self._metrics.record_connection()

    def _opened(self) -> None:
        transport = self._transport
        self._local_addr = address_of(transport, "sockname")
        self._remote_addr = address_of(transport, "peername")
        self._session_end = asyncio.get_running_loop().create_future()
        if self._loss is not None:
            self._metrics.record_reconnection()
        self._schedule.connected(self._loop_time())
        self._begin_heartbeat(self._heartbeat)
        self._tell_waiters()
        self._flush_outbox()

    @staticmethod
    def _loop_time() -> float:
        return asyncio.get_running_loop().time()

    # -- losing and replacing

    @property
    def _is_reconnecting(self) -> bool:
        return self.state is State.RECONNECTING

    def _waits_for_transport(self) -> bool:
        """Is there no transport now, or one that is done, and will there be another?"""
        if self._is_reconnecting:
            return True
        session = self._session_now
        if session is None or session.closing is None:
            return False
        by_us = session.closing.began_by == "local" and not session.is_renewed
        return not by_us and self._is_followed(session)

    async def _await_turn(self) -> None:
        if self._outage == "queue" or not (self._waits_for_transport() or self._in_line):
            return
        if self._outage == "raise":
            raise self._outage_error()
        self._check_waiting()
        self._in_line += 1
        self._set_waiting(1)  # a later send is not to overtake this one
        try:
            async with self._line:
                while self._waits_for_transport():
                    await self.wait_connected()
        finally:
            self._in_line -= 1
            self._set_waiting(-1)

    def _queue_now(self, message: Any, compress: bool | None) -> None:
        if self._outage != "queue" and self._waits_for_transport():
            self._metrics.record_send_error()
            raise self._outage_error()
        super()._queue_now(message, compress)

    async def _writable(self) -> None:
        self._check_waiting()
        await super()._writable()

    def _check_waiting(self) -> None:
        """Raise where `on_disconnect` would wait for the connection that is looked for once it has returned."""
        if self._is_reconnecting and self._task is not None and self._is_running():
            raise InvalidState(WAITS_FOR_ITSELF, state=self.state.name)

    def _outage_error(self) -> ConnectionClosed | InvalidState:
        """What `send` raises in an outage, where it is not to queue."""
        return self._lost_error() if self._is_reconnecting else self._closed_error()

    def _is_followed(self, session: Session) -> bool:
        """Does another session follow this one, which has ended or was closed by the peer?"""
        if not self._keeps_on or not self._is_handed_over or self._stopping:
            return False
        if session.is_renewed:
            self._verdict = 0.0
        elif not session.is_judged:
            session.is_judged = True
            self._decide(loss_of(session, self._config.max_message_size))
        return self._verdict is not False

    def _on_lost(self, session: Session) -> None:
        if self._is_loop_closed:  # no task can look for another connection
            super()._on_lost(session)
            return
        try:
            self._settle_loss(session)
        except BaseException as error:
            self._break_off(error)
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise

    def _settle_loss(self, session: Session) -> None:
        self._take_loss(session)
        loss = self._lost()
        self._metrics.record_disconnection(loss.code)
        self._schedule.disconnected(self._loop_time())
        if self._is_followed(session):
            self._report_loss(logging.WARNING, "reconnecting", loss)
            if self._cut_off_messages:
                count = len(self._cut_off_messages)
                log(logging.WARNING, "%d messages to %s were cut off; they are not sent again", count, self._authority)
            self._lose()
            if self._backpressure is not None:
                self._backpressure.let_in()  # an outage has room up to the limits
        assert self._session_end is not None
        self._session_end.set_result(loss)
        if not self._is_reconnecting:
            normal = is_normal(session)
            if self._is_handed_over and not self._stopping:
                level = logging.INFO if normal else logging.WARNING
                self._report_loss(level, "for good", loss)
            self._end(None if normal else loss)

    def _report_loss(self, level: int, what_follows: str, loss: ConnectionClosed) -> None:
        extra = {"connection_id": str(self.id), "address": self.remote_addr, "code": loss.code, "reason": loss.reason}
        log(level, "connection to %s lost, %s: %s", self._authority, what_follows, told(loss), extra=extra)

    async def _live(self) -> None:
        """See to each session's end: tell of it, then find another one, until there is none to be had."""
        telling: asyncio.Task[None] | None = None  # on_reconnect
        try:
            while True:
                assert self._session_end is not None
                loss = await asyncio.shield(self._session_end)
                if telling is not None:
                    telling.cancel()
                await self._notify(self._on_disconnect, loss)
                if not self._is_reconnecting:
                    break
                ended = self._session_end
                self._repair = asyncio.get_running_loop().create_task(self._replace(loss))
                await asyncio.wait([self._repair])
                repair, self._repair = self._repair, None
                if not repair.cancelled():
                    repair.result()
                elif self._is_reconnecting:
                    raise asyncio.CancelledError  # something in it was cancelled, and not by this client
                if self._given_up is not None:
                    await self._notify(self._on_disconnect, self._given_up)
                if self._session_end is ended:
                    break
                if self._on_reconnect is not None:
                    telling = asyncio.get_running_loop().create_task(self._notify(self._on_reconnect))
        except BaseException as error:  # nothing may leave the client neither connected nor closed
            if isinstance(error, GeneratorExit) and not self._is_running():
                telling = None  # its loop is garbage, as that of a forked child may be: nothing can be waited for
                raise
            if is_cancelled(error):  # the loop is being shut down
                if self._repair is not None:
                    self._repair.cancel()
                if self._session_now is not None:
                    self._session_now.abort()
                elif self._is_reconnecting:
                    self._end_outage(None)
                raise
            self._break_off(error)
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            await self._notify(self._on_disconnect, self._given_up)
        finally:
            if telling is not None and not telling.done() and not self._is_closed:
                telling.cancel()
            if telling is not None:
                await asyncio.wait([telling])

    def _is_running(self) -> bool:
        """Is `_live` what the event loop runs now?"""
        try:
            return asyncio.current_task() is self._task
        except RuntimeError:  # there is no event loop in this thread
            return False

    async def _replace(self, loss: ConnectionClosed) -> None:
        """Find another session, or end."""
        failed = await self._search(loss)
        if failed is not None:
            self._give_up(*failed)

    async def _search(self, failure: BaseException) -> tuple[str, BaseException] | None:
        """Try until there is a session, or no more reason to try: then why, and the latest error."""
        while self._waits_for_session:
            exactly = None if self._verdict is True else self._verdict
            delay = self._schedule.next_delay(retry_after(failure), exactly=exactly)
            if delay is None:
                attempts = self._config.reconnect.max_attempts
                return f"no connection to {self._authority} after {attempts} attempts", failure
            log(logging.INFO, "attempt %d to reach %s in %.3g s", self._schedule.attempts, self._authority, delay)
            await self._pause(delay)
            try:
                await self._open()
            except (Exception, asyncio.CancelledError) as error:
                if is_cancelled(error):
                    raise
                level = logging.INFO if str(error) == str(failure) else logging.WARNING  # each kind once
                failure = error
                log(level, "no connection to %s: %s", self._authority, str(error))
                if self._decide(error) is False:
                    return f"connecting to {self._authority} again is of no use", error
        return None

    @property
    def _waits_for_session(self) -> bool:
        return self._is_reconnecting or self.state is State.CONNECTING

    async def _pause(self, seconds: float) -> None:
        """Wait before an attempt, or until `reconnect` asks for it."""
        self._retry_now = asyncio.Event()
        try:
            async with asyncio.timeout(seconds):
                await self._retry_now.wait()
        except TimeoutError:
            pass
        finally:
            self._retry_now = None

    def _decide(self, error: BaseException) -> bool | float:
        """What follows `error`; see `ReconnectState.decide`."""
        default = None
        if error is self._session_refused and not isinstance(error, Error):
            default = True
            log(logging.ERROR, "%s: on_session raised", self._authority, exc_info=error)
        self._session_refused = None
        try:
            self._verdict = self._schedule.decide(error, default=default)
        except (Exception, asyncio.CancelledError, GeneratorExit) as raised:  # noqa: BLE001  (logged)
            log(logging.ERROR, "%s: ReconnectConfig.decide raised for %r", self._authority, error, exc_info=raised)
            self._verdict = should_retry(error) if default is None else default
        return self._verdict

    def _break_off(self, error: BaseException) -> None:
        """Something in the repair raised that should not: close for good, with `error` as the reason."""
        self._keeps_on = False
        if self._session_now is not None:
            self._session_now.abort(error)  # it ends the client
        elif not self._is_closed:
            self._give_up(f"reconnecting to {self._authority} failed", error)
        if self._session_end is not None and not self._session_end.done() and self._loss is not None:
            self._session_end.set_result(self._loss)

    def _give_up(self, why: str, cause: BaseException | None) -> None:
        log(logging.WARNING, "%s: %s", why, str(cause))
        undelivered = self._take_undelivered()
        self._undelivered += undelivered
        error = ReconnectTimeout(why, attempts=self._schedule.attempts, undelivered=undelivered, cause=cause)
        self._given_up = error
        if not self._is_closed:
            self._end_outage(error)

    def _end_outage(self, error: ReconnectTimeout | None) -> None:
        """There will be no other session than the one that was lost."""
        self._end(error)

    def _end(self, error: Exception | None) -> None:
        super()._end(error)
        self._tell_waiters()

    def _closed_error(self) -> ConnectionClosed | InvalidState:
        error = super()._closed_error()
        if self._given_up is not None:
            error.__cause__ = self._given_up
        return error

    async def _notify(self, callback: Callable[..., Any] | None, *args: Any) -> None:
        if callback is None:
            return
        try:
            result = callback(self, *args)
            if inspect.isawaitable(result):
                await result
        except (Exception, asyncio.CancelledError) as error:
            if is_cancelled(error):
                raise
            log(logging.ERROR, "%s raised for client %s", callback, self.id, exc_info=error)

    # -- what the application asks for

    def _check_here(self) -> None:
        """Raise unless this is the client's own thread, also in an outage."""
        if self._thread != threading.get_ident() and not self._is_loop_closed:
            raise InvalidState("this client belongs to another thread: use asyncio.run_coroutine_threadsafe")
        super()._check_here()

    async def wait_connected(self) -> None:
        """Wait until there is a connection; return at once while there is one.

        Raises:
            ConnectionClosed: the client is closed for good; its cause says why.
            InvalidState: `on_disconnect` asks, and only when it has returned is a connection looked for.
        """
        self._check_here()
        while not self.is_connected:
            if self._is_closed:
                raise self._closed_error()
            self._check_waiting()
            if self._connected_waiter is None:
                self._connected_waiter = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._connected_waiter)

    def _tell_waiters(self) -> None:
        waiter, self._connected_waiter = self._connected_waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def reconnect(self) -> None:
        """Replace the connection by a fresh one, and wait until there is one.

        What was sent before is delivered first, then this end closes with 1001, and connects again at once. During an
        outage the next attempt begins now. Meanwhile it is as in any outage.

        Raises:
            ConnectionClosed: the client is closed, or no new connection could be made.
            InvalidState: this client does not reconnect; or as in `wait_connected`.
        """
        self._check_here()
        if not self._keeps_on:
            raise InvalidState("this client does not reconnect; make another one", state=self.state.name)
        session = self._session_now
        if session is not None and self._is_open:
            await self._drain()
            if not session.has_ended and self._is_open:
                session.is_renewed = True
                self._begin_closing(1001, "reconnecting")
                while not session.has_ended:
                    await asyncio.shield(self._session_ended())
        elif self._retry_now is not None:
            self._retry_now.set()
        await self.wait_connected()

    def _session_ended(self) -> asyncio.Future[ConnectionClosed]:
        assert self._session_end is not None
        return self._session_end

    def clear_queue(self) -> tuple[Message, ...]:
        """Take back the messages that were accepted and not yet written, oldest first: they will not be sent."""
        self._check_here()
        return self._empty_outbox()

    # -- closing

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close for good, and wait until it is done; a search for another connection ends at once.

        What was sent before is delivered first, as far as there is a connection: see `undelivered`. The close
        handshake goes on as long as the peer takes bytes within each `close_timeout`; a cancelled `close` goes on by
        itself once it has begun.

        Args:
            code: 1000 to 1003, 1007 to 1014, or 3000 to 4999.
            reason: at most 123 bytes of UTF-8.
        """
        check_close(code, reason)
        self._check_here()
        self._closers += 1
        try:
            self._stop()
            await super().close(code, reason)
        finally:
            self._closers -= 1
            if self._is_open and not self._closers:
                self._stopping = False  # not begun: it is as if close() had not been called
        await self._callbacks_done(self._config.close_timeout)

    def _stop(self) -> None:
        """Let nothing follow the present session."""
        self._stopping = True
        if self._is_reconnecting:  # else a search has succeeded, and returns
            if self._repair is not None and self._repair is not asyncio.current_task():
                self._repair.cancel()
            self._end_outage(None)

    async def wait_closed(self) -> None:
        """Wait until the client is closed for good.

        Raises:
            ReconnectTimeout: the connection was lost, and not replaced.
            InvalidState: as in `wait_connected`.
        """
        self._check_waiting()
        await self._until_closed()
        await self._callbacks_done()
        if self._given_up is not None and not self._stopping:
            raise fresh(self._given_up)

    async def _callbacks_done(self, timeout: float | None = None) -> None:
        """Wait for the callbacks that tell of the end, `timeout` seconds at most; not from within them."""
        if self._task is not None and self._task is not asyncio.current_task() and not self._is_loop_closed:
            await asyncio.wait([self._task], timeout=timeout)


class Connecting(OpenContext[_Client]):
    """What `WebSocketClient.connect` returns: awaitable for the client, or the context of an `async with`."""

    __slots__ = ()

    async def __aexit__(self, *exc: object) -> None:
        assert self._result is not None
        await self._result.close()
