"""The way to a server before HTTP is spoken: name lookup, TCP, proxy, TLS.

Owns sockets and transports until they are handed over, and closes them when anything goes wrong or the caller
is cancelled. Speaks no WebSocket, sets no deadline.

Each step takes what the one before made: a connected socket, on it a tunnel if a proxy is asked for, and a
transport on top: the loop's own for plain TCP, aiofastnet's for TLS. The stagger of RFC 8305 ("happy
eyeballs") is done here because uvloop has none, and so that a timeout can tell a silent name server from a
silent host.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import ipaddress
import itertools
import os
import socket
import ssl
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fabric._connection.fork import stays_with_parent
from fabric._connection.nodelay import send_without_delay
from fabric._handshake.descriptors import SHORTAGE
from fabric._handshake.response_reader import ResponseReader
from fabric._handshake.socks import open_tunnel
from fabric._handshake.tls import (
    TLS_BUFFERS,
    TlsLoop,
    has_own_tls,
    tls_context,
    tls_failure,
    without_buffers,
)
from fabric._http.url import PROXY_SCHEMES, WEBSOCKET_SCHEMES, Url
from fabric.error import ConnectionFailed, HandshakeFailed, Io, NotSupported

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fabric.config import ClientConfig
    from fabric.headers import HeaderMap
    from fabric_ext.http_head import ResponseHead

__all__ = ["Progress", "dial", "proxy_for"]

STAGGER = 0.25  # seconds until the next address is tried as well (RFC 8305 §8)

_AddressInfo = tuple[Any, Any, int, str, Any]  # as of getaddrinfo


class Progress:
    """What an attempt to connect is doing now, for the error if it takes too long; and its sockets."""

    __slots__ = ("__weakref__", "phase", "reader", "sockets")

    def __init__(self) -> None:
        self.phase = "connecting"
        self.reader: ResponseReader | None = None
        self.sockets: list[socket.socket] = []
        stays_with_parent(self)

    def _descriptors(self) -> list[int]:
        return [sock.fileno() for sock in self.sockets]


@contextlib.contextmanager
def _failures(progress: Progress, address: Url) -> Iterator[None]:
    """Turn what the system raises into errors that name the phase."""
    try:
        yield
    except ssl.SSLError as error:
        raise tls_failure(progress.phase, error) from error
    except (ConnectionFailed, HandshakeFailed):
        raise
    except OSError as error:
        # asyncio puts "Connect call failed" where the system's words would stand; a resolver has its own
        # numbers.
        if error.errno is None or isinstance(error, socket.gaierror):
            why = error.strerror or str(error) or "the other end hung up"
        else:
            why = os.strerror(error.errno)
        text = f"{progress.phase} failed: {why}"
        if error.errno in SHORTAGE:
            raise Io(text, errno=error.errno) from error
        raise ConnectionFailed(text, url=str(address)) from error


async def dial(address: Url, config: ClientConfig, protocol: ResponseReader, progress: Progress) -> None:
    """Connect `protocol` to the server at `address`, as `config` says.

    Raises:
        ConnectionFailed: name not found, refused, unreachable, reset.
        Tls: the TLS handshake failed.
        HandshakeFailed, AuthenticationFailed: the proxy refused.
        Io: this process cannot have another socket.
        NotSupported: the environment names a proxy that cannot be used.
        Exception: what `config.ssl` raises, if it is a function.
    """
    tls = await _tls_options(address, config, progress)
    target = _target(address, config)
    with _failures(progress, address):
        proxy = proxy_for(target, config.proxy)
        if config.sock is not None:
            sock = config.sock
            sock.setblocking(False)
            progress.sockets.append(sock)
        elif config.unix_path is not None:
            progress.phase = f"connection to {config.unix_path}"
            sock = await _connect_one((socket.AF_UNIX, socket.SOCK_STREAM, 0, "", config.unix_path), progress)
        elif proxy is None:
            sock = await _connect(target, progress)
        elif proxy.scheme.startswith("socks5"):
            sock = await _connect_socks(proxy, target, progress)
        else:
            await _connect_tunnel(proxy, target, config, protocol, tls, progress)
            return
        await _attach(sock, protocol, tls, progress)


def _target(address: Url, config: ClientConfig) -> Url:
    """Where to connect to, for `address`: `config.host` stands for the host of the URL, not for one of a redirect."""
    if config.endpoint is None or address.origin != config.address.origin:
        return address
    host, port = config.endpoint
    return replace(address, host=host, port=port or address.port)


# TCP


def _who(address: Url) -> str:
    """What stands in front of the host where errors name it."""
    return "" if address.scheme in WEBSOCKET_SCHEMES else "the proxy "


async def _connect(address: Url, progress: Progress) -> socket.socket:
    """A socket connected to whichever of the host's addresses answers first."""
    infos = await _resolve(address, progress)
    progress.phase = f"TCP connection to {_who(address)}{address.authority}"
    if len(infos) == 1:
        return await _connect_one(infos[0], progress)
    attempts: list[asyncio.Task[socket.socket]] = []
    try:
        return await _race(infos, attempts, progress)
    finally:
        for attempt in attempts:
            attempt.add_done_callback(_discard)
            attempt.cancel()


