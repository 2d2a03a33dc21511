"""`serve` for threads: a server that runs a handler for each connection, in a thread of its own."""

from __future__ import annotations

import concurrent.futures
import logging
import os
import re
import selectors
import socket
import ssl as ssl_module
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fabric._connection.events import log_event
from fabric.websockets._negotiation import MaxSize, ServerNegotiation, refuse_legacy, reject
from fabric.websockets.asyncio.connection import MaxQueue
from fabric.websockets.asyncio.server import ServerConnection as AsyncServerConnection
from fabric.websockets.asyncio.server import authenticate, credentials_checker, name_of_socket
from fabric.websockets.extensions.base import ServerExtensionFactory
from fabric.websockets.extensions.permessage_deflate import (
    ServerPerMessageDeflateFactory,
    enable_server_permessage_deflate,
)
from fabric.websockets.frames import CloseCode
from fabric.websockets.headers import validate_subprotocols
from fabric.websockets.http11 import SERVER, Request, Response
from fabric.websockets.protocol import State
from fabric.websockets.sync._wire import TransportSocket, Wire
from fabric.websockets.sync.connection import Connection, Inside, broadcast
from fabric.websockets.sync.utils import Deadline
from fabric.websockets.typing import LoggerLike, Origin, PathLike, StatusLike, Subprotocol
from fabric_ext.receive_queue import inherits_in_c

__all__ = ["Server", "ServerConnection", "basic_auth", "broadcast", "serve", "unix_serve"]

RETRY = 1.0  # seconds until connections are accepted again after descriptors, memory or threads have run out


class _Inside(Inside, AsyncServerConnection):
    """The connection inside a `ServerConnection`."""


