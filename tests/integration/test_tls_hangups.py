"""Peers that hang up in the TLS handshake. That nothing of it reaches the loop's exception handler, the rig checks."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from fabric._handshake.tls import TlsLoop
from fabric.client import WebSocketClient
from fabric.config import ReconnectConfig, ServerConfig
from fabric.error import ConnectionFailed
from fabric.server import WebSocketServer
from integration.proxies import HttpProxy
from integration.raw import RawServer, Visit
from support.serving import echo, serve, until

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
    with pytest.raises(ConnectionFailed, match=r"TLS handshake with 127\.0\.0\.1 failed: \w+"):
        await WebSocketClient.connect(secure(server), proxy=f"http://127.0.0.1:{proxy.port}")


@HANGUPS
async def test_a_proxy_hangs_up(stack: Stack, hang_up: Callable[[Visit], Awaitable[None]]) -> None:
    proxy = await stack.enter_async_context(RawServer(hang_up))
    with pytest.raises(ConnectionFailed, match=r"TLS handshake with 127\.0\.0\.1 failed: \w+"):
        await WebSocketClient.connect("ws://server.invalid/", proxy=f"https://127.0.0.1:{proxy.port}")


async def test_a_server_that_hangs_up_is_tried_again_in_silence(
    stack: Stack, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    first = await serve(stack, echo, ssl=server_tls)
    again = ReconnectConfig(initial_delay=0.01, max_delay=0.01)
    client = await stack.enter_async_context(
        WebSocketClient.connect(f"wss://127.0.0.1:{first.port}/", ssl=client_tls, reconnect=again)
    )
    port = first.port
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


async def test_other_reports_pass(loop_reports: list[str]) -> None:
    loop = asyncio.get_running_loop()
    quiet: Any = TlsLoop(loop)
    assert isinstance(quiet, type(loop))
    assert quiet.time() <= loop.time()
    for error in (ConnectionResetError("mid-way"), ValueError("a bug"), None):
        quiet.call_exception_handler({"message": "SSL handshake failed", "exception": error})
    quiet.call_exception_handler({"message": "SSL handshake failed", "exception": ConnectionResetError})
    assert len(loop_reports) == 3
    loop_reports.clear()
