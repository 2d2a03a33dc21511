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

from fabric._handshake.rules import accept_key
from fabric.client import WebSocketClient
from fabric.config import ReconnectConfig, ServerConfig
from fabric.error import ConnectionClosed, ConnectionFailed
from fabric.server import WebSocketServer
from integration.proxies import HttpProxy
from integration.raw import SWITCHING, UPGRADE, RawServer, Visit
from support.frames import TEXT, encode
from support.ports import reserved_port
from support.raw_peer import request
from support.serving import Recorder, echo, serve, turns, until

Stack = contextlib.AsyncExitStack

HELLO = b"\x16\x03\x01\x02\x00\x01"  # how a handshake begins


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


def reset_now(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def test_a_reset_that_comes_with_the_first_bytes_is_noticed(stack: Stack, server_tls: ssl.SSLContext) -> None:
    """uvloop calls a reader once and then forgets it; the bytes before the reset are all that it reads then."""
    server = await serve(stack, echo, ssl=server_tls, handshake_timeout=1000)
    for said in (b"", HELLO, HELLO * 1000, b"GET / HTTP/1.1\r\n"):
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            await until(lambda: len(server._handshakes) == 1)
            await turns()
            sock.sendall(said)
            reset_now(sock)
        await until(lambda: not server._handshakes)


@pytest.mark.parametrize("paused", [False, True])
async def test_a_reset_that_comes_with_a_message_is_noticed_by_a_server(
    stack: Stack, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, *, paused: bool
) -> None:
    recorder = Recorder()
    server = await serve(stack, recorder, ssl=server_tls)

    def connect() -> ssl.SSLSocket:
        sock = client_tls.wrap_socket(socket.create_connection(("127.0.0.1", server.port)), server_hostname="127.0.0.1")
        sock.sendall(request())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += sock.recv(1)
        return sock

    with await asyncio.to_thread(connect) as sock:
        session = (await recorder.connected())._session_now
        if paused:
            session.pause_for_rate()
        sock.sendall(encode(TEXT, "last words"))
        reset_now(sock)
        if paused:
            await turns()
            session.resume_for_rate()
    await until(lambda: not server.connection_count)
    assert recorder.messages == ["last words"]


async def test_a_reset_that_comes_with_a_message_is_noticed_by_a_client(
    stack: Stack, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> ssl.SSLSocket:
            sock = server_tls.wrap_socket(listening.accept()[0], server_side=True)
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += sock.recv(1)
            key = head.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0]
            fields = (*UPGRADE, f"Sec-WebSocket-Accept: {accept_key(key.decode())}")
            sock.sendall("\r\n".join([SWITCHING, *fields, "", ""]).encode())
            return sock

        accepting = asyncio.create_task(asyncio.to_thread(accept))
        url = f"wss://127.0.0.1:{listening.getsockname()[1]}/"
        client = await WebSocketClient.connect(url, ssl=client_tls, auto_reconnect=False, heartbeat=None)
        with await accepting as sock:
            sock.sendall(encode(TEXT, "last words", mask=False))
            reset_now(sock)
        assert (await client.recv()).as_text() == "last words"  # type: ignore[union-attr]
        with pytest.raises(ConnectionClosed):
            await client.recv()


async def test_a_client_that_begins_no_tls_has_as_long_as_any_other(stack: Stack, server_tls: ssl.SSLContext) -> None:
    server = await serve(stack, echo, ssl=server_tls, handshake_timeout=0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    stack.callback(writer.close)
    async with asyncio.timeout(20):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        await until(lambda: not server._handshakes)


async def test_a_flood_of_clients_that_speak_no_tls(stack: Stack, server_tls: ssl.SSLContext) -> None:
    server = await serve(stack, echo, ssl=server_tls)
    for data in (b"", b"GET / HTTP/1.1\r\n", HELLO, b"\0" * 100) * 5:
        for reset in (0, 1):
            with socket.create_connection(("127.0.0.1", server.port)) as sock:
                sock.sendall(data)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", reset, 0))
    with socket.create_connection(("127.0.0.1", server.port)):
        await until(lambda: len(server._handshakes) == 1)
    await until(lambda: not server._handshakes)
