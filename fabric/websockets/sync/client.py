"""`connect` and `reconnect` for threads: a connection to a server, or one after the other."""

from __future__ import annotations

import logging
import os
import socket
import ssl as ssl_module
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, Self, overload

from fabric.websockets._negotiation import ClientNegotiation, MaxSize, refuse_legacy
from fabric.websockets.asyncio.client import MAX_REDIRECTS
from fabric.websockets.asyncio.client import ClientConnection as AsyncClientConnection
from fabric.websockets.asyncio.connection import MaxQueue
from fabric.websockets.asyncio.proxy import connect_socks_proxy
from fabric.websockets.client import backoff, process_exception, redirected, without_credentials
from fabric.websockets.datastructures import HeadersLike
from fabric.websockets.exceptions import SecurityError
from fabric.websockets.extensions.base import ClientExtensionFactory
from fabric.websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory,
    enable_client_permessage_deflate,
)
from fabric.websockets.headers import validate_subprotocols
from fabric.websockets.http11 import USER_AGENT
from fabric.websockets.proxy import get_proxy, parse_proxy
from fabric.websockets.sync._wire import TransportSocket, Wire
from fabric.websockets.sync.connection import Connection, Inside
from fabric.websockets.sync.utils import Deadline
from fabric.websockets.typing import LoggerLike, Origin, PathLike, Subprotocol
from fabric.websockets.uri import parse_uri
from fabric_ext.receive_queue import inherits_in_c

__all__ = ["ClientConnection", "connect", "reconnect", "unix_connect", "unix_reconnect"]


class _Inside(Inside, AsyncClientConnection):
    """The connection inside a `ClientConnection`."""


@inherits_in_c
class ClientConnection(Connection):
    """A connection to a server; see `Connection`. `connect` makes them."""

    def __init__(
        self,
        sock: TransportSocket | socket.socket,
        protocol: ClientNegotiation,
        *,
        ping_interval: float | None = 20,
        ping_timeout: float | None = 20,
        close_timeout: float | None = 10,
        max_queue: MaxQueue = 16,
    ) -> None:
        super().__init__(
            sock,
            protocol,
            ping_interval=ping_interval,
            ping_timeout=ping_timeout,
            close_timeout=close_timeout,
            max_queue=max_queue,
        )
        self.pending_legacy_warning = True

    def _make(self, protocol: Any, **options: Any) -> _Inside:
        return _Inside(protocol, **options)

    def __enter__(self) -> Self:
        self.pending_legacy_warning = False
        return super().__enter__()

    def _warn_of_legacy(self, depth: int) -> None:
        if self.pending_legacy_warning:
            self.pending_legacy_warning = False
            warnings.warn(
                "connect() must be used as a context manager: with connect(...) as websocket: ...; alternatively, use "
                "websocket = connect(..., legacy=True) to connect directly",
                DeprecationWarning,
                stacklevel=depth + 1,
            )

    def handshake(
        self,
        additional_headers: HeadersLike | None = None,
        user_agent_header: str | None = USER_AGENT,
        timeout: float | None = None,
    ) -> None:
        """Ask the server for a WebSocket connection, and wait for its answer, for `timeout` seconds at most.

        Raises:
            InvalidHandshake: it refuses, or answers something else.
            TimeoutError: it does not answer in time.
        """
        try:
            self._driver.run(self._connection.handshake(additional_headers, user_agent_header), timeout)
        except TimeoutError as exc:
            raise TimeoutError("timed out while waiting for handshake response") from exc


