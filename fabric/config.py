"""What can be configured, with units, defaults and limits. A config is checked once, when it is made.

Every config is a frozen dataclass with keyword arguments. Each field has a builder `with_<field>`, which
returns a changed copy. Durations are seconds (float) or `timedelta`, and are held as float; sizes are bytes.
A wrong value raises ValueError, a value of a wrong type TypeError; both name the field, the value and what is
allowed. The repr shows what differs from the defaults, and no credentials.

Owns: names, defaults, limits, and what follows from the fields alone. Opens nothing, reads no environment.
"""

# ruff: noqa: RUF009  (`default` only changes the type that checkers see)

from __future__ import annotations

import math
import os
import re
import socket
import ssl as tls
import sys
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass, replace
from typing import Literal, Self

from fabric._config.validation import (
    Builder,
    Config,
    Converted,
    Duration,
    OptionalSeconds,
    Seconds,
    default,
    default_factory,
)
from fabric._http.url import PROXY_SCHEMES, Url
from fabric.error import InvalidHeader
from fabric.headers import HeaderBuilders, HeaderMap, HeaderName, HeadersLike, is_sensitive
from fabric.subprotocol import SubprotocolList

__all__ = [
    "DEFAULT_BUFFER_SIZE",
    "DEFAULT_CONNECTION_TIMEOUT",
    "DEFAULT_MAX_MESSAGE_SIZE",
    "DEFAULT_PING_INTERVAL",
    "DEFAULT_PING_TIMEOUT",
    "BackpressureConfig",
    "ClientConfig",
    "CompressionConfig",
    "HeartbeatConfig",
    "PoolConfig",
    "RateLimitConfig",
    "ReconnectConfig",
    "ServerConfig",
]

DEFAULT_MAX_MESSAGE_SIZE = 10 * 1024 * 1024
DEFAULT_PING_INTERVAL = 30.0
DEFAULT_PING_TIMEOUT = 10.0
DEFAULT_BUFFER_SIZE = 1000
DEFAULT_CONNECTION_TIMEOUT = 5.0

