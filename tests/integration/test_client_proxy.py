"""Through proxies that really connect: HTTP CONNECT and SOCKS5, ws and wss, with and without credentials."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
import trustme

from fabric._handshake.dial import proxy_for
from fabric._http.url import Url
from fabric.client import WebSocketClient
from fabric.config import ServerConfig
from fabric.error import AuthenticationFailed, ConnectionFailed, HandshakeFailed, NotSupported, Timeout
from fabric.message import Message
from fabric.server import ConnectedClient, WebSocketServer
from integration.proxies import HttpProxy, Proxy, SocksProxy
from integration.raw import RawServer, Visit


async def echo(client: ConnectedClient) -> None:
    async for message in client:
        await client.send(message)


@pytest.fixture(scope="module")
def server_tls() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    AUTHORITY.issue_cert("127.0.0.1", "server.invalid").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def client_tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context


AUTHORITY = trustme.CA()


async def check(server: WebSocketServer, proxy: str, host: str = "127.0.0.1", **options: Any) -> None:
    scheme = "ws" if server.config.ssl is None else "wss"
    async with WebSocketClient.connect(f"{scheme}://{host}:{server.port}/", proxy=proxy, **options) as client:
        for data in (b"x", b"y" * 100_000):
            await client.send(data)
            assert await client.recv() == Message(data)
        assert client.request is not None
        assert "Proxy-Authorization" not in client.request.headers


@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
@pytest.mark.parametrize("scheme", ["http", "https", "socks5", "socks5h"])
async def test_an_echo_goes_through(
    scheme: str,
    secure: bool,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fabric._handshake.dial._default_context", lambda: client_tls)
    server = WebSocketServer(ServerConfig("127.0.0.1:0", ssl=server_tls if secure else None), echo)
    kind = SocksProxy if scheme.startswith("socks") else HttpProxy
    proxy: Proxy = kind(ssl=server_tls if scheme == "https" else None)
    async with server, proxy:
        address = f"{scheme}://127.0.0.1:{proxy.port}"
        await check(server, address)
        assert proxy.seen == [("127.0.0.1", server.port)]
        if scheme == "socks5":
            return
        # A name that only the proxy can look up.
        await check(server, address, "server.invalid", ssl=client_tls if secure else None)
        assert proxy.seen[1] == ("server.invalid", server.port)


@pytest.mark.parametrize("kind", [HttpProxy, SocksProxy])
async def test_credentials(kind: type[Proxy]) -> None:
    scheme = "http" if kind is HttpProxy else "socks5"
    async with WebSocketServer(ServerConfig("127.0.0.1:0"), echo) as server, kind(password="p:ä@") as proxy:
        host = f"127.0.0.1:{proxy.port}"
        if kind is HttpProxy:
            await check(server, f"{scheme}://me:p%3A%C3%A4%40@{host}")
        else:
            proxy.password = "secret"  # python-socks sends ASCII only
            await check(server, f"{scheme}://me:secret@{host}")
        assert proxy.users == ["me"]
        for wrong in (f"{scheme}://me:wrong@{host}", f"{scheme}://{host}"):
            with pytest.raises(AuthenticationFailed) as info:
                await check(server, wrong)
            assert "wrong" not in str(info.value)
            if kind is HttpProxy:
                assert (info.value.status, info.value.body) == (407, b"who?")
                assert info.value.challenge == 'Basic realm="p"'


@pytest.mark.parametrize("login", ["me:hunter2%C3%A4", "me:" + "hunter2" * 37])
def test_a_login_that_cannot_be_sent_is_refused_at_the_call(login: str) -> None:
    with pytest.raises(ValueError, match=r"ClientConfig\.proxy") as info:
        WebSocketClient.connect("ws://h/", proxy=f"socks5://{login}@127.0.0.1:1")
    assert "hunter2" not in str(info.value)


@pytest.mark.parametrize("password", ["pä", "p" * 300])
async def test_what_python_socks_cannot_encode_is_not_shown(monkeypatch: pytest.MonkeyPatch, password: str) -> None:
    async with SocksProxy(password=password) as proxy:
        way = Url("socks5", "127.0.0.1", proxy.port, username="me", password=password)
        monkeypatch.setattr("fabric._handshake.dial.proxy_for", lambda *args: way)
        with pytest.raises(ConnectionFailed, match="through the proxy") as info:
            await WebSocketClient.connect("ws://127.0.0.1:1/", proxy="socks5://127.0.0.1:1")
    assert password not in str(info.value)
    assert "ä" not in str(info.value)
    assert info.value.__cause__ is None


async def test_a_proxy_that_refuses_fails_or_is_silent() -> None:
    async def refuse(visit: Visit) -> None:
        await visit.request()
        visit.send("HTTP/1.1 502 Bad Gateway", "Content-Length: 7", body=b"sorry..")

    async def redirect(visit: Visit) -> None:
        await visit.request()
        visit.send("HTTP/1.1 302 Found", "Location: ws://127.0.0.1:1/", "Content-Length: 0")

    async def talkative(visit: Visit) -> None:
        await visit.request()
        visit.send("HTTP/1.1 200 OK", body=b"hello")
        await visit.until_closed()

    async def close(visit: Visit) -> None:
        await visit.request()

    async def silent(visit: Visit) -> None:
        await visit.until_closed()

    for handle, error, what in (
        (refuse, HandshakeFailed, "the proxy answered 502"),
        (redirect, HandshakeFailed, "the proxy answered 302"),  # never followed: it is not the server's
        (talkative, HandshakeFailed, "before anybody asked"),
        (close, ConnectionFailed, "the proxy closed the connection"),
        (silent, Timeout, "CONNECT to .* through the proxy"),
    ):
        async with RawServer(handle) as proxy:
            address = proxy.url.replace("ws:", "http:")
            with pytest.raises(error, match=what):
                await WebSocketClient.connect("ws://server.invalid/", proxy=address, connection_timeout=0.3)
    with pytest.raises(ConnectionFailed, match=r"TCP connection to 127\.0\.0\.1:1 failed"):
        await WebSocketClient.connect("ws://server.invalid/", proxy="http://127.0.0.1:1")


async def test_a_socks_proxy_that_refuses_fails_or_is_silent() -> None:
    async with SocksProxy() as proxy:
        address = f"socks5h://127.0.0.1:{proxy.port}"
        with pytest.raises(ConnectionFailed, match="refused by destination"):
            await WebSocketClient.connect("ws://refused.invalid/", proxy=address)

    async def silent(visit: Visit) -> None:
        await visit.until_closed()

    async def close(visit: Visit) -> None:
        pass

    async def nonsense(visit: Visit) -> None:
        visit.writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await visit.until_closed()

    async def not_text(visit: Visit) -> None:
        await visit.reader.readexactly(3)
        visit.writer.write(b"\x05\x00")
        await visit.reader.readexactly(5)
        visit.writer.write(b"\x05\x00\x00\x03\x01\xff\x00\x50")  # the name that it has bound
        await visit.until_closed()

    for handle, error in (
        (silent, Timeout),
        (close, ConnectionFailed),
        (nonsense, ConnectionFailed),
        (not_text, ConnectionFailed),
    ):
        async with RawServer(handle) as raw:
            address = raw.url.replace("ws:", "socks5h:")
            with pytest.raises(error, match="through the proxy"):
                await WebSocketClient.connect("ws://server.invalid/", proxy=address, connection_timeout=0.3)
    with pytest.raises(ConnectionFailed, match="through the proxy"):
        await WebSocketClient.connect("ws://server.invalid/", proxy="socks5h://127.0.0.1:1")


# The environment.


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
    environment.setenv("all_proxy", "socks5://user:secretä@p")
    with pytest.raises(NotSupported, match="ASCII") as info:
        proxy_for(Url.parse("ws://h/"), True)
    assert "secret" not in str(info.value)


async def test_the_environment_leads_through_a_proxy(environment: pytest.MonkeyPatch) -> None:
    async with WebSocketServer(ServerConfig("127.0.0.1:0"), echo) as server, HttpProxy() as proxy:
        environment.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        await check(server, True)  # type: ignore[arg-type]
        assert len(proxy.seen) == 1
        environment.setenv("no_proxy", "127.0.0.1")
        await check(server, True)  # type: ignore[arg-type]
        assert len(proxy.seen) == 1
