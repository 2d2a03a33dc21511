"""WebSockets for latency-sensitive Python.

Everything that people import is here. The modules that it comes from can be imported as well, one concern
each: `client server message config reconnect backpressure heartbeat metrics pool compression fragmentation
subprotocol headers ratelimit error`; and `prometheus`, which needs the extra of that name.
"""

from fabric._http.messages import Request, Response
from fabric._version import VERSION
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
from fabric.message import Frame, Message, MessageType
from fabric.metrics import LatencyPercentiles, MetricsCollector
from fabric.pool import CleanupStats, ConnectionPool, PooledClient, PoolStats, ServerPoolStats
from fabric.ratelimit import GlobalRateLimiter, RateLimiter, RateLimitStatus, RateLimitType
from fabric.reconnect import ReconnectState
from fabric.router import Router
from fabric.runner import run
from fabric.server import ConnectedClient, WebSocketServer
from fabric.subprotocol import SubprotocolList, SubprotocolNegotiator
from fabric_ext.protocol import State

from fabric import sync as sync  # isort: skip  (`fabric.sync.connect` needs no import of its own)

__version__ = VERSION

__all__ = [
    "DEFAULT_BUFFER_SIZE",
    "DEFAULT_CONNECTION_TIMEOUT",
    "DEFAULT_MAX_MESSAGE_SIZE",
    "DEFAULT_PING_INTERVAL",
    "DEFAULT_PING_TIMEOUT",
    "VERSION",
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
