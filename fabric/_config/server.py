"""What can be configured about a server."""

# ruff: noqa: RUF009  (`default` only changes the type that checkers see)

from __future__ import annotations

import ipaddress
import re
import socket
import ssl as tls
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar, Literal, Self

from fabric._config.addresses import INHERITED, is_bind_address, is_socket_path
from fabric._config.compression import NO_COMPRESSION, CompressionConfig
from fabric._config.defaults import (
    DEFAULT_BUFFER_SIZE,
    DEFAULT_CLOSE_TIMEOUT,
    DEFAULT_MAX_FRAGMENTS,
    DEFAULT_MAX_HEADER_SIZE,
    DEFAULT_MAX_MESSAGE_SIZE,
    DEFAULT_PING_INTERVAL,
    DEFAULT_PING_TIMEOUT,
    MAX_HEADER_SIZE,
)
from fabric._config.headers import own_headers
from fabric._config.policies import (
    NO_BACKPRESSURE,
    NO_HEARTBEAT,
    NO_RATE_LIMIT,
    BackpressureConfig,
    HeartbeatConfig,
    Off,
    RateLimitConfig,
)
from fabric._config.validation import (
    Builder,
    Config,
    Converted,
    Duration,
    OptionalSeconds,
    Seconds,
    default,
    default_factory,
    explains_unknown_options,
)
from fabric._http.url import normal_origin
from fabric.headers import HeaderMap, HeaderName, HeadersLike
from fabric.subprotocol import SubprotocolList

__all__ = ["ServerConfig"]

DEFAULT_BIND = "127.0.0.1:8080"

# The most connections that systems keep waiting, whatever they are asked for.
MAX_BACKLOG = 65_535


