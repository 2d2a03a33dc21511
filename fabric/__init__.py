"""WebSockets for latency-sensitive Python.

Everything that people import is here. The modules that it comes from can be imported as well, one concern
each: `client server message error config headers subprotocol compression fragmentation`; `reconnect backpressure
heartbeat ratelimit pool metrics`; `router auth runner`; `sync`, clients without an event loop; `rpc`; `topics history
fleet broker workers`, for more than one process; `websockets asgi centrifuge`, for programs that exist; `testing`; and
`prometheus` and `otel`, which need the extras of these names.

A name is imported when it is asked for: a program that is a client pays for no server.
"""

from __future__ import annotations

import importlib

from fabric._namesake import warn_of_foreign_files
from fabric._version import VERSION

TYPE_CHECKING = False  # type checkers take it for true, as that of `typing`, whose import would take longer than this
if TYPE_CHECKING:
    from typing import Any

    from fabric._http.messages import Address, Request, Response
    from fabric.auth import basic_auth
    from fabric.backpressure import BackpressureController
    from fabric.client import WebSocketClient
    from fabric.compression import Compressor, Decompressor
    from fabric.config import (
        DEFAULT_BUFFER_SIZE,
        DEFAULT_CONNECTION_TIMEOUT,
        DEFAULT_MAX_MESSAGE_SIZE,
        DEFAULT_PING_INTERVAL,
        DEFAULT_PING_TIMEOUT,
        BackpressureConfig,
        ClientConfig,
        CompressionConfig,
        HeartbeatConfig,
        PoolConfig,
        RateLimitConfig,
        ReconnectConfig,
        ServerConfig,
    )
    from fabric.error import (
        AuthenticationFailed,
        BackpressureTimeout,
        BufferFull,
        CompressionError,
        ConnectionClosed,
        ConnectionFailed,
        ConnectionLimitExceeded,
        Error,
        HandshakeFailed,
        InvalidFrame,
        InvalidHeader,
        InvalidState,
        InvalidSubprotocol,
        Io,
        JsonError,
        MessageTooLarge,
        NotSupported,
        RateLimitExceeded,
        ReconnectTimeout,
        SubprotocolNegotiationFailed,
        Timeout,
        Tls,
        Utf8Error,
    )
    from fabric.fragmentation import ConnectionId, Fragmenter, Reassembler
    from fabric.headers import HeaderMap, HeaderName, HeaderValue
    from fabric.heartbeat import HeartbeatManager
    from fabric.message import Frame, Message, MessageType, Sendable
    from fabric.metrics import LatencyPercentiles, MetricsCollector
    from fabric.pool import CleanupStats, ConnectionPool, PooledClient, PoolStats, ServerPoolStats
    from fabric.ratelimit import GlobalRateLimiter, RateLimiter, RateLimitStatus, RateLimitType
    from fabric.reconnect import ReconnectState
    from fabric.router import Router
    from fabric.runner import run
    from fabric.server import ConnectedClient, WebSocketServer
    from fabric.subprotocol import SubprotocolList, SubprotocolNegotiator
    from fabric_ext.protocol import State

__version__ = VERSION

warn_of_foreign_files()

__all__ = [
    "DEFAULT_BUFFER_SIZE",
    "DEFAULT_CONNECTION_TIMEOUT",
    "DEFAULT_MAX_MESSAGE_SIZE",
    "DEFAULT_PING_INTERVAL",
    "DEFAULT_PING_TIMEOUT",
    "VERSION",
    "Address",
    "AuthenticationFailed",
    "BackpressureConfig",
    "BackpressureController",
    "BackpressureTimeout",
    "BufferFull",
    "CleanupStats",
    "ClientConfig",
    "CompressionConfig",
    "CompressionError",
    "Compressor",
    "ConnectedClient",
    "ConnectionClosed",
    "ConnectionFailed",
    "ConnectionId",
    "ConnectionLimitExceeded",
    "ConnectionPool",
    "Decompressor",
    "Error",
    "Fragmenter",
    "Frame",
    "GlobalRateLimiter",
    "HandshakeFailed",
    "HeaderMap",
    "HeaderName",
    "HeaderValue",
    "HeartbeatConfig",
    "HeartbeatManager",
    "InvalidFrame",
    "InvalidHeader",
    "InvalidState",
    "InvalidSubprotocol",
    "Io",
    "JsonError",
    "LatencyPercentiles",
    "Message",
    "MessageTooLarge",
    "MessageType",
    "MetricsCollector",
    "NotSupported",
    "PoolConfig",
    "PoolStats",
    "PooledClient",
    "RateLimitConfig",
    "RateLimitExceeded",
    "RateLimitStatus",
    "RateLimitType",
    "RateLimiter",
    "Reassembler",
    "ReconnectConfig",
    "ReconnectState",
    "ReconnectTimeout",
    "Request",
    "Response",
    "Router",
    "Sendable",
    "ServerConfig",
    "ServerPoolStats",
    "State",
    "SubprotocolList",
    "SubprotocolNegotiationFailed",
    "SubprotocolNegotiator",
    "Timeout",
    "Tls",
    "Utf8Error",
    "WebSocketClient",
    "WebSocketServer",
    "__version__",
    "basic_auth",
    "run",
]

# Where each name is from.
_NAMES = {
    "fabric._http.messages": "Address Request Response",
    "fabric.auth": "basic_auth",
    "fabric.backpressure": "BackpressureController",
    "fabric.client": "WebSocketClient",
    "fabric.compression": "Compressor Decompressor",
    "fabric.config": """
        DEFAULT_BUFFER_SIZE DEFAULT_CONNECTION_TIMEOUT DEFAULT_MAX_MESSAGE_SIZE DEFAULT_PING_INTERVAL
        DEFAULT_PING_TIMEOUT BackpressureConfig ClientConfig CompressionConfig HeartbeatConfig PoolConfig
        RateLimitConfig ReconnectConfig ServerConfig
    """,
    "fabric.error": """
        AuthenticationFailed BackpressureTimeout BufferFull CompressionError ConnectionClosed ConnectionFailed
        ConnectionLimitExceeded Error HandshakeFailed InvalidFrame InvalidHeader InvalidState InvalidSubprotocol Io
        JsonError MessageTooLarge NotSupported RateLimitExceeded ReconnectTimeout SubprotocolNegotiationFailed Timeout
        Tls Utf8Error
    """,
    "fabric.fragmentation": "ConnectionId Fragmenter Reassembler",
    "fabric.headers": "HeaderMap HeaderName HeaderValue",
    "fabric.heartbeat": "HeartbeatManager",
    "fabric.message": "Frame Message MessageType Sendable",
    "fabric.metrics": "LatencyPercentiles MetricsCollector",
    "fabric.pool": "CleanupStats ConnectionPool PooledClient PoolStats ServerPoolStats",
    "fabric.ratelimit": "GlobalRateLimiter RateLimiter RateLimitStatus RateLimitType",
    "fabric.reconnect": "ReconnectState",
    "fabric.router": "Router",
    "fabric.runner": "run",
    "fabric.server": "ConnectedClient WebSocketServer",
    "fabric.subprotocol": "SubprotocolList SubprotocolNegotiator",
    "fabric_ext.protocol": "State",
}

if not TYPE_CHECKING:
    _HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            found = getattr(importlib.import_module(_HOMES[name]), name)
        elif name.startswith("_"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        else:
            module = f"{__name__}.{name}"
            try:
                found = importlib.import_module(module)
            except ModuleNotFoundError as error:
                if error.name != module:
                    raise
                raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        import pkgutil

        modules = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
        return sorted({*globals(), *__all__, *modules})
