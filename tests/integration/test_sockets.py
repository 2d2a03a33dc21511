"""How sockets are made. No socket waits for an acknowledgement before it sends a small message (TCP_NODELAY).

PICOWS: aiofastnet, as asyncio, takes a socket of protocol 0 for none of TCP and leaves Nagle's algorithm on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import fabric.sync
from fabric._server.handover import Handover, HandoverSocket
from fabric._sync.keeper import keeper
from fabric.client import WebSocketClient
from fabric.config import ClientConfig, PoolConfig, ServerConfig
from fabric.error import Io
from fabric.message import Message
from fabric.pool import ConnectionPool
from fabric.server import WebSocketServer
from fabric.websockets.asyncio import client as websockets_client
from fabric.websockets.asyncio import server as websockets_server
from fabric.websockets.sync import client as websockets_sync_client
from fabric.websockets.sync import server as websockets_sync_server
from integration.proxies import HttpProxy, SocksProxy
from support import asgi, dropin, dropin_sync
from support.serving import echo, until
from support.threads import DEADLINE
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
        check_ends()


def check_ends() -> None:
    """Nothing that is connected in this process waits for an acknowledgement."""
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


# The other ways to serve and to connect. The sockets that are given have protocol 0.


def scheme(secure: bool) -> str:
    return "wss" if secure else "ws"


@pytest.fixture
def given() -> Iterator[socket.socket]:
    """A listening socket, to be given to a server."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@secure
async def test_a_descriptor_that_is_inherited(given: socket.socket, stack: Stack, secure: bool) -> None:
    await check(stack, f"fd:{os.dup(given.fileno())}", "127.0.0.1", tls=secure)


@secure
async def test_what_another_process_has_accepted(given: socket.socket, stack: Stack, secure: bool) -> None:
    handover = Handover()
    other_end = HandoverSocket(handover.take_other_end().detach(), given.getsockname(), given.family)
    server = WebSocketServer(ServerConfig(sock=other_end, ssl=server_context() if secure else None), echo)
    await stack.enter_async_context(server)
    stack.callback(handover.close)
    url = f"{scheme(secure)}://127.0.0.1:{given.getsockname()[1]}/"
    options: dict[str, Any] = {"ssl": client_context()} if secure else {}
    connecting = asyncio.ensure_future(WebSocketClient.connect(url, **options))
    given.setblocking(False)
    handover.hand((await asyncio.get_running_loop().sock_accept(given))[0])
    async with await connecting as client:
        await client.ping()
        handover.read()  # it was received, so this end lets go of it
        check_ends()


@secure
async def test_the_connections_of_a_pool(stack: Stack, secure: bool) -> None:
    server = WebSocketServer(ServerConfig("127.0.0.1:0", ssl=server_context() if secure else None), echo)
    await stack.enter_async_context(server)
    pool = ConnectionPool(PoolConfig(enable_health_check=False))
    stack.push_async_callback(pool.close_all)
    url = f"{scheme(secure)}://127.0.0.1:{server.port}/"
    async with pool.get(ClientConfig(url, ssl=client_context() if secure else None)) as client:
        await client.ping()
        check_ends()


async def ways(stack: Stack, port: int, tls: bool) -> AsyncIterator[dict[str, Any]]:
    """Arguments of the `connect` of `fabric.sync` and of the drop-in, for each way to a server on `port`."""
    options: dict[str, Any] = {"ssl": client_context()} if tls else {}
    yield {**options, "proxy": None}
    http = await stack.enter_async_context(HttpProxy())
    yield {**options, "proxy": f"http://localhost:{http.port}"}
    socks = await stack.enter_async_context(SocksProxy())
    yield {**options, "proxy": f"socks5h://localhost:{socks.port}"}
    sock = socket.socket()
    await asyncio.to_thread(sock.connect, ("127.0.0.1", port))
    yield {**options, "sock": sock}


@secure
async def test_fabric_sync(stack: Stack, secure: bool) -> None:
    server = WebSocketServer(ServerConfig("127.0.0.1:0", ssl=server_context() if secure else None), echo)
    await stack.enter_async_context(server)

    def talk(options: dict[str, Any]) -> None:
        url = f"{scheme(secure)}://localhost:{server.port}/"
        with fabric.sync.connect(url, **options) as client:
            client.ping()
            check_ends()

    async for options in ways(stack, server.port, secure):
        await asyncio.to_thread(talk, options)


@secure
@pytest.mark.parametrize("is_given", [False, True], ids=["address", "sock"])
async def test_the_drop_in(given: socket.socket, stack: Stack, is_given: bool, secure: bool) -> None:
    options: dict[str, Any] = {"sock": given} if is_given else {"host": "127.0.0.1", "port": 0}
    tls = server_context() if secure else None
    server = await stack.enter_async_context(websockets_server.serve(dropin.echo, ssl=tls, **options))
    url = dropin.url(server, scheme=scheme(secure))
    async for options in ways(stack, server.sockets[0].getsockname()[1], secure):
        async with websockets_client.connect(url, **options) as client:
            await (await client.ping())
            check_ends()


def kept_no_more() -> bool:
    """Is the thread that looks after blocking clients gone, with what it had open?"""
    return not keeper._drivers and all(thread.name != "fabric.sync" for thread in threading.enumerate())


