"""ASGI: FastAPI, Starlette, Litestar, Quart and Django Channels applications on fabric's core, under uvicorn.

    uvicorn.run(app, ws=fabric.asgi.WebSocketProtocol)
    fabric asgi app:app                                     uvicorn's command line
    gunicorn -k fabric.asgi.UvicornWorker app:app

HTTP stays uvicorn's. When a client asks for a WebSocket, uvicorn makes a `WebSocketProtocol`: it speaks ASGI with the
application, and what is on the wire is `fabric_ext.asgi`'s.

Owns the opening handshake, the events around the messages, keepalive, and what uvicorn's settings mean. Messages do not
come by here.
"""

from __future__ import annotations

import asyncio
import contextvars
import enum
import logging
import re
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from weakref import WeakKeyDictionary

from fabric._asgi.messages import BODY, START, Denial, encode_lines, header_lines, plain_response, scope_of
from fabric._config.defaults import DEFAULT_CLOSE_TIMEOUT, DEFAULT_MAX_FRAGMENTS
from fabric._connection.events import log_event
from fabric._connection.liveness import LivenessProbe
from fabric._connection.nodelay import send_without_delay
from fabric._handshake.rules import Rejection, check_upgrade, rejection_of, switching_protocols, unavailable
from fabric.compression import answer_offers
from fabric.config import CompressionConfig, HeartbeatConfig
from fabric.error import InvalidHeader
from fabric.headers import is_token
from fabric.heartbeat import HeartbeatManager
from fabric_ext.asgi import AsgiConnection
from fabric_ext.http_head import RequestHead
from fabric_ext.protocol import MAX_REASON, check_close
from fabric_ext.session import Session, SessionProtocol

try:
    import uvicorn
    from uvicorn.protocols.utils import ClientDisconnected, get_client_addr, get_local_addr, get_remote_addr, is_ssl
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "fabric.asgi serves WebSockets for uvicorn, which is not installed: pip install 'websocket-fabric[asgi]'",
        name=error.name,
    ) from None

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from fabric.compression import Agreement

    UvicornWorker: type[Any]

__all__ = ["WebSocketProtocol"]

TRIED = (0, 34), (0, 54)
"""The versions of uvicorn, the first and the last, that the tests have been run with."""

MAX_HEAD = 256 * 1024  # bytes of a request; uvicorn has its own limits, and has read it
MAX_EARLY = 65536  # bytes kept of a client that does not wait for the answer; then it is not read any more
WRITE_LIMIT = 65536  # bytes that the transport may hold before `send` waits
KEEPALIVE_REASON = "keepalive ping timeout"
SHUTDOWN_CODE = 1012  # service restart, as uvicorn says it
TRACE = 5  # uvicorn's level of logging

logger = logging.getLogger(__name__)


def _look_at_version(version: str) -> None:
    """Say so, once, where uvicorn is one that has not been tried."""
    found = tuple(map(int, re.findall(r"\d+", version)[:2]))
    first, last = TRIED
    if not first <= found <= last:
        tried = " to ".join(f"{major}.{minor}" for major, minor in TRIED)
        log_event(
            logger,
            logging.WARNING,
            "uvicorn %s: fabric.asgi has been tried with %s, not with this version",
            version,
            tried,
        )


_look_at_version(uvicorn.__version__)


def __getattr__(name: str) -> Any:
    """`UvicornWorker`, which needs gunicorn, is imported when it is asked for."""
    if name == "UvicornWorker":
        from fabric._asgi.worker import worker_class

        return worker_class(WebSocketProtocol)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Settings:
    """What uvicorn's settings mean for the connections of one server."""

    def __init__(self, config: Config) -> None:
        if not config.loaded:
            config.load()
        self.app: Callable[..., Awaitable[Any]] = config.loaded_app
        self.asgi = {"version": config.asgi_version, "spec_version": "2.4"}
        self.root_path = config.root_path
        self.limit_concurrency = config.limit_concurrency
        self.resets_context = getattr(config, "reset_contextvars", False)  # older versions have none
        self.compression = CompressionConfig(enabled=config.ws_per_message_deflate)
        self.max_size = sys.maxsize if config.ws_max_size is None else max(config.ws_max_size, 1)
        self.max_queue = max(config.ws_max_queue, 1) if config.ws_max_queue else sys.maxsize
        self.logger = logging.getLogger("uvicorn.error")
        self.graceful_timeout = config.timeout_graceful_shutdown
        self.has_ping_timeout = bool(config.ws_ping_timeout)
        self.keepalive: HeartbeatManager | None = None
        interval = config.ws_ping_interval
        if interval is not None and interval > 0:
            # Without a timeout a peer is asked again and again: `_Keepalive.fail`.
            beat = HeartbeatConfig(
                mode="always", ping_interval=interval, ping_timeout=config.ws_ping_timeout or interval
            )
            self.keepalive = HeartbeatManager(beat)