@explains_unknown_options
@dataclass(frozen=True, slots=True, repr=False)
class ServerConfig(Config):
    """Everything about a server.

    Attributes:
        bind: where to listen: "127.0.0.1:8080", "[::1]:8080", ":8080" for all addresses of both families,
            "0.0.0.0:8080" for all of IPv4, "[::]:8080" for all of IPv6 and no others, port 0 for a free one,
            which is the same on all addresses, or "unix:/path". Sockets that the process was started with are
            "fd:3" for the descriptor 3, "systemd:" for all that systemd has passed, "systemd:NAME" for those of them
            with that name (FileDescriptorName=).
        sock: a bound stream socket to listen on, or several, instead of `bind`; the server closes them.
        unix_mode: permissions of the UNIX-domain socket in `bind`, as 0o660; None = what the process's umask leaves.
        proxy_protocol: connections come through a proxy that tells the client's address in a header of the PROXY
            protocol, version 1 or 2, before anything else: `remote_addr`, and the limits for each address, are the
            client's then. The addresses and networks of the proxies, as "10.0.0.7" or "10.0.0.0/8": from them the
            header is required, all others are served as they are. True requires it from everybody: only where nobody
            but the proxy can connect, since the header is believed.
        max_connections: open connections at once; more are answered 503 with `Retry-After`. As many again may be in
            their opening handshake.
        max_connections_per_ip: likewise, from one address, with 429; 0 = no limit.
        max_message_size: bytes of one message received, reassembled and decompressed; more closes with 1009.
        max_fragments: frames of one message received; more closes with 1008.
        buffer_size: messages received and not yet read, per connection; after 64 KB more its socket is not read.
        ping_interval: seconds of silence before a ping, or between two; None = no heartbeat.
        ping_mode: "idle" pings only a client that says nothing, "always" each, as in `HeartbeatConfig`.
        ping_timeout: seconds the peer has to send anything after it.
        busy_timeout: seconds longer for one that is only busy, as in `HeartbeatConfig`; None = for ever.
        handshake_timeout: seconds from accepting to the end of the upgrade, TLS and `process_request` included.
        close_timeout: seconds in which the peer has to answer a close, or at least take some bytes; then they start
            again.
        backpressure: what may wait to be sent on each connection; None = limits without waiting.
        compression: None = none.
        rate_limit: for each connection; None = none.
        global_rate_limit: for all connections together; None = none.
        fragment_size: bytes above which a message goes out in several frames; None = never.
        cork: False sends each message at once and alone. True gathers those that follow within 50 µs of one before,
            for as long: fewer system calls for many small messages.
        busy_poll: seconds after the last byte of a connection for which its event loop keeps looking for more instead
            of sleeping: the lowest latency, for a processor while it lasts. 0 = off, `math.inf` = always. See
            "Tune latency" in the guide.
        slow_peer: what a broadcast does with a peer whose buffer is full: "drop" the message for this peer,
            "close" the connection, or "wait" for it without delaying others, and drop it when it takes no bytes
            for `close_timeout`.
        max_topics: topics and patterns that one client may have subscribed to at once; one more raises `TooManyTopics`.
        duplicate_names: what becomes of a name that is given to a second client: the "newest" keeps it and the other
            is closed with 1008, the second is refused ("reject"), or "both" have it.
        subprotocols: names spoken; "*" accepts what the client prefers.
        require_subprotocol: answer 400 when there is none in common.
        required_headers: names a request must have; without them 401 (`Authorization`) or 400.
        headers: more headers of the response. Those of the handshake itself cannot be set.
        origins: allowed values of the `Origin` header (RFC 6455 §10.2): exact strings, compiled patterns that
            match the whole, and None for requests without one; others get 403. None for no list = all. A string
            is held as browsers send it: in lower case, without the default port.
        ssl: serves `wss://`.
        reuse_port: several processes may listen on one port (SO_REUSEPORT).
        backlog: connections the system holds until they are accepted.
        max_header_size: bytes of a request's head, at most; 1 KiB to 1 MiB.
    """

    _OTHER_NAMES: ClassVar[dict[str, str]] = {
        "extra_headers": "headers",
        "fileno": "bind='fd:3'",
        "heartbeat": "ping_interval=..., ping_timeout=...",
        "host": "bind='host:port'",
        "max_msg_size": "max_message_size",
        "max_queue": "buffer_size",
        "max_size": "max_message_size",
        "open_timeout": "handshake_timeout",
        "port": "bind='host:port'",
        "ssl_context": "ssl",
        "timeout": "handshake_timeout",
        "unix_path": "bind='unix:/path'",
    }

    bind: str = DEFAULT_BIND
    _: KW_ONLY
    sock: Converted[socket.socket | Iterable[socket.socket] | None, tuple[socket.socket, ...] | None] = default(None)
    unix_mode: int | None = None
    proxy_protocol: Converted[bool | Iterable[str], bool | tuple[str, ...]] = default(value=False)
    max_connections: int = 10_000
    max_connections_per_ip: int = 0
    max_message_size: int = DEFAULT_MAX_MESSAGE_SIZE
    max_fragments: int = DEFAULT_MAX_FRAGMENTS
    buffer_size: int = DEFAULT_BUFFER_SIZE
    ping_interval: OptionalSeconds = default(DEFAULT_PING_INTERVAL)
    ping_mode: Literal["idle", "always"] = "idle"
    ping_timeout: Seconds = default(DEFAULT_PING_TIMEOUT)
    busy_timeout: OptionalSeconds = default(0.0)
    handshake_timeout: Seconds = default(5.0)
    close_timeout: Seconds = default(DEFAULT_CLOSE_TIMEOUT)
    backpressure: Converted[BackpressureConfig | Off, BackpressureConfig] = default(BackpressureConfig())
    compression: Converted[CompressionConfig | Off, CompressionConfig] = default(CompressionConfig())
    rate_limit: Converted[RateLimitConfig | Off, RateLimitConfig] = default(RateLimitConfig())
    global_rate_limit: Converted[RateLimitConfig | Off, RateLimitConfig] = default(RateLimitConfig())
    fragment_size: int | None = None
    cork: bool = True
    busy_poll: Seconds = default(0.0)
    slow_peer: Literal["drop", "close", "wait"] = "drop"
    max_topics: int = 1000
    duplicate_names: Literal["newest", "reject", "both"] = "newest"
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
    max_header_size: int = DEFAULT_MAX_HEADER_SIZE

    def __post_init__(self) -> None:
        self._check_bind()
        self._check_sockets()
        self._check_proxies()
        self._check_integer("max_connections", 1)
        self._check_integer("max_connections_per_ip", 0, note="0 = no limit")
        self._check_integer("max_message_size", 1)
        self._check_integer("max_fragments", 1)
        self._check_integer("buffer_size", 1)
        self._check_seconds("ping_interval", optional=True)
        self._check_choice("ping_mode", ("idle", "always"))
        self._check_seconds("ping_timeout", "handshake_timeout", "close_timeout")
        self._check_seconds("busy_timeout", zero=True, optional=True)
        self._check_part("backpressure", NO_BACKPRESSURE)
        self._check_part("compression", NO_COMPRESSION)
        self._check_part("rate_limit", NO_RATE_LIMIT)
        self._check_part("global_rate_limit", NO_RATE_LIMIT)
        self._check_integer("fragment_size", 1, optional=True)
        self._check_flag("cork")
        self._check_seconds("busy_poll", zero=True, endless=True)
        self._check_choice("slow_peer", ("drop", "close", "wait"))
        self._check_integer("max_topics", 1)
        self._check_choice("duplicate_names", ("newest", "reject", "both"))
        self._set("subprotocols", SubprotocolList(self._check_several("subprotocols")))
        self._check_flag("require_subprotocol", "reuse_port")
        names = self._check_several("required_headers")
        self._set("required_headers", tuple(str(HeaderName(name)) for name in names))
        self._set("headers", own_headers(self.headers))
        self._check_origins()
        self._check_context("ssl", "None for no TLS")
        self._check_integer("backlog", 1, MAX_BACKLOG)
        self._check_integer("max_header_size", 1024, MAX_HEADER_SIZE)

    def _check_bind(self) -> None:
        forms = "'host:port', '[address]:port', ':port' with a port up to 65535, 'unix:/path', 'fd:3', or 'systemd:'"
        if not isinstance(self.bind, str):
            self._reject("bind", forms, TypeError)
        if self._is_inherited:
            return
        if self.unix_path is not None:
            if not is_socket_path(self.unix_path):
                self._reject("bind", "a path after 'unix:', without NUL but for one at its start")
        elif not is_bind_address(self.bind):
            self._reject("bind", forms)

    def _check_sockets(self) -> None:
        self._check_integer("unix_mode", 0, 0o777, optional=True)
        if self.unix_mode is not None and self.unix_path is None:
            self._reject("unix_mode", "None, because bind is no 'unix:/path'")
        if self.sock is None:
            return
        if self.bind != DEFAULT_BIND:
            self._reject("sock", "None, because bind is given")
        sockets = (self.sock,) if isinstance(self.sock, socket.socket) else self._check_several("sock")
        for sock in sockets:
            if not isinstance(sock, socket.socket):
                self._reject("sock", "a socket, several, or None", TypeError)
            if sock.type != socket.SOCK_STREAM or isinstance(sock, tls.SSLSocket):
                self._reject("sock", "bound stream sockets, without TLS")
        if not sockets:
            self._reject("sock", "a socket, several, or None")
        self._set("sock", sockets)

    def _check_proxies(self) -> None:
        if isinstance(self.proxy_protocol, bool):
            return
        proxies = self._check_several("proxy_protocol")
        try:
            self._set("proxy_protocol", tuple(str(ipaddress.ip_network(proxy)) for proxy in proxies))
        except ValueError:
            self._reject("proxy_protocol", "True, False, or addresses and networks, as '10.0.0.7' or '10.0.0.0/8'")

    def _check_origins(self) -> None:
        if self.origins is None:
            return
        self._set("origins", self._check_several("origins"))
        for origin in self.origins:
            is_pattern = isinstance(origin, re.Pattern) and isinstance(origin.pattern, str)
            if not is_pattern and not isinstance(origin, (str, type(None))):
                self._reject("origins", "a str, a compiled pattern of str, or None each", TypeError)
        try:
            self._set("origins", tuple(normal_origin(o) if isinstance(o, str) else o for o in self.origins))
        except ValueError as error:
            self._reject("origins", str(error))

    @property
    def _is_inherited(self) -> bool:
        """Are its sockets those that this process was started with?"""
        return INHERITED.fullmatch(self.bind) is not None

    @property
    def _has_address(self) -> bool:
        """Does `bind` say on which host and port to listen?"""
        return not (self.unix_path or self._is_inherited or self.sock)

    @property
    def host(self) -> str | None:
        """Name or address to listen on; None = all addresses, or no address."""
        return None if not self._has_address else self.bind.rpartition(":")[0].strip("[]") or None

    @property
    def port(self) -> int:
        """Port to listen on; 0 = a free one, or none."""
        return 0 if not self._has_address else int(self.bind.rpartition(":")[2])

    @property
    def unix_path(self) -> str | None:
        """UNIX-domain socket to listen on; None = another kind."""
        return self.bind.removeprefix("unix:") if self.bind.startswith("unix:") else None

    @property
    def heartbeat(self) -> HeartbeatConfig:
        """`ping_interval`, `ping_mode`, `ping_timeout` and `busy_timeout` as a heartbeat's config."""
        if self.ping_interval is None:
            return NO_HEARTBEAT
        return HeartbeatConfig(
            mode=self.ping_mode,
            ping_interval=self.ping_interval,
            ping_timeout=self.ping_timeout,
            busy_timeout=self.busy_timeout,
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
        return replace(self, headers=self.headers.with_header(name, value))

    def with_origins(self, *origins: str | re.Pattern[str] | None) -> Self:
        """A copy that allows exactly these origins."""
        return replace(self, origins=origins)

    with_bind = Builder[str]()
    with_sock = Builder[socket.socket | Iterable[socket.socket] | None]()
    with_unix_mode = Builder[int | None]()
    with_proxy_protocol = Builder[bool | Iterable[str]]()
    with_max_connections = Builder[int]()
    with_max_connections_per_ip = Builder[int]()
    with_max_message_size = Builder[int]()
    with_max_fragments = Builder[int]()
    with_buffer_size = Builder[int]()
    with_ping_interval = Builder[Duration | None]()
    with_ping_mode = Builder[Literal["idle", "always"]]()
    with_ping_timeout = Builder[Duration]()
    with_busy_timeout = Builder[Duration | None]()
    with_handshake_timeout = Builder[Duration]()
    with_close_timeout = Builder[Duration]()
    with_backpressure = with_backpressure_config = Builder[BackpressureConfig | Off]("backpressure")
    with_compression = with_compression_config = Builder[CompressionConfig | Off]("compression")
    with_rate_limit = with_rate_limit_config = Builder[RateLimitConfig | Off]("rate_limit")
    with_global_rate_limit = Builder[RateLimitConfig | Off]()
    with_fragment_size = Builder[int | None]()
    with_cork = Builder[bool]()
    with_busy_poll = Builder[Duration]()
    with_slow_peer = Builder[Literal["drop", "close", "wait"]]()
    with_max_topics = Builder[int]()
    with_duplicate_names = Builder[Literal["newest", "reject", "both"]]()
    with_require_subprotocol = Builder[bool]()
    with_headers = Builder[HeadersLike]()
    with_ssl = Builder[tls.SSLContext | None]()
    with_reuse_port = Builder[bool]()
    with_backlog = Builder[int]()
    with_max_header_size = Builder[int]()