class reconnect:  # noqa: N801  (a name of the interface)
    """Connect to the server at `uri` again and again: `for connection in reconnect(...)`.

    It gives a new connection each time the one before has been closed or lost, and tries again after failures that
    `process_exception` calls transient. `with reconnect(...) as connection` connects once.

    Args:
        process_exception: tells whether a failure is final: returns it or another exception, or None to try again.
        reconnect_delays: makes a generator of the seconds between attempts.
        uri, others: as for `connect`, without `legacy`.
    """

    def __init__(
        self,
        uri: str,
        *,
        sock: socket.socket | None = None,
        ssl: ssl_module.SSLContext | None = None,
        server_hostname: str | None = None,
        origin: Origin | None = None,
        extensions: Sequence[ClientExtensionFactory] | None = None,
        subprotocols: Sequence[Subprotocol] | None = None,
        compression: str | None = "deflate",
        additional_headers: HeadersLike | None = None,
        user_agent_header: str | None = USER_AGENT,
        proxy: str | Literal[True] | None = True,
        proxy_ssl: ssl_module.SSLContext | None = None,
        proxy_server_hostname: str | None = None,
        process_exception: Callable[[Exception], Exception | None] = process_exception,
        open_timeout: float | None = 10,
        ping_interval: float | None = 20,
        ping_timeout: float | None = 20,
        close_timeout: float | None = 10,
        reconnect_delays: Callable[[], Generator[float]] = backoff,
        max_size: MaxSize = 2**20,
        max_queue: MaxQueue = 16,
        logger: LoggerLike | None = None,
        create_connection: Callable[..., ClientConnection] | None = None,
        **kwargs: Any,
    ) -> None:
        refuse_legacy("connect", [name for name in kwargs if name != "timeout"])
        if ssl is None and "ssl_context" in kwargs:
            ssl = kwargs.pop("ssl_context")
            warnings.warn("ssl_context was renamed to ssl", DeprecationWarning, stacklevel=2)
        self.uri = uri
        self.ws_uri = parse_uri(uri)
        if not self.ws_uri.secure and ssl is not None:
            raise ValueError("ssl argument is incompatible with a ws:// URI")
        if subprotocols is not None:
            validate_subprotocols(subprotocols)
        for each in extensions or ():
            if not isinstance(each, ClientPerMessageDeflateFactory):
                raise TypeError(f"extension {each!r} is not supported; only ClientPerMessageDeflateFactory is")
        if compression == "deflate":
            extensions = enable_client_permessage_deflate(extensions)
        elif compression is not None:
            raise ValueError(f"unsupported compression: {compression}")
        self.sock = sock
        self.ssl = ssl
        self.server_hostname = server_hostname
        self.additional_headers = additional_headers
        self.user_agent_header = user_agent_header
        self.proxy = proxy
        self.proxy_ssl = proxy_ssl
        self.proxy_server_hostname = proxy_server_hostname
        self.process_exception = process_exception
        self.open_timeout = open_timeout
        self.reconnect_delays = reconnect_delays
        self.logger: LoggerLike = logging.getLogger("websockets.client") if logger is None else logger
        self.create_connection: Callable[..., ClientConnection] = create_connection or ClientConnection
        self.open_socket_kwargs = kwargs
        self.protocol_kwargs: dict[str, Any] = {
            "origin": origin,
            "extensions": extensions,
            "subprotocols": subprotocols,
            "max_size": max_size,
            "logger": self.logger,
        }
        self.connection_kwargs: dict[str, Any] = {
            "ping_interval": ping_interval,
            "ping_timeout": ping_timeout,
            "close_timeout": close_timeout,
            "max_queue": max_queue,
        }

    def connect(self) -> ClientConnection:
        """Connect, following redirects."""
        deadline = Deadline(self.open_timeout)
        for _ in range(MAX_REDIRECTS):
            try:
                connection = self._open_connection(deadline)
            except Exception as exc:
                target = self.process_redirect(exc)
                if target is exc:
                    raise
                if isinstance(target, Exception):
                    raise target from exc
                self.uri = target
                self.ws_uri = parse_uri(target)
            else:
                connection.start_keepalive()
                return connection
        raise SecurityError(f"more than {MAX_REDIRECTS} redirects")

    def process_redirect(self, exc: Exception) -> Exception | str:
        """Where a failed attempt leads: a URI, or the exception to raise."""
        given = self.open_socket_kwargs
        target, is_cross_origin = redirected(
            exc,
            self.uri,
            has_socket=self.sock is not None,
            is_unix=given.get("unix", False),
            elsewhere=None if given.get("address") is None else "an explicit host and port",
        )
        if is_cross_origin and self.additional_headers is not None:
            self.additional_headers = without_credentials(self.additional_headers)
        return target

    def _open_connection(self, deadline: Deadline) -> ClientConnection:
        wire = Wire()
        try:
            sock = self._open_wire(wire, deadline)
            protocol = ClientNegotiation(self.ws_uri, **self.protocol_kwargs)
            connection = self.create_connection(sock, protocol, **self.connection_kwargs)
            connection.handshake(self.additional_headers, self.user_agent_header, deadline.timeout())
        except BaseException:
            wire.close()
            raise
        return connection

    def _open_wire(self, wire: Wire, deadline: Deadline) -> TransportSocket:
        """A transport to the server, maybe through a proxy, over which nothing has been said yet."""
        context = self.ssl
        if self.ws_uri.secure and context is None:
            context = ssl_module.create_default_context()
        name = self.ws_uri.host if self.server_hostname is None else self.server_hostname
        kwargs = self.open_socket_kwargs.copy()
        is_unix = kwargs.pop("unix", False)
        path = kwargs.pop("path", None)
        proxy = None if is_unix or self.sock is not None else self.proxy
        if proxy is True:
            proxy = get_proxy(self.ws_uri)
        kwargs.setdefault("timeout", deadline.timeout())
        if self.sock is not None:
            sock = self.sock
        elif is_unix:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            _connect_or_close(sock, os.fspath(path), deadline)
        elif proxy is None:
            kwargs.setdefault("address", (self.ws_uri.host, self.ws_uri.port))
            sock = socket.create_connection(**kwargs)
        else:
            parsed = parse_proxy(proxy)
            if parsed.scheme.startswith("http"):
                return self._open_through_http_proxy(wire, parsed, context, name, kwargs, deadline)
            tunnel = connect_socks_proxy(parsed, self.ws_uri, local_addr=kwargs.pop("source_address", None))
            sock = wire.driver.run(tunnel, deadline.timeout(), "connecting to the proxy")
        try:
            return wire.open(sock, context, server_hostname=name, timeout=deadline.timeout())
        except BaseException:
            sock.close()
            raise

    def _open_through_http_proxy(
        self,
        wire: Wire,
        proxy: Any,
        context: ssl_module.SSLContext | None,
        name: str,
        kwargs: dict[str, Any],
        deadline: Deadline,
    ) -> TransportSocket:
        tls: dict[str, Any] = {}
        if proxy.scheme == "https":
            tls["ssl"] = self.proxy_ssl or ssl_module.create_default_context()
            tls["server_hostname"] = self.proxy_server_hostname or proxy.host
        elif self.proxy_ssl is not None:
            raise ValueError("proxy_ssl argument is incompatible with an http:// proxy")
        sock = socket.create_connection((proxy.host, proxy.port), **kwargs)
        try:
            tunnel = wire.open_tunnel(sock, proxy, self.ws_uri, self.user_agent_header, deadline.timeout(), **tls)
        except TimeoutError as exc:
            sock.close()
            raise TimeoutError("timed out while connecting to HTTP proxy") from exc
        except BaseException:
            sock.close()
            raise
        if context is not None:
            wire.start_tls(context, name, deadline.timeout())
        return tunnel

    def __enter__(self) -> ClientConnection:
        if hasattr(self, "connection"):
            raise RuntimeError("connect() isn't reentrant")
        self.connection = self.connect()
        return self.connection.__enter__()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        exc_traceback: TracebackType | None,
    ) -> None:
        try:
            self.connection.__exit__(exc_type, exc_value, exc_traceback)
        finally:
            del self.connection

    def __iter__(self) -> Iterator[ClientConnection]:
        delays: Generator[float] | None = None
        while True:
            try:
                with self as connection:
                    yield connection
            except Exception as exc:
                try:
                    final = self.process_exception(exc)
                except Exception as raised:  # noqa: BLE001  (as good as returned)
                    final = raised
                if final is exc:
                    raise
                if final is not None:
                    raise final from exc
                if delays is None:
                    delays = self.reconnect_delays()
                delay = next(delays)
                self.logger.info(
                    "connect failed; reconnecting in %.1f seconds: %s",
                    delay,
                    traceback.format_exception_only(exc)[0].strip(),
                )
                time.sleep(delay)
            else:
                delays = None