DEFAULT_CLOSE_TIMEOUT = 5.0
DEFAULT_MAX_BUFFER_BYTES = 16 * 1024 * 1024
# A 4 MiB message in fragments of 64 bytes, as the Autobahn suite sends it, has 65,536.
DEFAULT_MAX_FRAGMENTS = 100_000
# The transport answers a longer request head before anybody sees it.
MAX_HEADER_SIZE = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ReconnectConfig(Config):
    """When to try again after a connection is lost or refused.

    The n-th delay, from n = 0, is `initial_delay * backoff_multiplier ** n`, at most `max_delay`, less a
    random part of it.

    Attributes:
        enabled: False ends the client with its first connection.
        max_attempts: attempts after which to give up; 0 = no limit.
        initial_delay: seconds before the first attempt.
        max_delay: seconds at most between two attempts; not below `initial_delay`.
        backoff_multiplier: growth of the delay from attempt to attempt, 1 or more.
        jitter: the part of each delay that is random, so that many clients spread out: 0 = none, 1 = all.
            0.5 draws evenly between half the delay and the whole.
        stable_after: seconds a connection must have lived for the delays to start over.
    """

    enabled: bool = True
    max_attempts: int = 0
    initial_delay: Seconds = default(0.1)
    max_delay: Seconds = default(30.0)
    backoff_multiplier: float = 1.5
    jitter: float = 0.5
    stable_after: Seconds = default(5.0)

    def __post_init__(self) -> None:
        self._check_flag("enabled")
        self._check_integer("max_attempts", 0, note="0 = no limit")
        self._check_seconds("initial_delay", "max_delay")
        self._check_number("backoff_multiplier", 1)
        self._check_number("jitter", 0, 1)
        self._check_seconds("stable_after", zero=True)
        if self.max_delay < self.initial_delay:
            self._reject("max_delay", f"at least initial_delay, which is {self.initial_delay:g}")

    with_enabled = Builder[bool]()
    with_max_attempts = Builder[int]()
    with_initial_delay = Builder[Duration]()
    with_max_delay = Builder[Duration]()
    with_backoff_multiplier = Builder[float]()
    with_jitter = Builder[float]()
    with_stable_after = Builder[Duration]()


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class HeartbeatConfig(Config):
    """When to ask a silent peer for a sign of life (RFC 6455 §5.5.2).

    A half-open connection is found within `ping_interval + ping_timeout`.

    Attributes:
        enabled: False never asks.
        ping_interval: seconds of silence before a ping.
        ping_timeout: seconds the peer has to send anything after it.
        busy_timeout: seconds longer, in steps of `ping_timeout`, for a peer whose system acknowledges our pings
            while its application says nothing; None = for ever. Busy and hung look the same from here: with 0 a
            hung application is found like a dead machine, with None only a dead machine is. Nothing but Linux
            tells, and nothing on UNIX-domain sockets: there it is 0.
    """

    enabled: bool = True
    ping_interval: Seconds = default(DEFAULT_PING_INTERVAL)
    ping_timeout: Seconds = default(DEFAULT_PING_TIMEOUT)
    busy_timeout: OptionalSeconds = default(0.0)

    def __post_init__(self) -> None:
        self._check_flag("enabled")
        self._check_seconds("ping_interval", "ping_timeout")
        self._check_seconds("busy_timeout", zero=True, optional=True)

    with_enabled = Builder[bool]()
    with_ping_interval = Builder[Duration]()
    with_ping_timeout = Builder[Duration]()
    with_busy_timeout = Builder[Duration | None]()


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class BackpressureConfig(Config):
    """How much may wait to be sent on one connection, and when senders wait.

    Attributes:
        enabled: False lets senders run up to the limits, and then raises BufferFull.
        max_buffer_size: messages, at most.
        max_buffer_bytes: bytes, at most; one message may pass it if it is alone. Bounds likewise what has
            been received and not yet read.
        backpressure_threshold: part of either limit above which `send` waits.
        recovery_threshold: part below which it goes on; not above `backpressure_threshold`.
        timeout: seconds `send` waits before BackpressureTimeout; None = as long as it takes.
    """

    enabled: bool = True
    max_buffer_size: int = DEFAULT_BUFFER_SIZE
    max_buffer_bytes: int = DEFAULT_MAX_BUFFER_BYTES
    backpressure_threshold: float = 0.8
    recovery_threshold: float = 0.6
    timeout: OptionalSeconds = default(None)

    def __post_init__(self) -> None:
        self._check_flag("enabled")
        self._check_integer("max_buffer_size", 1)
        self._check_integer("max_buffer_bytes", 1)
        self._check_number("backpressure_threshold", 0, 1, above=True)
        self._check_number("recovery_threshold", 0, 1)
        self._check_seconds("timeout", optional=True)
        if self.recovery_threshold > self.backpressure_threshold:
            limit = self.backpressure_threshold
            self._reject("recovery_threshold", f"at most backpressure_threshold, which is {limit:g}")

    with_enabled = Builder[bool]()
    with_max_buffer_size = Builder[int]()
    with_max_buffer_bytes = Builder[int]()
    with_backpressure_threshold = Builder[float]()
    with_recovery_threshold = Builder[float]()
    with_timeout = Builder[Duration | None]()


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class CompressionConfig(Config):
    """Compression of messages: permessage-deflate (RFC 7692), or zstd between two of `fabric`.

    Attributes:
        enabled: False neither offers nor accepts it.
        algorithm: "deflate"; or "zstd", negotiated as an extension that only `fabric` knows.
        level: effort, 1 to 9 for deflate and 1 to 22 for zstd; None = 3 for both.
        threshold: bytes below which a message goes out plain.
        server_max_window_bits: the server's window is 2 ** bits bytes, 8 to 15. Each step less halves its
            memory, per connection, and finds fewer repetitions.
        client_max_window_bits: likewise, the client's.
        server_no_context_takeover: the server forgets each message when it is sent. Costs most of what is
            saved on small messages; saves the memory of the window between messages.
        client_no_context_takeover: likewise, the client.
        mem_level: memory for deflate's own tables, 1 to 9: 2 ** (mem_level + 7) bytes.
        zstd_dictionary: a dictionary of 8 bytes or more, trained or any content, the same on both sides.
    """

    enabled: bool = True
    algorithm: Literal["deflate", "zstd"] = "deflate"
    level: int | None = None
    threshold: int = 64
    server_max_window_bits: int = 12
    client_max_window_bits: int = 12
    server_no_context_takeover: bool = False
    client_no_context_takeover: bool = False
    mem_level: int = 5
    zstd_dictionary: bytes | None = None

    def __post_init__(self) -> None:
        self._check_flag("enabled", "server_no_context_takeover", "client_no_context_takeover")
        self._check_choice("algorithm", ("deflate", "zstd"))
        low, high = (1, 9) if self.algorithm == "deflate" else (1, 22)
        self._check_integer("level", low, high, optional=True, note=f"for {self.algorithm}")
        self._check_integer("threshold", 0)
        self._check_integer("server_max_window_bits", 8, 15)
        self._check_integer("client_max_window_bits", 8, 15)
        self._check_integer("mem_level", 1, 9)
        self._check_instance("zstd_dictionary", bytes, optional=True)
        if self.zstd_dictionary is not None and len(self.zstd_dictionary) < 8:
            self._reject("zstd_dictionary", "at least 8 bytes")
        if self.algorithm == "zstd" and self.zstd_dictionary is not None and not _can_load(self.zstd_dictionary):
            self._reject("zstd_dictionary", "what zstd has trained, or content that does not begin like it")

    with_enabled = Builder[bool]()
    with_algorithm = Builder[Literal["deflate", "zstd"]]()
    with_level = Builder[int | None]()
    with_threshold = Builder[int]()
    with_server_max_window_bits = Builder[int]()
    with_client_max_window_bits = Builder[int]()
    with_server_no_context_takeover = Builder[bool]()
    with_client_no_context_takeover = Builder[bool]()
    with_mem_level = Builder[int]()
    with_zstd_dictionary = Builder[bytes | None]()


