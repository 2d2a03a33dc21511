"""The names of the legacy server's classes, for annotations."""

from __future__ import annotations

from fabric.websockets._lazy import absent
from fabric.websockets.asyncio.server import Server as WebSocketServer
from fabric.websockets.asyncio.server import ServerConnection as WebSocketServerProtocol

__all__ = ["WebSocketServer", "WebSocketServerProtocol"]

__getattr__ = absent(__name__, "Serve", "broadcast", "serve", "unix_serve")
