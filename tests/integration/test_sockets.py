"""How sockets are made. No socket waits for an acknowledgement before it sends a small message (TCP_NODELAY).

PICOWS: aiofastnet, as asyncio, takes a socket of protocol 0 for none of TCP and leaves Nagle's algorithm on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from fabric.client import WebSocketClient
from fabric.config import ServerConfig
from fabric.error import Io
from fabric.message import Message
from fabric.server import WebSocketServer
from integration.proxies import HttpProxy, SocksProxy
from support.serving import echo
from support.tls import client_context, server_context

Stack = contextlib.AsyncExitStack

secure = pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])


def connected() -> list[tuple[str, bool]]:
    """Every TCP connection's end in this process: its addresses, and whether TCP_NODELAY is on."""
    found = []
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # the one that listed the folder is closed by now; a listener has no peer
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as copy:
                if copy.family in (socket.AF_INET, socket.AF_INET6):
                    ends = f"{copy.getsockname()} to {copy.getpeername()}"
                    found.append((ends, bool(copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))))
    return found


async def check(stack: Stack, bind: str, host: str, *, tls: bool, **options: Any) -> None:
    """Serve, connect, and look at both ends."""
    client_options = {"ssl": client_context()} if tls else {}
    if "sock" in options or "proxy" in options:
        client_options |= options
        options = {}
    server = WebSocketServer(ServerConfig(bind, ssl=server_context() if tls else None, **options), echo)
    await stack.enter_async_context(server)
    if isinstance(sock := client_options.get("sock"), socket.socket):
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", server.port))
    url = f"{'wss' if tls else 'ws'}://{host}:{server.port}/"
    async with WebSocketClient.connect(url, **client_options) as client:
        await client.send("x")
        assert await client.recv() == Message("x")
        ends = connected()
    assert len(ends) >= 2
    assert [end for end, is_on in ends if not is_on] == []


@secure
@pytest.mark.parametrize(
    ("bind", "host"),
    [
        ("127.0.0.1:0", "127.0.0.1"),
        ("localhost:0", "localhost"),
        ("[::1]:0", "[::1]"),
        ("0.0.0.0:0", "127.0.0.1"),
        ("[::]:0", "[::1]"),
        (":0", "localhost"),
    ],
)
@pytest.mark.parametrize("reuse_port", [False, True])
async def test_each_way_to_bind(stack: Stack, bind: str, host: str, reuse_port: bool, secure: bool) -> None:
    await check(stack, bind, host, tls=secure, reuse_port=reuse_port)


@secure
async def test_all_addresses_get_one_port(stack: Stack, secure: bool) -> None:
    server = WebSocketServer(ServerConfig(":0", ssl=server_context() if secure else None), echo)
    await stack.enter_async_context(server)
    assert {sock.getsockname()[1] for sock in server.sockets} == {server.port}
    assert {sock.family for sock in server.sockets} == {socket.AF_INET, socket.AF_INET6}


@secure
async def test_a_socket_that_is_given_to_a_client(stack: Stack, secure: bool) -> None:
    sock = socket.socket()  # protocol 0
    sock.setblocking(False)
    await check(stack, "127.0.0.1:0", "localhost", tls=secure, sock=sock)


@secure
@pytest.mark.parametrize("kind", [HttpProxy, SocksProxy])
async def test_through_a_proxy(stack: Stack, kind: Any, secure: bool) -> None:
    proxy = await stack.enter_async_context(kind())
    scheme = "http" if kind is HttpProxy else "socks5h"
    await check(stack, "127.0.0.1:0", "localhost", tls=secure, proxy=f"{scheme}://localhost:{proxy.port}")


# A path.


async def serves(path: str, **options: Any) -> bool:
    """Is it an echo server that listens on `path`?"""
    url = "wss://localhost/" if "ssl" in options else "ws://localhost/"
    async with WebSocketClient.connect(url, unix_path=path, **options) as client:
        await client.send("x")
        return await client.recv() == Message("x")


@secure
async def test_a_path_that_another_server_listens_on_is_refused(stack: Stack, tmp_path: Path, secure: bool) -> None:
    path = str(tmp_path / "socket")
    tls: dict[str, Any] = {"ssl": server_context()} if secure else {}
    trust: dict[str, Any] = {"ssl": client_context()} if secure else {}
    first = WebSocketServer.bind(f"unix:{path}", echo, **tls)
    await stack.enter_async_context(first)
    for _ in range(2):
        with pytest.raises(Io, match="another server listens there"):
            await WebSocketServer.bind(f"unix:{path}", echo, **tls).start()
    assert await serves(path, **trust)
    await first.shutdown()
    assert os.listdir(tmp_path) == []
    async with WebSocketServer.bind(f"unix:{path}", echo, **tls):
        assert await serves(path, **trust)


async def test_what_a_dead_server_has_left_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    async with WebSocketServer.bind(f"unix:{path}", echo):
        assert await serves(path)


async def test_a_path_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("of somebody")
    with pytest.raises(Io, match="no socket"):
        await WebSocketServer.bind(f"unix:{path}", echo).start()
    assert path.read_text() == "of somebody"


async def test_a_path_that_is_another_s_by_now_is_left(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    first = WebSocketServer.bind(f"unix:{path}", echo)
    await first.start()
    os.rename(path, path + ".old")
    async with WebSocketServer.bind(f"unix:{path}", echo):
        await first.shutdown()
        assert await serves(path)


@secure
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
async def test_the_permissions_of_a_path(tmp_path: Path, mode: int, secure: bool) -> None:
    path = tmp_path / "socket"
    tls: dict[str, Any] = {"ssl": server_context()} if secure else {}
    async with WebSocketServer.bind(f"unix:{path}", echo, unix_mode=mode, **tls):
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert await serves(str(path), **({"ssl": client_context()} if secure else {}))


async def test_an_abstract_name_has_no_permissions() -> None:
    async with WebSocketServer.bind("unix:\0fabric-test-mode", echo, unix_mode=0o600):
        assert await serves("\0fabric-test-mode")
        with pytest.raises(Io, match="in use"):
            await WebSocketServer.bind("unix:\0fabric-test-mode", echo).start()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
@secure
async def test_a_port_that_another_server_listens_on_is_refused(host: str, secure: bool) -> None:
    tls: dict[str, Any] = {"ssl": server_context()} if secure else {}
    async with WebSocketServer.bind(f"{host}:0", echo, **tls) as first:
        with pytest.raises(Io, match="in use"):
            await WebSocketServer.bind(f"{host}:{first.port}", echo, **tls).start()
