"""The name of the legacy client connection, for annotations."""

from __future__ import annotations

from fabric.websockets._lazy import absent
from fabric.websockets.asyncio.client import ClientConnection as WebSocketClientProtocol

__all__ = ["WebSocketClientProtocol"]

__getattr__ = absent(__name__, "Connect", "connect", "unix_connect")
