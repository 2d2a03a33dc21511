"""A network in memory: addresses at which a server of this process is reached without a socket.

Owns the table of these addresses. While one is in it, each `WebSocketClient` of this process that connects to it gets
there by a pipe (`fabric.testing.pipe`). All else is as over TCP: both opening handshakes, all limits, all frames. TLS
is left out, for `wss://` too. Other addresses are connected to as always.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any, cast

from fabric._handshake import client as client_handshake
from fabric._handshake.dial import dial
from fabric._http.url import Url
from fabric._server import listening
from fabric._server.listening import Listener, listen
from fabric.error import ConnectionFailed
from fabric.server import WebSocketServer
from fabric.testing.pipe import connected_pair

__all__ = ["PATIENCE", "in_memory"]

PATIENCE = 1.0  # seconds that the handlers of a test's server have to end, before they are cancelled


class MemoryListener:
    """What a server in memory has instead of a `fabric._server.listening.Listener`."""

    sockets: tuple[socket.socket, ...] = ()
    descriptors: tuple[int, ...] = ()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.handshakes: Any = None  # of its server; None until it listens, and when it does no more

    def close(self) -> None:
        """Accept no more."""
        self.handshakes = None

    async def wait_closed(self) -> None:
        """Nothing is on its way."""

    def connect(self, address: Url, protocol: asyncio.Protocol) -> None:
        """Open a connection between `protocol`, a client's, and the server.

        Raises:
            ConnectionFailed: it does not accept any.
        """
        if self.handshakes is None:
            raise ConnectionFailed(f"TCP connection to {address.authority} failed: refused", url=str(address))
        ours, theirs = connected_pair(self.loop)
        theirs.open(self.handshakes.accept())
        ours.open(protocol)


_listeners: dict[tuple[str, str, int], MemoryListener] = {}  # by the origin of the address
_starting: dict[int, MemoryListener] = {}  # by the identity of the server's config


async def _dial(address: Url, config: Any, protocol: Any, progress: Any) -> None:
    """As `fabric._handshake.dial.dial`, after a look into the table."""
    listener = _listeners.get(address.origin)
    if listener is None or listener.loop is not asyncio.get_running_loop():
        await dial(address, config, protocol, progress)
    else:
        listener.connect(address, protocol)


async def _listen(loop: Any, config: Any, handshakes: Any) -> Listener:
    """As `fabric._server.listening.listen`, but for servers that are to be in memory."""
    listener = _starting.pop(id(config), None)
    if listener is None:
        return await listen(loop, config, handshakes)
    listener.handshakes = handshakes
    return cast("Listener", listener)


@contextlib.asynccontextmanager
async def in_memory(server: WebSocketServer, url: str) -> AsyncIterator[None]:
    """Start a server, and have it reached at the host and port of `url`, in memory, until the end.

    Raises:
        ValueError: another server is at that address.
    """
    address = Url.parse(url)
    if address.origin in _listeners:
        raise ValueError(f"there is a server in memory at {address.authority} already")
    listener = MemoryListener(asyncio.get_running_loop())
    _enter(address, listener)
    try:
        _starting[id(server.config)] = listener
        try:
            await server.start()
        finally:
            _starting.pop(id(server.config), None)
        yield
    finally:
        _leave(address)
        await server.shutdown(timeout=PATIENCE)


def _enter(address: Url, listener: MemoryListener) -> None:
    _listeners[address.origin] = listener
    client_handshake.dial = _dial  # type: ignore[attr-defined]
    listening.listen = _listen


def _leave(address: Url) -> None:
    del _listeners[address.origin]
    if not _listeners:
        client_handshake.dial = dial  # type: ignore[attr-defined]
        listening.listen = listen
