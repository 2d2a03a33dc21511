"""`fabric.config`, and `fabric._config.validation` under it: defaults, limits, builders, and what is shown."""

from __future__ import annotations

import base64
import copy
import dataclasses
import inspect
import math
import pickle
import re
import socket
import ssl
import sys
import typing
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric import config as module
from fabric._config.validation import Config
from fabric._http.url import Url
from fabric.config import (
    BackpressureConfig,
    ClientConfig,
    CompressionConfig,
    HeartbeatConfig,
    PoolConfig,
    RateLimitConfig,
    ReconnectConfig,
    ServerConfig,
)
from fabric.error import InvalidHeader, InvalidSubprotocol
from fabric.headers import HeaderMap

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MIB = 1024 * 1024
URL = "ws://h/"

# One of each, all defaults.
CONFIGS: list[Config] = [
    ClientConfig(URL),
    ServerConfig(),
    ReconnectConfig(),
    HeartbeatConfig(),
    BackpressureConfig(),
    CompressionConfig(),
    RateLimitConfig(),
    PoolConfig(),
]

# The defaults of SPEC §1 to §7.
CONTRACT: dict[type[Config], dict[str, object]] = {
    ClientConfig: {
        "max_message_size": 10 * MIB,
        "auto_reconnect": True,
        "connection_timeout": 5.0,
        "close_timeout": 5.0,
        "reconnect": ReconnectConfig(),
        "heartbeat": HeartbeatConfig(),
        "backpressure": BackpressureConfig(),
        "compression": CompressionConfig(),
        "rate_limit": RateLimitConfig(),
        "fragment_size": None,
        "subprotocols": (),
        "headers": {},
        "ssl": None,
        "proxy": None,
        "max_redirects": 5,
        "buffer_size": 1000,
    },
    ServerConfig: {
        "max_connections": 10_000,
        "max_message_size": 10 * MIB,
        "buffer_size": 1000,
        "ping_interval": 30.0,
        "ping_timeout": 10.0,
        "handshake_timeout": 5.0,
        "close_timeout": 5.0,
        "slow_peer": "drop",
        "max_header_size": 16 * 1024,
        "max_connections_per_ip": 0,
        "origins": None,
        "required_headers": (),
    },
    ReconnectConfig: {
        "enabled": True,
        "max_attempts": 0,
        "initial_delay": 0.1,
        "max_delay": 30.0,
        "backoff_multiplier": 1.5,
        "stable_after": 5.0,
    },
    HeartbeatConfig: {"enabled": True, "ping_interval": 30.0, "ping_timeout": 10.0, "busy_timeout": 0.0},
    BackpressureConfig: {
        "enabled": True,
        "max_buffer_size": 1000,
        "backpressure_threshold": 0.8,
        "recovery_threshold": 0.6,
        "timeout": None,
    },
    CompressionConfig: {"enabled": True, "algorithm": "deflate", "level": None},
    RateLimitConfig: {"messages_per_second": None, "bytes_per_second": None, "on_exceed": "slow"},
    PoolConfig: {
        "min_connections": 1,
        "max_connections": 10,
        "idle_timeout": 300.0,
        "health_check_interval": 30.0,
        "acquire_timeout": 5.0,
        "enable_health_check": True,
    },
}

