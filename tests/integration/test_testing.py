"""`fabric.testing`: a pair in memory, a server that follows a script, and the fixtures under another plugin."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fabric
from fabric import (
    ClientConfig,
    ConnectedClient,
    ConnectionClosed,
    ConnectionFailed,
    HandshakeFailed,
    HeartbeatConfig,
    Message,
    RateLimitConfig,
    ReconnectConfig,
    Response,
    ServerConfig,
    WebSocketClient,
    WebSocketServer,
)
from fabric.testing import FakeTimeLoop, ScriptedServer, fake_time, pair
from fabric.testing.pipe import CAPACITY
from support.serving import echo

URL = "ws://prices.example/feed"


def now() -> float:
    return asyncio.get_running_loop().time()


# pair


async def test_both_ends_of_a_pair_speak() -> None:
    async with pair() as (client, peer):
        await client.send("hello")
        assert await peer.recv() == "hello"
        await peer.send(b"\x00\x01")
        assert await client.recv() == b"\x00\x01"
        assert await client.ping() >= 0
    assert (client.close_code, peer.close_code) == (1000, 1000)


async def test_a_pair_opens_no_socket() -> None:
    before = len(os.listdir("/dev/fd"))
    async with pair():
        assert len(os.listdir("/dev/fd")) == before


async def test_a_pair_with_a_handler() -> None:
    async with pair(echo) as (client, peer):
        await client.send("hello")
        assert await client.recv() == "hello"
        assert isinstance(peer, ConnectedClient)


async def test_a_pair_with_a_server_and_a_config() -> None:
    connected: list[ConnectedClient] = []

    def judge(request: fabric.Request) -> Response | None:
        return None if request.headers.get("Authorization") == "Bearer x" else Response(401)

    server = WebSocketServer(
        ServerConfig("127.0.0.1:0", subprotocols=["v1"]), echo, on_connect=connected.append, process_request=judge
    )
    config = ClientConfig(URL, subprotocols=["v2", "v1"], auto_reconnect=False)
    with pytest.raises(fabric.AuthenticationFailed):
        async with pair(server, config):
            pytest.fail("it was not refused")
    server = WebSocketServer(server.config, echo, on_connect=connected.append, process_request=judge)
    async with pair(server, config.with_authorization("Bearer x")) as (client, peer):
        assert (client.url, client.subprotocol, peer.request.path) == (URL, "v1", "/feed")
        assert connected == [peer]
        async with WebSocketClient.connect(URL, headers={"Authorization": "Bearer x"}) as another:
            await another.send("also here")
            assert await another.recv() == "also here"


async def test_two_servers_at_one_address() -> None:
    async with pair(client=ClientConfig(URL)):
        with pytest.raises(ValueError, match=r"prices\.example"):
            async with pair(client=ClientConfig(URL)):
                pytest.fail("there are two")


async def test_other_addresses_lead_where_they_always_do() -> None:
    async with WebSocketServer.bind("127.0.0.1:0", echo) as server, pair():
        async with WebSocketClient.connect(f"ws://127.0.0.1:{server.port}") as client:
            await client.send("over TCP")
            assert await client.recv() == "over TCP"


async def test_a_slow_reader_holds_the_sender_up() -> None:
    config = ServerConfig("127.0.0.1:0", buffer_size=1, compression=None)
    async with pair(WebSocketServer(config), ClientConfig(URL, compression=None, auto_reconnect=False)) as (
        client,
        peer,
    ):
        payload = bytes(CAPACITY)
        sending = asyncio.create_task(client.send_many([payload] * 30))
        received = [await peer.recv() for _ in range(30)]
        assert [message == payload for message in received] == [True] * 30
        await sending


@fake_time
async def test_a_heartbeat_in_no_time() -> None:
    config = ClientConfig(URL, auto_reconnect=False, heartbeat=HeartbeatConfig(ping_interval=20, ping_timeout=5))
    async with pair(client=config) as (client, peer):
        began = now()
        await asyncio.sleep(3600)
        assert client.is_connected
        peer._transport.pause_reading()
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert 3600 < now() - began <= 3600 + 20 + 5 + 1


@fake_time
async def test_a_rate_limit_in_no_time() -> None:
    limit = RateLimitConfig(messages_per_second=0.1, messages_burst=1)
    async with pair(WebSocketServer(ServerConfig("127.0.0.1:0", rate_limit=limit))) as (client, peer):
        began = now()
        await client.send_many(["at once", "after 10 s", "after 20 s"])
        came = {await peer.recv(): now() - began for _ in range(3)}
        assert list(came) == ["at once", "after 10 s", "after 20 s"]
        assert list(came.values()) == pytest.approx([0, 10, 20], abs=0.001)


# ScriptedServer


async def test_a_script_is_followed() -> None:
    async with ScriptedServer(URL) as server:
        script = server.connection()
        script.expect("login").expect_json({"symbol": "EURUSD"}).send("welcome").send_json([1, 2]).close(4000, "bye")
        async with WebSocketClient.connect(f"{URL}?v=2", auto_reconnect=False) as client:
            await client.send("login")
            await client.send_json({"symbol": "EURUSD"})
            assert await client.recv() == "welcome"
            assert (await client.recv()).json() == [1, 2]  # type: ignore[union-attr]
            with pytest.raises(ConnectionClosed) as raised:
                await client.recv()
    assert (raised.value.code, raised.value.reason) == (4000, "bye")
    assert [request.target for request in server.requests] == ["/feed?v=2"]
    assert script.request is server.requests[0]
    assert script.received == ["login", Message.json({"symbol": "EURUSD"})]


async def test_what_may_be_expected() -> None:
    async with ScriptedServer() as server:
        script = server.connection()
        script.expect(b"\x00").expect(Message.text("m")).expect(re.compile(r"order \d+")).expect(lambda m: len(m) == 3)
        async with WebSocketClient.connect(server.url) as client:
            await client.send_many([b"\x00", "m", "order 7", "abc"])
            await server.done()


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        ("logout", r"connection 1, step 1, expect\('login'\): .*logout.* has come"),
        (b"login", r"connection 1, step 1, expect\('login'\): .* has come"),
        (None, r"connection 1, step 1, expect\('login'\): the client has closed the connection with 1000"),
    ],
)
async def test_what_is_not_in_the_script(sent: str | bytes | None, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        async with ScriptedServer() as server:
            server.connection().expect("login")
            async with WebSocketClient.connect(server.url) as client:
                if sent is not None:
                    await client.send(sent)
                    await client.recv()


async def test_a_failure_is_told_to_the_client_and_ends_its_attempts() -> None:
    async with ScriptedServer() as server:
        server.connection().expect_json({"a": 1})
        server.connection().send("never")
        async with WebSocketClient.connect(server.url) as client:
            await client.send("no JSON")
            with pytest.raises(ConnectionClosed, match="expect_json") as raised:
                await client.recv()
            assert raised.value.code == 1002
        with pytest.raises(HandshakeFailed) as refused:
            await WebSocketClient.connect(server.url)
        assert refused.value.status == 400
        with pytest.raises(AssertionError, match="expect_json"):
            await server.done()
        server._failure = None
        server._to_come.clear()


@fake_time
async def test_a_script_that_is_not_over() -> None:
    with pytest.raises(AssertionError, match=r"after 10 s: connection 1, step 2, expect\('b'\); connection 2 has not"):
        async with ScriptedServer() as server:
            server.connection().expect("a").expect("b")
            server.refuse()
            async with WebSocketClient.connect(server.url) as client:
                await client.send("a")
                await server.done()


async def test_an_exception_of_the_test_is_not_hidden() -> None:
    with pytest.raises(KeyError):
        async with ScriptedServer() as server:
            server.connection().expect("never sent")
            raise KeyError("of the test")


@fake_time
async def test_a_client_comes_back_as_the_script_says() -> None:
    """The whole life of a client that reconnects: refused, dropped, and its backoff, in no time."""
    welcomed: list[float] = []

    async def login(client: WebSocketClient) -> None:
        await client.send("login")
        assert await client.recv() == "welcome"
        welcomed.append(now())

    async with ScriptedServer(URL) as server:
        server.refuse(503)
        server.connection().expect("login").send("welcome").delay(60).drop()
        server.refuse(503, {"Retry-After": "7"}, "busy")
        server.connection().expect("login").send("welcome").expect("last")
        began = now()
        async with WebSocketClient.connect(
            URL,
            on_session=login,
            first_connect="retry",
            reconnect=ReconnectConfig(initial_delay=1, jitter=0, max_delay=30),
        ) as client:
            while len(welcomed) < 2:
                await asyncio.sleep(1)
            await client.send("last")
            await server.done()
    assert welcomed[0] - began == pytest.approx(1)
    assert welcomed[1] - welcomed[0] == pytest.approx(60 + 1 + 7, abs=2)
    assert len(server.requests) == 4


@fake_time
async def test_a_server_that_hangs_is_found_out() -> None:
    async with ScriptedServer() as server:
        server.connection().freeze()
        async with WebSocketClient.connect(
            server.url, auto_reconnect=False, heartbeat=HeartbeatConfig(ping_interval=20, ping_timeout=5)
        ) as client:
            with pytest.raises(ConnectionClosed):
                await client.recv()


async def test_after_the_script_connections_are_refused() -> None:
    async with ScriptedServer() as server:
        with pytest.raises(HandshakeFailed) as raised:
            await WebSocketClient.connect(server.url)
        assert raised.value.status == 503
    with pytest.raises(ConnectionFailed):
        await WebSocketClient.connect(server.url.replace(".test", ".invalid"))


async def test_a_script_over_a_socket() -> None:
    async with ScriptedServer(bind="127.0.0.1:0", subprotocols=["v1"]) as server:
        server.connection().expect("x").drop()
        assert re.fullmatch(r"ws://127\.0\.0\.1:\d+", server.url)
        async with WebSocketClient.connect(server.url, auto_reconnect=False, subprotocols=["v1"]) as client:
            assert client.subprotocol == "v1"
            await client.send("x")
            with pytest.raises(ConnectionClosed) as raised:
                await client.recv()
            assert raised.value.code == 1006
    with pytest.raises(ValueError, match="either"):
        ScriptedServer(URL, bind="127.0.0.1:0")


# The fixtures, under a plugin for asynchronous tests that is not ours.

CONFTEST = """
import asyncio, inspect, pytest

