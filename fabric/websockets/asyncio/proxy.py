"""The way through a proxy: HTTP and HTTPS by CONNECT (RFC 9110 §9.3.6), SOCKS."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from fabric._handshake.socks import open_tunnel
from fabric._http.url import Url
from fabric.error import Error
from fabric.websockets.exceptions import InvalidProxyMessage, InvalidProxyStatus, ProxyError
from fabric.websockets.http11 import Response, ResponseReader
from fabric.websockets.proxy import Proxy, prepare_connect_request
from fabric.websockets.uri import WebSocketURI

__all__ = ["connect_http_proxy", "connect_socks_proxy"]


class _Tunnel(asyncio.Protocol):
    """Asks an HTTP proxy for a connection."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._reader = ResponseReader(is_proxy=True)
        self.response: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        if not self.response.done():
            self._judge(lambda: self._reader.feed(data))

    def eof_received(self) -> None:
        if not self.response.done():
            self._judge(self._reader.feed_eof)

    def connection_lost(self, exc: Exception | None) -> None:
        self.eof_received()

    def _judge(self, read: Any) -> None:
        try:
            if not read():
                return
            response = self._reader.response
            assert response is not None
            is_connected = 200 <= response.status_code < 300
            if is_connected and self._reader.rest:
                raise ValueError("data before anybody asked for them")
        except Exception as exc:  # noqa: BLE001  (whatever is wrong with it)
            error: Exception = InvalidProxyMessage("did not receive a valid HTTP response from proxy")
            error.__cause__ = exc
            self.response.set_exception(error)
            return
        if is_connected:
            self.response.set_result(response)
        else:
            self.response.set_exception(InvalidProxyStatus(response))


async def connect_http_proxy(
    proxy: Proxy, ws_uri: WebSocketURI, *, user_agent_header: str | None = None, **kwargs: Any
) -> asyncio.Transport:
    """A transport to the server at `ws_uri`, through `proxy`; `kwargs` are of the event loop's `create_connection`.

    Raises:
        InvalidProxyStatus: the proxy refuses.
        InvalidProxyMessage: it does not answer in HTTP.
        OSError: it cannot be reached.
    """
    request = prepare_connect_request(proxy, ws_uri, user_agent_header)
    if kwargs.get("sock") is None:
        kwargs.setdefault("host", proxy.host)
        kwargs.setdefault("port", proxy.port)
    loop = asyncio.get_running_loop()
    transport, tunnel = await loop.create_connection(lambda: _Tunnel(request), **kwargs)
    try:
        await tunnel.response
    except BaseException:
        transport.abort()
        raise
    return transport


async def connect_socks_proxy(
    proxy: Proxy, ws_uri: WebSocketURI, *, local_addr: tuple[str, int] | None = None
) -> socket.socket:
    """A socket connected to the server at `ws_uri` through `proxy`.

    With `socks5` the name of the server is looked up here, with `socks5h` the proxy looks it up.

    Raises:
        ProxyError: the proxy refuses, or is of a kind that is not known: `socks4`, `socks4a`.
        OSError: it cannot be reached.
    """
    if not proxy.scheme.startswith("socks5"):
        raise ProxyError(f"{proxy.scheme} proxies are not supported; socks5 and socks5h are")
    loop = asyncio.get_running_loop()
    host = ws_uri.host
    if proxy.scheme == "socks5":
        host = str((await loop.getaddrinfo(host, ws_uri.port, type=socket.SOCK_STREAM))[0][4][0])
    url = Url(scheme=proxy.scheme, host=proxy.host, port=proxy.port, username=proxy.username, password=proxy.password)
    sock = await _connect(proxy.host, proxy.port, local_addr)
    try:
        await open_tunnel(sock, url, host, ws_uri.port)
    except Error as exc:
        sock.close()
        raise ProxyError("failed to connect to SOCKS proxy") from exc
    except BaseException:
        sock.close()
        raise
    return sock


async def _connect(host: str, port: int, local_addr: tuple[str, int] | None) -> socket.socket:
    """A socket connected to the first of the host's addresses that answers."""
    loop = asyncio.get_running_loop()
    error: OSError = OSError(f"{host} has no address")
    for family, kind, proto, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, proto)
        try:
            sock.setblocking(False)
            if local_addr is not None:
                sock.bind(local_addr)
            await loop.sock_connect(sock, address)
        except OSError as exc:
            sock.close()
            error = exc
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise error