# (class, field, values refused as such, values of a wrong type)
REFUSED: list[tuple[type[Config], str, list[object], list[object]]] = [
    (ReconnectConfig, "enabled", [], [1, None, "yes"]),
    (ReconnectConfig, "max_attempts", [-1], [1.5, True, None, "3"]),
    (ReconnectConfig, "initial_delay", [0, -1, math.nan, math.inf, 31, timedelta(-1)], ["1", None, True]),
    (ReconnectConfig, "max_delay", [0, 0.05], ["1", None]),
    (ReconnectConfig, "backoff_multiplier", [0.99, math.inf, math.nan], ["2", None, True]),
    (ReconnectConfig, "jitter", [-0.1, 1.1, math.nan], [None, False]),
    (ReconnectConfig, "stable_after", [-1], [None]),
    (HeartbeatConfig, "ping_interval", [0, -1, math.inf, math.nan], [None, "30"]),
    (HeartbeatConfig, "ping_timeout", [0, -1], [None]),
    (HeartbeatConfig, "busy_timeout", [-1, math.inf, math.nan], ["1", True]),
    (BackpressureConfig, "max_buffer_size", [0], [1.0, None]),
    (BackpressureConfig, "max_buffer_bytes", [0], [None]),
    (BackpressureConfig, "backpressure_threshold", [0, 1.1, 0.5], [None]),
    (BackpressureConfig, "recovery_threshold", [-0.1, 0.9], [None]),
    (BackpressureConfig, "timeout", [0, -1], ["1"]),
    (CompressionConfig, "algorithm", ["gzip", ""], [None, 3, ["deflate"]]),
    (CompressionConfig, "level", [-1, 10], ["6", 1.0]),
    (CompressionConfig, "threshold", [-1], [None]),
    (CompressionConfig, "server_max_window_bits", [7, 16], [None]),
    (CompressionConfig, "client_max_window_bits", [7, 16], [None]),
    (CompressionConfig, "mem_level", [0, 10], [None]),
    (CompressionConfig, "client_no_context_takeover", [], [1]),
    (CompressionConfig, "zstd_dictionary", [b"1234567"], ["text", 3]),
    (RateLimitConfig, "messages_per_second", [0, -1, math.inf, math.nan], ["1", True]),
    (RateLimitConfig, "messages_burst", [0, 5], [1.5]),
    (RateLimitConfig, "on_exceed", ["wait"], [None]),
    (PoolConfig, "min_connections", [-1, 11], [None]),
    (PoolConfig, "max_connections", [0], [None]),
    (PoolConfig, "acquire_timeout", [0], [None]),
    (ClientConfig, "url", ["", "h", "http://h", "ws://h#f"], [None, b"ws://h"]),
    (ClientConfig, "max_message_size", [0, -1], [None, 1e6]),
    (ClientConfig, "max_fragments", [0], [None]),
    (ClientConfig, "connection_timeout", [0], [None]),
    (ClientConfig, "fragment_size", [0], [1.5]),
    (ClientConfig, "reconnect", [], [True, HeartbeatConfig()]),
    (ClientConfig, "compression", [], ["deflate", False]),
    (ClientConfig, "ssl", [ssl.create_default_context()], [True]),  # the url is ws://
    (ClientConfig, "proxy", ["ftp://h", "h:80", "http://h\ud800", "socks5://u:p%C3%A4@h"], [False, 3]),
    (ClientConfig, "max_redirects", [-1], [None]),
    (ClientConfig, "sock", [], [3]),
    (ClientConfig, "unix_path", ["", "a\0b", "a\ud800"], [b"/tmp/x"]),
    (
        ServerConfig,
        "bind",
        ["", "h", "::1:80", "h:x", "h:65536", "h:-1", "a b:1", "http://h:1", "a\0b:1", "a..b:1", f"{'a' * 64}:1"],
        [8080],
    ),
    (
        ServerConfig,
        "bind",
        ["unix:", "unix:a\0b", "unix:a\ud800"],
        [],
    ),
    (ServerConfig, "max_connections", [0], [None]),
    (ServerConfig, "max_connections_per_ip", [-1], [None]),
    (ServerConfig, "ping_interval", [0], ["1"]),
    (ServerConfig, "slow_peer", ["kick"], [None]),
    (ServerConfig, "origins", [["https://a/"], ["a.example"], ["HTTPS://a"]], ["https://a", [3]]),
    (ServerConfig, "required_headers", [], ["X-One", 3]),
    (ServerConfig, "subprotocols", [], ["chat", None]),
    (ServerConfig, "backlog", [0], [None]),
    (ServerConfig, "max_header_size", [1023, 16 * 1024 + 1], [None]),
]


def make(cls: type[Config], **changes: Any) -> Any:
    return cls(**({"url": URL} if cls is ClientConfig else {}) | changes)


def names_of(config: Config) -> list[str]:
    return [field.name for field in dataclasses.fields(config)]


@pytest.mark.parametrize("cls", CONTRACT, ids=lambda cls: cls.__name__)
def test_defaults(cls: type[Config]) -> None:
    config = make(cls)
    assert {name: getattr(config, name) for name in CONTRACT[cls]} == CONTRACT[cls]


def test_constants() -> None:
    assert module.DEFAULT_MAX_MESSAGE_SIZE == 10 * MIB
    assert module.DEFAULT_PING_INTERVAL == 30
    assert module.DEFAULT_PING_TIMEOUT == 10
    assert module.DEFAULT_BUFFER_SIZE == 1000
    assert module.DEFAULT_CONNECTION_TIMEOUT == 5