pytest_plugins = ["fabric.testing.plugin"]

@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if inspect.iscoroutinefunction(pyfuncitem.obj):
        arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
        asyncio.run(pyfuncitem.obj(**arguments))
        return True
"""

TESTS = """
import asyncio, pytest
from fabric import ClientConfig, WebSocketServer

async def echo(client):
    async for message in client:
        await client.send(message)

async def fail(client):
    raise KeyError("in the handler")

seen = []

async def test_it_speaks(ws_server, ws_client):
    server = await ws_server(echo, subprotocols=["v1"])
    client = await ws_client(server, "/room?x=1", subprotocols=["v1"])
    assert client.subprotocol == "v1" and client.request.path == "/room"
    await client.send("hello")
    assert await client.recv() == "hello"
    seen.append((server, client))

def test_it_was_closed():
    (server, client), = seen
    assert not server.is_running and client.close_code == 1000

async def test_other_ways(ws_server, ws_client):
    server = await ws_server(WebSocketServer.bind("127.0.0.1:0", echo))
    for where in (f"ws://127.0.0.1:{server.port}", ClientConfig(f"ws://127.0.0.1:{server.port}")):
        client = await ws_client(where)
        await client.send("x")
        assert await client.recv() == "x"
    with pytest.raises(TypeError):
        await ws_server(server, buffer_size=3)

