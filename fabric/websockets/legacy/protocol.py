"""The name of the legacy connection, for annotations."""

from __future__ import annotations

from fabric.websockets._lazy import absent
from fabric.websockets.asyncio.connection import Connection as WebSocketCommonProtocol

__all__ = ["WebSocketCommonProtocol"]

__getattr__ = absent(__name__, "broadcast")
