"""Where a client connects to, and with which TLS: `host`, `server_hostname`, and an `ssl` that is asked each time."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Any

import pytest

from fabric.client import WebSocketClient
from fabric.config import ReconnectConfig, ServerConfig
from fabric.error import ConnectionFailed, ReconnectTimeout, Timeout, Tls
from fabric.message import Message
from fabric.server import WebSocketServer
from integration.proxies import HttpProxy, SocksProxy
from integration.raw import RawServer, Visit
from support.serving import echo, serve, until
from support.tls import client_context, server_context

Stack = contextlib.AsyncExitStack


async def check(url: str, **options: Any) -> WebSocketClient:
    async with WebSocketClient.connect(url, auto_reconnect=False, **options) as client:
        await client.send("x")
        assert await client.recv() == Message("x")
    return client


# Another host than the URL's.


@pytest.mark.parametrize("host", ["127.0.0.1:{}", "localhost:{}"])
async def test_the_host_stands_for_that_of_the_url(stack: Stack, host: str) -> None:
    server = await serve(stack, echo)
    client = await check("ws://example.invalid/room", host=host.format(server.port))
    assert client.request is not None
    assert client.request.headers["Host"] == "example.invalid"
    assert client.url == "ws://example.invalid/room"


async def test_the_port_is_the_urls_unless_the_host_has_one(stack: Stack) -> None:
    server = await stack.enter_async_context(WebSocketServer(ServerConfig("[::1]:0"), echo))
    for host in ("::1", "[::1]"):
        await check(f"ws://example.invalid:{server.port}/", host=host)
    await check("ws://example.invalid:1/", host=f"[::1]:{server.port}")


async def test_errors_tell_where_it_went() -> None:
    with pytest.raises(ConnectionFailed, match=r"TCP connection to 127\.0\.0\.1:1 failed") as info:
        await WebSocketClient.connect("ws://example.invalid/", host="127.0.0.1:1")
    assert info.value.url == "ws://example.invalid/"
    with pytest.raises(ConnectionFailed, match=r"name lookup of nowhere\.invalid failed"):
        await WebSocketClient.connect("ws://127.0.0.1/", host="nowhere.invalid")


@pytest.mark.parametrize("kind", [HttpProxy, SocksProxy])
async def test_a_proxy_connects_to_the_host(stack: Stack, kind: Any) -> None:
    server = await serve(stack, echo)
    proxy = await stack.enter_async_context(kind())
    scheme = "http" if kind is HttpProxy else "socks5h"
    host = f"127.0.0.1:{server.port}"
    await check("ws://example.invalid/", host=host, proxy=f"{scheme}://127.0.0.1:{proxy.port}")
    assert proxy.seen == [("127.0.0.1", server.port)]


async def test_a_redirect_leads_away_from_the_host_or_stays(stack: Stack) -> None:
    async def handle(visit: Visit) -> None:
        request = (await visit.request())[""].split(" ")[1]
        target = {"/stay": "/leave", "/leave": f"ws://127.0.0.1:{server.port}/end"}[request]
        seen.append(request)
        visit.send("HTTP/1.1 302 Found", f"Location: {target}", "Content-Length: 0")

    seen: list[str] = []
    server = await serve(stack, echo)
    redirecting = await stack.enter_async_context(RawServer(handle))
    await check("ws://example.invalid/stay", host=f"127.0.0.1:{redirecting.port}")
    assert seen == ["/stay", "/leave"]


# Another name than the URL's.


async def test_the_certificate_is_of_the_url_whatever_the_host(stack: Stack) -> None:
    server = await serve(stack, echo, ssl=server_context("example.invalid"))
    host = f"127.0.0.1:{server.port}"
    await check("wss://example.invalid/", host=host, ssl=client_context())
    with pytest.raises(Tls, match=r"TLS handshake with other\.invalid failed: certificate not accepted"):
        await check("wss://other.invalid/", host=host, ssl=client_context())


@pytest.mark.parametrize("proxied", [False, True], ids=["direct", "proxy"])
async def test_the_name_of_the_certificate_apart_from_the_url(stack: Stack, proxied: bool) -> None:
    names: list[str | None] = []
    context = server_context("example.invalid")
    context.sni_callback = lambda _, name, __: names.append(name)
    server = await serve(stack, echo, ssl=context)
    proxy = None
    if proxied:
        proxy = f"http://127.0.0.1:{(await stack.enter_async_context(HttpProxy())).port}"
    options = {"ssl": client_context(), "proxy": proxy}
    client = await check(f"wss://127.0.0.1:{server.port}/", server_hostname="example.invalid", **options)
    assert names == ["example.invalid"]
    assert client.request is not None
    assert client.request.headers["Host"] == f"127.0.0.1:{server.port}"
    with pytest.raises(Tls, match="certificate not accepted"):
        await check(f"wss://127.0.0.1:{server.port}/", server_hostname="other.invalid", **options)


# A context for each attempt.


async def test_a_context_is_asked_for_at_each_attempt(stack: Stack) -> None:
    asked: list[ssl.SSLContext] = []

    def context() -> ssl.SSLContext:
        asked.append(client_context())
        return asked[-1]

    server = await serve(stack, echo, ssl=server_context())
    client = await stack.enter_async_context(
        WebSocketClient.connect(
            f"wss://localhost:{server.port}/", ssl=context, reconnect=ReconnectConfig(initial_delay=0.01)
        )
    )
    assert len(asked) == 1
    server.clients()[0]._abort()
    await until(lambda: len(asked) == 2 and client.is_connected)


async def test_a_coroutine_function_may_make_the_context(stack: Stack) -> None:
    async def context() -> ssl.SSLContext:
        await asyncio.sleep(0)
        return client_context()

    server = await serve(stack, echo, ssl=server_context())
    await check(f"wss://localhost:{server.port}/", ssl=context)


async def test_a_context_that_does_not_come_counts_as_connecting() -> None:
    async def context() -> ssl.SSLContext:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(Timeout, match=r"ClientConfig\.ssl\(\) timed out"):
        await WebSocketClient.connect("wss://127.0.0.1:1/", ssl=context, connection_timeout=0.05)


async def test_what_the_function_raises_or_returns_wrongly_is_raised() -> None:
    def fails() -> ssl.SSLContext:
        raise LookupError("no certificate")

    with pytest.raises(LookupError, match="no certificate"):
        await WebSocketClient.connect("wss://127.0.0.1:1/", ssl=fails)
    with pytest.raises(TypeError, match=r"ClientConfig\.ssl\(\) returned 'x': expected an ssl\.SSLContext or None"):
        await WebSocketClient.connect("wss://127.0.0.1:1/", ssl=lambda: "x")  # type: ignore[arg-type,return-value]


async def test_a_function_that_fails_later_ends_the_client_or_is_asked_again(stack: Stack) -> None:
    failures: list[Exception] = [OSError("the vault does not answer"), ValueError("no such certificate")]

    def context() -> ssl.SSLContext:
        if server.metrics.total_connections == 0:
            return client_context()
        raise failures.pop(0)

    server = await serve(stack, echo, ssl=server_context())
    client = await WebSocketClient.connect(
        f"wss://localhost:{server.port}/", ssl=context, reconnect=ReconnectConfig(initial_delay=0.01)
    )
    server.clients()[0]._abort()
    with pytest.raises(ReconnectTimeout) as info:
        await client.recv()
    assert isinstance(info.value.cause, ValueError)
    assert failures == []
    await client.close()
