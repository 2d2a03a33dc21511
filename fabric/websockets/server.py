"""Names that programs still import from `websockets.server`. The Sans-I/O `ServerProtocol` is not here."""

from __future__ import annotations

from fabric.websockets._lazy import lazy

__all__: list[str] = []

_SERVER = "fabric.websockets.asyncio.server"
_LEGACY = "fabric.websockets.legacy.server"
__getattr__ = lazy(
    __name__,
    {},
    {
        "WebSocketServer": _LEGACY,
        "WebSocketServerProtocol": _LEGACY,
        "broadcast": _SERVER,
        "serve": _SERVER,
        "unix_serve": _SERVER,
    },
    ("ServerProtocol", "ServerConnection"),
)