class _Accepting:
    """What the connection inside looks at of its server."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def is_serving(self) -> bool:
        return not self._server.socket_closed.is_set()

    def _accepted(self, connection: Any) -> None:
        """Its thread is running already."""


@inherits_in_c
class ServerConnection(Connection):
    """A connection of a server; see `Connection`. `serve` makes them.

    Attributes:
        server: the server.
        username: set by `basic_auth`.
        handler, handler_kwargs: set by `route`.
    """

    username: str
    handler: Callable[..., None]
    handler_kwargs: Mapping[str, Any]

    def __init__(
        self,
        sock: TransportSocket | socket.socket,
        protocol: ServerNegotiation,
        server: Server,
        *,
        ping_interval: float | None = 20,
        ping_timeout: float | None = 20,
        close_timeout: float | None = 10,
        max_queue: MaxQueue = 16,
    ) -> None:
        self.server = server
        super().__init__(
            sock,
            protocol,
            ping_interval=ping_interval,
            ping_timeout=ping_timeout,
            close_timeout=close_timeout,
            max_queue=max_queue,
        )

    def _make(self, protocol: Any, **options: Any) -> _Inside:
        accepting: Any = _Accepting(self.server)
        return _Inside(protocol, accepting, **options)

    def respond(self, status: StatusLike, text: str) -> Response:
        """Make a response in plain text, for `process_request` and `process_response` to return."""
        return reject(status, text)

    def handshake(
        self,
        process_request: Callable[[ServerConnection, Request], Response | None] | None = None,
        process_response: Callable[[ServerConnection, Request, Response], Response | None] | None = None,
        server_header: str | None = SERVER,
        timeout: float | None = None,
    ) -> None:
        """Wait for the request, for `timeout` seconds at most, and answer it.

        Raises:
            TimeoutError: it did not come, or the client did not hang up behind a refusal, in time.
        """
        inside = self._connection
        hooks = self._outside(process_request), self._outside(process_response)
        try:
            self._driver.run(inside.handshake(*hooks, server_header), timeout, "the opening handshake")
        except RuntimeError:
            if inside._closed is None:  # else one of the hooks has closed it
                raise

    def _outside(self, function: Callable[..., Response | None] | None) -> Any:
        """`function` as the connection inside is to call it: it may wait, and use this connection."""
        if function is None:
            return None
        return lambda _, *arguments: self._driver.call_outside(function, self, *arguments)


class Server:
    """What `serve` returns: `serve_forever` accepts connections, until another thread calls `shutdown`.

    As a context manager it is shut down at the end.

    Args:
        sock: listening.
        handler: called in a thread of its own for each connection, with the socket and the address.
        logger: by default "websockets.server".
    """

    SHUTDOWN_POLLING_INTERVAL = 0.1  # seconds

    def __init__(
        self, sock: socket.socket, handler: Callable[[socket.socket, Any], None], logger: LoggerLike | None = None
    ) -> None:
        self.socket = sock
        self.handler = handler
        self.logger: LoggerLike = logging.getLogger("websockets.server") if logger is None else logger
        self.lock = threading.Lock()  # of the sets, and of _was_entered
        self.all_connections: set[ServerConnection] = set()
        self.handler_threads: set[threading.Thread] = set()
        self.socket_closed = threading.Event()  # no connection is accepted any more
        self.shutdown_watcher, self.shutdown_notifier = socket.socketpair()
        self._shutting_down: set[threading.Thread] = set()  # those of handler_threads that wait in shutdown()
        self._was_entered = False  # serve_forever() has begun, with a socket that was open
        self._short_since: float | None = None  # no connection can be accepted; of time.monotonic()

    @property
    def connections(self) -> set[ServerConnection]:
        """The open connections."""
        with self.lock:
            return {connection for connection in self.all_connections if connection.state is State.OPEN}

    def serve_forever(self) -> None:
        """Accept connections, until `shutdown` is called by another thread.

        When descriptors, memory or threads run out, that is logged, and it tries again after a second.
        """
        try:
            with self.lock:
                if self.socket.fileno() < 0:
                    return
                self._was_entered = True
            with selectors.DefaultSelector() as selector:
                selector.register(self.shutdown_watcher, selectors.EVENT_READ)
                name = name_of_socket(self.socket)
                selector.register(self.socket, selectors.EVENT_READ)
                self.logger.info("server listening on %s", name)
                while True:
                    ready = selector.select()
                    if any(key.fileobj is self.shutdown_watcher for key, _ in ready):
                        break
                    try:
                        self._accept()
                    except (BlockingIOError, ConnectionAbortedError):  # the client has gone
                        continue
                    except (OSError, RuntimeError) as error:
                        if self.socket.fileno() < 0:
                            break
                        self._report_shortage(error)
                        # The selector would tell again at once that somebody waits.
                        selector.unregister(self.socket)
                        selector.select(RETRY)
                        selector.register(self.socket, selectors.EVENT_READ)
        except (OSError, ValueError):
            if self.socket.fileno() >= 0:  # else shutdown() has closed it
                raise
        finally:
            self.socket_closed.set()
            self.shutdown_watcher.close()

    def _accept(self) -> None:
        """Accept a connection and start its thread.

        Raises:
            OSError: none can be accepted, as for lack of descriptors or memory.
            RuntimeError: no thread can be started; the connection is closed.
        """
        # Of a listening socket with TLS too: TLS is spoken by the connection.
        sock, address = socket.socket.accept(self.socket)
        thread = threading.Thread(target=self._handle, args=(sock, address))
        with self.lock:  # known at once: shutdown() waits for it
            self.handler_threads.add(thread)
        try:
            thread.start()
        except BaseException:
            with self.lock:
                self.handler_threads.discard(thread)
            sock.close()
            raise
        if self._short_since is not None:
            self._short_since = None
            log_event(self.logger, logging.INFO, "connections are accepted again")

    def _report_shortage(self, error: Exception) -> None:
        """Log it once when it begins, then how long it lasts at each further attempt."""
        if self._short_since is None:
            self._short_since = time.monotonic()
            text = "no connection can be accepted: %s; those who come have to wait"
            log_event(self.logger, logging.ERROR, text, error)
        else:
            text = "for %.0f s no connection could be accepted"
            log_event(self.logger, logging.ERROR, text, time.monotonic() - self._short_since)

    def _handle(self, sock: socket.socket, address: Any) -> None:
        try:
            self.handler(sock, address)
        finally:
            with self.lock:
                self.handler_threads.discard(threading.current_thread())

    def shutdown(
        self,
        close_connections: bool = True,
        code: CloseCode | int = CloseCode.GOING_AWAY,
        reason: str = "",
    ) -> None:
        """Accept no more connections, close those that are open, and wait until all handlers have returned.

        A handler may call it: then it does not wait for that one, nor for others that have called it.

        Args:
            close_connections: False leaves it to clients and handlers to close those that are open.
            code, reason: of their close frames. Those in their opening handshake are answered with 503.
        """
        log_event(self.logger, logging.INFO, "server closing")
        own = threading.current_thread()
        self.socket.close()
        try:
            self.shutdown_notifier.send(b"x")
        except OSError:  # it was called before
            pass
        finally:
            self.shutdown_notifier.close()
        with self.lock:
            was_entered = self._was_entered
            if own in self.handler_threads:
                self._shutting_down.add(own)
        try:
            if was_entered:
                self.socket_closed.wait()
            else:
                self.socket_closed.set()
                self.shutdown_watcher.close()
            if close_connections:
                self._close_connections(code, reason)
            else:
                for thread in self._awaited_threads():
                    thread.join()
        finally:
            with self.lock:
                self._shutting_down.discard(own)
        log_event(self.logger, logging.INFO, "server closed")

    def _awaited_threads(self) -> set[threading.Thread]:
        """Those of handlers that shutdown() in this thread has to wait for."""
        with self.lock:
            if threading.current_thread() in self._shutting_down:
                return self.handler_threads - self._shutting_down
            return set(self.handler_threads)

    def _close_connections(self, code: CloseCode | int, reason: str) -> None:
        """Close what is open, until no thread runs any more: some may be in their opening handshake."""
        while True:
            connections = self.connections
            is_over = not self._awaited_threads()
            if connections:
                with concurrent.futures.ThreadPoolExecutor() as executor:
                    for connection in connections:
                        executor.submit(connection.close, code, reason)
            elif is_over:
                return
            else:
                time.sleep(self.SHUTDOWN_POLLING_INTERVAL)

    def fileno(self) -> int:
        """The descriptor of the listening socket."""
        return self.socket.fileno()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name == "WebSocketServer":
            warnings.warn("WebSocketServer was renamed to Server", DeprecationWarning, stacklevel=2)
            return Server
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def serve(
    handler: Callable[[ServerConnection], None],
    host: str | None = None,
    port: int | None = None,
    *,
    sock: socket.socket | None = None,
    ssl: ssl_module.SSLContext | None = None,
    origins: Sequence[Origin | re.Pattern[str] | None] | None = None,
    extensions: Sequence[ServerExtensionFactory] | None = None,
    subprotocols: Sequence[Subprotocol] | None = None,
    select_subprotocol: Callable[[ServerConnection, Sequence[Subprotocol]], Subprotocol | None] | None = None,
    compression: str | None = "deflate",
    process_request: Callable[[ServerConnection, Request], Response | None] | None = None,
    process_response: Callable[[ServerConnection, Request, Response], Response | None] | None = None,
    server_header: str | None = SERVER,
    open_timeout: float | None = 10,
    ping_interval: float | None = 20,
    ping_timeout: float | None = 20,
    close_timeout: float | None = 10,
    max_size: MaxSize = 2**20,
    max_queue: MaxQueue = 16,
    logger: LoggerLike | None = None,
    create_connection: Callable[..., ServerConnection] | None = None,
    **kwargs: Any,
) -> Server:
    """Listen at `host` and `port`: `with serve(...) as server: server.serve_forever()`.

    A connection is closed when its handler returns, with 1000, or raises, with 1011; what it raises is logged.

    Args:
        handler: `def handler(connection)`, run in a thread of its own for each connection.
        host, port: where to listen, as for `socket.create_server`.
        sock: a listening socket to use instead.
        ssl: how TLS is spoken to clients.
        origins: allowed values of the Origin header: str, compiled patterns, None for no such header; others get 403.
        extensions: `ServerPerMessageDeflateFactory`, where compression is to be configured.
        subprotocols: those supported, most wanted first. A client that has none of them gets 400.
        select_subprotocol: chooses among those that the client offers instead: `(connection, offered)`, returns one or
            None, or raises NegotiationError. It must not wait for the connection.
        compression: "deflate", or None for no compression.
        process_request: `(connection, request)`, called before the request is judged: returns a response to send that,
            or None to go on.
        process_response: `(connection, request, response)`, likewise, before the response is sent: returns another one,
            or None.
        server_header: the Server header; None for none.
        open_timeout: seconds for the TLS and opening handshakes, after which the connection is dropped; None for no
            limit.
        ping_interval, ping_timeout, close_timeout, max_queue: see `Connection`.
        max_size: bytes of a message received, or (of a message, of a frame); more fails the connection with 1009. None
            for no limit.
        logger: by default "websockets.server".
        create_connection: makes the connections: a subclass of `ServerConnection`, or a function with its arguments.
        kwargs: arguments of `socket.create_server`: `backlog`, `reuse_port`, `family` and such.
    """
    refuse_legacy("serve", kwargs)
    if ssl is None and "ssl_context" in kwargs:
        ssl = kwargs.pop("ssl_context")
        warnings.warn("ssl_context was renamed to ssl", DeprecationWarning, stacklevel=2)
    if subprotocols is not None:
        validate_subprotocols(subprotocols)
    for each in extensions or ():
        if not isinstance(each, ServerPerMessageDeflateFactory):
            raise TypeError(f"extension {each!r} is not supported; only ServerPerMessageDeflateFactory is")
    if compression == "deflate":
        extensions = enable_server_permessage_deflate(extensions)
    elif compression is not None:
        raise ValueError(f"unsupported compression: {compression}")
    make = ServerConnection if create_connection is None else create_connection
    sock = _listening(sock, host, port, kwargs)
    if ssl is not None:
        sock = ssl.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)

    def connected(wire: Wire, sock: socket.socket, deadline: Deadline) -> ServerConnection:
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
            wire.open(sock, ssl, is_server=True, timeout=deadline.timeout()),
            negotiation,
            server,
            ping_interval=ping_interval,
            ping_timeout=ping_timeout,
            close_timeout=close_timeout,
            max_queue=max_queue,
        )
        return connection

    def run(sock: socket.socket, address: Any) -> None:
        deadline = Deadline(open_timeout)
        wire = Wire()
        try:
            try:
                connection = connected(wire, sock, deadline)
            except Exception:  # noqa: BLE001  (whatever a client does before there is a connection)
                sock.close()
                return
            try:
                connection.handshake(process_request, process_response, server_header, deadline.timeout())
            except TimeoutError:
                return
            except Exception:
                connection.logger.error("opening handshake failed", exc_info=True)
                return
            if connection.state is State.OPEN:
                _serve(server, connection, handler)
        finally:
            wire.close()

    server = Server(sock, run, logger)
    return server


def _serve(server: Server, connection: ServerConnection, handler: Callable[[ServerConnection], None]) -> None:
    """Run the handler, and close the connection."""
    with server.lock:
        server.all_connections.add(connection)
    try:
        connection.start_keepalive()
        with connection:
            handler(connection)
    except Exception:
        connection.logger.error("connection handler failed", exc_info=True)
    finally:
        with server.lock:
            server.all_connections.discard(connection)


def _listening(sock: socket.socket | None, host: str | None, port: int | None, kwargs: dict[str, Any]) -> socket.socket:
    is_unix = kwargs.pop("unix", False)
    path = kwargs.pop("path", None)
    if sock is not None:
        for name, value in (("host", host), ("port", port), ("path", path)):
            if value is not None:
                raise ValueError(f"{name} is incompatible with sock")
        return sock
    if not is_unix:
        return socket.create_server((host, port), **kwargs)
    if path is None:
        raise ValueError("missing path argument")
    kwargs.setdefault("family", socket.AF_UNIX)
    return socket.create_server(os.fspath(path), **kwargs)


def unix_serve(handler: Callable[[ServerConnection], None], path: PathLike | None = None, **kwargs: Any) -> Server:
    """Listen at the Unix socket `path`; see `serve`."""
    return serve(handler, unix=True, path=path, **kwargs)


def basic_auth(
    realm: str = "",
    credentials: tuple[str, str] | Iterable[tuple[str, str]] | None = None,
    check_credentials: Callable[[str, str], bool] | None = None,
) -> Callable[[ServerConnection, Request], Response | None]:
    """Make a `process_request` that lets in who has a user name and a password (RFC 7617), and sets `username`.

    Args:
        realm: what the client is told they are for.
        credentials: a pair of user name and password, or several.
        check_credentials: `(username, password)` says whether they are right. One of the two.

    Raises:
        TypeError: `credentials` are none.
        ValueError: both are given, or neither.
    """
    check = credentials_checker(credentials, check_credentials)

    def process_request(connection: ServerConnection, request: Request) -> Response | None:
        asking = authenticate(connection, request, realm, check)
        try:
            asking.send(None)
        except StopIteration as stop:
            response: Response | None = stop.value
            return response
        asking.close()
        raise TypeError("check_credentials is a coroutine function: a server for threads needs a plain one")

    return process_request