def test_both_styles_read_well_and_are_equal() -> None:
    named = ClientConfig("ws://localhost:8080", connection_timeout=10, reconnect=ReconnectConfig(max_attempts=10))
    fluent = (
        ClientConfig("ws://localhost:8080")
        .with_connection_timeout(10)
        .with_reconnect_config(ReconnectConfig().with_max_attempts(10))
    )
    assert named == fluent
    assert hash(named) == hash(fluent)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_every_field_has_a_builder_with_name_and_docstring(config: Config) -> None:
    for name in names_of(config):
        builder = getattr(type(config), f"with_{name}")
        assert inspect.isfunction(builder)
        assert builder.__doc__
        assert builder.__qualname__ == f"{type(config).__name__}.{builder.__name__}"
        value = getattr(config, name)
        values = value if name in {"subprotocols", "required_headers"} else (value,)
        if name != "origins":  # takes several; None would be one of them
            assert builder(config, *values) == config, name


@pytest.mark.parametrize("name", ["reconnect", "heartbeat", "backpressure", "compression", "rate_limit"])
def test_parts_have_the_builder_of_the_contract_and_none_switches_off(name: str) -> None:
    client = ClientConfig(URL)
    off = getattr(client, f"with_{name}_config")(None)
    assert getattr(off, name) == getattr(client, f"with_{name}")(None).__getattribute__(name)
    if name == "rate_limit":
        assert not off.rate_limit.is_limited
    else:
        assert getattr(off, name).enabled is False


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_configs_are_frozen_small_and_copyable(config: Config) -> None:
    for name in names_of(config):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, name, getattr(config, name))
    assert not hasattr(config, "__dict__")
    for twin in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin == config
        assert hash(twin) == hash(config)
        assert repr(twin) == repr(config)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_annotations_resolve_and_fields_are_documented(config: Config) -> None:
    assert typing.get_type_hints(type(config)).keys() >= set(names_of(config))
    documented = set(re.findall(r"\w+", (type(config).__doc__ or "").partition("Attributes:")[2]))
    assert documented >= set(names_of(config))


@pytest.mark.parametrize(
    ("cls", "name", "values", "types"),
    REFUSED,
    ids=lambda x: getattr(x, "__name__", x if isinstance(x, str) else ""),
)
def test_what_is_refused(cls: type[Config], name: str, values: list[object], types: list[object]) -> None:
    for error, candidates in ((ValueError, values), (TypeError, types)):
        for value in candidates:
            with pytest.raises(error) as caught:
                make(cls, **{name: value})
            assert re.match(rf"{cls.__name__}\.\w+ = .+: \w+", str(caught.value)), str(caught.value)


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (lambda: ReconnectConfig(jitter=7), "jitter", "7"),
        (lambda: HeartbeatConfig(ping_interval=timedelta(0)), "ping_interval", "datetime.timedelta(0)"),
        (lambda: ServerConfig(max_header_size=99999), "max_header_size", "99999"),
    ],
)
def test_an_error_names_the_field_the_value_and_what_is_allowed(config: Any, field: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"Config\.{field} = {re.escape(value)}: expected a"):
        config()


