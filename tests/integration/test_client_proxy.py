"""Through proxies that really connect: HTTP CONNECT and SOCKS5, ws and wss, with and without credentials."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fabric._http.url import basic_authorization
from fabric.client import WebSocketClient
from fabric.config import ServerConfig
from fabric.error import AuthenticationFailed, ConnectionFailed, HandshakeFailed, Timeout, Tls
from fabric.headers import HeaderMap
from fabric.message import Message
from fabric.server import WebSocketServer
from integration.proxies import HttpProxy, Proxy, SocksProxy
from integration.raw import RawServer, Visit
from support.fake_time import Deadline
from support.serving import echo, serve
from support.tls import client_context, server_context, trusted_by_the_system

Stack = contextlib.AsyncExitStack


@pytest.fixture(scope="module")
def server_tls() -> ssl.SSLContext:
    return server_context("127.0.0.1", "server.invalid")


@pytest.fixture(scope="module")
def client_tls() -> ssl.SSLContext:
    return client_context()


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    with trusted_by_the_system(monkeypatch, tmp_path):
        yield


async def check(server: WebSocketServer, proxy: str, host: str = "127.0.0.1", **options: Any) -> None:
    scheme = "ws" if server.config.ssl is None else "wss"
    async with WebSocketClient.connect(f"{scheme}://{host}:{server.port}/", proxy=proxy, **options) as client:
        for data in (b"x", b"y" * 100_000):
            await client.send(data)
            assert await client.recv() == Message(data)
        assert client.request is not None
        assert "Proxy-Authorization" not in client.request.headers


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
@pytest.mark.parametrize("scheme", ["http", "https", "socks5", "socks5h"])
async def test_an_echo_goes_through(
    scheme: str,
    secure: bool,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
) -> None:
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
        await check(server, f"{scheme}://me:p%3A%C3%A4%40@{host}")
        assert proxy.users == ["me"]
        for wrong in (f"{scheme}://me:wrong@{host}", f"{scheme}://{host}"):
            with pytest.raises(AuthenticationFailed) as info:
                await check(server, wrong)
            assert "wrong" not in str(info.value)
            if kind is HttpProxy:
                assert (info.value.status, info.value.body) == (407, b"who?")
                assert info.value.challenge == 'Basic realm="p"'


def test_a_login_that_cannot_be_sent_is_refused_at_the_call() -> None:
    with pytest.raises(ValueError, match=r"ClientConfig\.proxy") as info:
        WebSocketClient.connect("ws://h/", proxy=f"socks5://me:{'hunter2' * 37}@127.0.0.1:1")
    assert "hunter2" not in str(info.value)


async def test_a_proxy_that_refuses_fails_or_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    deadline = Deadline(monkeypatch)

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
        await visit.reader.read(1)
        deadline.expire()
        await visit.until_closed()

    for handle, error, what in (
        (refuse, HandshakeFailed, "the proxy .* answered 502"),
        (redirect, HandshakeFailed, "the proxy .* answered 302"),  # never followed: it is not the server's
        (talkative, HandshakeFailed, "before anybody asked"),
        (close, ConnectionFailed, "the proxy .* closed the connection"),
        (silent, Timeout, "CONNECT to .* through the proxy"),
    ):
        async with RawServer(handle) as proxy:
            address = proxy.url.replace("ws:", "http:")
            with pytest.raises(error, match=what):
                await WebSocketClient.connect(
                    "ws://server.invalid/", proxy=address, connection_timeout=deadline.SECONDS
                )
    with pytest.raises(ConnectionFailed, match=r"TCP connection to the proxy 127\.0\.0\.1:1 failed"):
        await WebSocketClient.connect("ws://server.invalid/", proxy="http://127.0.0.1:1")


async def test_a_socks_proxy_that_refuses_fails_or_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    deadline = Deadline(monkeypatch)
    async with SocksProxy() as proxy:
        address = f"socks5h://127.0.0.1:{proxy.port}"
        with pytest.raises(ConnectionFailed, match=r"to refused\.invalid:80 through the proxy .* connection refused"):
            await WebSocketClient.connect("ws://refused.invalid/", proxy=address)

    async def silent(visit: Visit) -> None:
        await visit.reader.read(1)
        deadline.expire()
        await visit.until_closed()

    async def close(visit: Visit) -> None:
        pass

    async def nonsense(visit: Visit) -> None:
        visit.writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await visit.until_closed()

    for handle, error in (
        (silent, Timeout),
        (close, ConnectionFailed),
        (nonsense, ConnectionFailed),
    ):
        async with RawServer(handle) as raw:
            address = raw.url.replace("ws:", "socks5h:")
            with pytest.raises(error, match="through the proxy"):
                await WebSocketClient.connect(
                    "ws://server.invalid/", proxy=address, connection_timeout=deadline.SECONDS
                )


async def test_an_answer_of_a_socks_proxy_that_is_not_one(stack: Stack) -> None:
    """Each stage of the exchange may end in any bytes, or in none."""

    def saying(*answers: bytes) -> Callable[[Visit], Awaitable[None]]:
        async def handle(visit: Visit) -> None:
            for answer in answers:
                await visit.reader.read(1000)
                visit.writer.write(answer)

        return handle

    granted, accepted = b"\x05\x02", b"\x01\x00"
    for answers, error, what in (
        ((b"\x04\x00",), ConnectionFailed, "not SOCKS5"),
        ((b"\x05",), ConnectionFailed, "hung up"),
        ((b"\x05\xff",), AuthenticationFailed, "another kind of login"),
        ((b"\x05\x01",), AuthenticationFailed, "another kind of login"),
        ((granted, b"\x01\x05"), AuthenticationFailed, "does not accept the login"),
        ((granted, b"\x01"), ConnectionFailed, "hung up"),
        ((granted, accepted, b"\x05\x02"), ConnectionFailed, "not allowed by its rules"),
        ((granted, accepted, b"\x05\x63"), ConnectionFailed, "reply 99"),
        ((granted, accepted, b"\x04\x00\x00\x01"), ConnectionFailed, "not SOCKS5"),
        ((granted, accepted, b"\x05\x00\x00\x09" + bytes(6)), ConnectionFailed, "not SOCKS5"),
        ((granted, accepted, b"\x05\x00\x00\x03\x09short"), ConnectionFailed, "hung up"),
    ):
        async with RawServer(saying(*answers)) as proxy:
            address = proxy.url.replace("ws://", "socks5h://me:secret@")
            with pytest.raises(error, match=f"through the proxy .*{what}") as info:
                await WebSocketClient.connect("ws://server.invalid/", proxy=address)
            assert "secret" not in str(info.value)
    async with RawServer(saying(b"\x05\xff")) as proxy:
        with pytest.raises(AuthenticationFailed, match="it wants a login"):
            await WebSocketClient.connect("ws://h/", proxy=proxy.url.replace("ws:", "socks5h:"))


@pytest.mark.parametrize("scheme", ["http", "https", "socks5h"])
async def test_errors_say_that_it_was_the_proxy(stack: Stack, scheme: str) -> None:
    with pytest.raises(ConnectionFailed, match=r"name lookup of the proxy nowhere\.invalid failed"):
        await WebSocketClient.connect("ws://server.invalid/", proxy=f"{scheme}://nowhere.invalid")
    with pytest.raises(
        ConnectionFailed, match=r"TCP connection to the proxy 127\.0\.0\.1:1 failed: Connection refused"
    ):
        await WebSocketClient.connect("ws://server.invalid/", proxy=f"{scheme}://127.0.0.1:1")


async def test_a_proxy_with_a_private_authority(stack: Stack) -> None:
    server = await serve(stack, echo)
    proxy = await stack.enter_async_context(HttpProxy(ssl=server_context()))
    address = f"https://localhost:{proxy.port}"
    with pytest.raises(Tls, match="TLS handshake with the proxy localhost failed: certificate not accepted") as info:
        await check(server, address)
    assert info.value.certificate_rejected
    await check(server, address, proxy_ssl=client_context())
    assert proxy.seen == [("127.0.0.1", server.port)]


async def test_a_server_behind_a_proxy_that_has_no_tls(stack: Stack) -> None:
    async def plain(visit: Visit) -> None:
        await visit.reader.read(1000)
        visit.send("HTTP/1.1 400 Bad Request", "Content-Length: 0")

    server = await stack.enter_async_context(RawServer(plain))
    proxy = await stack.enter_async_context(HttpProxy())
    with pytest.raises(Tls, match=r"TLS handshake with 127\.0\.0\.1 through the proxy .* is not TLS"):
        await WebSocketClient.connect(server.url.replace("ws:", "wss:"), proxy=f"http://127.0.0.1:{proxy.port}")


async def test_headers_for_the_proxy(stack: Stack) -> None:
    server = await serve(stack, echo)
    proxy = await stack.enter_async_context(HttpProxy(password="secret"))
    address = f"http://127.0.0.1:{proxy.port}"
    headers = HeaderMap({"X-Zone": "ü", "User-Agent": "mine"})
    await check(server, address.replace("//", "//me:secret@"), proxy_headers=headers, headers={"X-One": "1"})
    assert proxy.headers["x-zone"] == "ü"
    assert proxy.headers["user-agent"] == "mine"
    assert "x-one" not in proxy.headers
    await check(server, address, proxy_headers={"Proxy-Authorization": basic_authorization("you", "secret")})
    assert proxy.users == ["me", "you"]


# The environment.


async def test_the_environment_leads_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async with WebSocketServer(ServerConfig("127.0.0.1:0"), echo) as server, HttpProxy() as proxy:
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        await check(server, True)  # type: ignore[arg-type]
        assert len(proxy.seen) == 1
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        await check(server, True)  # type: ignore[arg-type]
        assert len(proxy.seen) == 1