_settings: WeakKeyDictionary[ServerState, _Settings] = WeakKeyDictionary()


def _settings_of(config: Config, state: ServerState) -> _Settings:
    settings = _settings.get(state)
    if settings is None:
        settings = _settings[state] = _Settings(config)
    return settings


class _Keepalive(LivenessProbe):
    """uvicorn's keepalive of one connection: a ping in each `ws_ping_interval`, whatever is received."""

    __slots__ = ()

    def fail(self, reason: str) -> None:
        peer: WebSocketProtocol = self._connection
        session = peer._session_now
        if session is None:
            return
        if peer._settings.has_ping_timeout:
            session.fail_connection(1011, KEEPALIVE_REASON)
        else:
            self._manager.add(self)


class _Phase(enum.Enum):
    """What the application may do."""

    CONNECTING = enum.auto()  # accept or deny
    DENYING = enum.auto()  # go on with its HTTP response
    OPEN = enum.auto()  # send and close
    OVER = enum.auto()  # nothing: it has closed or denied


class WebSocketProtocol(AsgiConnection, asyncio.Protocol):
    """One WebSocket of an ASGI application: `uvicorn.run(app, ws=WebSocketProtocol)`. uvicorn makes them.

    Args:
        config: uvicorn's.
        server_state: what uvicorn's connections share.
        app_state: the state of the lifespan.

    Attributes:
        loop: the event loop.
        transport: of the connection.
        messages_sent, messages_received: data messages so far.
        bytes_sent, bytes_received: their payloads, before compression and after decompression.
    """

    __slots__ = (
        "_agreement",
        "_buffer",
        "_drained",
        "_early",
        "_head",
        "_is_blocked_early",
        "_is_lost",
        "_key",
        "_liveness",
        "_phase",
        "_response",
        "_scope",
        "_settings",
        "_state",
        "_stopped_reading",
        "loop",
        "transport",
    )

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        settings = self._settings = _settings_of(config, server_state)
        self.loop = _loop or asyncio.get_running_loop()
        super().__init__(
            self.loop,
            max_queue=settings.max_queue,
            max_queue_bytes=max(settings.max_size, WRITE_LIMIT),
            write_limit=WRITE_LIMIT,
        )
        self._state = server_state
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self._phase = _Phase.CONNECTING
        self._scope: dict[str, Any] | None = {"state": app_state.copy()}  # until the answer
        self._head: RequestHead | None = RequestHead()  # until the request is there
        self._buffer = b""
        self._key = ""
        self._agreement: Agreement | None = None
        self._early = b""  # what came behind the request, until there is a session to read it
        self._stopped_reading = False
        self._response: Denial | None = None
        self._drained: asyncio.Future[None] | None = None  # for when the transport holds nothing
        self._is_blocked_early = False  # it holds much, before there is a session
        self._is_lost = False
        self._liveness: _Keepalive | None = None

    def __repr__(self) -> str:
        return f"<WebSocketProtocol {self._phase.name}>"

    # -- called by uvicorn, and by the transport until there is a session

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """uvicorn hands the transport over."""
        self.transport = transport  # type: ignore[assignment]
        send_without_delay(transport.get_extra_info("socket"))
        self._state.connections.add(self)  # type: ignore[arg-type]
        self._trace("made")

    def data_received(self, data: bytes) -> None:
        """The request, from uvicorn, and what comes behind it until it is answered."""
        if self._phase is not _Phase.CONNECTING:
            return
        head = self._head
        if head is None:
            self._early += data
            if len(self._early) > MAX_EARLY and not self._stopped_reading:
                self._stopped_reading = True
                self.transport.pause_reading()
            return
        self._buffer += data
        end = head.feed(self._buffer)
        if head.fault:
            self._reject(rejection_of(head.fault, head.wrong))
        elif end > MAX_HEAD or (not end and len(self._buffer) > MAX_HEAD):
            self._reject(Rejection(431, f"the request head is over {MAX_HEAD} bytes"))
        elif end:
            self._early = self._buffer[end:] or _bytes_behind(self.transport)
            self._buffer = b""
            self._head = None
            self._judge(head)

    def eof_received(self) -> None:
        """The client sends nothing more: the transport closes itself."""

    def pause_writing(self) -> None:
        """The client does not take the application's response as fast as it comes."""
        self._is_blocked_early = True

    def resume_writing(self) -> None:
        """It has taken it."""
        self._is_blocked_early = False
        self._on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left before there was a WebSocket."""
        self._on_lost(None)

    def shutdown(self) -> None:
        """uvicorn shuts down: close with 1012. No transport outlives `timeout_graceful_shutdown`."""
        session = self._session_now
        if session is None:
            if self._phase is _Phase.CONNECTING:
                self._respond(plain_response(500, self._state.default_headers))
            else:
                self._close_transport()
        elif session.closing is not None:  # the application has closed: the client's answer is not waited for any more
            self._hang_up()
        else:
            session.begin_close(SHUTDOWN_CODE, "")
            self._finish_with({"type": "websocket.disconnect", "code": SHUTDOWN_CODE}, ClientDisconnected())
        if self._settings.graceful_timeout is not None:
            self.loop.call_later(self._settings.graceful_timeout, self._abort)

    # -- the request

    def _judge(self, head: RequestHead) -> None:
        settings, transport = self._settings, self.transport
        scope = self._scope
        assert scope is not None
        scope.update(
            scope_of(head, settings.root_path),
            asgi=settings.asgi.copy(),
            scheme="wss" if is_ssl(transport) else "ws",
            server=get_local_addr(transport),
            client=get_remote_addr(transport),
            extensions={"websocket.http.response": {}},
        )
        try:
            check_upgrade(head)
            self._key = head.key
            self._agreement = answer_offers(head.get_all("Sec-WebSocket-Extensions"), settings.compression)
            limit = settings.limit_concurrency
            if limit is not None and max(len(self._state.connections), len(self._state.tasks)) >= limit:
                log_event(settings.logger, logging.WARNING, "Exceeded concurrency limit.")
                raise unavailable("the server is at its limit of connections")
        except Rejection as rejection:
            self._reject(rejection)
        except InvalidHeader as error:
            self._reject(Rejection(400, f"malformed Sec-WebSocket-Extensions: {error}"))
        else:
            self._put({"type": "websocket.connect"})
            # Not now: with eager tasks the application would answer before uvicorn has let go of the transport.
            self.loop.call_soon(self._start)

    def _reject(self, rejection: Rejection) -> None:
        """Answer a request that the application does not see."""
        self._log(str(rejection.response.status))
        self._respond(rejection.response.encode())

    def _start(self) -> None:
        context = contextvars.Context() if self._settings.resets_context else None
        task = self.loop.create_task(self._run_app(), context=context)
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    async def _run_app(self) -> None:
        """The application, from the request to its end."""
        log = self._settings.logger
        try:
            result = await self._settings.app(self._scope, self.receive, self.send)
        except ClientDisconnected:
            pass
        except BaseException as error:  # noqa: BLE001  (logged)
            log_event(log, logging.ERROR, "Exception in ASGI application\n", exc_info=error)
        else:
            if self._phase is _Phase.CONNECTING and not self._is_lost:
                log_event(log, logging.ERROR, "ASGI callable returned without completing handshake.")
            elif result is not None:
                log_event(
                    log, logging.ERROR, "ASGI callable should return None, but returned %s.", type(result).__name__
                )
        self._scope = None
        if self._phase is _Phase.CONNECTING:
            self._respond(plain_response(500, self._state.default_headers))
        elif self._phase is _Phase.DENYING:
            assert self._response is not None
            self._respond(self._response.cut_off())
        else:
            self._phase = _Phase.OVER
            if self.is_connected:
                self._hang_up()
            elif self._session_now is None:
                self._close_transport()

    # -- events of the application

    async def _send_event(self, event: Mapping[str, Any]) -> None:
        kind = event["type"]
        if self._is_gone:
            raise ClientDisconnected
        if self._phase is _Phase.CONNECTING:
            self._answer(kind, event)
        elif self._phase is _Phase.DENYING:
            await self._go_on_denying(kind, event)
        elif self._phase is _Phase.OVER:
            raise RuntimeError(
                f"Unexpected ASGI message '{kind}', after sending 'websocket.close' or response already completed."
            )
        elif kind == "websocket.close":
            self._close(event)
        elif kind == "websocket.send":
            await self.send(dict(event))
        else:
            raise RuntimeError(f"Expected ASGI message 'websocket.send' or 'websocket.close', but got '{kind}'.")

    @property
    def _is_gone(self) -> bool:
        """Has the client closed the connection, or is it lost?"""
        return self._is_lost or (self._phase is _Phase.OPEN and not self.is_connected)

    def _answer(self, kind: str, event: Mapping[str, Any]) -> None:
        if kind == "websocket.accept":
            self._accept(event)
        elif kind == "websocket.close":
            self._response = Denial({"status": 403}, self._state.default_headers)
            self._log("403")
            self._deny({})
        elif kind == START:
            self._response = Denial(event, self._state.default_headers)
            self._phase = _Phase.DENYING
            self._log(str(int(self._response.status)))
        else:
            raise RuntimeError(
                f"Expected ASGI message 'websocket.accept', 'websocket.close' or '{START}' but got '{kind}'."
            )

    def _accept(self, event: Mapping[str, Any]) -> None:
        lines = header_lines(event.get("headers") or ())
        subprotocol = event.get("subprotocol")
        for name, value in lines:
            if name == b"sec-websocket-protocol" and subprotocol is None:  # ASGI has a key for it
                subprotocol = value.decode("latin-1").strip()
            elif name in (b"connection", b"upgrade", b"sec-websocket-accept", b"sec-websocket-extensions"):
                raise ValueError(f"the header {name.decode()!r} of an accepted WebSocket is the server's to set")
        if subprotocol is not None and not is_token(subprotocol):
            raise ValueError(f"the subprotocol {subprotocol[:40]!r} is not a token (RFC 6455 §4.2.2)")
        fields = [line for line in lines if line[0] != b"sec-websocket-protocol"]
        extensions = None if self._agreement is None else str(self._agreement)
        answer = switching_protocols(
            self._key, encode_lines([*self._state.default_headers, *fields]), subprotocol or None, extensions
        )
        transport, settings = self.transport, self._settings
        if transport.is_closing():
            raise ClientDisconnected
        self._log("[accepted]")
        self._phase = _Phase.OPEN
        self._scope = None
        transport.write(answer)
        session = SessionProtocol(
            self,
            transport,
            self.loop,
            masking=False,
            max_message_size=settings.max_size,
            max_fragments=DEFAULT_MAX_FRAGMENTS,
            fragment_size=0,
            close_timeout=DEFAULT_CLOSE_TIMEOUT,
            codec=None if self._agreement is None else self._agreement.codec(settings.compression, "server"),
        )
        self._agreement = None
        if self._stopped_reading:
            transport.resume_reading()
        self._begin_session(session)
        if self._early:
            session.feed_early(self._early)
            self._early = b""
        if settings.keepalive is not None:
            self._liveness = _Keepalive(self, settings.keepalive)

    async def _go_on_denying(self, kind: str, event: Mapping[str, Any]) -> None:
        if kind != BODY:
            raise RuntimeError(f"Expected ASGI message '{BODY}' but got '{kind}'.")
        self._deny(event)
        if self._is_blocked_early:
            await self._drain()

    def _deny(self, event: Mapping[str, Any]) -> None:
        """Send a part of the response."""
        assert self._response is not None
        data = self._response.body(event)
        if self._response.is_complete:
            self._respond(data)
            self._finish_with({"type": "websocket.disconnect", "code": 1006}, ClientDisconnected())
        elif not self.transport.is_closing():
            self.transport.write(data)

    def _close(self, event: Mapping[str, Any]) -> None:
        code = event.get("code")
        code = 1000 if code is None else code
        reason = (event.get("reason") or "").encode()[:MAX_REASON].decode(errors="ignore")  # in ASGI any string will do
        check_close(code, reason)
        session = self._session_now
        assert session is not None
        self._phase = _Phase.OVER
        session.begin_close(code, reason)
        self._finish_with({"type": "websocket.disconnect", "code": code, "reason": reason}, ClientDisconnected())

    async def _drain(self) -> None:
        if self._drained is None:
            self._drained = self.loop.create_future()
        await asyncio.shield(self._drained)
        if self._is_lost:
            raise ClientDisconnected

    # -- what happens to the connection

    def _on_writable(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and not self.loop.is_closed():
            drained.set_result(None)

    def _on_closing(self) -> None:
        self._stop_pings()
        # In the next turn the close frame has been answered. Where the connection is lost before, `_on_lost` tells.
        self.loop.call_soon(self._tell_end, self._session_now)

    def _tell_end(self, session: Session | None) -> None:
        """Tell the application, unless it knows, how the connection has ended."""
        event = {"type": "websocket.disconnect", "code": 1006}
        closing = None if session is None else session.closing
        if closing is not None and closing.fault:
            event |= {"code": closing.sent_code, "reason": closing.sent_reason}
        elif closing is not None and closing.received_code:
            event |= {"code": closing.received_code, "reason": closing.received_reason}
        self._finish_with(event, ClientDisconnected())

    def _on_lost(self, session: Session | None) -> None:
        self._is_lost = True
        self._stop_pings()
        self._state.connections.discard(self)
        self._trace("lost")
        self._on_writable()
        self._tell_end(session)

    def _on_pong(self, payload: bytes) -> None:
        if self._liveness is not None:
            self._liveness.pong(payload)

    def _stop_pings(self) -> None:
        if self._liveness is not None:
            self._liveness.stop()
            self._liveness = None

    def _on_failed(self, error: BaseException, in_callback: bool) -> None:
        log_event(self._settings.logger, logging.ERROR, "reading from a WebSocket failed", exc_info=error)

    def _respond(self, data: bytes) -> None:
        """Write the end of an HTTP response, and close the connection."""
        self._phase = _Phase.OVER
        if not self.transport.is_closing():
            self.transport.write(data)
        self._close_transport()

    def _close_transport(self) -> None:
        """Close the connection; a client has `DEFAULT_CLOSE_TIMEOUT` to take what was written, and to end TLS."""
        if self._is_lost:
            return
        if not self.transport.is_closing():  # asyncio's TLS lets go of its connection when closed twice
            self.transport.close()
        if self.transport.get_write_buffer_size() or is_ssl(self.transport):
            self.loop.call_later(DEFAULT_CLOSE_TIMEOUT, self._abort)

    def _abort(self) -> None:
        session = self._session_now
        if session is not None:
            session.abort()
        elif not self._is_lost:
            self.transport.abort()

    # -- for the keepalive

    @property
    def is_connected(self) -> bool:
        """Is the WebSocket open?"""
        session = self._session_now
        return session is not None and session.closing is None

    @property
    def is_reading_paused(self) -> bool:
        """Is the socket not being read, as `ws_max_queue` messages wait?"""
        session = self._session_now
        return session is not None and session.is_reading_paused

    @property
    def _is_blocked(self) -> bool:
        session = self._session_now
        return session is not None and session.is_blocked

    @property
    def _transport(self) -> asyncio.Transport:
        return self.transport

    # -- the log

    def _log(self, outcome: str) -> None:
        """uvicorn's line about a request, without its query, which may hold a token."""
        scope = self._scope
        client, path = (get_client_addr(scope), quote(scope["path"])) if scope and "path" in scope else ("", "")  # type: ignore[arg-type]
        log_event(self._settings.logger, logging.INFO, '%s - "WebSocket %s" %s', client, path, outcome)

    def _trace(self, what: str) -> None:
        if self._settings.logger.isEnabledFor(TRACE):
            address = get_remote_addr(self.transport)
            prefix = f"{address[0]}:{address[1]} - " if address else ""
            log_event(self._settings.logger, TRACE, "%sWebSocket connection %s", prefix, what)


def _bytes_behind(transport: asyncio.Transport) -> bytes:
    """What the client has sent behind its request, in one go with it, and uvicorn's HTTP protocols keep to themselves.

    Called from within theirs: with h11 the rest is what its connection holds, with httptools it stands behind the
    offset at which the parser's exception, which is being handled, says that the request ends.
    """
    parser = getattr(transport.get_protocol(), "conn", None)
    trailing = getattr(parser, "trailing_data", None)
    if isinstance(trailing, tuple) and isinstance(trailing[0], bytes):
        return trailing[0]
    error = sys.exc_info()[1]
    if type(error).__name__ == "HttpParserUpgrade" and error is not None and error.__traceback__ is not None:
        data = error.__traceback__.tb_frame.f_locals.get("data")
        offset = error.args[0]
        if isinstance(data, bytes) and isinstance(offset, int):
            return data[offset:]
    return b""
