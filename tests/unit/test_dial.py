"""`fabric._handshake.dial`: which way leads to a server, and what the system's errors become."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from fabric._handshake.dial import Progress, _failures, _resolve, _target, proxy_for
from fabric._http.url import PROXY_SCHEMES, Url
from fabric.config import ClientConfig
from fabric.error import ConnectionFailed, Error, HandshakeFailed, Io, NotSupported, Tls

V4, V6 = socket.AF_INET, socket.AF_INET6


# The proxy.


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for scheme in ("ws", "wss", "http", "https", "socks", "all", "no"):
        monkeypatch.delenv(f"{scheme}_proxy", raising=False)
        monkeypatch.delenv(f"{scheme}_PROXY".upper(), raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("variables", "address", "found"),
    [
        ({}, "ws://h/", None),
        ({"http_proxy": "http://p:1"}, "ws://h/", "http://p:1/"),
        ({"http_proxy": "http://p:1"}, "wss://h/", None),
        ({"HTTPS_PROXY": "http://p:1"}, "wss://h/", "http://p:1/"),
        ({"all_proxy": "socks5://p"}, "wss://h/", "socks5://p/"),
        ({"ALL_PROXY": "socks://p"}, "ws://h/", "socks5h://p/"),
        ({"ws_proxy": "http://one", "http_proxy": "http://two"}, "ws://h/", "http://one/"),
        ({"http_proxy": "p:3128"}, "ws://h/", "http://p:3128/"),
        ({"http_proxy": ""}, "ws://h/", None),
        ({"http_proxy": "http://p", "no_proxy": "h"}, "ws://h/", None),
        ({"http_proxy": "http://p", "no_proxy": ".example.org,other"}, "ws://a.example.org/", None),
        ({"http_proxy": "http://p", "no_proxy": "example.org"}, "ws://notexample.org/", "http://p/"),
        ({"http_proxy": "http://p", "NO_PROXY": "*"}, "ws://h/", None),
        ({"http_proxy": "http://p", "no_proxy": "h:81"}, "ws://h/", "http://p/"),
        ({"http_proxy": "http://p", "no_proxy": "h:81"}, "ws://h:81/", None),
    ],
)
def test_the_environment_is_read_when_asked(
    environment: pytest.MonkeyPatch, variables: dict[str, str], address: str, found: str | None
) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)
    proxy = proxy_for(Url.parse(address), True)
    assert (None if proxy is None else str(proxy)) == found
    assert proxy_for(Url.parse(address), None) is None


def test_a_proxy_of_an_unknown_kind_is_not_supported(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("http_proxy", "socks4://user:secret@p")
    with pytest.raises(NotSupported, match="socks5h") as info:
        proxy_for(Url.parse("ws://h/"), True)
    assert "secret" not in str(info.value)


def test_a_login_in_the_environment_that_cannot_be_sent_is_not_supported(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("all_proxy", f"socks5://user:{'secret' * 50}@p")
    with pytest.raises(NotSupported, match="255 bytes") as info:
        proxy_for(Url.parse("ws://h/"), True)
    assert "secret" not in str(info.value)


# The host.


@pytest.mark.parametrize(
    ("host", "address", "target"),
    [
        (None, "wss://h/x", "wss://h/x"),
        ("other", "wss://h/x", "wss://other/x"),
        ("other:99", "wss://h/x", "wss://other:99/x"),
        ("::1", "wss://h:8443/x", "wss://[::1]:8443/x"),
        ("other", "wss://h/redirected", "wss://other/redirected"),
        ("other", "wss://elsewhere/", "wss://elsewhere/"),
        ("other", "wss://h:444/", "wss://h:444/"),
    ],
)
def test_another_host_stands_for_that_of_the_url_alone(host: str | None, address: str, target: str) -> None:
    url = "wss://h:8443/x" if ":8443" in address else "wss://h/x"
    assert str(_target(Url.parse(address), ClientConfig(url, host=host))) == target


class Names:
    """Of an event loop what looks up names: it knows `infos`, and nothing else happens."""

    def __init__(self, infos: list[tuple[Any, str]]) -> None:
        self._infos = [(family, socket.SOCK_STREAM, 6, "", (address, 80)) for family, address in infos]

    async def getaddrinfo(self, host: str, port: int, *, type: int) -> list[Any]:  # noqa: A002
        return self._infos


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


@pytest.mark.parametrize(
    ("given", "order"),
    [
        ([(V6, "a"), (V6, "b"), (V4, "c"), (V4, "d")], "acbd"),
        ([(V4, "a"), (V4, "b"), (V4, "c"), (V6, "d")], "adbc"),
        ([(V4, "a"), (V4, "b")], "ab"),
        ([(V6, "a")], "a"),
    ],
)
def test_families_take_turns(monkeypatch: pytest.MonkeyPatch, given: list[tuple[Any, str]], order: str) -> None:
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: Names(given))
    progress = Progress()
    infos = run(_resolve(Url.parse("ws://example.org/"), progress))
    assert "".join(info[4][0] for info in infos) == order
    assert progress.phase == "name lookup of example.org"


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", V4), ("[::1]", V6)])
def test_an_address_is_not_looked_up(host: str, family: int) -> None:
    progress = Progress()
    [info] = run(_resolve(Url.parse(f"ws://{host}:8080/"), progress))
    assert (info[0], info[4]) == (family, (host.strip("[]"), 8080))
    assert progress.phase == "connecting"


def test_a_name_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: Names([]))
    with pytest.raises(OSError, match=r"example\.org has no address"):
        run(_resolve(Url.parse("ws://example.org/"), Progress()))


def test_the_lookup_of_a_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: Names([(V4, "a")]))
    progress = Progress()
    run(_resolve(Url.parse("socks5h://p", PROXY_SCHEMES), progress))
    assert progress.phase == "name lookup of the proxy p"


# Errors.


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed"), ConnectionFailed, "Connection refused"),
        (OSError(errno.ENETUNREACH, "x"), ConnectionFailed, "Network is unreachable"),
        (socket.gaierror(-2, "Name or service not known"), ConnectionFailed, "Name or service not known"),
        (ConnectionResetError(), ConnectionFailed, "the other end hung up"),
        (OSError(errno.EMFILE, "x"), Io, "Too many open files"),
        (OSError(errno.ENOBUFS, "x"), Io, "No buffer space available"),
        (ssl.SSLError(1, "[SSL: X] words"), Tls, r"\[SSL: X\] words"),
        (ssl.SSLEOFError(8, "eof"), Tls, "eof"),
    ],
    ids=repr,
)
def test_an_error_of_the_system_names_the_phase(error: Exception, kind: type[Error], text: str) -> None:
    progress = Progress()
    progress.phase = "the third step"
    with (
        pytest.raises(kind, match=f"the third step failed: {text}") as info,
        _failures(progress, Url.parse("ws://u:p@h/")),
    ):
        raise error
    assert info.value.__cause__ is error
    if isinstance(info.value, ConnectionFailed):
        assert info.value.url == "ws://h/"
    if isinstance(info.value, Io):
        assert info.value.errno == error.errno  # type: ignore[attr-defined]


@pytest.mark.parametrize("make", [lambda: ConnectionFailed("x"), lambda: HandshakeFailed("x"), lambda: ValueError("x")])
def test_other_errors_pass(make: Callable[[], Exception]) -> None:
    error = make()
    with pytest.raises(type(error)) as info, _failures(Progress(), Url.parse("ws://h/")):
        raise error
    assert info.value is error
