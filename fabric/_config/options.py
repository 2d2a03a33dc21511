"""The options of clients and servers as keyword arguments, for type checkers.

Owns: the types of what `WebSocketClient.connect` and `WebSocketServer.bind` take beside an address. They are the
fields of `ClientConfig` and `ServerConfig`, which say what each means and check it at run time.
"""

from __future__ import annotations

import re
import socket
import ssl as tls
from collections.abc import Iterable
from typing import Literal, TypedDict

from fabric._config.client import ContextSource, HeadersSource
from fabric._config.compression import CompressionConfig
from fabric._config.policies import BackpressureConfig, HeartbeatConfig, Off, RateLimitConfig, ReconnectConfig
from fabric._config.validation import Duration
from fabric.headers import HeadersLike

__all__ = ["ClientOptions", "ServerOptions"]


class ClientOptions(TypedDict, total=False):
    """The fields of `ClientConfig`, but for `url`, as keyword arguments."""

    max_message_size: int
    max_fragments: int
    auto_reconnect: bool
    first_connect: Literal["raise", "retry"]
    outage: Literal["queue", "wait", "raise"]
    connection_timeout: Duration
    close_timeout: Duration
    buffer_size: int
    reconnect: ReconnectConfig | Off
    heartbeat: HeartbeatConfig | Off
    backpressure: BackpressureConfig | Off
    compression: CompressionConfig | Off
    rate_limit: RateLimitConfig | Off
    fragment_size: int | None
    cork: bool
    busy_poll: Duration
    subprotocols: Iterable[str]
    headers: HeadersSource
    ssl: ContextSource
    host: str | None
    server_hostname: str | None
    proxy: str | bool | None
    proxy_ssl: tls.SSLContext | None
    proxy_headers: HeadersLike
    max_redirects: int
    sock: socket.socket | None
    unix_path: str | None


class ServerOptions(TypedDict, total=False):
    """The fields of `ServerConfig`, but for `bind`, as keyword arguments."""

    sock: socket.socket | Iterable[socket.socket] | None
    unix_mode: int | None
    proxy_protocol: bool | Iterable[str]
    max_connections: int
    max_connections_per_ip: int
    max_message_size: int
    max_fragments: int
    buffer_size: int
    ping_interval: Duration | None
    ping_mode: Literal["idle", "always"]
    ping_timeout: Duration
    busy_timeout: Duration | None
    handshake_timeout: Duration
    close_timeout: Duration
    backpressure: BackpressureConfig | Off
    compression: CompressionConfig | Off
    rate_limit: RateLimitConfig | Off
    global_rate_limit: RateLimitConfig | Off
    fragment_size: int | None
    cork: bool
    busy_poll: Duration
    slow_peer: Literal["drop", "close", "wait"]
    max_topics: int
    duplicate_names: Literal["newest", "reject", "both"]
    subprotocols: Iterable[str]
    require_subprotocol: bool
    required_headers: Iterable[str]
    headers: HeadersLike
    origins: Iterable[str | re.Pattern[str] | None] | None
    ssl: tls.SSLContext | None
    reuse_port: bool
    backlog: int
    max_header_size: int
