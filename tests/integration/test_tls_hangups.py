"""Peers that hang up in the TLS handshake. That nothing of it reaches the loop's exception handler, the rig checks."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trustme

from fabric.client import WebSocketClient
from fabric.config import ReconnectConfig, ServerConfig
from fabric.error import ConnectionFailed
from fabric.server import WebSocketServer
from integration.proxies import HttpProxy
from integration.raw import RawServer, Visit
from support.ports import reserved_port
from support.serving import echo, serve, until

Stack = contextlib.AsyncExitStack

HELLO = b"\x16\x03\x01\x02\x00\x01"  # how a handshake begins
NO_HELLO = b"\x16\x03\x01\x00\x04junk"
ALERT = 21  # RFC 8446 §5.1


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def leave(visit: Visit) -> None:
    await visit.reader.read(100)


async def reset(visit: Visit) -> None:
    await visit.reader.read(100)
    sock = visit.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    visit.writer.transport.abort()


HANGUPS = pytest.mark.parametrize("hang_up", [leave, reset])


def secure(server: RawServer) -> str:
    return server.url.replace("ws:", "wss:")


@HANGUPS
async def test_a_server_hangs_up(stack: Stack, hang_up: Callable[[Visit], Awaitable[None]]) -> None:
    server = await stack.enter_async_context(RawServer(hang_up))
    with pytest.raises(ConnectionFailed, match=r"TLS handshake with 127\.0\.0\.1 failed: \w+"):
        await WebSocketClient.connect(secure(server))


@HANGUPS
async def test_a_server_behind_a_proxy_hangs_up(stack: Stack, hang_up: Callable[[Visit], Awaitable[None]]) -> None:
    server = await stack.enter_async_context(RawServer(hang_up))
    proxy = await stack.enter_async_context(HttpProxy())
    with pytest.raises(ConnectionFailed, match=r"TLS handshake with 127\.0\.0\.1 through the proxy .* failed: \w+"):
        await WebSocketClient.connect(secure(server), proxy=f"http://127.0.0.1:{proxy.port}")


@HANGUPS
async def test_a_proxy_hangs_up(stack: Stack, hang_up: Callable[[Visit], Awaitable[None]]) -> None:
    proxy = await stack.enter_async_context(RawServer(hang_up))
    with pytest.raises(ConnectionFailed, match=r"TLS handshake with the proxy 127\.0\.0\.1 failed: \w+"):
        await WebSocketClient.connect("ws://server.invalid/", proxy=f"https://127.0.0.1:{proxy.port}")


async def test_a_server_that_hangs_up_is_tried_again_in_silence(
    stack: Stack, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    port = stack.enter_context(reserved_port())
    first = await serve(stack, echo, port=port, ssl=server_tls)
    again = ReconnectConfig(initial_delay=0.01, max_delay=0.01)
    client = await stack.enter_async_context(
        WebSocketClient.connect(f"wss://127.0.0.1:{first.port}/", ssl=client_tls, reconnect=again)
    )
    await first.shutdown()
    async with RawServer(leave, port=port) as server:
        await until(lambda: server.visits > 3)
    async with WebSocketServer(ServerConfig(f"127.0.0.1:{port}", ssl=server_tls), echo):
        await until(lambda: client.is_connected)
        await client.close()


@pytest.mark.parametrize("said", [b"", HELLO], ids=["nothing", "half a hello"])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_a_client_hangs_up(
    stack: Stack, server_tls: ssl.SSLContext, tmp_path: Path, said: bytes, kind: str
) -> None:
    path = str(tmp_path / "s")
    bind = f"unix:{path}" if kind == "unix" else "127.0.0.1:0"
    server = await stack.enter_async_context(WebSocketServer(ServerConfig(bind, ssl=server_tls), echo))
    for _ in range(3):
        if kind == "unix":
            reader, writer = await asyncio.open_unix_connection(path)
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(said)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("option", ["max_connections_per_ip", "max_connections"])
@pytest.mark.parametrize("said", [b"", HELLO], ids=["nothing", "half a hello"])
async def test_idle_connections_before_the_tls_handshake_are_limited(
    stack: Stack, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, option: str, said: bytes
) -> None:
    server = await serve(stack, echo, ssl=server_tls, handshake_timeout=60, **{option: 5})
    idle = []
    for _ in range(5):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        stack.callback(writer.close)
        writer.write(said)
        idle.append(writer)
    await until(lambda: len(server._handshakes) == 5)
    for _ in range(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
    for writer in idle[:2]:
        writer.close()
    await until(lambda: len(server._handshakes) == 3)
    async with WebSocketClient.connect(f"wss://127.0.0.1:{server.port}/", ssl=client_tls) as client:
        await client.send("hello")
        assert str((await client.recv()).as_text()) == "hello"
        assert len(server._handshakes) == 3


async def test_a_shutdown_does_not_wait_for_clients_that_begin_no_tls(stack: Stack, server_tls: ssl.SSLContext) -> None:
    server = await serve(stack, echo, ssl=server_tls, handshake_timeout=60)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    stack.callback(writer.close)
    await until(lambda: server._handshakes)
    async with asyncio.timeout(20):
        await server.shutdown()
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""


async def test_a_client_that_begins_no_tls_has_as_long_as_any_other(stack: Stack, server_tls: ssl.SSLContext) -> None:
    server = await serve(stack, echo, ssl=server_tls, handshake_timeout=0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    stack.callback(writer.close)
    async with asyncio.timeout(20):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        await until(lambda: not server._handshakes)


@pytest.mark.parametrize("ends", ["by time", "by shutdown"])
async def test_a_client_that_was_told_and_does_not_hang_up(
    stack: Stack, server_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    monkeypatch.setattr("fabric._handshake.acceptor.LINGER", 0.1 if ends == "by time" else 60)
    server = await serve(stack, echo, ssl=server_tls, handshake_timeout=600)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    stack.callback(writer.close)
    writer.write(NO_HELLO)
    assert (await reader.read())[0] == ALERT
    writer.write(b"it goes on" * 1000)
    if ends == "by shutdown":
        assert server._handshakes
        await server.shutdown()
    await until(lambda: not server._handshakes)


async def test_a_flood_of_clients_that_speak_no_tls(stack: Stack, server_tls: ssl.SSLContext) -> None:
    server = await serve(stack, echo, ssl=server_tls)
    for data in (b"", b"GET / HTTP/1.1\r\n", HELLO, NO_HELLO, b"\0" * 100) * 5:
        for reset in (0, 1):
            with socket.create_connection(("127.0.0.1", server.port)) as sock:
                sock.sendall(data)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", reset, 0))
    with socket.create_connection(("127.0.0.1", server.port)):
        await until(lambda: len(server._handshakes) == 1)
    await until(lambda: not server._handshakes)
