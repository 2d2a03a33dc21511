"""fabric.websockets.connect: every form, redirects, proxies, and how it fails."""

from __future__ import annotations

import asyncio
import contextlib
import http
import logging
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from fabric.websockets import Request, Response, State
from fabric.websockets.asyncio import client as module
from fabric.websockets.asyncio.client import ClientConnection, connect, unix_connect
from fabric.websockets.asyncio.server import ServerConnection, unix_serve
from fabric.websockets.exceptions import (
    ConnectionClosedError,
    ConnectionClosedOK,
    InvalidHandshake,
    InvalidHeader,
    InvalidMessage,
    InvalidProxy,
    InvalidProxyMessage,
    InvalidProxyStatus,
    InvalidStatus,
    InvalidURI,
    NegotiationError,
    ProxyError,
    SecurityError,
    StatusLineTooLong,
)
from fabric.websockets.extensions.base import ClientExtensionFactory
from fabric.websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from integration.proxies import HttpProxy, SocksProxy
from integration.raw import RawServer, Visit
from support.dropin import Held, echo, start, url
from support.tls import client_context, server_context

Stack = contextlib.AsyncExitStack


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment of this machine says does not count."""
    for name in ("ws", "wss", "http", "https", "socks", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)


# --- its forms ---------------------------------------------------------------------------------------------


async def test_it_is_awaited(stack: Stack) -> None:
    server = await start(stack)
    connection = await connect(url(server, "/path?query"))
    assert isinstance(connection, ClientConnection)
    assert connection.state is State.OPEN
    await connection.send("text")
    await connection.send(b"bytes")
    assert [await connection.recv(), await connection.recv()] == ["text", b"bytes"]
    assert connection.request is not None
    assert connection.request.path == "/path?query"
    assert connection.response is not None
    assert connection.response.status_code == 101
    assert connection.remote_address == server.sockets[0].getsockname()
    await connection.close()
    assert connection.state is State.CLOSED
    assert connection.close_code == 1000


async def test_it_is_a_context_manager(stack: Stack) -> None:
    held = Held()
    server = await start(stack, held)
    connecting = connect(url(server))
    async with connecting as connection:
        accepted = await held.next()
        with pytest.raises(RuntimeError, match=r"connect\(\) isn't reentrant"):
            async with connecting:
                pass
    await accepted.wait_closed()
    assert (connection.close_code, accepted.close_code) == (1000, 1000)
    with pytest.raises(LookupError):
        async with connecting:
            accepted = await held.next()
            raise LookupError
    await accepted.wait_closed()
    assert accepted.close_code == 1011


async def test_it_gives_one_connection_after_the_other(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    attempts = 0

    def process_request(connection: ServerConnection, request: Request) -> Response | None:
        nonlocal attempts
        attempts += 1
        if attempts in (2, 3):
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "later")
        return connection.respond(http.HTTPStatus.PAYMENT_REQUIRED, "no") if attempts == 5 else None

    def delays() -> Any:
        yield 0.0
        yield 0.001

    server = await start(stack, process_request=process_request)
    seen: list[ClientConnection] = []
    with caplog.at_level(logging.INFO, "websockets.client"):
        with pytest.raises(InvalidStatus, match=r"^server rejected WebSocket connection: HTTP 402$") as caught:
            async for connection in connect(url(server), reconnect_delays=delays):
                assert all(before.state is State.CLOSED for before in seen)
                assert connection.state is State.OPEN
                seen.append(connection)
                continue
    assert (attempts, len(seen)) == (5, 2)
    assert caught.value.response.body == b"no"
    lines = [record.message for record in caplog.records if record.name == "websockets.client"]
    why = "fabric.websockets.exceptions.InvalidStatus: server rejected WebSocket connection: HTTP 503"
    assert lines == [f"connect failed; reconnecting in 0.0 seconds: {why}"] * 2


@pytest.mark.parametrize("raises", [False, True])
async def test_the_application_says_what_is_final(raises: bool, stack: Stack) -> None:
    def process_request(connection: ServerConnection, request: Request) -> Response:
        return connection.respond(503, "later")

    def process_exception(error: Exception) -> Exception | None:
        if raises:
            raise LookupError("mine")
        return LookupError("mine")

    server = await start(stack, process_request=process_request)
    with pytest.raises(LookupError, match="mine"):
        async for _ in connect(url(server), process_exception=process_exception):
            pytest.fail("connected")


async def test_many_messages_both_ways(stack: Stack) -> None:
    server = await start(stack)
    messages: list[Any] = [str(i) * (i % 50) if i % 3 else bytes(i % 256) for i in range(2000)]
    async with connect(url(server), max_queue=4) as connection:

        async def send() -> None:
            for message in messages:
                await connection.send(message)

        sending = asyncio.ensure_future(send())
        assert [await connection.recv() for _ in messages] == messages
        await sending


@pytest.mark.parametrize("size", [125, 126, 65535, 65536, 1 << 20])
@pytest.mark.parametrize("compression", ["deflate", None])
async def test_sizes(size: int, compression: str | None, stack: Stack) -> None:
    server = await start(stack)
    async with connect(url(server), compression=compression) as connection:
        await connection.send("x" * size)
        assert await connection.recv() == "x" * size
        await connection.send([b"y" * (size // 2), b"z"])
        assert await connection.recv() == b"y" * (size // 2) + b"z"


# --- the request -------------------------------------------------------------------------------------------


async def test_headers(stack: Stack) -> None:
    held = Held()
    server = await start(stack, held)
    options: dict[str, Any] = {
        "origin": "https://o.example",
        "additional_headers": [("X-A", "1"), ("X-A", "2")],
        "user_agent_header": "me",
    }
    async with connect(url(server).replace("ws://", "ws://user:pass@"), **options):
        request = (await held.next()).request
        assert request is not None
        headers = request.headers
        assert headers["Authorization"] == "Basic dXNlcjpwYXNz"
        assert headers["Origin"] == "https://o.example"
        assert headers.get_all("X-A") == ["1", "2"]
        assert headers["User-Agent"] == "me"
        assert headers["Sec-WebSocket-Extensions"] == "permessage-deflate; client_max_window_bits"
    for additional, agent, expected in (({}, None, []), ({"User-Agent": "x"}, "y", ["x"])):
        async with connect(url(server), additional_headers=additional, user_agent_header=agent, compression=None):
            request = (await held.next()).request
            assert request is not None
            assert request.headers.get_all("User-Agent") == expected
            assert "Sec-WebSocket-Extensions" not in request.headers


async def test_subprotocols_and_compression(stack: Stack) -> None:
    server = await start(stack, subprotocols=["b", "a"])
    async with connect(url(server), subprotocols=["a", "b"]) as connection:  # type: ignore[list-item]
        assert connection.subprotocol == "b"
        assert [type(each).__name__ for each in connection.protocol.extensions] == ["PerMessageDeflate"]
    factory = ClientPerMessageDeflateFactory(client_no_context_takeover=True)
    async with connect(url(server), subprotocols=["a"], extensions=[factory]) as connection:  # type: ignore[list-item]
        assert connection.protocol.extensions[0].local_no_context_takeover
        await connection.send("x" * 1000)
        assert await connection.recv() == "x" * 1000


async def test_a_connection_of_ones_own(stack: Stack) -> None:
    class Mine(ClientConnection):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.mine = True

        async def recv_twice(self) -> list[Any]:
            return [await self.recv(), await self.recv()]

    server = await start(stack)
    async with connect(url(server), create_connection=Mine) as connection:
        assert isinstance(connection, Mine)
        await connection.send("a")
        await connection.send("b")
        assert await connection.recv_twice() == ["a", "b"]


# --- where to ----------------------------------------------------------------------------------------------


async def test_arguments_of_the_event_loop(stack: Stack) -> None:
    server = await start(stack)
    address = server.sockets[0].getsockname()
    async with connect("ws://nowhere.invalid/", host=address[0], port=address[1]) as connection:
        assert connection.request is not None
        assert connection.request.headers["Host"] == "nowhere.invalid"
    sock = socket.create_connection(address)
    async with connect("ws://nowhere.invalid/", sock=sock) as connection:
        await connection.send("x")
        assert await connection.recv() == "x"
    with pytest.raises(TypeError):
        await connect(url(server), nonsense=True)
    with pytest.raises(OSError, match=r".*"):
        await connect("ws://127.0.0.1:1/", proxy=None)


async def test_a_unix_socket(stack: Stack, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    await stack.enter_async_context(unix_serve(echo, path))
    async with unix_connect(path) as connection:
        assert connection.request is not None
        assert connection.request.headers["Host"] == "localhost"
        await connection.send("x")
        assert await connection.recv() == "x"
    with pytest.raises(ValueError, match="path"):
        await unix_connect()


async def test_tls(stack: Stack) -> None:
    server = await start(stack, ssl=server_context())
    async with connect(url(server, scheme="wss"), ssl=client_context()) as connection:
        assert connection.transport.get_extra_info("ssl_object").version().startswith("TLS")
        for size in (10, 300_000):
            await connection.send("x" * size)
            assert await connection.recv() == "x" * size
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
        await connect(url(server, scheme="wss"))
    with pytest.raises(ssl.SSLCertVerificationError, match="ostname"):
        await connect(url(server, scheme="wss"), ssl=client_context(), server_hostname="other.invalid")


@pytest.mark.parametrize(
    ("arguments", "options", "error", "why"),
    [
        (["http://x"], {}, InvalidURI, "http://x isn't a valid URI: scheme isn't ws or wss"),
        (["ws://x"], {"extra_headers": {}}, TypeError, r"connect\(\) has no argument 'extra_headers' any more"),
        (["ws://x"], {"ssl": True}, ValueError, r"ssl argument is incompatible with a ws:// URI"),
        (["ws://x"], {"subprotocols": "chat"}, TypeError, "subprotocols must be a list, not a str"),
        (["ws://x"], {"compression": "gzip"}, ValueError, "unsupported compression: gzip"),
        (["ws://x"], {"extensions": [ClientExtensionFactory()]}, TypeError, "only ClientPerMessageDeflateFactory is"),
    ],
)
async def test_arguments_that_are_refused_at_once(
    arguments: list[str], options: dict[str, Any], error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        connect(*arguments, **options)


async def test_arguments_that_are_refused_when_it_connects() -> None:
    for options, error, why in (
        ({"ssl": None}, ValueError, "ssl=None is incompatible with a wss:// URI"),
        ({"proxy": "ftp://x"}, InvalidProxy, "scheme ftp isn't supported"),
        (
            {"proxy": "http://x", "proxy_ssl": True},
            ValueError,
            "proxy_ssl argument is incompatible with an http:// proxy",
        ),
        (
            {"proxy": "https://x", "proxy_ssl": None},
            ValueError,
            "proxy_ssl=None is incompatible with an https:// proxy",
        ),
        ({"proxy": "socks4://x"}, ProxyError, "socks4 proxies are not supported"),
    ):
        with pytest.raises(error, match=why):
            await connect("wss://nowhere.invalid", **options)


# --- redirects ---------------------------------------------------------------------------------------------


def redirect(location: str, status: int = 302) -> Any:
    def process_request(connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/there":
            return None
        response = connection.respond(status, "elsewhere")
        response.headers["Location"] = location
        return response

    return process_request


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
async def test_a_redirect_is_followed(status: int, stack: Stack) -> None:
    server = await start(stack, process_request=redirect("/there", status))
    async with connect(url(server), additional_headers={"Authorization": "secret"}) as connection:
        assert connection.protocol.uri.path == "/there"
        assert connection.request is not None
        assert connection.request.headers["Authorization"] == "secret"


async def test_the_log_tells_no_secrets(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "websockets")
    server = await start(stack)
    secrets = {"Authorization": "hush", "Cookie": "a=hush", "X-Public": "y"}
    async with connect(url(server) + "?token=hush", additional_headers=secrets):
        pass
    lines = [record.getMessage() for record in caplog.records]
    for arrow in "<>":
        assert f"{arrow} GET /?*** HTTP/1.1" in lines
        assert {f"{arrow} Authorization: ***", f"{arrow} Cookie: ***", f"{arrow} X-Public: y"} <= set(lines)
    assert not [line for line in lines if "hush" in line]


async def test_another_origin_is_not_told_secrets(stack: Stack) -> None:
    held = Held()
    other = await start(stack, held)
    server = await start(stack, process_request=redirect(url(other)))
    secrets = {"Authorization": "x", "Cookie": "x", "Proxy-Authorization": "x", "X-Public": "y"}
    async with connect(url(server), additional_headers=secrets):
        request = (await held.next()).request
        assert request is not None
        assert set(secrets).intersection(name for name, _ in request.headers.raw_items()) == {"X-Public"}


async def test_redirects_that_are_not_followed(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REDIRECTS", 2)
    endless = await start(stack, process_request=redirect("/again"))
    with pytest.raises(SecurityError, match="more than 2 redirects"):
        await connect(url(endless))
    host, port = endless.sockets[0].getsockname()
    away = await start(stack, process_request=redirect("ws://other.invalid/"))
    with pytest.raises(ValueError, match=r"cross-origin redirect to ws://other.invalid/ with an explicit host or port"):
        await connect("ws://name.invalid/", host=host, port=away.sockets[0].getsockname()[1])
    with pytest.raises(ValueError, match="with a preexisting socket"):
        await connect(url(away), sock=socket.create_connection(away.sockets[0].getsockname()))
    secure = await start(stack, process_request=redirect("ws://localhost/"), ssl=server_context())
    with pytest.raises(SecurityError, match="cannot follow redirect to non-secure URI ws://localhost/"):
        await connect(url(secure, scheme="wss"), ssl=client_context())
    nowhere = await start(stack, process_request=lambda connection, request: connection.respond(302, ""))
    with pytest.raises(InvalidStatus):
        await connect(url(nowhere))
    assert port


# --- answers that are none ---------------------------------------------------------------------------------

ANSWERS: list[tuple[bytes, type[Exception], str]] = [
    (b"", InvalidMessage, "did not receive a valid HTTP response"),
    (b"HTTP/1.1 200", InvalidMessage, "did not receive a valid HTTP response"),
    (b"SSH-2.0-OpenSSH\r\n", InvalidMessage, "did not receive a valid HTTP response"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", InvalidStatus, "HTTP 200"),
    (b"HTTP/1.1 404 No\r\n\r\nwhy", InvalidStatus, "HTTP 404"),
    (
        b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        InvalidHeader,
        "missing Sec-WebSocket-Accept",
    ),
    (b"HTTP/1.1 101 X\r\n\r\n", InvalidHandshake, "missing Connection header"),
    (b"HTTP/1.1 200 " + b"x" * 9000, StatusLineTooLong, "expected no more than 8192 bytes"),
]


@pytest.mark.parametrize(("answer", "error", "why"), ANSWERS, ids=lambda value: repr(value)[:40])
async def test_what_a_server_answers_instead(answer: bytes, error: type[Exception], why: str, stack: Stack) -> None:
    async def handle(visit: Visit) -> None:
        await visit.request()
        visit.writer.write(answer)

    server = await stack.enter_async_context(RawServer(handle))
    with pytest.raises(error, match=why) as caught:
        await connect(server.url)
    if answer.endswith(b"why"):
        assert isinstance(caught.value, InvalidStatus)
        assert caught.value.response.body == b"why"
    if error is InvalidMessage:
        assert isinstance(caught.value.__cause__, (EOFError, ValueError))


async def test_frames_that_come_with_the_response(stack: Stack) -> None:
    async def handle(visit: Visit) -> None:
        await visit.accept(body=b"\x81\x02hi\x88\x02\x03\xe9")
        await visit.frame()

    server = await stack.enter_async_context(RawServer(handle))
    async with connect(server.url) as connection:
        assert await connection.recv() == "hi"
        with pytest.raises(ConnectionClosedOK, match="received 1001"):
            await connection.recv()


async def test_what_was_not_offered_is_not_accepted(stack: Stack) -> None:
    async def handle(visit: Visit) -> None:
        await visit.accept("Sec-WebSocket-Protocol: chat")
        await visit.until_closed()

    server = await stack.enter_async_context(RawServer(handle))
    with pytest.raises(NegotiationError, match="no subprotocols supported"):
        await connect(server.url)


async def test_a_server_that_says_nothing(stack: Stack) -> None:
    async def handle(visit: Visit) -> None:
        await visit.until_closed()

    server = await stack.enter_async_context(RawServer(handle))
    with pytest.raises(TimeoutError, match=r"^timed out during opening handshake$"):
        await connect(server.url, open_timeout=0.01)
    before = server.visits
    connecting = asyncio.ensure_future(connect(server.url, open_timeout=None).connect())
    while server.visits == before:
        await asyncio.sleep(0)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting


async def test_a_server_that_hangs_up(stack: Stack) -> None:
    async def handle(visit: Visit) -> None:
        await visit.accept(body=b"\x81\x02hi")

    server = await stack.enter_async_context(RawServer(handle))
    async with connect(server.url) as connection:
        assert await connection.recv() == "hi"
        with pytest.raises(ConnectionClosedError, match="no close frame received or sent") as caught:
            await connection.recv()
    assert isinstance(caught.value.__cause__, EOFError)


# --- proxies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secure", [False, True])
async def test_an_http_proxy(secure: bool, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await start(stack, ssl=server_context() if secure else None)
    proxy = await stack.enter_async_context(HttpProxy(password="secret"))
    monkeypatch.setenv("wss_proxy" if secure else "ws_proxy", f"http://user:secret@127.0.0.1:{proxy.port}")
    tls: dict[str, Any] = {"ssl": client_context()} if secure else {}
    async with connect(url(server, scheme="wss" if secure else "ws"), user_agent_header="me", **tls) as connection:
        await connection.send("x")
        assert await connection.recv() == "x"
    assert proxy.seen == [("localhost", server.sockets[0].getsockname()[1])]
    assert proxy.users == ["user"]
    assert proxy.headers["user-agent"] == "me"
    async with connect(url(server, scheme="wss" if secure else "ws"), proxy=None, **tls):
        pass
    assert len(proxy.seen) == 1


async def test_a_proxy_behind_tls(stack: Stack) -> None:
    server = await start(stack)
    proxy = await stack.enter_async_context(HttpProxy(ssl=server_context()))
    async with connect(
        url(server),
        proxy=f"https://localhost:{proxy.port}",
        proxy_ssl=client_context(),
        proxy_server_hostname="localhost",
    ) as connection:
        await connection.send("x")
        assert await connection.recv() == "x"
    with pytest.raises(ssl.SSLCertVerificationError):
        await connect(url(server), proxy=f"https://localhost:{proxy.port}")


async def test_a_socks_proxy(stack: Stack) -> None:
    server = await start(stack)
    port = server.sockets[0].getsockname()[1]
    proxy = await stack.enter_async_context(SocksProxy(password="secret"))
    for scheme, seen in (("socks5h", "localhost"), ("socks5", "127.0.0.1")):
        address = f"{scheme}://user:secret@127.0.0.1:{proxy.port}"
        async with connect(f"ws://localhost:{port}", proxy=address) as connection:
            await connection.send("x")
            assert await connection.recv() == "x"
        assert proxy.seen[-1] in {(seen, port), ("::1", port)}
    for address, target in (
        (f"socks5h://user:wrong@127.0.0.1:{proxy.port}", url(server)),
        (f"socks5h://user:secret@127.0.0.1:{proxy.port}", "ws://refused.invalid"),
    ):
        with pytest.raises(ProxyError, match="failed to connect to SOCKS proxy"):
            await connect(target, proxy=address)
    with pytest.raises(OSError, match=r".*"):
        await connect(url(server), proxy="socks5h://127.0.0.1:1")


async def test_a_proxy_that_refuses_or_is_none(stack: Stack) -> None:
    proxy = await stack.enter_async_context(HttpProxy(password="secret"))
    with pytest.raises(InvalidProxyStatus, match="proxy rejected connection: HTTP 407"):
        await connect("ws://localhost:8080", proxy=f"http://127.0.0.1:{proxy.port}")

    async def handle(visit: Visit) -> None:
        await visit.request()
        visit.writer.write(b"nonsense\r\n")

    server = await stack.enter_async_context(RawServer(handle))
    with pytest.raises(InvalidProxyMessage, match="did not receive a valid HTTP response from proxy"):
        await connect("ws://localhost", proxy=f"http://127.0.0.1:{server.port}")