async def _resolve(address: Url, progress: Progress) -> Sequence[_AddressInfo]:
    """The addresses of a host, families taking turns (RFC 8305 §4)."""
    with contextlib.suppress(ValueError):
        family = socket.AF_INET if ipaddress.ip_address(address.host).version == 4 else socket.AF_INET6
        return [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address.host, address.port))]
    progress.phase = f"name lookup of {_who(address)}{address.host}"
    loop = asyncio.get_running_loop()
    infos = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    if not infos:
        raise OSError(f"{address.host} has no address")
    first = infos[0][0]
    preferred = [info for info in infos if info[0] == first]
    others = [info for info in infos if info[0] != first]
    return [info for pair in itertools.zip_longest(preferred, others) for info in pair if info is not None]


async def _race(
    infos: Sequence[_AddressInfo], attempts: list[asyncio.Task[socket.socket]], progress: Progress
) -> socket.socket:
    """Start a connection to each address in turn, the next one as soon as one fails or STAGGER has passed."""
    running: set[asyncio.Task[socket.socket]] = set()
    waiting = list(reversed(infos))
    errors: list[BaseException] = []
    while waiting or running:
        if waiting:
            attempt = asyncio.get_running_loop().create_task(_connect_one(waiting.pop(), progress))
            attempts.append(attempt)
            running.add(attempt)
        done, running = await asyncio.wait(
            running, timeout=STAGGER if waiting else None, return_when=asyncio.FIRST_COMPLETED
        )
        for attempt in done:
            error = attempt.exception()
            if error is None:
                attempts.remove(attempt)
                return attempt.result()
            errors.append(error)
    raise errors[0]


async def _connect_one(info: _AddressInfo, progress: Progress) -> socket.socket:
    family, kind, proto, _, address = info
    sock = socket.socket(family, kind, proto)
    progress.sockets.append(sock)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


