"""Asks a SOCKS5 proxy for a connection (RFC 1928), with a user name and password if it wants them (RFC 1929).

Owns the bytes that are exchanged with the proxy until it is connected; the socket is the caller's, and so is the
deadline. Reads not one byte more than the proxy's answer has.
"""

from __future__ import annotations

import asyncio
import ipaddress
from typing import TYPE_CHECKING

from fabric.error import AuthenticationFailed, ConnectionFailed

if TYPE_CHECKING:
    import socket

    from fabric._http.url import Url

__all__ = ["open_tunnel"]

VERSION = 5
NO_LOGIN, LOGIN = 0, 2  # RFC 1928 §3
CONNECT = 1
IPV4, NAME, IPV6 = 1, 3, 4

# RFC 1928 §6
REPLIES = {
    1: "general failure",
    2: "not allowed by its rules",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "TTL expired",
    7: "command not supported",
    8: "address type not supported",
}


async def open_tunnel(sock: socket.socket, proxy: Url, host: str, port: int) -> None:
    """Have the proxy at the other end of `sock` connect to `host` and `port`.

    Args:
        sock: connected to the proxy, not blocking.
        proxy: with the user name and password, if there are any.
        host: a name, which the proxy looks up, or an address.

    Raises:
        AuthenticationFailed: the proxy does not accept the login, or wants one.
        ConnectionFailed: it cannot connect, hangs up, or does not speak SOCKS5.
        OSError: the connection to the proxy was lost.
    """
    what = f"connection to {host}:{port} through the proxy {proxy.authority}"
    peer = _Peer(sock, what)
    await peer.send(bytes([VERSION, 1, NO_LOGIN]) if proxy.username is None else bytes([VERSION, 2, NO_LOGIN, LOGIN]))
    version, method = await peer.read(2)
    if version != VERSION:
        raise ConnectionFailed(f"{what} failed: its answer is not SOCKS5")
    if method == LOGIN and proxy.username is not None:
        user, password = proxy.username.encode(), (proxy.password or "").encode()
        await peer.send(bytes([1, len(user), *user, len(password), *password]))
        _, status = await peer.read(2)
        if status:
            raise AuthenticationFailed(f"{what} failed: it does not accept the login")
    elif method != NO_LOGIN:
        wants = "a login" if proxy.username is None else "another kind of login than a user name and a password"
        raise AuthenticationFailed(f"{what} failed: it wants {wants}")
    await peer.send(bytes([VERSION, CONNECT, 0]) + _encode(host) + port.to_bytes(2, "big"))
    version, reply = await peer.read(2)
    if version != VERSION:
        raise ConnectionFailed(f"{what} failed: its answer is not SOCKS5")
    if reply:
        raise ConnectionFailed(f"{what} failed: {REPLIES.get(reply, f'reply {reply}')}")
    # The address from which the proxy is connected follows. Nobody asks for it.
    _, kind = await peer.read(2)
    size = (await peer.read(1))[0] if kind == NAME else {IPV4: 4, IPV6: 16}.get(kind)
    if size is None:
        raise ConnectionFailed(f"{what} failed: its answer is not SOCKS5")
    await peer.read(size + 2)


def _encode(host: str) -> bytes:
    """The address of a request (RFC 1928 §5)."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return bytes([NAME, len(host)]) + host.encode("ascii")
    return bytes([IPV4 if address.version == 4 else IPV6]) + address.packed


class _Peer:
    """The proxy at the other end of a socket."""

    def __init__(self, sock: socket.socket, what: str) -> None:
        self._sock = sock
        self._what = what
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._sock, data)

    async def read(self, size: int) -> bytes:
        """Exactly so many bytes."""
        data = b""
        while len(data) < size:
            part = await self._loop.sock_recv(self._sock, size - len(data))
            if not part:
                raise ConnectionFailed(f"{self._what} failed: it hung up")
            data += part
        return data
