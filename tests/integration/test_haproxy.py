"""The HAProxy configuration of the examples, run as it stands there, with other ports."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fabric import ClientConfig, ConnectedClient, HandshakeFailed, ServerConfig, WebSocketClient, WebSocketServer
from support.pages import ROOT
from support.serving import until
from support.tls import client_context, server_context

Stack = contextlib.AsyncExitStack

FILE = ROOT / "examples/deploy/haproxy.cfg"


def configuration() -> str:
    """What the file says, which the page about it shows."""
    return FILE.read_text()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


class HaProxy:
    """HAProxy with that configuration, to be run once the servers behind it are there: it looks after them.

    Args:
        folder: for its file.
        header: the option in the file, or the one for version 1.

    Attributes:
        port: where to connect to.
        upstream: the ports that it passes connections on to.
    """

    def __init__(self, folder: Path, header: str) -> None:
        self.port = free_port()
        self.upstream = free_port(), free_port()
        text = configuration()
        for written, ours, times in (
            ("bind :443", f"bind 127.0.0.1:{self.port}", 1),
            ("127.0.0.1:8080", f"127.0.0.1:{self.upstream[0]}", 1),
            ("127.0.0.1:8081", f"127.0.0.1:{self.upstream[1]}", 1),
            ("send-proxy-v2", header, 2),
        ):
            assert text.count(written) == times, f"the file does not say {written!r}"
            text = text.replace(written, ours)
        self._config = folder / "haproxy.cfg"
        self._text = text

    @contextlib.contextmanager
    def running(self, *, servers: int = 1) -> Iterator[None]:
        """Run it, in front of so many."""
        self._config.write_text(self._text if servers == 2 else re.sub(r" *server two .*", "", self._text))
        process = subprocess.Popen(["haproxy", "-db", "-f", str(self._config)], stderr=subprocess.PIPE)
        try:
            self._wait(process)
            yield
        finally:
            process.kill()
            process.communicate(timeout=30)

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.01)
            else:
                return
        process.kill()
        pytest.fail(f"HAProxy does not run: {process.communicate()[1].decode()}")


@pytest.fixture(params=["send-proxy", "send-proxy-v2"])
def haproxy(require: Callable[[object, str], None], tmp_path: Path, request: pytest.FixtureRequest) -> HaProxy:
    require(shutil.which("haproxy"), "HAProxy is not installed")
    return HaProxy(tmp_path, request.param)


async def tell(client: ConnectedClient) -> None:
    await client.send(client.remote_addr[0])
    async for message in client:
        await client.send(message)


async def serve(stack: Stack, port: int, **options: Any) -> WebSocketServer:
    config = ServerConfig(f"127.0.0.1:{port}", proxy_protocol=["127.0.0.1"], **options)
    return await stack.enter_async_context(WebSocketServer(config, tell))


async def connect(haproxy: HaProxy, source: str, *, secure: bool = False) -> WebSocketClient:
    """From an address of this machine."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.bind((source, 0))
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", haproxy.port))
    url = f"{'wss' if secure else 'ws'}://localhost:{haproxy.port}/"
    return await WebSocketClient.connect(url, sock=sock, ssl=client_context() if secure else None)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_the_server_knows_the_client(haproxy: HaProxy, stack: Stack, secure: bool) -> None:
    await serve(stack, haproxy.upstream[0], ssl=server_context() if secure else None)
    stack.enter_context(haproxy.running())
    for source in ("127.0.0.9", "127.0.0.10"):
        async with await connect(haproxy, source, secure=secure) as client:
            assert (message := await client.recv()) is not None
            assert message.as_text() == source
            await client.send(bytes(1_000_000))
            assert (message := await client.recv()) is not None
            assert len(message) == 1_000_000


async def test_the_limit_for_each_address_is_the_clients(haproxy: HaProxy, stack: Stack) -> None:
    server = await serve(stack, haproxy.upstream[0], max_connections_per_ip=1)
    stack.enter_context(haproxy.running())
    first = await stack.enter_async_context(await connect(haproxy, "127.0.0.9"))
    await first.recv()
    await stack.enter_async_context(await connect(haproxy, "127.0.0.10"))
    with pytest.raises(HandshakeFailed) as refused:
        await connect(haproxy, "127.0.0.9")
    assert refused.value.status == 429
    assert server.connection_count == 2


async def test_connections_are_spread_and_checks_are_quiet(
    haproxy: HaProxy, stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    servers = [await serve(stack, port) for port in haproxy.upstream]
    stack.enter_context(haproxy.running(servers=2))
    for _ in range(6):
        client = await stack.enter_async_context(await connect(haproxy, "127.0.0.9"))
        await client.ping()
    await until(lambda: [server.connection_count for server in servers] == [3, 3])
    assert not caplog.records


def test_the_timeout_leaves_time_for_a_heartbeat() -> None:
    seconds = [int(number) for number in re.findall(r"timeout (?:client|server) +(\d+)s", configuration())]
    config = ServerConfig()
    assert config.ping_interval is not None
    assert min(seconds) > config.ping_interval + config.ping_timeout
    assert ClientConfig("ws://localhost").heartbeat.ping_interval == config.ping_interval