def _discard(attempt: asyncio.Task[socket.socket]) -> None:
    """The race is over without this one."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


# TLS


async def _tls_options(address: Url, config: ClientConfig, progress: Progress) -> dict[str, Any]:
    """The arguments of aiofastnet for TLS with the server; none for `ws://`."""
    if not address.is_secure:
        return {}
    context: Any = config.ssl
    if callable(context):
        progress.phase = "ClientConfig.ssl()"
        context = context()
        if inspect.isawaitable(context):
            context = await context
    if context is not None and not isinstance(context, ssl.SSLContext):
        raise TypeError(f"ClientConfig.ssl() returned {context!r}: expected an ssl.SSLContext or None")
    own = address.origin == config.address.origin
    hostname = config.server_hostname if config.server_hostname is not None and own else address.host
    return _tls_with(context, hostname, config)


def _tls_with(context: ssl.SSLContext | None, hostname: str, config: ClientConfig) -> dict[str, Any]:
    return {
        "ssl": tls_context(context),
        "server_hostname": hostname.rstrip(".").partition("%")[0],  # without the zone of an address
        "ssl_handshake_timeout": 2 * config.connection_timeout,  # whose own deadline comes first
        "ssl_shutdown_timeout": config.close_timeout,
    } | TLS_BUFFERS


async def _attach(
    sock: socket.socket,
    protocol: ResponseReader,
    tls: dict[str, Any],
    progress: Progress,
    *,
    who: str = "",
    before_tls: bool = False,
) -> None:
    """Make a transport of a connected socket; `before_tls` is for one that TLS is started on later."""
    import aiofastnet  # not before there is a connection: it takes its time

    loop: Any = asyncio.get_running_loop()
    is_unix = sock.family == socket.AF_UNIX
    send_without_delay(sock)
    connect: Any
    tls_loop: Any = TlsLoop(loop)
    if has_own_tls(loop):
        if tls:
            progress.phase = f"TLS handshake with {who}{tls['server_hostname']}"
        connect = loop.create_unix_connection if is_unix else loop.create_connection
        await connect(lambda: protocol, sock=sock, **without_buffers(tls))
    elif tls:
        progress.phase = f"TLS handshake with {who}{tls['server_hostname']}"
        connect = aiofastnet.create_unix_connection if is_unix else aiofastnet.create_connection
        await connect(tls_loop, lambda: protocol, sock=sock, **tls)
    elif before_tls:
        # Not uvloop's: to it the protocol of aiofastnet's standard engine looks as if it brought its own buffer.
        await aiofastnet.create_connection(tls_loop, lambda: protocol, sock=sock)
    else:
        connect = loop.create_unix_connection if is_unix else loop.create_connection
        await connect(lambda: protocol, sock=sock)


# Proxies


def proxy_for(address: Url, proxy: str | bool | None) -> Url | None:
    """The proxy for `address`, if any.

    Args:
        address: where to connect to.
        proxy: a proxy's URL; True for what the environment says (`wss_proxy` or `https_proxy`, `ws_proxy` or
            `http_proxy`, `all_proxy`, in lower or upper case, and `no_proxy`); None for none.

    Raises:
        NotSupported: the environment names a proxy of a kind that is not known, or with a login that cannot be
            sent.
    """
    if proxy is None or proxy is False:
        return None
    if proxy is not True:
        return Url.parse(proxy, PROXY_SCHEMES)
    import urllib.request  # of which nobody else needs anything, and which takes its time

    if urllib.request.proxy_bypass(f"{address.host}:{address.port}"):
        return None
    known = urllib.request.getproxies()
    names = ("wss", "https", "socks", "all") if address.is_secure else ("ws", "http", "socks", "all")
    text = next((known[name] for name in names if known.get(name)), None)
    if text is None:
        return None
    if text.startswith("socks://"):
        text = text.replace("socks", "socks5h", 1)
    try:
        return Url.parse(text if "://" in text else f"http://{text}", PROXY_SCHEMES)
    except ValueError as error:
        raise NotSupported(f"the proxy that the environment names: {error}") from None


async def _connect_socks(proxy: Url, target: Url, progress: Progress) -> socket.socket:
    """A socket connected through a SOCKS5 proxy; with `socks5h` the proxy looks up the name."""
    host = target.host
    if proxy.scheme == "socks5":
        host = (await _resolve(target, progress))[0][4][0]
    sock = await _connect(proxy, progress)
    progress.phase = f"connection to {host}:{target.port} through the proxy {proxy.authority}"
    try:
        await open_tunnel(sock, proxy, host, target.port)
    except BaseException:
        sock.close()
        raise
    return sock


class _Tunnel(ResponseReader):
    """Asks an HTTP proxy for a connection (RFC 9110 §9.3.6)."""

    def ask(self, proxy: Url, target: Url, headers: HeaderMap) -> None:
        host = f"[{target.host}]" if ":" in target.host else target.host
        fields = [("Host", f"{host}:{target.port}"), *headers.items()]
        if proxy.authorization is not None and "Proxy-Authorization" not in headers:
            fields.append(("Proxy-Authorization", proxy.authorization))
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
        head = f"CONNECT {host}:{target.port} HTTP/1.1\r\n{lines}\r\n"
        self.transport.write(head.encode("utf-8", "surrogateescape"))

    def _is_success(self, status: int) -> bool:
        return 200 <= status < 300

    def _accept(self, head: ResponseHead, rest: bytes) -> None:
        if rest:
            raise HandshakeFailed("the proxy sent data before anybody asked for them", status=head.status)


async def _connect_tunnel(
    proxy: Url,
    target: Url,
    config: ClientConfig,
    protocol: ResponseReader,
    tls: dict[str, Any],
    progress: Progress,
) -> None:
    """Connect `protocol` through an HTTP proxy."""
    tunnel = _Tunnel(f"the proxy {proxy.authority}", str(target))
    try:
        sock = await _connect(proxy, progress)
        outer = _tls_with(config.proxy_ssl, proxy.host, config) if proxy.is_secure else {}
        await _attach(sock, tunnel, outer, progress, who=_who(proxy), before_tls=bool(tls))
        progress.phase = f"CONNECT to {target.authority} through the proxy {proxy.authority}"
        progress.reader = tunnel
        tunnel.ask(proxy, target, config.proxy_headers)
        await tunnel.wait()
        transport = tunnel.transport
        progress.reader = None
        if tls:
            progress.phase = f"TLS handshake with {tls['server_hostname']} through the proxy {proxy.authority}"
            options = dict(tls)
            context = options.pop("ssl")
            loop: Any = asyncio.get_running_loop()
            if has_own_tls(loop):
                transport = await loop.start_tls(transport, protocol, context, **without_buffers(options))
            else:
                import aiofastnet

                tls_loop: Any = TlsLoop(loop)
                transport = await aiofastnet.start_tls(tls_loop, transport, protocol, context, **options)
        else:
            transport.set_protocol(protocol)
        if transport.is_closing():
            raise ConnectionFailed(f"{progress.phase} failed: the proxy hung up", url=str(target))
        protocol.connection_made(transport)
    except BaseException:
        tunnel.abort()
        raise