def _connect_or_close(sock: socket.socket, address: Any, deadline: Deadline) -> None:
    try:
        sock.settimeout(deadline.timeout())
        sock.connect(address)
    except BaseException:
        sock.close()
        raise


@overload
def connect(uri: str, *, legacy: Literal[True] | None = None, **options: Any) -> ClientConnection: ...
@overload
def connect(uri: str, *, legacy: Literal[False], **options: Any) -> reconnect: ...
def connect(
    uri: str,
    *,
    sock: socket.socket | None = None,
    ssl: ssl_module.SSLContext | None = None,
    server_hostname: str | None = None,
    origin: Origin | None = None,
    extensions: Sequence[ClientExtensionFactory] | None = None,
    subprotocols: Sequence[Subprotocol] | None = None,
    compression: str | None = "deflate",
    additional_headers: HeadersLike | None = None,
    user_agent_header: str | None = USER_AGENT,
    proxy: str | Literal[True] | None = True,
    proxy_ssl: ssl_module.SSLContext | None = None,
    proxy_server_hostname: str | None = None,
    open_timeout: float | None = 10,
    ping_interval: float | None = 20,
    ping_timeout: float | None = 20,
    close_timeout: float | None = 10,
    max_size: MaxSize = 2**20,
    max_queue: MaxQueue = 16,
    logger: LoggerLike | None = None,
    create_connection: Callable[..., ClientConnection] | None = None,
    legacy: bool | None = None,
    **kwargs: Any,
) -> ClientConnection | reconnect:
    """Connect to the server at `uri`: `with connect(...) as connection`, which closes it at the end.

    Args:
        uri: `ws://` or `wss://`.
        sock: a connected socket to use, wherever the URI leads.
        ssl: how TLS is spoken to the server.
        server_hostname: the name in the server's certificate; by default the host of the URI.
        origin: the Origin header.
        extensions: `ClientPerMessageDeflateFactory`, where compression is to be configured.
        subprotocols: those offered, most wanted first.
        compression: "deflate", or None for no compression.
        additional_headers: headers of the request.
        user_agent_header: the User-Agent header; None for none.
        proxy: True to use the one that the system's settings name, a URL to use that one, None for none.
        proxy_ssl, proxy_server_hostname: likewise, for a proxy that is spoken to with TLS.
        open_timeout: seconds for everything up to the end of the opening handshake; None for no limit.
        ping_interval, ping_timeout, close_timeout, max_queue: see `Connection`.
        max_size: bytes of a message received, or (of a message, of a frame); more fails the connection with 1009. None
            for no limit.
        logger: by default "websockets.client".
        create_connection: makes the connection: a subclass of `ClientConnection`, or a function with its arguments.
        legacy: True to use the connection without a `with`; without it that warns. False to get a `reconnect`.
        kwargs: arguments of `socket.create_connection`: `address`, `source_address`, `timeout` and such.

    Raises:
        InvalidURI, InvalidProxy: what was given is none.
        OSError: the network failed, TLS included.
        InvalidHandshake: the opening handshake failed.
        TimeoutError: it took too long.
    """
    connecter = reconnect(
        uri,
        sock=sock,
        ssl=ssl,
        server_hostname=server_hostname,
        origin=origin,
        extensions=extensions,
        subprotocols=subprotocols,
        compression=compression,
        additional_headers=additional_headers,
        user_agent_header=user_agent_header,
        proxy=proxy,
        proxy_ssl=proxy_ssl,
        proxy_server_hostname=proxy_server_hostname,
        open_timeout=open_timeout,
        ping_interval=ping_interval,
        ping_timeout=ping_timeout,
        close_timeout=close_timeout,
        max_size=max_size,
        max_queue=max_queue,
        logger=logger,
        create_connection=create_connection,
        **kwargs,
    )
    return _connected(connecter, legacy)


