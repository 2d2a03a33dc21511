"""The nginx configuration of the examples, run as it stands there, with other ports and paths."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fabric import ConnectedClient, HandshakeFailed, ServerConfig, WebSocketClient, WebSocketServer
from support.pages import ROOT
from support.ports import reserved_port

FILE = ROOT / "examples/deploy/nginx.conf"

SURROUNDINGS = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    {server}
}}
"""


def configuration() -> str:
    """What the file says, which the page about it shows."""
    return FILE.read_text()


class Nginx:
    """A running nginx with that configuration in front of two ports.

    Attributes:
        url: where to connect to.
        upstream: the ports it passes connections on to.
        tls: the context that trusts its certificate.
    """

    def __init__(self, folder: Path) -> None:
        self._ports = contextlib.ExitStack()  # nobody else gets them as long as this object lives
        *upstream, port = (self._ports.enter_context(reserved_port()) for _ in range(3))
        self.upstream = upstream
        self.url = f"wss://localhost:{port}/ws"
        certificate, key = folder / "cert.pem", folder / "key.pem"
        subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        files = ["-out", str(certificate), "-keyout", str(key)]
        command = ["openssl", "req", "-x509", "-days", "1", *curve, *subject, *files]
        subprocess.run(command, check=True, capture_output=True, timeout=30)
        self.tls = ssl.create_default_context(cafile=str(certificate))
        text = configuration()
        for written, ours in {
            "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
            "/etc/ssl/example.com.pem": str(certificate),
            "/etc/ssl/example.com.key": str(key),
            "127.0.0.1:8080": f"127.0.0.1:{self.upstream[0]}",
            "127.0.0.1:8081": f"127.0.0.1:{self.upstream[1]}",
        }.items():
            assert text.count(written) == 1, f"the file does not say {written!r}"
            text = text.replace(written, ours)
        self._config = folder / "nginx.conf"
        self._config.write_text(SURROUNDINGS.format(folder=folder, server=text))
        self._folder = folder
        self._port = port

    @contextlib.contextmanager
    def running(self) -> Iterator[Nginx]:
        command = ["nginx", "-c", str(self._config), "-p", str(self._folder)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            self._wait(process)
            yield self
        finally:
            process.terminate()
            process.wait(timeout=10)

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
            except OSError:
                time.sleep(0.01)
            else:
                return
        log = self._folder / "error.log"
        pytest.fail(f"nginx does not run: {log.read_text() if log.exists() else 'no log'}")


@pytest.fixture
def nginx(require: Callable[[object, str], None], tmp_path: Path) -> Iterator[Nginx]:
    require(shutil.which("nginx") and shutil.which("openssl"), "nginx or openssl is not installed")
    # Not shared: nginx leaves out for a while what did not answer in an earlier test.
    with Nginx(tmp_path).running() as running:
        yield running


async def echo(client: ConnectedClient) -> None:
    async for message in client:
        await client.send(message)


def connect(nginx: Nginx, **options: object) -> WebSocketClient:
    return WebSocketClient.connect(nginx.url, ssl=nginx.tls, auto_reconnect=False, **options)  # type: ignore[return-value]


async def serve(stack: contextlib.AsyncExitStack, port: int, handler: object = echo) -> WebSocketServer:
    server = WebSocketServer(ServerConfig(f"127.0.0.1:{port}"), handler)  # type: ignore[arg-type]
    return await stack.enter_async_context(server)


async def test_messages_pass_compressed_and_large(nginx: Nginx, stack: contextlib.AsyncExitStack) -> None:
    await serve(stack, nginx.upstream[0])
    async with connect(nginx) as client:
        assert any(extension.startswith("permessage-deflate") for extension in client.extensions)
        for message in ("", "text", "x" * 200_000, bytes(5_000_000)):
            await client.send(message)
            answer = await client.recv()
            assert answer.payload == (message.encode() if isinstance(message, str) else message)
        assert await client.ping() > 0


async def test_the_server_learns_who_it_is(nginx: Nginx, stack: contextlib.AsyncExitStack) -> None:
    async def report(client: ConnectedClient) -> None:
        headers = client.request.headers
        await client.send_json({name: headers.get(name) for name in ("X-Forwarded-For", "X-Forwarded-Proto", "Host")})

    await serve(stack, nginx.upstream[0], report)
    async with connect(nginx, headers={"X-Forwarded-For": "203.0.113.9"}) as client:
        assert (await client.recv()).parse_json() == {
            "X-Forwarded-For": "203.0.113.9, 127.0.0.1",
            "X-Forwarded-Proto": "https",
            "Host": "localhost",
        }


async def test_close_codes_pass(nginx: Nginx, stack: contextlib.AsyncExitStack) -> None:
    async def leave(client: ConnectedClient) -> None:
        await client.close(4001, "enough")

    await serve(stack, nginx.upstream[0], leave)
    async with connect(nginx) as client:
        await client.wait_closed()
        assert (client.close_code, client.close_reason) == (4001, "enough")


async def test_connections_are_spread(nginx: Nginx, stack: contextlib.AsyncExitStack) -> None:
    servers = [await serve(stack, port) for port in nginx.upstream]
    for _ in range(6):
        client = await stack.enter_async_context(connect(nginx))
        await client.ping()
    assert [server.connection_count for server in servers] == [3, 3]


async def test_a_process_that_is_away_is_passed_over(nginx: Nginx, stack: contextlib.AsyncExitStack) -> None:
    server = await serve(stack, nginx.upstream[1])
    for _ in range(4):
        async with connect(nginx) as client:
            await client.ping()
    assert server.metrics.total_connections == 4


async def test_a_full_process_is_passed_over(nginx: Nginx, stack: contextlib.AsyncExitStack) -> None:
    full = WebSocketServer(ServerConfig(f"127.0.0.1:{nginx.upstream[0]}", max_connections=1), echo)
    await stack.enter_async_context(full)
    other = await serve(stack, nginx.upstream[1])
    for _ in range(5):
        client = await stack.enter_async_context(connect(nginx))
        await client.ping()
    assert (full.connection_count, other.connection_count) == (1, 4)


async def test_without_servers_the_client_is_told(nginx: Nginx) -> None:
    with pytest.raises(HandshakeFailed) as failure:
        await connect(nginx)
    assert failure.value.status == 502


def test_the_timeout_leaves_time_for_a_heartbeat() -> None:
    seconds = int(re.findall(r"proxy_read_timeout (\d+)s", configuration())[0])
    config = ServerConfig()
    assert config.ping_interval is not None
    assert seconds > config.ping_interval + config.ping_timeout