async def test_a_handler_raises(ws_server, ws_client):
    client = await ws_client(await ws_server(fail))
    await client.wait_closed()

async def test_a_handler_raises_and_so_does_the_test(ws_server, ws_client):
    client = await ws_client(await ws_server(fail))
    await client.wait_closed()
    assert client.close_code == 1000

async def test_it_is_expected(ws_server, ws_client):
    client = await ws_client(await ws_server(fail))
    await client.wait_closed()
    assert isinstance(ws_server.errors.pop(), KeyError)

class TestMethods:
    async def test_in_a_class(self, ws_server, ws_client):
        client = await ws_client(await ws_server(echo))
        await client.send("x")
        assert await client.recv() == "x"
"""


def test_the_fixtures(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_application.py").write_text(TESTS)
    root = Path(fabric.__file__).parents[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=120,
    )
    failed = set(re.findall(r"^FAILED \S+::(\w+)", run.stdout, re.M))
    assert failed == {"test_a_handler_raises", "test_a_handler_raises_and_so_does_the_test"}, run.stdout + run.stderr
    assert len(re.findall(r"^PASSED ", run.stdout, re.M)) == 5
    assert "a handler or callback of a server has raised KeyError('in the handler')" in run.stdout


def test_a_loop_for_a_runner() -> None:
    with asyncio.Runner(loop_factory=FakeTimeLoop) as runner:
        runner.run(asyncio.sleep(60))
