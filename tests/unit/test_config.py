"""`fabric.config`: what all configs have in common. Defaults, limits, builders, and what is shown."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import pickle
import re
import ssl
import sys
import typing
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric import config as module
from fabric._config.validation import Config
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
        "busy_poll": 0.0,
    },
    ServerConfig: {
        "max_connections": 10_000,
        "max_message_size": 10 * MIB,
        "buffer_size": 1000,
        "ping_interval": 30.0,
        "ping_timeout": 10.0,
        "handshake_timeout": 5.0,
        "close_timeout": 5.0,
        "busy_poll": 0.0,
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
    (ReconnectConfig, "decide", [], [5, "no", True]),
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
    (RateLimitConfig, "messages_per_second", [0, -1, 1e-10, 1.1e18, math.inf, math.nan], ["1", True]),
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
    (ClientConfig, "busy_poll", [-1, -math.inf, math.nan, 1e10, timedelta(-1)], ["1", None, True]),
    (ClientConfig, "reconnect", [], [True, HeartbeatConfig(), 5]),
    (ClientConfig, "heartbeat", [], [30, True, ReconnectConfig()]),
    (ClientConfig, "compression", [], ["deflate", True]),
    (ClientConfig, "ssl", [ssl.create_default_context()], [True, False, "cert.pem", ssl.SSLContext]),  # url is ws://
    (ClientConfig, "host", ["", "a b", "h:x", "h:", "h/x", "u@h", "h:99999", "[::1", "a..b"], [b"h", 80, True]),
    (ClientConfig, "server_hostname", ["h"], [b"h", True]),  # the url is ws://
    (
        ClientConfig,
        "proxy_ssl",
        [ssl.create_default_context()],
        [True, ssl.create_default_context],
    ),  # there is no proxy
    (ClientConfig, "proxy_headers", [{"A": "b"}], []),  # there is no proxy
    (
        ClientConfig,
        "proxy",
        ["ftp://h", "h:80", "http://h\ud800", "socks5://u:p" + "%C3%A4" * 128 + "@h"],
        [b"http://h", 3],
    ),
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
    (ServerConfig, "busy_poll", [-1, math.nan], ["inf", None]),
    (
        ServerConfig,
        "origins",
        [["https://a/"], ["a.example"], ["https://*.a"], ["https://a:x"], ["https://a:65536"]],
        ["https://a", [3], [b"https://a"]],
    ),
    (ServerConfig, "compression", [], ["deflate", True]),
    (ServerConfig, "rate_limit", [], [100, True]),
    (ServerConfig, "ssl", [], [True, False, "cert.pem", ssl.create_default_context]),
    (ServerConfig, "required_headers", [], ["X-One", 3]),
    (ServerConfig, "subprotocols", [], ["chat", None]),
    (ServerConfig, "backlog", [0, 65_536], [None]),
    (ServerConfig, "max_header_size", [1023, 1024 * 1024 + 1], [None]),
]


# Numbers that are no durations.
FRACTIONS = {"backoff_multiplier", "jitter", "backpressure_threshold", "recovery_threshold"}


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
        (lambda: ServerConfig(max_header_size=9999999), "max_header_size", "9999999"),
    ],
)
def test_an_error_names_the_field_the_value_and_what_is_allowed(config: Any, field: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"Config\.{field} = {re.escape(value)}: expected a"):
        config()


@given(st.floats(0.001, 1e6) | st.integers(1, 10**6))
def test_durations_are_held_as_float(seconds: float) -> None:
    config = HeartbeatConfig(ping_interval=seconds, ping_timeout=timedelta(seconds=seconds))
    assert type(config.ping_interval) is type(config.ping_timeout) is float
    assert config.ping_interval == seconds
    assert config.ping_timeout == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_every_duration_takes_a_timedelta(config: Config) -> None:
    durations = [name for name in names_of(config) if isinstance(getattr(config, name), float)]
    for name in set(durations) - FRACTIONS:
        changed = getattr(config, f"with_{name}")(timedelta(milliseconds=2500))
        assert getattr(changed, name) == 2.5
        assert type(getattr(changed, name)) is float


@pytest.mark.parametrize("config", [ClientConfig(URL), ServerConfig()], ids=["client", "server"])
def test_busy_polling_may_be_off_last_a_while_or_be_endless(config: Any) -> None:
    assert config.with_busy_poll(0).busy_poll == 0
    assert config.with_busy_poll(timedelta(milliseconds=2)).busy_poll == 0.002
    assert config.with_busy_poll(math.inf).busy_poll == math.inf
    with pytest.raises(ValueError, match=r"\.busy_poll = -1: expected a duration from 0 s to .* or math\.inf$"):
        config.with_busy_poll(-1)


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


# Limits that hold for all.

SIZES = [(config, name) for config in CONFIGS for name in names_of(config) if type(getattr(config, name)) is int]
SECONDS = [
    (config, name)
    for config in CONFIGS
    for name in names_of(config)
    if isinstance(getattr(config, name), float) and name not in FRACTIONS
]


def of(pair: tuple[Config, str]) -> str:
    return f"{type(pair[0]).__name__}.{pair[1]}"


@pytest.mark.parametrize("pair", SIZES, ids=of)
def test_every_count_and_size_has_an_upper_bound(pair: tuple[Config, str]) -> None:
    config, name = pair
    for value in (2**62 + 1, sys.maxsize, 2**63, 10**400):
        with pytest.raises(ValueError, match=rf"{of(pair)} = .*: expected an integer from \d+ to "):
            getattr(config, f"with_{name}")(value)
    for wrong in (True, 1.0, math.nan, "1", Decimal(1)):
        with pytest.raises(TypeError, match=rf"{of(pair)} = .*: expected an integer from \d+ to "):
            getattr(config, f"with_{name}")(wrong)


@pytest.mark.parametrize("pair", SECONDS, ids=of)
def test_every_duration_has_an_upper_bound(pair: tuple[Config, str]) -> None:
    config, name = pair
    if name != "initial_delay":  # not above max_delay
        assert getattr(getattr(config, f"with_{name}")(10**9), name) == 1e9
    endless = [] if name == "busy_poll" else [math.inf]
    for value in (1e9 + 1, *endless, -math.inf, math.nan, 10**400, timedelta.max, -1, timedelta.min):
        with pytest.raises(ValueError, match=rf"{of(pair)} = .*: expected a duration"):
            getattr(config, f"with_{name}")(value)
    for wrong in (True, "1", Decimal(1), 1j):
        with pytest.raises(TypeError, match=rf"{of(pair)} = .*: expected a duration"):
            getattr(config, f"with_{name}")(wrong)


@pytest.mark.parametrize("name", sorted(FRACTIONS))
@pytest.mark.parametrize("value", [10**400, -(10**400), math.inf, math.nan, -math.inf])
def test_other_numbers_are_finite(name: str, value: float) -> None:
    config = next(config for config in CONFIGS if name in names_of(config))
    with pytest.raises(ValueError, match=rf"{type(config).__name__}\.{name} = .*: expected a number"):
        getattr(config, f"with_{name}")(value)


@pytest.mark.parametrize("cls", [ClientConfig, ServerConfig])
@pytest.mark.parametrize("name", ["reconnect", "heartbeat", "backpressure", "compression", "rate_limit"])
def test_false_switches_a_part_off_as_none_does(cls: type[Config], name: str) -> None:
    if name in {field.name for field in dataclasses.fields(cls)}:
        assert make(cls, **{name: False}) == make(cls, **{name: None})
        with pytest.raises(
            TypeError, match=rf"{cls.__name__}\.{name} = True: expected a \w+Config, or None or False for"
        ):
            make(cls, **{name: True})
