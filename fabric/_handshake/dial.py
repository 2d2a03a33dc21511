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
import errno
import functools
import ipaddress
import itertools
import os
import socket
import ssl
import urllib.request
from typing import TYPE_CHECKING, Any

import aiofastnet
from python_socks import ProxyConnectionError, ProxyError, ProxyType
from python_socks.async_.asyncio import Proxy

from fabric._handshake.response_reader import ResponseReader
from fabric._handshake.tls import TlsLoop
from fabric._http.url import PROXY_SCHEMES, Url
from fabric.error import AuthenticationFailed, ConnectionFailed, HandshakeFailed, Io, NotSupported, Tls

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fabric.config import ClientConfig
    from fabric.headers import HeaderMap

__all__ = ["Progress", "dial", "proxy_for"]

STAGGER = 0.25  # seconds until the next address is tried as well (RFC 8305 §8)

# Bytes of either TLS buffer of a connection: one record, which is 16 KB and a bit, and some more. The default
# of aiofastnet is 263 KB each.
TLS_BUFFER = 20 * 1024

# What the system says when it is this process, not the peer, that is to blame.
_OWN_FAULTS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_AddressInfo = tuple[Any, Any, int, str, Any]  # as of getaddrinfo


class Progress:
    """What an attempt to connect is doing now, for the error if it takes too long."""

    __slots__ = ("phase", "reader")

    def __init__(self) -> None:
        self.phase = "connecting"
        self.reader: ResponseReader | None = None


@contextlib.contextmanager
def _failures(progress: Progress, address: Url) -> Iterator[None]:
    """Turn what the system raises into errors that name the phase."""
    try:
        yield
    except ssl.SSLError as error:
        raise Tls(f"{progress.phase} failed: {_reason(error)}") from error
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
        if error.errno in _OWN_FAULTS:
            raise Io(text, errno=error.errno) from error
        raise ConnectionFailed(text, url=str(address)) from error


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not accepted, {error.verify_message}"
    return str(error.reason or error)


async def dial(address: Url, config: ClientConfig, protocol: ResponseReader, progress: Progress) -> None:
    """Connect `protocol` to the server at `address`, as `config` says.

    Raises:
        ConnectionFailed: name not found, refused, unreachable, reset.
        Tls: the TLS handshake failed.
        HandshakeFailed, AuthenticationFailed: the proxy refused.
        Io: this process cannot have another socket.
        NotSupported: the environment names a proxy that cannot be used.
    """
    context = _tls_context(address, config)
    with _failures(progress, address):
        proxy = proxy_for(address, config.proxy)
        if config.sock is not None:
            sock = config.sock
            sock.setblocking(False)
        elif config.unix_path is not None:
            progress.phase = f"connection to {config.unix_path}"
            sock = await _connect_one((socket.AF_UNIX, socket.SOCK_STREAM, 0, "", config.unix_path))
        elif proxy is None:
            sock = await _connect(address, progress)
        elif proxy.scheme.startswith("socks5"):
            sock = await _connect_socks(proxy, address, config, progress)
        else:
            await _connect_tunnel(proxy, address, config, protocol, context, progress)
            return
        await _attach(sock, protocol, context, address.host, config, progress)


# TCP


async def _connect(address: Url, progress: Progress) -> socket.socket:
    """A socket connected to whichever of the host's addresses answers first."""
    infos = await _resolve(address, progress)
    progress.phase = f"TCP connection to {address.authority}"
    if len(infos) == 1:
        return await _connect_one(infos[0])
    attempts: list[asyncio.Task[socket.socket]] = []
    try:
        return await _race(infos, attempts)
    finally:
        for attempt in attempts:
            attempt.add_done_callback(_discard)
            attempt.cancel()


async def _resolve(address: Url, progress: Progress) -> Sequence[_AddressInfo]:
    """The addresses of a host, families taking turns (RFC 8305 §4)."""
    with contextlib.suppress(ValueError):
        family = socket.AF_INET if ipaddress.ip_address(address.host).version == 4 else socket.AF_INET6
        return [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address.host, address.port))]
    progress.phase = f"name lookup of {address.host}"
    loop = asyncio.get_running_loop()
    infos = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    if not infos:
        raise OSError(f"{address.host} has no address")
    first = infos[0][0]
    preferred = [info for info in infos if info[0] == first]
    others = [info for info in infos if info[0] != first]
    return [info for pair in itertools.zip_longest(preferred, others) for info in pair if info is not None]


async def _race(infos: Sequence[_AddressInfo], attempts: list[asyncio.Task[socket.socket]]) -> socket.socket:
    """Start a connection to each address in turn, the next one as soon as one fails or STAGGER has passed."""
    running: set[asyncio.Task[socket.socket]] = set()
    waiting = list(reversed(infos))
    errors: list[BaseException] = []
    while waiting or running:
        if waiting:
            attempt = asyncio.get_running_loop().create_task(_connect_one(waiting.pop()))
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


async def _connect_one(info: _AddressInfo) -> socket.socket:
    family, kind, proto, _, address = info
    sock = socket.socket(family, kind, proto)
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


