"""`serve`: a server that runs a handler for each connection."""

from __future__ import annotations

import asyncio
import functools
import hmac
import http
import inspect
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, cast

from fabric._connection.events import log_event
from fabric.websockets._negotiation import INTERNAL_ERROR, MaxSize, ServerNegotiation, refuse_legacy, reject
from fabric.websockets.asyncio._opening import Opening
from fabric.websockets.asyncio.connection import Connection, MaxQueue, WriteLimit, broadcast
from fabric.websockets.exceptions import (
    HeaderLineTooLong,
    InvalidHeader,
    InvalidMessage,
    RequestLineTooLong,
    TooManyHeaders,
)
from fabric.websockets.extensions.base import ServerExtensionFactory
from fabric.websockets.extensions.permessage_deflate import (
    ServerPerMessageDeflateFactory,
    enable_server_permessage_deflate,
)
from fabric.websockets.frames import CloseCode
from fabric.websockets.headers import (
    build_www_authenticate_basic,
    parse_authorization_basic,
    validate_subprotocols,
)
from fabric.websockets.http11 import SERVER, HeadReader, Request, Response
from fabric.websockets.protocol import State
from fabric.websockets.typing import LoggerLike, Origin, PathLike, StatusLike, Subprotocol
from fabric_ext.receive_queue import inherits_in_c

__all__ = ["Server", "ServerConnection", "basic_auth", "broadcast", "serve", "unix_serve"]

MAYBE_RESPONSE = Awaitable[Response | None] | Response | None


@inherits_in_c
class ServerConnection(Connection):
    """A connection of a server; see `Connection`. `serve` makes them.

    Attributes:
        server: the server.
        username: set by `basic_auth`.
        handler, handler_kwargs: set by `route`.
    """

    _negotiation: ServerNegotiation
    username: str
    handler: Callable[[ServerConnection], Awaitable[None]]
    handler_kwargs: Mapping[str, Any]

    def __init__(
        self,
        protocol: ServerNegotiation,
        server: Server,
        *,
        ping_interval: float | None = 20,
        ping_timeout: float | None = 20,
        close_timeout: float | None = 10,
        max_queue: MaxQueue = 16,
        write_limit: WriteLimit = 2**15,
    ) -> None:
        super().__init__(
            protocol,
            ping_interval=ping_interval,
            ping_timeout=ping_timeout,
            close_timeout=close_timeout,
            max_queue=max_queue,
            write_limit=write_limit,
        )
        self.server = server
        reader = self._reader = HeadReader(is_request=True)
        self._judged: asyncio.Future[None] = self.loop.create_future()  # the request is there, or cannot be read
        self._refusal: Response | None = None  # of a request that cannot be read
        self._opening = Opening(self, reader.feed, reader.end, self._on_request, self._on_bad_request)

    def respond(self, status: StatusLike, text: str) -> Response:
        """Make a response in plain text, for `process_request` and `process_response` to return."""
        return reject(status, text)

    async def handshake(
        self,
        process_request: Callable[[ServerConnection, Request], MAYBE_RESPONSE] | None = None,
        process_response: Callable[[ServerConnection, Request, Response], MAYBE_RESPONSE] | None = None,
        server_header: str | None = SERVER,
    ) -> None:
        """Wait for the request, and answer it."""
        await self._judged
        if self.request is None:
            if self._refusal is not None:
                await self._answer(self._refusal)
            return
        response = None
        if process_request is not None:
            response = await self._ask(process_request, self.request)
        if response is None:
            response = self._negotiation.accept(self.request)
        self.response = response
        if server_header is not None:
            response.headers["Server"] = server_header
        if process_response is not None:
            replacement = await self._ask(process_response, self.request, response)
            if replacement is not None:
                self.response = response = replacement
        if response.status_code == 101 and not self.server.is_serving():
            self.response = response = reject(http.HTTPStatus.SERVICE_UNAVAILABLE, "Server is shutting down.\n")
        await self._answer(response)

    async def _ask(self, function: Callable[..., Any], *arguments: Any) -> Response | None:
        """What the application's function says; an error is logged and answered with 500."""
        try:
            response = function(self, *arguments)
            if inspect.isawaitable(response):
                response = await response
            if response is not None and not isinstance(response, Response):
                raise TypeError(f"expected a Response or None, not {response!r}")
        except Exception as exc:
            self._negotiation.handshake_exc = exc
            name = "process_request" if len(arguments) == 1 else "process_response"
            self.logger.error(f"{name} failed", exc_info=True)
            return reject(http.HTTPStatus.INTERNAL_SERVER_ERROR, INTERNAL_ERROR)
        return response

    async def _answer(self, response: Response) -> None:
        """Send `response`: with 101 the connection is open, else the client has `close_timeout` to hang up."""
        if self.state is not State.CONNECTING:
            return
        negotiation = self._negotiation
        line = f"HTTP/1.1 {response.status_code} {response.reason_phrase}"
        negotiation.log_head(">", line, response.headers)
        self.transport.write(response.serialize())
        if response.status_code == 101:
            self.logger.info("connection open")
            rest = self._reader.rest + self._opening.rest
            self.transport.resume_reading()
            del self._reader, self._opening, self._judged
            self._open(rest)
            return
        what = "connection rejected" if negotiation.was_asked else "HTTP response sent"
        self.logger.info("%s (%d %s)", what, response.status_code, response.reason_phrase)
        if self.transport.can_write_eof():
            try:
                self.transport.write_eof()
            except (OSError, RuntimeError):  # the client has gone
                self.transport.abort()
        else:
            self.transport.close()
        self._on_closing()
        await self._until_closed()

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.server._accepted(self)

    def _lost_before_open(self, error: Exception | None) -> None:
        super()._lost_before_open(error)
        if not self._judged.done():  # reading the request raised
            self._judged.set_result(None)

    def _on_request(self) -> None:
        request = self.request = self._reader.request()
        self._negotiation.log_head("<", f"{request.method} {request.path} {request.protocol}", request.headers)
        if not self._judged.done():
            self._judged.set_result(None)

    def _on_bad_request(self, exc: Exception) -> None:
        error: Exception = exc
        failed = f"Failed to open a WebSocket connection: {exc}.\n"
        if isinstance(exc, RequestLineTooLong):
            what = "request line too long"
            self._refusal = reject(http.HTTPStatus.REQUEST_URI_TOO_LONG, failed)
        elif isinstance(exc, (HeaderLineTooLong, TooManyHeaders)):
            what = "header fields too large"
            self._refusal = reject(http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, failed)
        else:
            what = "no valid HTTP request"
            error = InvalidMessage("did not receive a valid HTTP request")
            error.__cause__ = exc
        self._negotiation.handshake_exc = error
        if self.debug:
            self.logger.debug("! %s", what, exc_info=exc)
        if not self._judged.done():
            self._judged.set_result(None)