def _can_load(dictionary: bytes) -> bool:
    """Whether zstd takes a dictionary; only a trained one, which starts with a number, can be wrong (RFC 8878 §5)."""
    if not dictionary.startswith(b"\x37\xa4\x30\xec"):
        return True
    # Here, because hardly anybody needs it.
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    try:
        content = zstd.ZstdDict(dictionary)
        zstd.ZstdDecompressor(zstd_dict=content)
        zstd.ZstdCompressor(zstd_dict=content).compress(b"")
    except (ValueError, zstd.ZstdError):
        return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RateLimitConfig(Config):
    """How much a connection, or all of a server's together, may receive. Off by default.

    Attributes:
        messages_per_second, bytes_per_second, operations_per_second: sustained rates; None = no limit. Operations
            are messages and pings.
        messages_burst, bytes_burst, operations_burst: what may come at once; None = what one second brings,
            and at least 1.
        on_exceed: "slow" stops reading until it is allowed, "drop" drops the message, "close" closes (1008). A message
            larger than `bytes_burst`, which no wait would let in, is dropped or closes the connection.
    """

    messages_per_second: float | None = None
    messages_burst: int | None = None
    bytes_per_second: float | None = None
    bytes_burst: int | None = None
    operations_per_second: float | None = None
    operations_burst: int | None = None
    on_exceed: Literal["slow", "drop", "close"] = "slow"

    def __post_init__(self) -> None:
        for what in ("messages", "bytes", "operations"):
            rate, burst = f"{what}_per_second", f"{what}_burst"
            self._check_number(rate, 0, above=True, optional=True)
            self._check_integer(burst, 1, optional=True)
            if getattr(self, burst) is not None and getattr(self, rate) is None:
                self._reject(burst, f"None, because {rate} is None")
        self._check_choice("on_exceed", ("slow", "drop", "close"))

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit."""
        return (self.messages_per_second or self.bytes_per_second or self.operations_per_second) is not None

    def limit(self, what: Literal["messages", "bytes", "operations"]) -> tuple[float, int] | None:
        """Rate per second and burst of one kind; None = no limit."""
        rate: float | None = getattr(self, f"{what}_per_second")
        burst: int | None = getattr(self, f"{what}_burst")
        return None if rate is None else (rate, burst or math.ceil(rate))

    def with_messages(self, rate: float | None, burst: int | None = None) -> Self:
        """A copy that allows `rate` messages per second, `burst` at once."""
        return replace(self, messages_per_second=rate, messages_burst=burst)

    def with_bytes(self, rate: float | None, burst: int | None = None) -> Self:
        """A copy that allows `rate` bytes per second, `burst` at once."""
        return replace(self, bytes_per_second=rate, bytes_burst=burst)

    def with_operations(self, rate: float | None, burst: int | None = None) -> Self:
        """A copy that allows `rate` operations per second, `burst` at once."""
        return replace(self, operations_per_second=rate, operations_burst=burst)

    with_messages_per_second = Builder[float | None]()
    with_messages_burst = Builder[int | None]()
    with_bytes_per_second = Builder[float | None]()
    with_bytes_burst = Builder[int | None]()
    with_operations_per_second = Builder[float | None]()
    with_operations_burst = Builder[int | None]()
    with_on_exceed = Builder[Literal["slow", "drop", "close"]]()


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PoolConfig(Config):
    """A pool of client connections. Limits are per server.

    Attributes:
        min_connections: connections kept open, in use or idle.
        max_connections: connections at most; not below `min_connections`.
        idle_timeout: seconds after which an idle connection above the minimum is closed.
        health_check_interval: seconds between two checks of the idle ones.
        acquire_timeout: seconds `get` takes at most, waiting and opening together.
        enable_health_check: False checks a connection only when it is handed out.
    """

    min_connections: int = 1
    max_connections: int = 10
    idle_timeout: Seconds = default(300.0)
    health_check_interval: Seconds = default(30.0)
    acquire_timeout: Seconds = default(5.0)
    enable_health_check: bool = True

    def __post_init__(self) -> None:
        self._check_integer("min_connections", 0)
        self._check_integer("max_connections", 1)
        self._check_seconds("idle_timeout", "health_check_interval", "acquire_timeout")
        self._check_flag("enable_health_check")
        if self.max_connections < self.min_connections:
            self._reject("max_connections", f"at least min_connections, which is {self.min_connections}")

    with_min_connections = Builder[int]()
    with_max_connections = Builder[int]()
    with_idle_timeout = Builder[Duration]()
    with_health_check_interval = Builder[Duration]()
    with_acquire_timeout = Builder[Duration]()
    with_enable_health_check = Builder[bool]()


# What None means for a part of the configs below.
_NO_RECONNECT = ReconnectConfig(enabled=False)
_NO_HEARTBEAT = HeartbeatConfig(enabled=False)
_NO_BACKPRESSURE = BackpressureConfig(enabled=False)
_NO_COMPRESSION = CompressionConfig(enabled=False)
_NO_RATE_LIMIT = RateLimitConfig()

# Written by the handshake itself, which a second value would break (RFC 6455 §4.1).
_HANDSHAKE_HEADERS = frozenset({"connection", "content-length", "host", "transfer-encoding", "upgrade"})


def _own_headers(headers: HeadersLike) -> HeaderMap:
    """A copy of the headers that the user may set."""
    own = HeaderMap() if headers is None else HeaderMap(headers)
    for name in own:
        if name.lower() in _HANDSHAKE_HEADERS or name.lower().startswith("sec-websocket-"):
            raise InvalidHeader(name, "the opening handshake writes this one itself")
    return own


def _is_socket_path(path: str) -> bool:
    """Whether `path` can name a UNIX-domain socket. A NUL at its start is an abstract one of Linux (unix(7))."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return bool(path) and (path.startswith("\0") or "\0" not in path)


