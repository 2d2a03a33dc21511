"""The programs of the tutorial: each is started as its page says, spoken with, and ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from fabric import ConnectionClosed, ConnectionFailed, HandshakeFailed, WebSocketClient
from support.pages import PORT, ROOT
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
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
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
            return await WebSocketClient.connect(url, auto_reconnect=False, **options)
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


async def test_part_3(tmp_path: Path, port: int) -> None:
    file = str(certificate_file(tmp_path))
    environment = {
        "BIND": f"127.0.0.1:{port}",
        "CERTIFICATE": file,
        "KEY": file,
        "ORIGIN": f"https://localhost:{port}",
    }
    async with running("deploy.py", port, tmp_path, **environment) as place:
        origin = {"Origin": f"https://{place}"}
        ada = await connect(f"wss://{place}/rooms/tea?name=Ada", ssl=client_context(), headers=origin)
        assert (await event(ada, "people"))["names"] == ["Ada"]
        for path, wanted in (("/health", 200), ("/", 200), ("/rooms/tea", 403)):
            with pytest.raises(HandshakeFailed) as answer:
                await WebSocketClient.connect(f"wss://{place}{path}", ssl=client_context())
            assert answer.value.status == wanted
        await ada.send_json({"text": "x" * 5000})
        with pytest.raises(ConnectionClosed) as refused:
            while True:
                await ada.recv()
        assert refused.value.code == 1009
