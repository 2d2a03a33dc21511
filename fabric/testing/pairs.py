"""A client and a server's end of its connection, both in this process, without a socket.

Owns `pair`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

from fabric.client import WebSocketClient
from fabric.config import ClientConfig
from fabric.server import ConnectedClient, Handler, WebSocketServer
from fabric.testing.network import in_memory

__all__ = ["pair"]

_numbers = itertools.count(1)


@contextlib.asynccontextmanager
async def pair(
    server: Handler | WebSocketServer | None = None, client: ClientConfig | None = None
) -> AsyncIterator[tuple[WebSocketClient, ConnectedClient]]:
    """Connect a client and a server in memory; both ends are closed in the end.

        async with pair() as (client, peer):
            await client.send("hello")
            assert await peer.recv() == "hello"

    The ends are what they always are: the opening handshake is done, limits, heartbeats and compression hold. Only the
    socket is missing, and TLS.

    Args:
        server: a handler that is to be tested, or a whole server that has not been started. None: no handler runs, and
            the test speaks for the server.
        client: how the client is made. Its URL is the one that the server is reached at meanwhile, by other clients
            too. None: a client that does not reconnect.

    Raises:
        ValueError: another `pair` or `ScriptedServer` is at the URL.
        HandshakeFailed: the server has refused the client; as the other errors of `WebSocketClient.connect`.
    """
    if not isinstance(server, WebSocketServer):
        server = WebSocketServer.bind("127.0.0.1:0", server)
    if client is None:
        client = ClientConfig(f"ws://pair-{next(_numbers)}.test", auto_reconnect=False)
    peers: asyncio.Queue[ConnectedClient] = asyncio.Queue()
    server._on_connect = functools.partial(_noted, peers, server._on_connect)
    async with in_memory(server, client.address.full), WebSocketClient.connect(client) as connected:
        yield connected, peers.get_nowait()


def _noted(
    peers: asyncio.Queue[ConnectedClient], on_connect: Callable[[ConnectedClient], Any] | None, peer: ConnectedClient
) -> Any:
    """Note a connection of the server, then do what it does itself."""
    peers.put_nowait(peer)
    return None if on_connect is None else on_connect(peer)