@dataclass(frozen=True, slots=True, repr=False)
class ClientConfig(HeaderBuilders, Config):
    """Everything about a client.

    Attributes:
        url: `ws://` or `wss://`. Credentials in it become an `Authorization` header, and are never shown.
        max_message_size: bytes of one message received, reassembled and decompressed; more closes with 1009.
        max_fragments: frames of one message received; more closes with 1008.
        auto_reconnect: False is the same as `reconnect.enabled` False.
        connection_timeout: seconds for DNS, TCP, proxy, TLS, redirects and the HTTP upgrade together.
        close_timeout: seconds for the peer to answer a close.
        buffer_size: messages received and not yet read, at most; then the socket is not read.
        reconnect, heartbeat, backpressure, compression, rate_limit: see these; None switches one off.
        fragment_size: bytes above which a message goes out in several frames; None = never.
        subprotocols: names to offer, the preferred one first.
        headers: more headers of the request. Those of the handshake itself cannot be set.
        ssl: for `wss://`; None = the system's certificates.
        proxy: URL of an HTTP or SOCKS5 proxy; True = as the environment says (and `NO_PROXY`); None = none. A
            user name and password for SOCKS5 are ASCII, at most 255 bytes each.
        max_redirects: redirects to follow; 0 = none. None is followed from a `sock` or `unix_path`.
        sock: a connected stream socket to use. It serves once: there is no reconnecting with it.
        unix_path: a UNIX-domain socket to connect to; `url` then gives the `Host` header and the resource.
    """

    url: str
    _: KW_ONLY
    max_message_size: int = DEFAULT_MAX_MESSAGE_SIZE
    max_fragments: int = DEFAULT_MAX_FRAGMENTS
    auto_reconnect: bool = True
    connection_timeout: Seconds = default(DEFAULT_CONNECTION_TIMEOUT)
    close_timeout: Seconds = default(DEFAULT_CLOSE_TIMEOUT)
    buffer_size: int = DEFAULT_BUFFER_SIZE
    reconnect: Converted[ReconnectConfig | None, ReconnectConfig] = default(ReconnectConfig())
    heartbeat: Converted[HeartbeatConfig | None, HeartbeatConfig] = default(HeartbeatConfig())
    backpressure: Converted[BackpressureConfig | None, BackpressureConfig] = default(BackpressureConfig())
    compression: Converted[CompressionConfig | None, CompressionConfig] = default(CompressionConfig())
    rate_limit: Converted[RateLimitConfig | None, RateLimitConfig] = default(RateLimitConfig())
    fragment_size: int | None = None
    subprotocols: Converted[Iterable[str], SubprotocolList] = default(SubprotocolList())
    headers: Converted[HeadersLike, HeaderMap] = default_factory(HeaderMap)
    ssl: tls.SSLContext | None = None
    proxy: Literal[True] | str | None = None
    max_redirects: int = 5
    sock: socket.socket | None = None
    unix_path: str | None = None

    def __post_init__(self) -> None:
        secure = self._parse("url", ("ws", "wss")).is_secure
        self._check_integer("max_message_size", 1)
        self._check_integer("max_fragments", 1)
        self._check_flag("auto_reconnect")
        self._check_seconds("connection_timeout", "close_timeout")
        self._check_integer("buffer_size", 1)
        self._check_part("reconnect", _NO_RECONNECT)
        self._check_part("heartbeat", _NO_HEARTBEAT)
        self._check_part("backpressure", _NO_BACKPRESSURE)
        self._check_part("compression", _NO_COMPRESSION)
        self._check_part("rate_limit", _NO_RATE_LIMIT)
        self._check_integer("fragment_size", 1, optional=True)
        self._set("subprotocols", SubprotocolList(self._check_several("subprotocols")))
        self._set("headers", _own_headers(self.headers))
        self._check_instance("ssl", tls.SSLContext, optional=True)
        if self.ssl is not None and not secure:
            self._reject("ssl", "None, because the url is not wss://")
        if self.proxy is not None and self.proxy is not True:
            self._parse("proxy", PROXY_SCHEMES)
        self._check_integer("max_redirects", 0)
        self._check_instance("sock", socket.socket, optional=True)
        if self.sock is not None and (self.sock.type != socket.SOCK_STREAM or isinstance(self.sock, tls.SSLSocket)):
            self._reject("sock", "a connected stream socket, without TLS")
        self._check_instance("unix_path", str, optional=True)
        if self.unix_path is not None and not _is_socket_path(self.unix_path):
            self._reject("unix_path", "a path without NUL, but for one at its start")
        ways = [name for name in ("proxy", "sock", "unix_path") if getattr(self, name) is not None]
        if len(ways) > 1:
            self._reject(ways[1], f"None, because {ways[0]} is given")

    def _parse(self, name: str, schemes: tuple[str, ...]) -> Url:
        try:
            return Url.parse(getattr(self, name), schemes)
        except (TypeError, ValueError) as error:
            raise type(error)(f"ClientConfig.{name} = {error}") from None

    @property
    def address(self) -> Url:
        """The parts of `url`; its `str()` is free of credentials."""
        return Url.parse(self.url)

    def request_headers(self, address: Url | None = None) -> HeaderMap:
        """The headers to send to `address`, by default that of `url`.

        An `Authorization` header that was set goes before credentials in the URL. To another origin, where a
        redirect may lead, go no credentials at all: neither of these, nor cookies, keys and tokens.
        """
        own = self.address
        address = address or own
        same = address.origin == own.origin
        headers = HeaderMap((k, v) for k, v in self.headers.items() if same or not is_sensitive(k))
        if address.authorization is not None and "Authorization" not in headers:
            headers["Authorization"] = address.authorization
        return headers

    def _get_headers(self) -> HeaderMap:
        return self.headers

    def _set_headers(self, headers: HeaderMap) -> Self:
        return replace(self, headers=headers)

    def with_subprotocols(self, *names: str) -> Self:
        """A copy that offers these subprotocols, the preferred one first."""
        return replace(self, subprotocols=names)

    with_url = Builder[str]()
    with_max_message_size = Builder[int]()
    with_max_fragments = Builder[int]()
    with_auto_reconnect = Builder[bool]()
    with_connection_timeout = Builder[Duration]()
    with_close_timeout = Builder[Duration]()
    with_buffer_size = Builder[int]()
    with_reconnect = with_reconnect_config = Builder[ReconnectConfig | None]("reconnect")
    with_heartbeat = with_heartbeat_config = Builder[HeartbeatConfig | None]("heartbeat")
    with_backpressure = with_backpressure_config = Builder[BackpressureConfig | None]("backpressure")
    with_compression = with_compression_config = Builder[CompressionConfig | None]("compression")
    with_rate_limit = with_rate_limit_config = Builder[RateLimitConfig | None]("rate_limit")
    with_fragment_size = Builder[int | None]()
    with_headers = Builder[HeadersLike]()
    with_ssl = Builder[tls.SSLContext | None]()
    with_proxy = Builder[Literal[True] | str | None]()
    with_max_redirects = Builder[int]()
    with_sock = Builder[socket.socket | None]()
    with_unix_path = Builder[str | None]()


