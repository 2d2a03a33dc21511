"""The transport of a blocking connection, on an event loop of its own that no thread runs.

Owns the driver, the loop and the transport, from the connected socket to the end; `fabric_ext.driver` says who drives
it. TLS is the event loop's.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl as ssl_module
from typing import Any, cast

from fabric._connection.fork import stays_with_parent
from fabric._sync.keeper import keeper
from fabric._sync.loop import SteppedLoop
from fabric.websockets.asyncio.proxy import connect_http_proxy
from fabric.websockets.proxy import Proxy
from fabric.websockets.uri import WebSocketURI
from fabric_ext.driver import Driver

__all__ = ["TransportSocket", "Wire"]

MAX_EARLY = 65536  # bytes read before there is a connection for them
_NEVER = 1e8  # seconds: the caller has its own deadline


class Wire:
    """A transport and what drives it."""

    def __init__(self) -> None:
        self.driver = Driver()
        self.loop = SteppedLoop(self.driver, keeper)
        stays_with_parent(self.loop)
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # until it is opened
        self._early = _Early()
        self._is_kept = False

    def open(
        self,
        sock: socket.socket,
        ssl: ssl_module.SSLContext | None = None,
        *,
        server_hostname: str | None = None,
        is_server: bool = False,
        timeout: float | None = None,
    ) -> TransportSocket:
        """Take a connected socket, do the TLS handshake if there is a context, and return what stands for the socket.

        Raises:
            OSError: the TLS handshake failed, or took longer than `timeout` seconds.
        """
        options: dict[str, Any] = {"sock": sock, "ssl": ssl}
        if ssl is not None:
            options["ssl_handshake_timeout"] = _NEVER
        if is_server:
            coroutine: Any = self.loop.connect_accepted_socket(lambda: self._early, **options)
        else:
            if ssl is not None:
                options["server_hostname"] = server_hostname
            coroutine = self.loop.create_connection(lambda: self._early, **options)
        self.transport = self.driver.run(coroutine, timeout, "the TLS handshake")[0]
        return TransportSocket(self)

    def open_tunnel(
        self,
        sock: socket.socket,
        proxy: Proxy,
        ws_uri: WebSocketURI,
        user_agent_header: str | None,
        timeout: float | None,
        **tls: Any,
    ) -> TransportSocket:
        """As `open`, through an HTTP proxy that `sock` is connected to; `tls` is `ssl` and `server_hostname` for it."""
        asking = connect_http_proxy(proxy, ws_uri, user_agent_header=user_agent_header, sock=sock, **tls)
        self.transport = self.driver.run(asking, timeout, "connecting to the proxy")
        self.transport.set_protocol(self._early)
        return TransportSocket(self)

    def start_tls(self, ssl: ssl_module.SSLContext, server_hostname: str, timeout: float | None) -> None:
        """Speak TLS over the tunnel from now on."""
        starting = self.loop.start_tls(
            self.transport, self._early, ssl, server_hostname=server_hostname, ssl_handshake_timeout=_NEVER
        )
        self.transport = cast("asyncio.Transport", self.driver.run(starting, timeout, "the TLS handshake"))

    def attach(self, protocol: asyncio.Protocol) -> None:
        """Have `protocol` told of what comes, and of what came already."""
        self.driver.soon(self._attach, protocol)

    def _attach(self, protocol: asyncio.Protocol) -> None:
        early = self._early
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        if early.data:
            protocol.data_received(early.data)
        if early.is_lost:
            protocol.connection_lost(early.error)
        else:
            self.transport.resume_reading()

    def keep(self) -> None:
        """Have pings answered and the end noticed from now on, while no thread waits."""
        self._is_kept = True
        keeper.add(self.driver)

    def ended(self) -> None:
        """The transport has ended: what is left is let go of, unless a thread is there that does it."""
        if self._is_kept:
            keeper.give_up(self.driver)

    def abandon(self) -> None:
        """Nobody uses the connection any more."""
        if self._is_kept:
            keeper.give_up(self.driver)
        else:
            self.close()

    def abort(self) -> None:
        """Drop the transport."""
        if self.transport is not None and not self.driver.is_closed:
            self.driver.soon(self.transport.abort)

    def close(self) -> None:
        """Drop the transport, and let go of everything."""
        if not self.driver.is_closed and not self.driver.is_inside:
            self.abort()
            self.driver.close()
        if self._is_kept:
            keeper.remove(self.driver)


class _Early(asyncio.Protocol):
    """Has the transport not read from until there is a connection."""

    def __init__(self) -> None:
        self.data = b""
        self.is_lost = False
        self.error: Exception | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        self.data += data
        if len(self.data) > MAX_EARLY and self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self.error = exc


# What programs ask a socket that speaks TLS for.
_OF_TLS = {
    "cipher",
    "compression",
    "context",
    "get_channel_binding",
    "getpeercert",
    "selected_alpn_protocol",
    "server_hostname",
    "server_side",
    "session",
    "session_reused",
    "shared_ciphers",
    "version",
}


class TransportSocket:
    """The socket of a connection, as far as programs look at it: addresses, options, TLS, and closing it.

    What is read and written belongs to the connection: there is no `recv` and no `send`.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def close(self) -> None:
        """Drop the connection."""
        self._wire.abort()

    def shutdown(self, how: int) -> None:
        """Shut down one or both halves of the connection."""
        with contextlib.suppress(AttributeError):  # it is closed
            self._real().shutdown(how)

    def _real(self) -> Any:
        return self._wire.transport.get_extra_info("socket")

    def __getattr__(self, name: str) -> Any:
        if name in _OF_TLS:
            tls = self._wire.transport.get_extra_info("ssl_object")
            if tls is not None:
                return getattr(tls, name)
        return getattr(self._real(), name)
