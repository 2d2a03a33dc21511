"""The programs of the tutorial: each is started as its page says, spoken with, and ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import ssl
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fabric import ConnectionClosed, ConnectionFailed, HandshakeFailed, WebSocketClient
from fabric.broker.embedded import find_nats_server
from support.pages import PORT, ROOT, blocks
from support.ports import reserved_port
from support.tls import certificate_file, client_context

TUTORIAL = ROOT / "examples/tutorial"


@pytest.fixture
def port() -> Iterator[int]:
    """A port that no other program gets."""
    with reserved_port() as port:
        yield port


@contextlib.asynccontextmanager
async def running(name: str, port: int, folder: Path, **environment: str) -> AsyncIterator[str]:
    """Run a program of the tutorial in `folder`, on `port`; yields "localhost:PORT". SIGTERM ends it."""
    for path in TUTORIAL.iterdir():
        if path.is_file():
            (folder / path.name).write_text(path.read_text().replace(PORT, str(port)))
    paths = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", folder / name, env={**os.environ, "PYTHONPATH": paths, **environment}, cwd=folder
    )
    try:
        yield f"localhost:{port}"
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def connect(url: str, **options: Any) -> WebSocketClient:
    """A client, once the program listens."""
    while True:
        try:
            # Workers listen from the first moment, and answer when they are ready.
            return await WebSocketClient.connect(url, auto_reconnect=False, connection_timeout=60, **options)
        except ConnectionFailed:
            await asyncio.sleep(0.01)


async def event(client: WebSocketClient, kind: str) -> Any:
    """The next event of this kind."""
    async for message in client:
        data = message.json()
        if data["kind"] == kind:
            return data
    raise AssertionError("the connection has ended")


async def test_part_1(tmp_path: Path, port: int) -> None:
    async with running("first.py", port, tmp_path) as place:
        one, two = await connect(f"ws://{place}/chat"), await connect(f"ws://{place}/chat")
        await two.ping()
        await one.send("hello")
        assert [await one.recv(), await two.recv()] == ["hello", "hello"]
        with pytest.raises(HandshakeFailed) as page:
            await WebSocketClient.connect(f"ws://{place}/")
        assert (page.value.status, page.value.body) == (200, (tmp_path / "first.html").read_bytes())
        await one.close()
        await two.close()


async def test_part_2(tmp_path: Path, port: int) -> None:
    async with running("rooms.py", port, tmp_path) as place:
        ada = await connect(f"ws://{place}/rooms/tea?name=Ada")
        assert await event(ada, "people") == {"kind": "people", "names": ["Ada"]}
        grace = await connect(f"ws://{place}/rooms/tea?name=Grace")
        assert (await event(ada, "people"))["names"] == ["Ada", "Grace"]
        other = await connect(f"ws://{place}/rooms/coffee")
        assert (await event(other, "people"))["names"] == ["somebody"]
        await ada.send_json({"text": "hello"})
        for client in ada, grace:
            assert await event(client, "said") == {"kind": "said", "name": "Ada", "text": "hello"}
        await other.ping()
        assert not other.queued
        await grace.close()
        assert (await event(ada, "people"))["names"] == ["Ada"]
        await other.send("no JSON")
        with pytest.raises(ConnectionClosed) as refused:
            await other.recv()
        assert refused.value.code == 1007
        with contextlib.suppress(ConnectionClosed):
            await (wild := await connect(f"ws://{place}/rooms/*")).recv()
        assert wild.close_code == 4004
        await ada.close()


@pytest.fixture
def nats(require: Callable[[object, str], None]) -> None:
    require(find_nats_server(), 'nats-server is not in PATH: pip install "websocket-fabric[nats-server]" brings it')


async def names_are(client: WebSocketClient, *names: str) -> None:
    """Wait until those are in the client's room."""
    while (await event(client, "people"))["names"] != [*names]:
        pass


@pytest.mark.deadline(120)
async def test_part_3(nats: None, tmp_path: Path, port: int) -> None:
    file = str(certificate_file(tmp_path))
    environment = {
        "BIND": f"127.0.0.1:{port}",
        "CERTIFICATE": file,
        "KEY": file,
        "ORIGIN": f"https://localhost:{port}",
    }
    async with running("deploy.py", port, tmp_path, **environment) as place:
        options = {"ssl": client_context(), "headers": {"Origin": f"https://{place}"}}
        names = [f"Ada{number}" for number in range(8)]  # the kernel spreads them over the workers
        clients = [await connect(f"wss://{place}/rooms/tea?name={name}", **options) for name in names]
        for client in clients:
            await names_are(client, *names)
        await clients[0].send_json({"text": "hello"})
        for client in clients:
            assert await event(client, "said") == {"kind": "said", "name": "Ada0", "text": "hello"}
        for path, wanted in (("/health", 200), ("/", 200), ("/rooms/tea", 403)):
            with pytest.raises(HandshakeFailed) as answer:
                await connect(f"wss://{place}{path}", ssl=client_context())
            assert answer.value.status == wanted
        await clients[0].send_json({"text": "x" * 5000})
        with pytest.raises(ConnectionClosed) as refused:
            while True:
                await clients[0].recv()
        assert refused.value.code == 1009
        await names_are(clients[1], *names[1:])
        for client in clients:
            await client.close()


@pytest.mark.deadline(120)
async def test_part_3_in_one_process_needs_no_broker(tmp_path: Path, port: int) -> None:
    environment = {"BIND": f"127.0.0.1:{port}", "WORKERS": "1", "BROKER": "memory:"}
    async with running("deploy.py", port, tmp_path, **environment) as place:
        ada = await connect(f"ws://{place}/rooms/tea?name=Ada")
        await names_are(ada, "Ada")
        await ada.close()


async def bash(command: str, folder: Path, environment: dict[str, str], said: str = "") -> str:
    """Run a command, which gets `said` from its standard input; what it writes."""
    process = await asyncio.create_subprocess_exec(
        "bash", "-ec", command, cwd=folder, env=environment, stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    written, errors = await process.communicate(said.encode())
    assert process.returncode == 0, errors
    return written.decode()


@pytest.mark.deadline(120)
@pytest.mark.parametrize("loop_factory", ["uvloop"], indirect=True)  # the commands are what is tested
async def test_the_commands_of_part_3(nats: None, tmp_path: Path, port: int) -> None:
    for tool in ("openssl", "curl"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    for path in TUTORIAL.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, arguments in (("python", ""), ("fabric", "-m fabric ")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
        (programs / name).chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment["PATH"] = f"{programs}:{os.environ['PATH']}"
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    shown = [block.body for block in blocks(ROOT / "docs/tutorial/deploy.md") if block.language == "sh"]
    _, start, ask = (text.replace("8443", str(port)) for text in shown)  # the first installs

    certificate, serve = start.splitlines()
    await bash(certificate, tmp_path, environment)
    server = await asyncio.create_subprocess_exec("bash", "-c", f"exec env {serve}", cwd=tmp_path, env=environment)
    try:
        context = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
        place = f"localhost:{port}"
        headers = {"Origin": f"https://{place}"}
        grace = await connect(f"wss://{place}/rooms/tea?name=Grace", ssl=context, headers=headers)
        health, talk = ask.splitlines()
        assert await bash(health, tmp_path, environment) == "ok\n"
        assert "hello" in await bash(talk, tmp_path, environment, '{"text": "hello"}\n')
        assert await event(grace, "said") == {"kind": "said", "name": "Ada", "text": "hello"}
        await grace.close()
        server.terminate()
        assert await server.wait() == 0
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()