@functools.cache
def _default_context() -> ssl.SSLContext:
    """Reading the system's certificates takes 10 ms and half a megabyte: once."""
    return ssl.create_default_context()


def _tls_context(address: Url, config: ClientConfig) -> ssl.SSLContext | None:
    if not address.is_secure:
        return None
    return config.ssl if config.ssl is not None else _default_context()


def _tls_options(host: str, config: ClientConfig) -> dict[str, Any]:
    return {
        "server_hostname": host.rstrip("."),
        "ssl_handshake_timeout": 2 * config.connection_timeout,  # whose own deadline comes first
        "ssl_shutdown_timeout": config.close_timeout,
        "ssl_incoming_bio_size": TLS_BUFFER,
        "ssl_outgoing_bio_size": TLS_BUFFER,
    }


async def _attach(
    sock: socket.socket,
    protocol: ResponseReader,
    context: ssl.SSLContext | None,
    host: str,
    config: ClientConfig,
    progress: Progress,
) -> None:
    """Make a transport of a connected socket."""
    loop: Any = asyncio.get_running_loop()
    is_unix = sock.family == socket.AF_UNIX
    connect: Any
    if context is None:
        connect = loop.create_unix_connection if is_unix else loop.create_connection
        await connect(lambda: protocol, sock=sock)
    else:
        progress.phase = f"TLS handshake with {host}"
        connect = aiofastnet.create_unix_connection if is_unix else aiofastnet.create_connection
        await connect(TlsLoop(loop), lambda: protocol, sock=sock, ssl=context, **_tls_options(host, config))


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


async def _connect_socks(proxy: Url, address: Url, config: ClientConfig, progress: Progress) -> socket.socket:
    """A socket connected through a SOCKS5 proxy (RFC 1928); with `socks5h` the proxy looks up the name."""
    progress.phase = f"connection through the proxy {proxy.authority}"
    way = Proxy(
        ProxyType.SOCKS5,
        proxy.host,
        proxy.port,
        proxy.username,
        proxy.password,
        rdns=proxy.scheme == "socks5h",
    )
    try:
        timeout = 2 * config.connection_timeout  # whose own deadline comes first
        sock: socket.socket = await way.connect(address.host, address.port, timeout=timeout)
    except ProxyConnectionError as error:
        raise ConnectionFailed(f"{progress.phase} failed: {error.strerror}", url=str(address)) from error
    except ProxyError as error:
        text = f"{progress.phase} failed: {error}"
        if "authentication" in str(error).lower():
            raise AuthenticationFailed(text) from error
        raise ConnectionFailed(text, url=str(address)) from error
    except ValueError:
        # A login that python-socks cannot encode, or an answer it cannot decode. Its own words may show a password.
        text = f"{progress.phase} failed: the login or the proxy's answer is not valid in SOCKS5 (RFC 1928, 1929)"
        raise ConnectionFailed(text, url=str(address)) from None
    return sock


class _Tunnel(ResponseReader):
    """Asks an HTTP proxy for a connection (RFC 9110 §9.3.6)."""

    def ask(self, proxy: Url, address: Url) -> None:
        host = f"[{address.host}]" if ":" in address.host else address.host
        head = f"CONNECT {host}:{address.port} HTTP/1.1\r\nHost: {host}:{address.port}\r\n"
        if proxy.authorization is not None:
            head += f"Proxy-Authorization: {proxy.authorization}\r\n"
        self.transport.write(f"{head}\r\n".encode("ascii"))

    def _is_success(self, status: int) -> bool:
        return 200 <= status < 300

    def _accept(self, status: int, headers: HeaderMap, head: bytes, rest: bytes) -> None:
        if rest:
            raise HandshakeFailed("the proxy sent data before anybody asked for them", status=status)


async def _connect_tunnel(
    proxy: Url,
    address: Url,
    config: ClientConfig,
    protocol: ResponseReader,
    context: ssl.SSLContext | None,
    progress: Progress,
) -> None:
    """Connect `protocol` through an HTTP proxy."""
    tunnel = _Tunnel("the proxy", str(address))
    try:
        sock = await _connect(proxy, progress)
        outer = _default_context() if proxy.is_secure else None
        await _attach(sock, tunnel, outer, proxy.host, config, progress)
        progress.phase = f"CONNECT to {address.authority} through the proxy {proxy.authority}"
        progress.reader = tunnel
        tunnel.ask(proxy, address)
        await tunnel.wait()
        transport = tunnel.transport
        progress.reader = None
        if context is None:
            transport.set_protocol(protocol)
        else:
            progress.phase = f"TLS handshake with {address.host}"
            loop: Any = TlsLoop(asyncio.get_running_loop())
            transport = await aiofastnet.start_tls(
                loop, transport, protocol, context, **_tls_options(address.host, config)
            )
        if transport.is_closing():
            raise ConnectionFailed(f"{progress.phase} failed: the proxy hung up", url=str(address))
        protocol.connection_made(transport)
    except BaseException:
        tunnel.abort()
        raise