@secure
@pytest.mark.parametrize("is_given", [False, True], ids=["address", "sock"])
async def test_the_drop_in_for_threads(given: socket.socket, stack: Stack, is_given: bool, secure: bool) -> None:
    stack.push_async_callback(until, kept_no_more)
    options: dict[str, Any] = {"sock": given.dup()} if is_given else {"host": "127.0.0.1", "port": 0}
    tls = server_context() if secure else None
    server = stack.enter_context(
        dropin_sync.running(websockets_sync_server.serve(dropin_sync.echo, ssl=tls, **options))
    )
    url = dropin_sync.url(server, scheme=scheme(secure))

    def talk(options: dict[str, Any]) -> None:
        with websockets_sync_client.connect(url, **options) as client:
            client.ping().wait(DEADLINE)
            check_ends()

    async for options in ways(stack, server.socket.getsockname()[1], secure):
        await asyncio.to_thread(talk, options)


@secure
@pytest.mark.parametrize("is_given", [False, True], ids=["address", "sock"])
async def test_an_asgi_application(given: socket.socket, stack: Stack, is_given: bool, secure: bool) -> None:
    """uvicorn gives its workers the socket that it has bound; so does gunicorn."""
    tls = server_context() if secure else None
    served = await asgi.serve(stack, asgi.echo, tls=tls, sock=given if is_given else None)
    url = f"{scheme(secure)}://localhost:{served.port}/"
    async with WebSocketClient.connect(url, ssl=client_context() if secure else None) as client:
        await client.ping()
        check_ends()


# Sockets that are there already.


@secure
@pytest.mark.parametrize("count", [1, 2])
async def test_sockets_that_are_given_to_a_server(stack: Stack, secure: bool, count: int) -> None:
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in socks]
    config = ServerConfig(sock=socks[0] if count == 1 else socks, ssl=server_context() if secure else None)
    server = WebSocketServer(config, echo)
    assert "the sockets given" in repr(server)
    async with server:
        assert [sock.getsockname()[1] for sock in server.sockets] == ports
        assert server.port == ports[0]
        for port in ports:
            url = f"{'wss' if secure else 'ws'}://localhost:{port}/"
            async with WebSocketClient.connect(url, ssl=client_context() if secure else None) as client:
                await client.send("x")
                assert await client.recv() == Message("x")
                check_ends()
    for sock in socks:
        sock.close()
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


@secure
async def test_a_unix_socket_that_is_given_keeps_its_path(stack: Stack, tmp_path: Path, secure: bool) -> None:
    path = tmp_path / "s"
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    config = ServerConfig(sock=sock, max_connections_per_ip=1, ssl=server_context() if secure else None)
    async with WebSocketServer(config, echo) as server:
        assert server.port == 0
        options: dict[str, Any] = {"ssl": client_context()} if secure else {}
        url = f"{'wss' if secure else 'ws'}://localhost/"
        async with WebSocketClient.connect(url, unix_path=str(path), **options) as client:
            await client.send("x")
            assert await client.recv() == Message("x")
    assert path.exists()


@secure
async def test_a_path_of_its_own_is_taken_once_and_removed(stack: Stack, tmp_path: Path, secure: bool) -> None:
    path = tmp_path / "s"
    config = ServerConfig(f"unix:{path}", unix_mode=0o600, ssl=server_context() if secure else None)
    async with WebSocketServer(config, echo):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(Io, match="in use"):
            await WebSocketServer(config, echo).start()
        options: dict[str, Any] = {"ssl": client_context()} if secure else {}
        url = f"{'wss' if secure else 'ws'}://localhost/"
        async with WebSocketClient.connect(url, unix_path=str(path), **options) as client:
            await client.ping()
    assert not path.exists()


async def test_a_path_that_is_another_servers_by_now_is_left_alone(stack: Stack, tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = WebSocketServer(ServerConfig(f"unix:{path}"), echo)
    async with first:
        path.unlink()
        second = await stack.enter_async_context(WebSocketServer(ServerConfig(f"unix:{path}"), echo))
    assert path.exists()
    async with WebSocketClient.connect("ws://localhost/", unix_path=str(path)) as client:
        await client.ping()
        assert second.connection_count == 1


async def test_all_of_ipv6_is_not_ipv4(stack: Stack) -> None:
    server = await stack.enter_async_context(WebSocketServer(ServerConfig("[::]:0"), echo))
    (sock,) = server.sockets
    assert sock.family == socket.AF_INET6
    assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


# A program that finds its socket where systemd puts it, with what systemd says of it.
SERVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"}
import fabric
async def handler(client):
    async for message in client:
        await client.send(message)
fabric.run(fabric.WebSocketServer.bind(sys.argv[2], handler))
"""


@pytest.mark.deadline(90)
@pytest.mark.parametrize("bind", ["systemd:", "systemd:web", "fd:3"])
async def test_a_program_that_is_started_with_its_socket(stack: Stack, bind: str) -> None:
    """As systemd starts it, which connections may come before; and after the program is started anew."""
    sock = socket.create_server(("127.0.0.1", 0))
    stack.callback(sock.close)
    port = sock.getsockname()[1]
    early = asyncio.create_task(_talk(port))  # nobody accepts yet
    for _ in range(2):
        command = [sys.executable, "-c", SERVER, str(sock.fileno()), bind]
        process = await asyncio.create_subprocess_exec(
            *command, pass_fds=[sock.fileno()], stderr=asyncio.subprocess.PIPE
        )
        try:
            await early
            await _talk(port)
            process.terminate()
            assert await process.communicate() == (None, b"")
            assert process.returncode == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


async def _talk(port: int) -> None:
    url = f"ws://127.0.0.1:{port}/"
    async with WebSocketClient.connect(url, connection_timeout=80, auto_reconnect=False) as client:
        await client.send("x")
        assert await client.recv() == Message("x")


async def test_sockets_that_were_not_passed_are_told_as_such() -> None:
    with pytest.raises(Io, match="systemd has passed no sockets to this process"):
        await WebSocketServer(ServerConfig("systemd:"), echo).start()