class Server:
    """What `serve` returns: await it, or use it as a context manager, to start; it closes at the end of that.

    Args:
        create_server: makes the event loop's server.
        handler: runs one connection, from its acceptance to its end.
        logger: by default "websockets.server".
    """

    def __init__(
        self,
        create_server: Callable[[], Coroutine[Any, Any, asyncio.AbstractServer]],
        handler: Callable[[ServerConnection], Coroutine[Any, Any, None]],
        logger: LoggerLike | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.create_server = create_server
        self.handler = handler
        self.logger: LoggerLike = logging.getLogger("websockets.server") if logger is None else logger
        self.all_connections: set[ServerConnection] = set()
        self.handler_tasks: set[asyncio.Task[None]] = set()
        self.close_task: asyncio.Task[None] | None = None
        self._closed: asyncio.Future[None] = loop.create_future()

    @property
    def connections(self) -> set[ServerConnection]:
        """The open connections."""
        return {connection for connection in self.all_connections if connection._phase == State.OPEN}

    def close(
        self,
        close_connections: bool = True,
        code: CloseCode | int = CloseCode.GOING_AWAY,
        reason: str = "",
    ) -> None:
        """Accept no more connections, and close those that are open; again has no effect. `wait_closed` waits for it.

        Args:
            close_connections: False leaves it to clients and handlers to close those that are open.
            code, reason: of their close frames. Those in their opening handshake are answered with 503.
        """
        if self.close_task is None:
            self.close_task = self.get_loop().create_task(self._close(close_connections, code, reason))

    async def _close(self, close_connections: bool, code: CloseCode | int, reason: str) -> None:
        log_event(self.logger, logging.INFO, "server closing")
        self.server.close()
        if close_connections:
            closing = [asyncio.ensure_future(each.close(code, reason)) for each in self.connections]
            if closing:
                await asyncio.wait(closing)
        await self.server.wait_closed()
        if self.handler_tasks:
            await asyncio.wait(self.handler_tasks)
        self._closed.set_result(None)
        log_event(self.logger, logging.INFO, "server closed")

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The event loop."""
        return self.server.get_loop()

    async def start_serving(self) -> None:
        """Begin to accept connections, where `start_serving=False` was given."""
        await self.server.start_serving()

    async def serve_forever(self) -> None:
        """Accept connections until `close` is called; when it is cancelled, close, and wait for that."""
        try:
            if not self.is_serving():
                await self.start_serving()
            await self.wait_closed()
        except asyncio.CancelledError:
            self.close()
            await self.wait_closed()
            raise

    def is_serving(self) -> bool:
        """Are connections accepted?"""
        return self.server.is_serving()

    async def wait_closed(self) -> None:
        """Wait until the server is closed and all handlers have returned.

        A client that is in its TLS handshake is the event loop's until that is over: it has `open_timeout` for it, and
        is answered with 503.
        """
        await asyncio.shield(self._closed)

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The listening sockets; none once it is closed."""
        return tuple(self.server.sockets or ())  # uvloop has None once it is closed

    def _accepted(self, connection: ServerConnection) -> None:
        """A client has connected."""
        # Known at once: a server that is closed before the task has begun waits for it too.
        task = self.get_loop().create_task(self.handler(connection))
        self.handler_tasks.add(task)
        task.add_done_callback(self.handler_tasks.discard)

    async def _start(self) -> Self:
        if not hasattr(self, "server"):
            self.server = cast("asyncio.Server", await self.create_server())
            if self.server.is_serving():
                for sock in self.server.sockets:
                    self.logger.info("server listening on %s", name_of_socket(sock))
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        return self._start().__await__()

    async def __aenter__(self) -> Self:
        return await self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        await self.wait_closed()


def name_of_socket(sock: socket.socket) -> str:
    """A listening socket's address, for the log."""
    name = sock.getsockname()
    if sock.family == socket.AF_INET6:
        return f"[{name[0]}]:{name[1]}"
    return f"{name[0]}:{name[1]}" if sock.family == socket.AF_INET else str(name)


def serve(
    handler: Callable[[ServerConnection], Awaitable[None]],
    host: str | Sequence[str] | None = None,
    port: int | None = None,
    *,
    origins: Sequence[Origin | re.Pattern[str] | None] | None = None,
    extensions: Sequence[ServerExtensionFactory] | None = None,
    subprotocols: Sequence[Subprotocol] | None = None,
    select_subprotocol: Callable[[ServerConnection, Sequence[Subprotocol]], Subprotocol | None] | None = None,
    compression: str | None = "deflate",
    process_request: Callable[[ServerConnection, Request], MAYBE_RESPONSE] | None = None,
    process_response: Callable[[ServerConnection, Request, Response], MAYBE_RESPONSE] | None = None,
    server_header: str | None = SERVER,
    open_timeout: float | None = 10,
    ping_interval: float | None = 20,
    ping_timeout: float | None = 20,
    close_timeout: float | None = 10,
    max_size: MaxSize = 2**20,
    max_queue: MaxQueue = 16,
    write_limit: WriteLimit = 2**15,
    logger: LoggerLike | None = None,
    create_connection: Callable[..., ServerConnection] | None = None,
    **kwargs: Any,
) -> Server:
    """Serve WebSocket connections at `host` and `port`: `async with serve(...)`, or `await serve(...)`.

    A connection is closed when its handler returns, with 1000, or raises, with 1011; what it raises is logged.

    Args:
        handler: `async def handler(connection)`.
        host, port: where to listen, as for the event loop's `create_server`.
        origins: allowed values of the Origin header: str, compiled patterns, None for no such header; others get 403.
        extensions: `ServerPerMessageDeflateFactory`, where compression is to be configured.
        subprotocols: those supported, most wanted first. A client that has none of them gets 400.
        select_subprotocol: chooses among those that the client offers instead: `(connection, offered)`, returns one or
            None, or raises NegotiationError.
        compression: "deflate", or None for no compression.
        process_request: `(connection, request)`, plain or async, called before the request is judged: returns a
            response to send that, or None to go on.
        process_response: `(connection, request, response)`, likewise, before the response is sent: returns another one,
            or None.
        server_header: the Server header; None for none.
        open_timeout: seconds for the opening handshake, after which the connection is dropped; None for no limit.
        ping_interval, ping_timeout, close_timeout, max_queue, write_limit: see `Connection`.
        max_size: bytes of a message received, or (of a message, of a frame); more fails the connection with 1009. None
            for no limit.
        logger: by default "websockets.server".
        create_connection: makes the connections: a subclass of `ServerConnection`, or a function with its arguments.
        kwargs: arguments of the event loop's `create_server`: `sock`, `ssl`, `backlog`, `reuse_port`, `start_serving`
            and others.
    """
    refuse_legacy("serve", kwargs)
    if subprotocols is not None:
        validate_subprotocols(subprotocols)
    for each in extensions or ():
        if not isinstance(each, ServerPerMessageDeflateFactory):
            raise TypeError(f"extension {each!r} is not supported; only ServerPerMessageDeflateFactory is")
    if compression == "deflate":
        extensions = enable_server_permessage_deflate(extensions)
    elif compression is not None:
        raise ValueError(f"unsupported compression: {compression}")
    if kwargs.get("ssl") is not None:
        kwargs.setdefault("ssl_handshake_timeout", open_timeout)
        kwargs.setdefault("ssl_shutdown_timeout", close_timeout)
    make = ServerConnection if create_connection is None else create_connection

    async def create_server() -> asyncio.AbstractServer:
        loop = asyncio.get_running_loop()
        if kwargs.pop("unix", False):
            return await loop.create_unix_server(protocol, **kwargs)
        return await loop.create_server(protocol, cast("Any", host), cast("Any", port), **kwargs)

    def protocol() -> asyncio.Protocol:
        select = None
        if select_subprotocol is not None:

            def select(offered: Sequence[Subprotocol]) -> Subprotocol | None:
                return select_subprotocol(connection, offered)

        negotiation = ServerNegotiation(
            origins=origins,
            extensions=extensions,
            subprotocols=subprotocols,
            select_subprotocol=select,
            max_size=max_size,
            logger=server.logger,
        )
        connection = make(
            negotiation,
            server,
            ping_interval=ping_interval,
            ping_timeout=ping_timeout,
            close_timeout=close_timeout,
            max_queue=max_queue,
            write_limit=write_limit,
        )
        return connection._opening

    async def run(connection: ServerConnection) -> None:
        try:
            async with asyncio.timeout(open_timeout):
                await connection.handshake(process_request, process_response, server_header)
        except TimeoutError:
            pass
        except (Exception, GeneratorExit):
            connection.logger.error("opening handshake failed", exc_info=True)
        finally:  # whatever was raised, by whatever was called
            if connection._phase != State.OPEN:
                connection.transport.abort()
        if connection._phase != State.OPEN:
            return
        server.all_connections.add(connection)
        connection.start_keepalive()
        try:
            async with connection:
                await handler(connection)
        except (Exception, GeneratorExit):
            connection.logger.error("connection handler failed", exc_info=True)
        finally:
            server.all_connections.discard(connection)

    server = Server(create_server, run, logger)
    return server


def unix_serve(
    handler: Callable[[ServerConnection], Awaitable[None]], path: PathLike | None = None, **kwargs: Any
) -> Server:
    """Serve WebSocket connections at the Unix socket `path`; see `serve`."""
    return serve(handler, unix=True, path=path, **kwargs)


def _is_pair(credentials: Any) -> bool:
    try:
        username, password = credentials
    except (TypeError, ValueError):
        return False
    return isinstance(username, str) and isinstance(password, str)


def _is_known(known: Mapping[str, str], username: str, password: str) -> bool:
    expected = known.get(username)
    if expected is None:
        return False
    return hmac.compare_digest(expected.encode(errors="surrogateescape"), password.encode(errors="surrogateescape"))


def credentials_checker(
    credentials: Any, check_credentials: Callable[[str, str], Any] | None
) -> Callable[[str, str], Any]:
    """What says whether a user name and a password are right, of the arguments of `basic_auth`."""
    if (credentials is None) == (check_credentials is None):
        raise ValueError("provide either credentials or check_credentials")
    if check_credentials is not None:
        return check_credentials
    known: Any = [credentials] if _is_pair(credentials) else credentials
    try:
        pairs = list(known)
    except TypeError:
        pairs = [None]
    if not all(map(_is_pair, pairs)):
        raise TypeError(f"invalid credentials argument: {credentials}")
    return functools.partial(_is_known, dict(pairs))


async def authenticate(
    connection: Any, request: Request, realm: str, check: Callable[[str, str], Any]
) -> Response | None:
    """Set `username` of a connection for the credentials of its request; or return the response that asks for them."""
    try:
        username, password = parse_authorization_basic(request.headers["Authorization"])
    except KeyError:
        why = "Missing credentials\n"
    except InvalidHeader:
        why = "Unsupported credentials\n"
    else:
        valid = check(username, password)
        if inspect.isawaitable(valid):
            valid = await valid
        if valid:
            connection.username = username
            return None
        why = "Invalid credentials\n"
    response: Response = connection.respond(http.HTTPStatus.UNAUTHORIZED, why)
    response.headers["WWW-Authenticate"] = build_www_authenticate_basic(realm)
    return response


def basic_auth(
    realm: str = "",
    credentials: tuple[str, str] | Iterable[tuple[str, str]] | None = None,
    check_credentials: Callable[[str, str], Awaitable[bool] | bool] | None = None,
) -> Callable[[ServerConnection, Request], Awaitable[Response | None]]:
    """Make a `process_request` that lets in who has a user name and a password (RFC 7617), and sets `username`.

    Args:
        realm: what the client is told they are for.
        credentials: a pair of user name and password, or several.
        check_credentials: `(username, password)`, plain or async, says whether they are right. One of the two.

    Raises:
        TypeError: `credentials` are none.
        ValueError: both are given, or neither.
    """
    check = credentials_checker(credentials, check_credentials)

    async def process_request(connection: ServerConnection, request: Request) -> Response | None:
        return await authenticate(connection, request, realm, check)

    return process_request
