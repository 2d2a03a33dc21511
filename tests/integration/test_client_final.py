"""What ends a client and what it repairs: faults of the peer, failures of TLS, and what the application decides."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Self

import pytest
import trustme

from fabric.client import WebSocketClient
from fabric.config import ReconnectConfig, ServerConfig
from fabric.error import (
    AuthenticationFailed,
    ConnectionClosed,
    MessageTooLarge,
    ReconnectTimeout,
    Tls,
    Utf8Error,
)
from fabric.message import Frame, Message
from fabric.server import WebSocketServer
from integration.raw import RawServer, Visit
from support.ports import reserved_port
from support.serving import echo, serve, until
from support.tls import authority, client_context, server_context, with_certificate

Stack = contextlib.AsyncExitStack

QUICK = ReconnectConfig(initial_delay=0.01, max_delay=0.02, jitter=0)


def close_frame(payload: bytes) -> bytes:
    return Frame(opcode=8, payload=payload).encode()


# Faults of the peer.


@pytest.mark.parametrize(
    "data",
    [
        close_frame((1012).to_bytes(2, "big") + "ü".encode()[:1]),
        close_frame((1006).to_bytes(2, "big")),
        close_frame((5000).to_bytes(2, "big")),
        close_frame(b"\x03"),
        b"\x81\x01\xff",
        b"\xff\x00",
        Frame(opcode=0, payload=b"x").encode(),
    ],
    ids=["cut reason", "1006", "5000", "one byte", "not UTF-8", "reserved bits", "continues nothing"],
)
async def test_wrong_bytes_are_repaired(stack: Stack, data: bytes) -> None:
    async def handle(visit: Visit) -> None:
        await visit.accept()
        visit.writer.write(data if server.visits == 1 else Frame(opcode=1, payload=b"again").encode())
        await visit.until_closed()

    server = await stack.enter_async_context(RawServer(handle))
    client = await stack.enter_async_context(
        WebSocketClient.connect(server.url, reconnect=QUICK, close_timeout=0.1, compression=None)
    )
    assert await client.recv() == Message("again")
    assert server.visits == 2


async def failing(stack: Stack, data: bytes, **options: Any) -> tuple[RawServer, ConnectionClosed]:
    """A server that sends `data` on each connection, and how a client of it ends."""

    async def handle(visit: Visit) -> None:
        await visit.accept()
        visit.writer.write(data)
        await visit.until_closed()

    server = await stack.enter_async_context(RawServer(handle))
    client = await WebSocketClient.connect(server.url, reconnect=QUICK, close_timeout=0.1, **options)
    with pytest.raises(ConnectionClosed) as info:
        await client.recv()
    await client.close()
    return server, info.value


async def test_messages_over_our_limit_are_final(stack: Stack) -> None:
    server, closed = await failing(stack, Frame(opcode=2, payload=b"x" * 1000).encode(), max_message_size=100)
    assert (closed.code, closed.by, server.visits) == (1009, "local", 1)
    assert isinstance(closed.__cause__, MessageTooLarge)


async def test_fragments_over_our_limit_are_final(stack: Stack) -> None:
    data = Frame(opcode=2, payload=b"x", fin=False).encode() + Frame(opcode=0, payload=b"x", fin=False).encode() * 9
    server, closed = await failing(stack, data, max_fragments=5)
    assert (closed.code, closed.by, server.visits) == (1008, "local", 1)


async def test_a_callback_that_raises_is_final(stack: Stack) -> None:
    closes: list[Exception] = []

    async def handle(visit: Visit) -> None:
        await visit.accept(body=Frame(opcode=1, payload=b"x").encode())
        await visit.until_closed()

    def on_message(client: WebSocketClient, message: Message) -> None:
        raise LookupError

    server = await stack.enter_async_context(RawServer(handle))
    client = await WebSocketClient.connect(
        server.url,
        reconnect=QUICK,
        close_timeout=0.1,
        on_message=on_message,
        on_disconnect=lambda _, error: closes.append(error),
    )
    await client.wait_closed()
    assert server.visits == 1
    assert [(error.code, error.by) for error in closes if isinstance(error, ConnectionClosed)] == [(1011, "local")]


# What the application decides.


async def test_the_application_ends_what_would_be_repaired(stack: Stack) -> None:
    asked: list[tuple[BaseException, int]] = []

    async def handle(visit: Visit) -> None:
        await visit.accept()
        visit.writer.write(b"\x81\x01\xff")
        await visit.until_closed()

    def decide(error: BaseException, attempt: int) -> bool:
        asked.append((error, attempt))
        return not isinstance(error.__cause__, Utf8Error)

    server = await stack.enter_async_context(RawServer(handle))
    client = await WebSocketClient.connect(server.url, reconnect=QUICK.with_decide(decide), close_timeout=0.1)
    with pytest.raises(ConnectionClosed) as info:
        await client.recv()
    assert info.value.code == 1007
    assert server.visits == 1
    assert [attempt for _, attempt in asked] == [0]
    await client.close()


async def test_the_application_goes_on_where_it_would_end_and_says_when(stack: Stack) -> None:
    asked: list[tuple[type[BaseException], int]] = []

    async def handle(visit: Visit) -> None:
        if server.visits == 2:
            await visit.request()
            visit.send("HTTP/1.1 401 Not yet", "Content-Length: 0")
        else:
            await visit.accept()
        if server.visits == 3:
            await visit.until_closed()

    def decide(error: BaseException, attempt: int) -> float:
        asked.append((type(error), attempt))
        return 0

    slow = ReconnectConfig(initial_delay=20, max_delay=20)
    server = await stack.enter_async_context(RawServer(handle))
    client = await stack.enter_async_context(
        WebSocketClient.connect(server.url, reconnect=slow.with_decide(decide), close_timeout=0.1)
    )
    await until(lambda: server.visits == 3 and client.is_connected)
    assert asked == [(ConnectionClosed, 0), (AuthenticationFailed, 1)]


async def test_a_decision_that_raises_is_logged_and_the_default_applies(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    async def handle(visit: Visit) -> None:
        await visit.accept()
        if server.visits == 2:
            await visit.until_closed()

    def decide(error: BaseException, attempt: int) -> bool:
        raise LookupError("a bug")

    server = await stack.enter_async_context(RawServer(handle))
    client = await stack.enter_async_context(
        WebSocketClient.connect(server.url, reconnect=QUICK.with_decide(decide), close_timeout=0.1)
    )
    await until(lambda: server.visits == 2 and client.is_connected)
    assert "ReconnectConfig.decide raised" in caplog.text


@pytest.mark.parametrize("kind", [asyncio.CancelledError, GeneratorExit])
@pytest.mark.parametrize("how", ["lost", "close frame"])
async def test_a_decision_that_raises_what_is_no_exception(
    stack: Stack, how: str, kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """As the result of a future that was cancelled does. The server keeps TCP open behind its close frame."""

    async def handle(visit: Visit) -> None:
        await visit.accept(body=close_frame((1012).to_bytes(2, "big")) if how == "close frame" else b"")
        if server.visits == 1 and how == "lost":
            visit.writer.transport.abort()
        await visit.until_closed()

    def decide(error: BaseException, attempt: int) -> bool:
        raise kind

    server = await stack.enter_async_context(RawServer(handle))
    client = await stack.enter_async_context(
        WebSocketClient.connect(server.url, reconnect=QUICK.with_decide(decide), close_timeout=0.1)
    )
    await until(lambda: server.visits > 1)
    assert "ReconnectConfig.decide raised" in caplog.text
    assert client.state.name != "CLOSED"


async def test_any_text_of_retry_after_is_survived(stack: Stack) -> None:
    async def handle(visit: Visit) -> None:
        if server.visits == 2:
            await visit.request()
            visit.send("HTTP/1.1 503 Busy", "Retry-After: Mon, 01 Jan 99999999999 00:00:00 GMT", "Content-Length: 0")
        else:
            await visit.accept()
        if server.visits == 3:
            await visit.until_closed()

    server = await stack.enter_async_context(RawServer(handle))
    client = await stack.enter_async_context(WebSocketClient.connect(server.url, reconnect=QUICK, close_timeout=0.1))
    await until(lambda: server.visits == 3 and client.is_connected)


# TLS.


async def bad_gateway(visit: Visit) -> None:
    await visit.reader.read(100)
    visit.send("HTTP/1.1 502 Bad Gateway", "Content-Length: 7", "Connection: close", body=b"sorry..")


async def alert(visit: Visit) -> None:
    await visit.reader.read(100)
    visit.writer.write(b"\x15\x03\x03\x00\x02\x02\x28")  # fatal, handshake_failure


async def bad_certificate(visit: Visit) -> None:
    await visit.reader.read(100)
    visit.writer.write(b"\x15\x03\x03\x00\x02\x02\x2a")  # fatal, bad_certificate: what the peer thinks of ours


async def garbage(visit: Visit) -> None:
    await visit.reader.read(100)
    visit.writer.write(b"\x00\xff" * 100)


hiccups = pytest.mark.parametrize("hiccup", [bad_gateway, alert, bad_certificate, garbage])


@hiccups
async def test_a_failure_of_tls_is_repaired(stack: Stack, hiccup: Callable[[Visit], Awaitable[None]]) -> None:
    used, served = client_context(), server_context()
    port = stack.enter_context(reserved_port())
    first = await serve(stack, echo, port=port, ssl=served)
    client = await stack.enter_async_context(
        WebSocketClient.connect(f"wss://localhost:{first.port}/", ssl=used, reconnect=QUICK)
    )
    await first.shutdown()
    async with RawServer(hiccup, port=port) as server:
        await until(lambda: server.visits > 3)
    async with WebSocketServer(ServerConfig(f"127.0.0.1:{port}", ssl=served), echo):
        await until(lambda: client.is_connected)
        await client.send("x")
        assert await client.recv() == Message("x")
        await client.close()


@hiccups
async def test_a_failure_of_tls_is_told_at_once(stack: Stack, hiccup: Callable[[Visit], Awaitable[None]]) -> None:
    server = await stack.enter_async_context(RawServer(hiccup))
    with pytest.raises(Tls, match="TLS handshake with 127") as info:
        await WebSocketClient.connect(server.url.replace("ws:", "wss:"), ssl=client_context())
    assert info.value.reason
    assert not info.value.certificate_rejected
    assert ("is not TLS" in str(info.value)) == (hiccup in (bad_gateway, garbage))


def expired() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    authority().issue_cert("localhost", not_before=past, not_after=past).configure_cert(context)
    return context


def unknown() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    return context


def another_name() -> ssl.SSLContext:
    return server_context("other.invalid")


versions = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda v: v.name)


@versions
@pytest.mark.parametrize("bad", [expired, unknown, another_name])
async def test_a_certificate_that_is_not_accepted_is_final(
    stack: Stack, bad: Callable[[], ssl.SSLContext], version: ssl.TLSVersion
) -> None:
    used = client_context()
    used.maximum_version = version
    first = await serve(stack, echo, ssl=server_context())
    client = await WebSocketClient.connect(f"wss://localhost:{first.port}/", ssl=used, reconnect=QUICK)
    port = first.port
    await first.shutdown()
    async with WebSocketServer(ServerConfig(f"127.0.0.1:{port}", ssl=bad()), echo):
        with pytest.raises(ReconnectTimeout) as info:
            await client.recv()
    cause = info.value.cause
    assert isinstance(cause, Tls)
    assert cause.certificate_rejected
    assert cause.reason == "CERTIFICATE_VERIFY_FAILED"
    assert "certificate not accepted" in str(cause)
    await client.close()


def strict() -> ssl.SSLContext:
    context = server_context()
    authority().configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


class Alerting:
    """A TLS server, in a thread, that fails its handshakes as OpenSSL does: with an alert.

    The event loops' servers hang up without one.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                with self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False) as secure:
                    with contextlib.suppress(ssl.SSLError):
                        secure.do_handshake()
                    # What is not read would make the system reset the connection, and the alert be lost.
                    with contextlib.suppress(OSError):
                        socket.socket.shutdown(secure, socket.SHUT_WR)
                        while socket.socket.recv(secure, 65536):
                            pass