def _connected(connecter: reconnect, legacy: bool | None) -> ClientConnection | reconnect:
    if legacy is False:
        return connecter
    connection = connecter.connect()
    if legacy:
        connection.pending_legacy_warning = False
    return connection


def unix_reconnect(path: PathLike | None = None, uri: str | None = None, **kwargs: Any) -> reconnect:
    """Connect to the server at the Unix socket `path` again and again; see `reconnect` and `unix_connect`."""
    has_socket = kwargs.get("sock") is not None
    if path is None and not has_socket:
        raise ValueError("missing path argument")
    if path is not None and has_socket:
        raise ValueError("path is incompatible with sock")
    if uri is None:
        is_plain = kwargs.get("ssl") is None and kwargs.get("ssl_context") is None
        uri = "ws://localhost/" if is_plain else "wss://localhost/"
    return reconnect(uri=uri, unix=True, path=path, **kwargs)


@overload
def unix_connect(
    path: PathLike | None = None, uri: str | None = None, *, legacy: Literal[True] | None = None, **kwargs: Any
) -> ClientConnection: ...
@overload
def unix_connect(
    path: PathLike | None = None, uri: str | None = None, *, legacy: Literal[False], **kwargs: Any
) -> reconnect: ...
def unix_connect(
    path: PathLike | None = None, uri: str | None = None, *, legacy: bool | None = None, **kwargs: Any
) -> ClientConnection | reconnect:
    """Connect to the server at the Unix socket `path`; see `connect`.

    `uri` is by default `ws://localhost/`, or `wss://localhost/` where there is an argument `ssl`.
    """
    return _connected(unix_reconnect(path, uri, **kwargs), legacy)