@dataclass(frozen=True, slots=True, repr=False)
class ServerConfig(Config):
    """Everything about a server.

    Attributes:
        bind: where to listen: "127.0.0.1:8080", "[::1]:8080", ":8080" for all addresses, port 0 for a free
            one, or "unix:/path".
        max_connections: connections at once; more are answered 503 with `Retry-After`.
        max_connections_per_ip: likewise, from one address; 0 = no limit.
        max_message_size: bytes of one message received, reassembled and decompressed; more closes with 1009.
        max_fragments: frames of one message received; more closes with 1008.
        buffer_size: messages received and not yet read, per connection; then its socket is not read.
        ping_interval: seconds of silence before a ping; None = no heartbeat.
        ping_timeout: seconds the peer has to send anything after it.
        busy_timeout: seconds longer for one that is only busy, as in `HeartbeatConfig`; None = for ever.
        handshake_timeout: seconds from accepting to the end of the upgrade, TLS included.
        close_timeout: seconds for the peer to answer a close.
        backpressure: what may wait to be sent on each connection; None = limits without waiting.
        compression: None = none.
        rate_limit: for each connection; None = none.
        global_rate_limit: for all connections together; None = none.
        fragment_size: bytes above which a message goes out in several frames; None = never.
        slow_peer: what a broadcast does with a peer whose buffer is full: "drop" the message for this peer,
            "close" the connection, or "wait" for it without delaying others.
        subprotocols: names spoken; "*" accepts what the client prefers.
        require_subprotocol: answer 400 when there is none in common.
        required_headers: names a request must have; without them 401 (`Authorization`) or 400.
        headers: more headers of the response. Those of the handshake itself cannot be set.
        origins: allowed values of the `Origin` header (RFC 6455 §10.2): exact strings, compiled patterns that
            match the whole, and None for requests without one; others get 403. None for no list = all.
        ssl: serves `wss://`.
        reuse_port: several processes may listen on one port (SO_REUSEPORT).
        backlog: connections the system holds until they are accepted.
        max_header_size: bytes of a request's head, at most; the transport's own limit is 16 KiB.
    """

    bind: str = "127.0.0.1:8080"
    _: KW_ONLY
    max_connections: int = 10_000
    max_connections_per_ip: int = 0
    max_message_size: int = DEFAULT_MAX_MESSAGE_SIZE
    max_fragments: int = DEFAULT_MAX_FRAGMENTS
    buffer_size: int = DEFAULT_BUFFER_SIZE
    ping_interval: OptionalSeconds = default(DEFAULT_PING_INTERVAL)
    ping_timeout: Seconds = default(DEFAULT_PING_TIMEOUT)
    busy_timeout: OptionalSeconds = default(0.0)
    handshake_timeout: Seconds = default(5.0)
    close_timeout: Seconds = default(DEFAULT_CLOSE_TIMEOUT)
    backpressure: Converted[BackpressureConfig | None, BackpressureConfig] = default(BackpressureConfig())
    compression: Converted[CompressionConfig | None, CompressionConfig] = default(CompressionConfig())
    rate_limit: Converted[RateLimitConfig | None, RateLimitConfig] = default(RateLimitConfig())
    global_rate_limit: Converted[RateLimitConfig | None, RateLimitConfig] = default(RateLimitConfig())
    fragment_size: int | None = None
    slow_peer: Literal["drop", "close", "wait"] = "drop"
    subprotocols: Converted[Iterable[str], SubprotocolList] = default(SubprotocolList())
    require_subprotocol: bool = False
    required_headers: Converted[Iterable[str], tuple[str, ...]] = default(())
    headers: Converted[HeadersLike, HeaderMap] = default_factory(HeaderMap)
    origins: Converted[
        Iterable[str | re.Pattern[str] | None] | None, tuple[str | re.Pattern[str] | None, ...] | None
    ] = default(None)
    ssl: tls.SSLContext | None = None
    reuse_port: bool = False
    backlog: int = 1024
    max_header_size: int = MAX_HEADER_SIZE

    def __post_init__(self) -> None:
        self._check_bind()
        self._check_integer("max_connections", 1)
        self._check_integer("max_connections_per_ip", 0, note="0 = no limit")
        self._check_integer("max_message_size", 1)
        self._check_integer("max_fragments", 1)
        self._check_integer("buffer_size", 1)
        self._check_seconds("ping_interval", optional=True)
        self._check_seconds("ping_timeout", "handshake_timeout", "close_timeout")
        self._check_seconds("busy_timeout", zero=True, optional=True)
        self._check_part("backpressure", _NO_BACKPRESSURE)
        self._check_part("compression", _NO_COMPRESSION)
        self._check_part("rate_limit", _NO_RATE_LIMIT)
        self._check_part("global_rate_limit", _NO_RATE_LIMIT)
        self._check_integer("fragment_size", 1, optional=True)
        self._check_choice("slow_peer", ("drop", "close", "wait"))
        self._set("subprotocols", SubprotocolList(self._check_several("subprotocols")))
        self._check_flag("require_subprotocol", "reuse_port")
        names = self._check_several("required_headers")
        self._set("required_headers", tuple(str(HeaderName(name)) for name in names))
        self._set("headers", _own_headers(self.headers))
        self._check_origins()
        self._check_instance("ssl", tls.SSLContext, optional=True)
        self._check_integer("backlog", 1)
        self._check_integer("max_header_size", 1024, MAX_HEADER_SIZE, note="the transport reads no more")

    def _check_bind(self) -> None:
        self._check_instance("bind", str)
        if self.unix_path is not None:
            if not _is_socket_path(self.unix_path):
                self._reject("bind", "a path after 'unix:', without NUL but for one at its start")
            return
        host, colon, port = self.bind.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        # A colon outside brackets is an address whose last group would be taken for the port.
        if not colon or (":" in host and not bracketed) or re.search(r"[\s\x00-\x1f\x7f/@]", host):
            self._reject("bind", "'host:port', '[address]:port', ':port' or 'unix:/path'")
        try:
            host.encode("idna")  # as the resolver does
        except UnicodeError:
            self._reject("bind", "a host name with 1 to 63 characters between dots")
        if not (port.isascii() and port.isdecimal() and int(port) <= 65535):
            self._reject("bind", "a port from 0 to 65535 after the last colon")

    def _check_origins(self) -> None:
        if self.origins is None:
            return
        self._set("origins", self._check_several("origins"))
        for origin in self.origins:
            if not isinstance(origin, (str, re.Pattern, type(None))):
                self._reject("origins", "a str, a compiled pattern or None each", TypeError)
            # Browsers send neither a path nor a final slash: such a string would never match (RFC 6454 §6.1).
            if isinstance(origin, str) and not re.fullmatch(r"null|[a-z][a-z0-9+.\-]*://[^/?#@\sA-Z]+", origin):
                self._reject("origins", "'scheme://host' or 'scheme://host:port' each, in lower case")

    @property
    def host(self) -> str | None:
        """Name or address to listen on; None = all addresses."""
        return None if self.unix_path else self.bind.rpartition(":")[0].strip("[]") or None

    @property
    def port(self) -> int:
        """Port to listen on; 0 = a free one."""
        return 0 if self.unix_path else int(self.bind.rpartition(":")[2])

    @property
    def unix_path(self) -> str | None:
        """UNIX-domain socket to listen on; None = TCP."""
        return self.bind.removeprefix("unix:") if self.bind.startswith("unix:") else None

    @property
    def heartbeat(self) -> HeartbeatConfig:
        """`ping_interval`, `ping_timeout` and `busy_timeout` as a heartbeat's config."""
        if self.ping_interval is None:
            return _NO_HEARTBEAT
        return HeartbeatConfig(
            ping_interval=self.ping_interval, ping_timeout=self.ping_timeout, busy_timeout=self.busy_timeout
        )

    def with_subprotocols(self, *names: str) -> Self:
        """A copy that speaks these subprotocols."""
        return replace(self, subprotocols=names)

    def with_required_headers(self, *names: str) -> Self:
        """A copy that requires exactly these headers of a request."""
        return replace(self, required_headers=names)

    def with_required_header(self, name: str) -> Self:
        """A copy that requires one header more."""
        return replace(self, required_headers=(*self.required_headers, name))

    def with_header(self, name: str, value: str) -> Self:
        """A copy with one response header more; those of the same name stay."""
        headers = HeaderMap(self.headers)
        headers.add(name, value)
        return replace(self, headers=headers)

    def with_origins(self, *origins: str | re.Pattern[str] | None) -> Self:
        """A copy that allows exactly these origins."""
        return replace(self, origins=origins)

    with_bind = Builder[str]()
    with_max_connections = Builder[int]()
    with_max_connections_per_ip = Builder[int]()
    with_max_message_size = Builder[int]()
    with_max_fragments = Builder[int]()
    with_buffer_size = Builder[int]()
    with_ping_interval = Builder[Duration | None]()
    with_ping_timeout = Builder[Duration]()
    with_busy_timeout = Builder[Duration | None]()
    with_handshake_timeout = Builder[Duration]()
    with_close_timeout = Builder[Duration]()
    with_backpressure = with_backpressure_config = Builder[BackpressureConfig | None]("backpressure")
    with_compression = with_compression_config = Builder[CompressionConfig | None]("compression")
    with_rate_limit = with_rate_limit_config = Builder[RateLimitConfig | None]("rate_limit")
    with_global_rate_limit = Builder[RateLimitConfig | None]()
    with_fragment_size = Builder[int | None]()
    with_slow_peer = Builder[Literal["drop", "close", "wait"]]()
    with_require_subprotocol = Builder[bool]()
    with_headers = Builder[HeadersLike]()
    with_ssl = Builder[tls.SSLContext | None]()
    with_reuse_port = Builder[bool]()
    with_backlog = Builder[int]()
    with_max_header_size = Builder[int]()
