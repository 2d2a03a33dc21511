"""What can be configured about a client."""

# ruff: noqa: RUF009  (`default` only changes the type that checkers see)

from __future__ import annotations

import inspect
import socket
import ssl as tls
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar, Literal, Self

from fabric._config.addresses import is_socket_path, split_host
from fabric._config.compression import NO_COMPRESSION, CompressionConfig
from fabric._config.defaults import (
    DEFAULT_BUFFER_SIZE,
    DEFAULT_CLOSE_TIMEOUT,
    DEFAULT_CONNECTION_TIMEOUT,
    DEFAULT_MAX_FRAGMENTS,
    DEFAULT_MAX_MESSAGE_SIZE,
)
from fabric._config.headers import own_headers
from fabric._config.policies import (
    NO_BACKPRESSURE,
    NO_HEARTBEAT,
    NO_RATE_LIMIT,
    NO_RECONNECT,
    BackpressureConfig,
    HeartbeatConfig,
    Off,
    RateLimitConfig,
    ReconnectConfig,
)
from fabric._config.validation import (
    Builder,
    Config,
    Converted,
    Duration,
    Seconds,
    default,
    default_factory,
    explains_unknown_options,
)
from fabric._http.url import PROXY_SCHEMES, Url
from fabric.headers import HeaderBuilders, HeaderMap, HeadersLike, is_sensitive
from fabric.subprotocol import SubprotocolList

__all__ = ["ClientConfig"]

# A context, or a function that is asked for one at each attempt to connect.
ContextSource = tls.SSLContext | Callable[[], tls.SSLContext | Awaitable[tls.SSLContext | None] | None] | None


# An address or headers, or a function that is asked for them at each attempt to connect.
UrlSource = str | Callable[[], str | Awaitable[str]]
HeadersSource = HeadersLike | Callable[[], HeadersLike | Awaitable[HeadersLike]]