@versions
async def test_a_certificate_of_the_clients_that_is_missing_is_one_error(version: ssl.TLSVersion) -> None:
    """In TLS 1.2 the server's alert comes in the handshake, in 1.3 after it."""
    used = client_context()
    used.maximum_version = version
    with Alerting(strict()) as server:
        with pytest.raises(Tls, match="ALERT") as info:
            await WebSocketClient.connect(f"wss://localhost:{server.port}/", ssl=used)
    assert "ALERT" in info.value.reason
    assert not info.value.certificate_rejected


def without(context: ssl.SSLContext) -> ssl.SSLContext:
    return context


def with_a_foreign_one(context: ssl.SSLContext) -> ssl.SSLContext:
    trustme.CA().issue_cert("client.invalid").configure_cert(context)
    return context


@versions
@pytest.mark.parametrize("shown", [without, with_a_foreign_one])
async def test_our_server_says_that_it_wants_a_certificate(
    stack: Stack, shown: Callable[[ssl.SSLContext], ssl.SSLContext], version: ssl.TLSVersion
) -> None:
    used = shown(client_context())
    used.maximum_version = version
    server = await serve(stack, echo, ssl=strict())
    for _ in range(5):
        with pytest.raises(Tls, match="ALERT") as info:
            await WebSocketClient.connect(f"wss://localhost:{server.port}/", ssl=used)
        assert "ALERT" in info.value.reason
        assert not info.value.certificate_rejected
    await until(lambda: not server._handshakes)
    with_certificate(used)
    async with WebSocketClient.connect(f"wss://localhost:{server.port}/", ssl=used) as client:
        await client.send("hello")
        assert str((await client.recv()).as_text()) == "hello"


@versions
async def test_a_certificate_of_the_clients_that_is_missing_is_waited_for(
    stack: Stack, version: ssl.TLSVersion
) -> None:
    used = client_context()
    used.maximum_version = version
    first = await serve(stack, echo, ssl=server_context())
    client = await stack.enter_async_context(
        WebSocketClient.connect(f"wss://localhost:{first.port}/", ssl=used, reconnect=QUICK)
    )
    port = first.port
    await first.shutdown()
    async with WebSocketServer(ServerConfig(f"127.0.0.1:{port}", ssl=strict()), echo):
        await until(lambda: client.reconnect_state.attempts > 3)
        with_certificate(used)  # somebody has renewed it
        await until(lambda: client.is_connected)
        await client.close()