def test_unknown_names_and_positions_are_refused() -> None:
    with pytest.raises(TypeError, match="conection_timeout"):
        ClientConfig(URL, conection_timeout=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        ReconnectConfig(True)  # type: ignore[call-arg]


@given(st.floats(0.001, 1e6) | st.integers(1, 10**6))
def test_durations_are_held_as_float(seconds: float) -> None:
    config = HeartbeatConfig(ping_interval=seconds, ping_timeout=timedelta(seconds=seconds))
    assert type(config.ping_interval) is type(config.ping_timeout) is float
    assert config.ping_interval == seconds
    assert config.ping_timeout == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_every_duration_takes_a_timedelta(config: Config) -> None:
    durations = [name for name in names_of(config) if isinstance(getattr(config, name), float)]
    for name in set(durations) - {
        "backoff_multiplier",
        "jitter",
        "backpressure_threshold",
        "recovery_threshold",
    }:
        changed = getattr(config, f"with_{name}")(timedelta(milliseconds=2500))
        assert getattr(changed, name) == 2.5
        assert type(getattr(changed, name)) is float


def test_the_repr_shows_what_was_changed() -> None:
    assert repr(ServerConfig()) == "ServerConfig()"
    config = ClientConfig(URL, reconnect=ReconnectConfig(max_attempts=3), subprotocols=["a"])
    assert repr(config) == (
        "ClientConfig(url='ws://h/', reconnect=ReconnectConfig(max_attempts=3), subprotocols=SubprotocolList(['a']))"
    )


def test_the_repr_shows_no_secret() -> None:
    config = (
        ClientConfig("wss://user:hunter2@h/", proxy="socks5://user:hunter2@p")
        .with_authorization("Bearer hunter2")
        .with_api_key("hunter2")
        .with_cookie("session", "hunter2")
        .with_compression_config(CompressionConfig(algorithm="zstd", zstd_dictionary=b"hunter2hunter2"))
    )
    assert "hunter2" not in repr(config)
    assert "wss://***@h/" in repr(config)
    assert "<14 bytes>" in repr(config)
    for change in (config.with_url, config.with_proxy):
        with pytest.raises(ValueError, match=r"\*\*\*") as caught:
            change("ftp://user:hunter2@h")
        assert "hunter2" not in str(caught.value)


# ReconnectConfig, CompressionConfig, RateLimitConfig


def test_levels_are_those_of_the_algorithm() -> None:
    assert CompressionConfig(algorithm="zstd", level=22).level == 22
    with pytest.raises(ValueError, match="for zstd"):
        CompressionConfig(algorithm="zstd", level=0)
    with pytest.raises(ValueError, match="for deflate"):
        CompressionConfig(level=22)


def test_a_dictionary_that_zstd_cannot_load_is_refused() -> None:
    for corrupt in (b"\x37\xa4\x30\xecjunkjunkjunk", b"\x37\xa4\x30\xec1234"):
        with pytest.raises(ValueError, match=rf"CompressionConfig\.zstd_dictionary = <{len(corrupt)} bytes>: expected"):
            CompressionConfig(algorithm="zstd", zstd_dictionary=corrupt)
        unused = CompressionConfig(zstd_dictionary=corrupt)
        with pytest.raises(ValueError, match="zstd_dictionary"):
            unused.with_algorithm("zstd")


def test_a_dictionary_is_trained_or_any_content() -> None:
    trained = zstd.train_dict([b'{"type": "trade", "price": %d}' % (i * 37 % 1000) for i in range(2000)], 2000)
    for content in (trained.dict_content, b"any other content", bytes(8)):
        assert CompressionConfig(algorithm="zstd", zstd_dictionary=content).zstd_dictionary == content


def test_rates() -> None:
    config = RateLimitConfig().with_messages(2.5).with_bytes(1000, 5000).with_on_exceed("close")
    assert config.is_limited
    assert config.limit("messages") == (2.5, 3)
    assert config.limit("bytes") == (1000.0, 5000)
    assert config.limit("operations") is None
    assert RateLimitConfig().with_operations(0.1).limit("operations") == (0.1, 1)
    assert not RateLimitConfig().is_limited
    assert not config.with_messages(None).with_bytes(None).is_limited
    with pytest.raises(ValueError, match="bytes_per_second is None"):
        RateLimitConfig(bytes_burst=1)


# ClientConfig


def test_headers_are_added_and_copied() -> None:
    given_headers = HeaderMap(A="1")
    config = ClientConfig(URL, headers=given_headers)
    given_headers["A"] = "changed"
    assert config.headers == {"A": "1"}
    more = config.with_header("a", "2").with_user_agent("me").with_origin("https://o")
    assert config.headers == {"A": "1"}
    assert more.headers.getall("A") == ["1", "2"]
    assert more.headers["Origin"] == "https://o"
    assert more.with_headers([("B", "1")]).headers == {"B": "1"}
    assert more.with_headers(None).headers == {}


@pytest.mark.parametrize("name", ["Upgrade", "connection", "Host", "Sec-WebSocket-Key", "sec-websocket-protocol"])
@pytest.mark.parametrize("config", [ClientConfig(URL), ServerConfig()])
def test_headers_of_the_handshake_are_its_own(config: Any, name: str) -> None:
    with pytest.raises(InvalidHeader, match=name):
        config.with_header(name, "x")
    with pytest.raises(InvalidHeader):
        config.with_header("A", "x\r\nB: y")


def test_subprotocols_keep_their_order() -> None:
    config = ClientConfig(URL).with_subprotocols("b", "a")
    assert config.subprotocols == ("b", "a")
    assert config.with_subprotocols().subprotocols == ()
    with pytest.raises(InvalidSubprotocol):
        config.with_subprotocols("a", "a")
    with pytest.raises(TypeError, match="several"):
        ClientConfig(URL, subprotocols="chat")


def test_credentials_in_the_url_become_a_header() -> None:
    config = ClientConfig("ws://me:p%40ss@h:81/x")
    assert str(config.address) == "ws://h:81/x"
    value = config.request_headers()["Authorization"]
    assert base64.b64decode(value.removeprefix("Basic ")) == b"me:p@ss"
    assert "Authorization" not in config.headers
    assert config.with_authorization("Bearer t").request_headers()["Authorization"] == "Bearer t"
    assert config.with_url("ws://other/").request_headers() == {}


@pytest.mark.parametrize(("location", "trusted"), [("/other", True), ("wss://h:444/", False), ("wss://evil/", False)])
def test_credentials_do_not_follow_to_another_origin(location: str, trusted: bool) -> None:
    config = ClientConfig("wss://me:pass@h/").with_api_key("k").with_cookie("a", "b").with_header("X-Room", "1")
    sent = config.request_headers(config.address.join(location))
    assert sent["X-Room"] == "1"
    assert ("Authorization" in sent, "Cookie" in sent, "X-API-Key" in sent) == (trusted,) * 3
    assert "Authorization" not in config.with_authorization("x").request_headers(Url.parse("wss://evil/"))


def test_one_way_to_connect() -> None:
    with socket.socket() as sock:
        assert ClientConfig(URL, sock=sock).sock is sock
        with pytest.raises(ValueError, match="None, because sock is given"):
            ClientConfig(URL, sock=sock, unix_path="/tmp/x")
    with pytest.raises(ValueError, match="None, because proxy is given"):
        ClientConfig(URL, proxy=True, unix_path="/tmp/x")
    context = ssl.create_default_context()
    assert ClientConfig("wss://h/", ssl=context).ssl is context


def test_a_socket_is_a_stream_and_a_refused_one_stays_open() -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with one, other:
        assert ClientConfig(URL, sock=one).sock is one
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    secure = ssl.create_default_context().wrap_socket(socket.socket(), server_hostname="h")
    for sock in (datagrams, secure):
        with sock:
            with pytest.raises(ValueError, match=r"ClientConfig\.sock = <.+>: expected a connected stream socket"):
                ClientConfig(URL, sock=sock)
            assert sock.fileno() >= 0


def test_a_unix_path_may_be_abstract() -> None:
    assert ClientConfig(URL, unix_path="\0name").unix_path == "\0name"
    assert ServerConfig("unix:\0name").unix_path == "\0name"


@pytest.mark.parametrize("login", ["me:hunter2ä", "me:" + "hunter2" * 37, "hunter2" * 37])
def test_an_error_about_a_socks_login_names_the_proxy_and_shows_no_secret(login: str) -> None:
    with pytest.raises(ValueError, match=r"ClientConfig\.proxy = 'socks5://\*\*\*@p'.*(ASCII|255 bytes)") as caught:
        ClientConfig(URL, proxy=f"socks5://{login}@p")
    assert "hunter2" not in str(caught.value)
    assert "ä" not in str(caught.value)


# ServerConfig


@pytest.mark.parametrize(
    ("bind", "host", "port", "path"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080, None),
        ("localhost:0", "localhost", 0, None),
        ("[::1]:80", "::1", 80, None),
        (":80", None, 80, None),
        ("unix:/run/x:y", None, 0, "/run/x:y"),
    ],
)
def test_where_to_listen(bind: str, host: str | None, port: int, path: str | None) -> None:
    config = ServerConfig(bind)
    assert (config.host, config.port, config.unix_path) == (host, port, path)


