"""`connect`: a connection to a server, awaited, as a context manager, or one after the other."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl as ssl_module
import traceback
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from types import TracebackType
from typing import Any, Literal

from fabric.websockets._negotiation import ClientNegotiation, MaxSize, refuse_legacy
from fabric.websockets.asyncio._opening import Opening
from fabric.websockets.asyncio.connection import Connection, MaxQueue, WriteLimit
from fabric.websockets.asyncio.proxy import connect_http_proxy, connect_socks_proxy
from fabric.websockets.client import backoff, process_exception, redirected, without_credentials
from fabric.websockets.datastructures import HeadersLike
from fabric.websockets.exceptions import InvalidMessage, SecurityError, StatusLineTooLong
from fabric.websockets.extensions.base import ClientExtensionFactory
from fabric.websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory,
    enable_client_permessage_deflate,
)
from fabric.websockets.headers import validate_subprotocols
from fabric.websockets.http11 import USER_AGENT, ResponseReader
from fabric.websockets.proxy import get_proxy, parse_proxy
from fabric.websockets.typing import LoggerLike, Origin, PathLike, Subprotocol
from fabric.websockets.uri import WebSocketURI, parse_uri
from fabric_ext.receive_queue import inherits_in_c

__all__ = ["ClientConnection", "connect", "unix_connect"]

MAX_REDIRECTS = int(os.environ.get("WEBSOCKETS_MAX_REDIRECTS", "10"))


@inherits_in_c
class ClientConnection(Connection):
    """A connection to a server; see `Connection`. `connect` makes them."""

    _negotiation: ClientNegotiation

    def __init__(
        self,
        protocol: ClientNegotiation,
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
        self._reader = ResponseReader()
        self._opened: asyncio.Future[None] = self.loop.create_future()
        self._opening = Opening(
            self, self._reader.feed, self._reader.feed_eof, self._on_response, self._on_bad_response
        )

    async def handshake(
        self, additional_headers: HeadersLike | None = None, user_agent_header: str | None = USER_AGENT
    ) -> None:
        """Ask the server for a WebSocket connection, and wait for its answer.

        Raises:
            InvalidHandshake: it refuses, or answers something else.
        """
        self.request = self._negotiation.request()
        headers = self.request.headers
        if additional_headers is not None:
            headers.update(additional_headers)
        if user_agent_header is not None:
            headers.setdefault("User-Agent", user_agent_header)
        self._negotiation.log_head(">", f"GET {self.request.path} HTTP/1.1", headers)
        self.transport.write(self.request.serialize())
        await self._opened

    def _on_response(self) -> None:
        # In this very step: a frame that comes right behind the response must find its reader.
        response = self.response = self._reader.response
        assert response is not None
        line = f"HTTP/1.1 {response.status_code} {response.reason_phrase}"
        self._negotiation.log_head("<", line, response.headers)
        try:
            self._negotiation.check(response)
            self._open(self._reader.rest)
        except Exception as exc:  # noqa: BLE001  (handshake() raises it)
            self._give_up(exc)
        else:
            if not self._opened.done():
                self._opened.set_result(None)
        del self._reader, self._opening

    def _on_bad_response(self, exc: Exception) -> None:
        if isinstance(exc, StatusLineTooLong):
            self._give_up(exc)
            return
        error = InvalidMessage("did not receive a valid HTTP response")
        error.__cause__ = exc
        self._give_up(error)

    def _give_up(self, exc: Exception) -> None:
        self._negotiation.handshake_exc = exc
        if not self._opened.done():
            self._opened.set_exception(exc)
            self._opened.exception()  # connect() may have been cancelled meanwhile


class connect:  # noqa: N801  (a name of the interface)
    """Connect to the server at `uri`.

    `await connect(...)` returns a `ClientConnection`; `async with connect(...)` closes it at the end;
    `async for connection in connect(...)` gives a new one each time the one before has been closed or lost, and tries
    again after failures that `process_exception` calls transient.

    Args:
        uri: `ws://` or `wss://`.
        origin: the Origin header.
        extensions: `ClientPerMessageDeflateFactory`, where compression is to be configured.
        subprotocols: those offered, most wanted first.
        compression: "deflate", or None for no compression.
        additional_headers: headers of the request.
        user_agent_header: the User-Agent header; None for none.
        proxy: True to use the one that the system's settings name, a URL to use that one, None for none.
        process_exception: tells whether a failure is final: returns it or another exception, or None to try again.
        open_timeout: seconds for everything up to the end of the opening handshake; None for no limit.
        ping_interval, ping_timeout, close_timeout, max_queue, write_limit: see `Connection`.
        reconnect_delays: makes a generator of the seconds between attempts.
        max_size: bytes of a message received, or (of a message, of a frame); more fails the connection with 1009. None
            for no limit.
        logger: by default "websockets.client".
        create_connection: makes the connection: a subclass of `ClientConnection`, or a function with its arguments.
        kwargs: arguments of the event loop's `create_connection`: `host`, `port`, `sock`, `ssl`, `server_hostname`,
            `local_addr` and others. For a proxy that is spoken to with TLS, `proxy_ssl` and such.

    Raises:
        InvalidURI, InvalidProxy: what was given is none.
        OSError: the network failed, TLS included.
        InvalidHandshake: the opening handshake failed.
        TimeoutError: it took too long.
    """

    def __init__(
        self,
        uri: str,
        *,
        origin: Origin | None = None,
        extensions: Sequence[ClientExtensionFactory] | None = None,
        subprotocols: Sequence[Subprotocol] | None = None,
        compression: str | None = "deflate",
        additional_headers: HeadersLike | None = None,
        user_agent_header: str | None = USER_AGENT,
        proxy: str | Literal[True] | None = True,
        process_exception: Callable[[Exception], Exception | None] = process_exception,
        open_timeout: float | None = 10,
        ping_interval: float | None = 20,
        ping_timeout: float | None = 20,
        close_timeout: float | None = 10,
        reconnect_delays: Callable[[], Generator[float]] = backoff,
        max_size: MaxSize = 2**20,
        max_queue: MaxQueue = 16,
        write_limit: WriteLimit = 2**15,
        logger: LoggerLike | None = None,
        create_connection: Callable[..., ClientConnection] | None = None,
        **kwargs: Any,
    ) -> None:
        refuse_legacy("connect", kwargs)
        self.uri = uri
        self.ws_uri = parse_uri(uri)
        if not self.ws_uri.secure and kwargs.get("ssl") is not None:
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
        self.additional_headers = additional_headers
        self.user_agent_header = user_agent_header
        self.proxy = proxy
        self.process_exception = process_exception
        self.open_timeout = open_timeout
        self.reconnect_delays = reconnect_delays
        self.logger: LoggerLike = logging.getLogger("websockets.client") if logger is None else logger
        self.create_connection_kwargs = kwargs
        make = ClientConnection if create_connection is None else create_connection

        def factory(uri: WebSocketURI) -> ClientConnection:
            negotiation = ClientNegotiation(
                uri,
                origin=origin,
                extensions=extensions,
                subprotocols=subprotocols,
                max_size=max_size,
                logger=self.logger,
            )
            return make(
                negotiation,
                ping_interval=ping_interval,
                ping_timeout=ping_timeout,
                close_timeout=close_timeout,
                max_queue=max_queue,
                write_limit=write_limit,
            )

        self.factory = factory

    async def connect(self) -> ClientConnection:
        """What `await connect(...)` does."""
        try:
            async with asyncio.timeout(self.open_timeout):
                for _ in range(MAX_REDIRECTS):
                    connection = await self._open_transport()
                    try:
                        await connection.handshake(self.additional_headers, self.user_agent_header)
                    except BaseException as exc:
                        connection.transport.abort()
                        if not isinstance(exc, Exception):
                            raise
                        self._follow(exc)
                    else:
                        connection.start_keepalive()
                        return connection
                raise SecurityError(f"more than {MAX_REDIRECTS} redirects")
        except TimeoutError as exc:
            raise TimeoutError("timed out during opening handshake") from exc

    async def _open_transport(self) -> ClientConnection:
        """A connection to the server, maybe through a proxy, over which nothing has been said yet."""
        loop = asyncio.get_running_loop()
        kwargs = self.create_connection_kwargs.copy()
        is_unix = kwargs.pop("unix", False)
        connection = self.factory(self.ws_uri)

        def protocol() -> asyncio.Protocol:
            return connection._opening

        if self.ws_uri.secure:
            kwargs.setdefault("ssl", True)
            if kwargs["ssl"] is None:
                raise ValueError("ssl=None is incompatible with a wss:// URI")
            kwargs.setdefault("server_hostname", self.ws_uri.host)
        if is_unix:
            await loop.create_unix_connection(protocol, **kwargs)
            return connection
        proxy = None if kwargs.get("sock") is not None else self.proxy
        if proxy is True:
            proxy = get_proxy(self.ws_uri)
        if proxy is None:
            if kwargs.get("sock") is None:
                kwargs.setdefault("host", self.ws_uri.host)
                kwargs.setdefault("port", self.ws_uri.port)
            await loop.create_connection(protocol, **kwargs)
        else:
            await self._open_through_proxy(proxy, connection, kwargs)
        return connection

    async def _open_through_proxy(self, proxy: str, connection: ClientConnection, kwargs: dict[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        parsed = parse_proxy(proxy)
        if parsed.scheme.startswith("socks"):
            sock = await connect_socks_proxy(parsed, self.ws_uri, local_addr=kwargs.pop("local_addr", None))
            await loop.create_connection(lambda: connection._opening, sock=sock, **kwargs)
            return
        # Arguments about TLS are for the server, the others and those that begin with proxy_ are for the proxy.
        to_server = {key: value for key, value in kwargs.items() if key.startswith("ssl") or key == "server_hostname"}
        to_proxy = {key.removeprefix("proxy_"): value for key, value in kwargs.items() if key not in to_server}
        if parsed.scheme == "https":
            to_proxy.setdefault("ssl", True)
            if to_proxy["ssl"] is None:
                raise ValueError("proxy_ssl=None is incompatible with an https:// proxy")
        elif to_proxy.get("ssl") is not None:
            raise ValueError("proxy_ssl argument is incompatible with an http:// proxy")
        transport = await connect_http_proxy(parsed, self.ws_uri, user_agent_header=self.user_agent_header, **to_proxy)
        try:
            transport.set_protocol(connection._opening)
            context = to_server.pop("ssl", None)
            if context is True:
                context = ssl_module.create_default_context()
            if context is not None:
                secure = await loop.start_tls(transport, connection._opening, context, **to_server)
                assert secure is not None
                transport = secure
            connection._opening.connection_made(transport)
        except BaseException:
            transport.abort()
            raise

    def _follow(self, exc: Exception) -> None:
        """Go on with the redirect that `exc` is, or raise."""
        new_uri = self.process_redirect(exc)
        if new_uri is exc:
            raise exc
        if isinstance(new_uri, Exception):
            raise new_uri from exc
        self.uri = new_uri
        self.ws_uri = parse_uri(new_uri)

    def process_redirect(self, exc: Exception) -> Exception | str:
        """Where a failed attempt leads: a URI, or the exception to raise."""
        given = self.create_connection_kwargs
        is_placed = given.get("host") is not None or given.get("port") is not None
        target, is_cross_origin = redirected(
            exc,
            self.uri,
            has_socket=given.get("sock") is not None,
            is_unix=given.get("unix", False),
            elsewhere="an explicit host or port" if is_placed else None,
        )
        if is_cross_origin and self.additional_headers is not None:
            self.additional_headers = without_credentials(self.additional_headers)
        return target

    def __await__(self) -> Generator[Any, None, ClientConnection]:
        return self.connect().__await__()

    async def __aenter__(self) -> ClientConnection:
        if hasattr(self, "connection"):
            raise RuntimeError("connect() isn't reentrant")
        self.connection = await self
        return await self.connection.__aenter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.connection.__aexit__(exc_type, exc_value, traceback)
        finally:
            del self.connection

    async def __aiter__(self) -> AsyncIterator[ClientConnection]:
        delays: Generator[float] | None = None
        while True:
            try:
                async with self as connection:
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
                await asyncio.sleep(delay)
            else:
                delays = None


def unix_connect(path: PathLike | None = None, uri: str | None = None, **kwargs: Any) -> connect:
    """Connect to the server at the Unix socket `path`; see `connect`.

    `uri` is by default `ws://localhost/`, or `wss://localhost/` where there is an argument `ssl`.
    """
    if uri is None:
        uri = "ws://localhost/" if kwargs.get("ssl") is None else "wss://localhost/"
    return connect(uri=uri, unix=True, path=path, **kwargs)
