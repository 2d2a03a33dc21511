"""`fabric._config.server`: where to listen, and whom to let in."""

from __future__ import annotations

import re
import socket
from dataclasses import replace
from typing import Any

import pytest

from fabric.config import HeartbeatConfig, ServerConfig
from fabric.error import InvalidHeader


@pytest.mark.parametrize(
    ("bind", "host", "port", "path"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080, None),
        ("localhost:0", "localhost", 0, None),
        ("[::1]:80", "::1", 80, None),
        (":80", None, 80, None),
        ("unix:/run/x:y", None, 0, "/run/x:y"),
        ("fd:3", None, 0, None),
        ("systemd:", None, 0, None),
        ("systemd:web", None, 0, None),
    ],
)
def test_where_to_listen(bind: str, host: str | None, port: int, path: str | None) -> None:
    config = ServerConfig(bind)
    assert (config.host, config.port, config.unix_path) == (host, port, path)


def test_sockets_instead_of_an_address() -> None:
    with socket.socket() as one, socket.socket() as other, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        assert ServerConfig(sock=one).sock == (one,)
        config = ServerConfig().with_sock([one, other])
        assert (config.sock, config.host, config.port) == ((one, other), None, 0)
        with pytest.raises(ValueError, match=r"sock = .*: expected None, because bind is given"):
            ServerConfig(":80", sock=one)
        for wrong, error in ((datagrams, ValueError), ([], ValueError), ([3], TypeError), (3, TypeError)):
            given: Any = wrong
            with pytest.raises(error, match="sock"):
                ServerConfig(sock=given)


def test_proxies_are_addresses_and_networks() -> None:
    assert ServerConfig().proxy_protocol is False
    config = ServerConfig(proxy_protocol=["10.0.0.7", "10.1.0.0/16", "::1"])
    assert config.proxy_protocol == ("10.0.0.7/32", "10.1.0.0/16", "::1/128")
    assert replace(config) == config
    for wrong in (["localhost"], ["10.0.0.1/8"], [""]):
        with pytest.raises(ValueError, match=r"proxy_protocol = .*: expected True, False, or addresses"):
            ServerConfig(proxy_protocol=wrong)
    for kind in ("10.0.0.7", 1, None):
        given: Any = kind
        with pytest.raises(TypeError, match="proxy_protocol"):
            ServerConfig(proxy_protocol=given)


def test_permissions_are_for_a_path() -> None:
    assert ServerConfig("unix:/x", unix_mode=0o660).unix_mode == 0o660
    with pytest.raises(ValueError, match="unix_mode"):
        ServerConfig(":80", unix_mode=0o660)
    with pytest.raises(ValueError, match="unix_mode"):
        ServerConfig("unix:/x", unix_mode=0o1777)


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


@pytest.mark.parametrize(
    ("given", "held"),
    [
        ("https://a.example:443", "https://a.example"),
        ("http://a.example:80", "http://a.example"),
        ("https://a.example:80", "https://a.example:80"),
        ("http://a.example:0443", "http://a.example:443"),
        ("HTTPS://A.Example", "https://a.example"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("http://[2001:DB8:0::1]:8080", "http://[2001:db8::1]:8080"),
        ("wss://a.example:443", "wss://a.example"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("null", "null"),
    ],
)
def test_an_origin_is_held_as_browsers_send_it(given: str, held: str) -> None:
    assert ServerConfig(origins=[given]).origins == (held,)
    assert ServerConfig(origins=[held]).origins == (held,)


@pytest.mark.parametrize(
    ("origin", "why"),
    [
        ("https://*.example.com", r"no '\*': a compiled pattern stands for several, as re\.compile\("),
        ("*", "a compiled pattern"),
        ("https://a/", "'scheme://host' or 'scheme://host:port' each"),
        ("https://a/path", "'scheme://host'"),
        ("https://u@a", "'scheme://host'"),
        ("https://", "'scheme://host'"),
        ("a.example", "'scheme://host'"),
        ("", "'scheme://host'"),
        ("http://[::1", "'scheme://host'"),
        ("http://[::x]", "a valid host name or address each"),
        ("NULL", "'scheme://host'"),
        ("https://a:", "'scheme://host'"),
        ("https://::1", "'scheme://host'"),
        ("http://a:65536", "a port from 1 to 65535"),
        ("http://a:0", "a port from 1 to 65535"),
        ("http://ü" + "x" * 64, "a valid host name"),
        ("https://a%b", "a valid host name"),
    ],
)
def test_what_is_no_origin(origin: str, why: str) -> None:
    with pytest.raises(ValueError, match=rf"^ServerConfig\.origins = .*: expected .*{why}"):
        ServerConfig(origins=[origin])


def test_required_headers_are_added_by_name() -> None:
    config = ServerConfig().with_required_header("X-One").with_required_header("Authorization")
    assert config.required_headers == ("X-One", "Authorization")
    with pytest.raises(InvalidHeader):
        config.with_required_header("no token")


def test_response_headers_are_added() -> None:
    config = ServerConfig().with_header("Set-Cookie", "a=1").with_header("Set-Cookie", "b=2")
    assert config.headers.getall("set-cookie") == ["a=1", "b=2"]
    assert "a=1" not in repr(config)


def test_a_unix_path_may_be_abstract() -> None:
    assert ServerConfig("unix:\0name").unix_path == "\0name"


def test_a_pattern_of_bytes_is_none_for_an_origin() -> None:
    patterns: list[Any] = [re.compile(b"https://a")]
    with pytest.raises(TypeError, match="a compiled pattern of str"):
        ServerConfig(origins=patterns)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("host", "bind='host:port'"),
        ("port", "bind='host:port'"),
        ("heartbeat", r"ping_interval=\.\.\., ping_timeout=\.\.\."),
        ("max_size", "max_message_size"),
        ("open_timeout", "handshake_timeout"),
        ("origin", "origins"),
        ("level", r"compression=CompressionConfig\(level=\.\.\.\)"),
    ],
)
def test_an_unknown_option_tells_which_was_meant(name: str, meant: str) -> None:
    with pytest.raises(TypeError, match=rf"ServerConfig has no option '{name}': did you mean {meant}\?"):
        ServerConfig(**{name: 1})  # type: ignore[arg-type]