def test_the_heartbeat_of_a_server() -> None:
    assert ServerConfig(ping_interval=3, ping_timeout=2).heartbeat == HeartbeatConfig(ping_interval=3, ping_timeout=2)
    assert ServerConfig().with_ping_interval(None).heartbeat.enabled is False
    assert ServerConfig().with_busy_timeout(None).heartbeat == HeartbeatConfig(busy_timeout=None)
    assert ServerConfig().heartbeat.busy_timeout == 0


def test_origins() -> None:
    pattern = re.compile(r"https://[a-z]+\.example")
    config = ServerConfig().with_origins("https://a.example", "http://localhost:3000", "null", pattern, None)
    assert config.origins == ("https://a.example", "http://localhost:3000", "null", pattern, None)
    assert ServerConfig(origins=[]).origins == ()


def test_required_headers_are_added_by_name() -> None:
    config = ServerConfig().with_required_header("X-One").with_required_header("Authorization")
    assert config.required_headers == ("X-One", "Authorization")
    with pytest.raises(InvalidHeader):
        config.with_required_header("no token")


def test_response_headers_are_added() -> None:
    config = ServerConfig().with_header("Set-Cookie", "a=1").with_header("Set-Cookie", "b=2")
    assert config.headers.getall("set-cookie") == ["a=1", "b=2"]
    assert "a=1" not in repr(config)