@explains_unknown_options
@dataclass(frozen=True, slots=True, repr=False)
class ClientConfig(HeaderBuilders, Config):
    """Everything about a client.

    Attributes:
        url: `ws://` or `wss://`. Credentials in it become an `Authorization` header, and are never shown. A function
            that returns it, plain or a coroutine function, is asked at each attempt to connect.
        max_message_size: bytes of one message received, reassembled and decompressed; more closes with 1009.
        max_fragments: frames of one message received; more closes with 1008.
        auto_reconnect: False is the same as `reconnect.enabled` False.
        first_connect: what `connect` does when the first attempt fails: "raise" the error, or "retry" as after a loss,
            until an error is final or `reconnect.max_attempts` are used up, which is raised then.
        outage: what `send` does while there is no connection and another is sought: "queue" up to the limits of
            `backpressure`, then raise BufferFull; "wait" until there is one; "raise" ConnectionClosed. `send_nowait`
            queues, or raises. What was accepted before is kept in each case.
        connection_timeout: seconds for DNS, TCP, proxy, TLS, redirects and the HTTP upgrade together.
        close_timeout: seconds in which the peer has to answer a close, or at least take some bytes; then they start
            again.
        buffer_size: messages received and not yet read; after 64 KB more the socket is not read.
        reconnect, heartbeat, backpressure, compression, rate_limit: see these; None or False switches one off.
        fragment_size: bytes above which a message goes out in several frames; None = never.
        cork: False sends each message at once and alone. True gathers those that follow within 50 µs of one before,
            for as long: fewer system calls for many small messages.
        busy_poll: seconds after the last byte of a connection for which its event loop keeps looking for more instead
            of sleeping: the lowest latency, for a processor while it lasts. 0 = off, `math.inf` = always. See
            "Tune latency" in the guide.
        subprotocols: names to offer, the preferred one first.
        headers: more headers of the request. Those of the handshake itself cannot be set. A function that returns them,
            plain or a coroutine function, is asked at each attempt: for a token that expires, say.
        ssl: for `wss://`; None = the system's certificates. A function that returns a context, plain or a coroutine
            function, is asked at each attempt to connect.
        host: where to connect to instead of the URL's host: a name or address, also with a port, "10.0.0.7:8443".
            The `Host` header and the certificate's name stay those of the URL. A redirect to another origin goes
            where it says.
        server_hostname: the name that the certificate must have, and that the server is told (SNI), instead of the
            URL's host. Likewise not after a redirect to another origin.
        proxy: URL of an HTTP or SOCKS5 proxy; True = as the environment says (and `NO_PROXY`); None or False = none.
            A user name and a password for SOCKS5 have at most 255 bytes each.
        proxy_ssl: for an `https://` proxy; None = the system's certificates.
        proxy_headers: more headers of the CONNECT request to an HTTP proxy.
        max_redirects: redirects to follow; 0 = none. None is followed from a `sock` or `unix_path`.
        sock: a connected stream socket to use. It serves once: there is no reconnecting with it.
        unix_path: a UNIX-domain socket to connect to; `url` then gives the `Host` header and the resource.
    """

    _OTHER_NAMES: ClassVar[dict[str, str]] = {
        "additional_headers": "headers",
        "extra_headers": "headers",
        "max_msg_size": "max_message_size",
        "max_queue": "buffer_size",
        "max_size": "max_message_size",
        "open_timeout": "connection_timeout",
        "origin": "headers={'Origin': ...}",
        "ssl_context": "ssl",
        "timeout": "connection_timeout",
        "uri": "url",
        "user_agent_header": "headers={'User-Agent': ...}",
    }

    url: UrlSource
    _: KW_ONLY
    max_message_size: int = DEFAULT_MAX_MESSAGE_SIZE
    max_fragments: int = DEFAULT_MAX_FRAGMENTS
    auto_reconnect: bool = True
    first_connect: Literal["raise", "retry"] = "raise"
    outage: Literal["queue", "wait", "raise"] = "queue"
    connection_timeout: Seconds = default(DEFAULT_CONNECTION_TIMEOUT)
    close_timeout: Seconds = default(DEFAULT_CLOSE_TIMEOUT)
    buffer_size: int = DEFAULT_BUFFER_SIZE
    reconnect: Converted[ReconnectConfig | Off, ReconnectConfig] = default(ReconnectConfig())
    heartbeat: Converted[HeartbeatConfig | Off, HeartbeatConfig] = default(HeartbeatConfig())
    backpressure: Converted[BackpressureConfig | Off, BackpressureConfig] = default(BackpressureConfig())
    compression: Converted[CompressionConfig | Off, CompressionConfig] = default(CompressionConfig())
    rate_limit: Converted[RateLimitConfig | Off, RateLimitConfig] = default(RateLimitConfig())
    fragment_size: int | None = None
    cork: bool = True
    busy_poll: Seconds = default(0.0)
    subprotocols: Converted[Iterable[str], SubprotocolList] = default(SubprotocolList())
    headers: Converted[HeadersSource, HeaderMap | Callable[[], Any]] = default_factory(HeaderMap)
    ssl: ContextSource = None
    host: str | None = None
    server_hostname: str | None = None
    proxy: str | bool | None = None
    proxy_ssl: tls.SSLContext | None = None
    proxy_headers: Converted[HeadersLike, HeaderMap] = default_factory(HeaderMap)
    max_redirects: int = 5
    sock: socket.socket | None = None
    unix_path: str | None = None

    def __post_init__(self) -> None:
        secure = _is_function(self.url) or self._parse("url", ("ws", "wss")).is_secure
        self._check_integer("max_message_size", 1)
        self._check_integer("max_fragments", 1)
        self._check_flag("auto_reconnect")
        self._check_choice("first_connect", ("raise", "retry"))
        self._check_choice("outage", ("queue", "wait", "raise"))
        self._check_seconds("connection_timeout", "close_timeout")
        self._check_integer("buffer_size", 1)
        self._check_part("reconnect", NO_RECONNECT)
        self._check_part("heartbeat", NO_HEARTBEAT)
        self._check_part("backpressure", NO_BACKPRESSURE)
        self._check_part("compression", NO_COMPRESSION)
        self._check_part("rate_limit", NO_RATE_LIMIT)
        self._check_integer("fragment_size", 1, optional=True)
        self._check_flag("cork")
        self._check_seconds("busy_poll", zero=True, endless=True)
        self._set("subprotocols", SubprotocolList(self._check_several("subprotocols")))
        headers: Any = self.headers
        if not _is_function(headers):
            self._set("headers", own_headers(headers))
        self._check_context("ssl", "a function that returns one, or None for the system's certificates", function=True)
        self._check_hosts()
        for name in ("ssl", "server_hostname"):
            if getattr(self, name) is not None and not secure:
                self._reject(name, "None, because the url is not wss://")
        self._check_proxy()
        self._check_integer("max_redirects", 0)
        self._check_instance("sock", socket.socket, optional=True)
        if self.sock is not None and (self.sock.type != socket.SOCK_STREAM or isinstance(self.sock, tls.SSLSocket)):
            self._reject("sock", "a connected stream socket, without TLS")
        self._check_instance("unix_path", str, optional=True)
        if self.unix_path is not None and not is_socket_path(self.unix_path):
            self._reject("unix_path", "a path without NUL, but for one at its start")
        ways = [name for name in ("proxy", "sock", "unix_path", "host") if getattr(self, name) is not None]
        if len(ways) > 1 and ways != ["proxy", "host"]:
            self._reject(ways[1], f"None, because {ways[0]} is given")

    def _check_hosts(self) -> None:
        for name, form in (
            ("host", "a name or an address, with or without a port, as 'h', 'h:80', '10.0.0.7' or '[::1]:80'"),
            ("server_hostname", "a name or an address, without a port"),
        ):
            self._check_instance(name, str, optional=True)
            value = getattr(self, name)
            if value is None:
                continue
            try:
                _, port = split_host(value)
            except ValueError:
                self._reject(name, form)
            if port is not None and name == "server_hostname":
                self._reject(name, form)

    def _check_proxy(self) -> None:
        proxy = None
        if self.proxy is False:
            self._set("proxy", None)
        if self.proxy is not None and self.proxy is not True:
            proxy = self._parse("proxy", PROXY_SCHEMES)
        self._check_context("proxy_ssl", "None for the system's certificates")
        if self.proxy_ssl is not None and self.proxy is not True and (proxy is None or proxy.scheme != "https"):
            self._reject("proxy_ssl", "None, because the proxy is not https://")
        self._set("proxy_headers", own_headers(self.proxy_headers, for_proxy=True))
        if self.proxy_headers and self.proxy is not True and (proxy is None or proxy.scheme.startswith("socks5")):
            self._reject("proxy_headers", "none, because the proxy is not http:// or https://")

    def _parse(self, name: str, schemes: tuple[str, ...]) -> Url:
        try:
            return Url.parse(getattr(self, name), schemes)
        except (TypeError, ValueError) as error:
            raise type(error)(f"ClientConfig.{name} = {error}") from None

    @property
    def address(self) -> Url:
        """The parts of `url`; its `str()` is free of credentials. ValueError where a function gives the url."""
        if not isinstance(self.url, str):
            raise ValueError("ClientConfig.url is a function: there is no address before it is asked")
        return Url.parse(self.url)

    async def settled(self) -> Self:
        """This config with the address and the headers of one attempt: functions are asked for them.

        Raises:
            ValueError, TypeError: what they return is not allowed. What they raise is raised.
        """
        answers: dict[str, Any] = {}
        for name in ("url", "headers"):
            source = getattr(self, name)
            if _is_function(source):
                answer = source()
                answers[name] = await answer if inspect.isawaitable(answer) else answer
        if callable(answers.get("url")) or callable(answers.get("headers")):
            raise TypeError("ClientConfig.url or headers: a function returned a function")
        return replace(self, **answers) if answers else self

    @property
    def endpoint(self) -> tuple[str, int | None] | None:
        """The parts of `host`: name or address, and port if there is one; None = as in the URL."""
        return None if self.host is None else split_host(self.host)

    def request_headers(self, address: Url | None = None) -> HeaderMap:
        """The headers to send to `address`, by default that of `url`.

        An `Authorization` header that was set goes before credentials in the URL. To another origin, where a
        redirect may lead, go no credentials at all: neither of these, nor cookies, keys and tokens.
        """
        own = self.address
        address = address or own
        same = address.origin == own.origin
        headers = HeaderMap((k, v) for k, v in self._get_headers().items() if same or not is_sensitive(k))
        if address.authorization is not None and "Authorization" not in headers:
            headers["Authorization"] = address.authorization
        return headers

    def _get_headers(self) -> HeaderMap:
        if not isinstance(self.headers, HeaderMap):
            raise ValueError("ClientConfig.headers is a function: add to what it returns")
        return self.headers

    def _set_headers(self, headers: HeaderMap) -> Self:
        return replace(self, headers=headers)

    def with_subprotocols(self, *names: str) -> Self:
        """A copy that offers these subprotocols, the preferred one first."""
        return replace(self, subprotocols=names)

    with_url = Builder[UrlSource]()
    with_max_message_size = Builder[int]()
    with_max_fragments = Builder[int]()
    with_auto_reconnect = Builder[bool]()
    with_first_connect = Builder[Literal["raise", "retry"]]()
    with_outage = Builder[Literal["queue", "wait", "raise"]]()
    with_connection_timeout = Builder[Duration]()
    with_close_timeout = Builder[Duration]()
    with_buffer_size = Builder[int]()
    with_reconnect = with_reconnect_config = Builder[ReconnectConfig | Off]("reconnect")
    with_heartbeat = with_heartbeat_config = Builder[HeartbeatConfig | Off]("heartbeat")
    with_backpressure = with_backpressure_config = Builder[BackpressureConfig | Off]("backpressure")
    with_compression = with_compression_config = Builder[CompressionConfig | Off]("compression")
    with_rate_limit = with_rate_limit_config = Builder[RateLimitConfig | Off]("rate_limit")
    with_fragment_size = Builder[int | None]()
    with_cork = Builder[bool]()
    with_busy_poll = Builder[Duration]()
    with_headers = Builder[HeadersSource]()
    with_ssl = Builder[ContextSource]()
    with_host = Builder[str | None]()
    with_server_hostname = Builder[str | None]()
    with_proxy_ssl = Builder[tls.SSLContext | None]()
    with_proxy_headers = Builder[HeadersLike]()
    with_proxy = Builder[str | bool | None]()
    with_max_redirects = Builder[int]()
    with_sock = Builder[socket.socket | None]()
    with_unix_path = Builder[str | None]()


def _is_function(source: object) -> bool:
    """A function, and no class: that would be a mistake."""
    return callable(source) and not isinstance(source, type)
