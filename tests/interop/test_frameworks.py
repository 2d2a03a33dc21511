"""Applications of the frameworks for ASGI, run by `fabric asgi`; the client is websockets, and Chromium for FastAPI.

Each application in `frameworks` echoes at `/echo`, has the subprotocol "chat", closes when it is told
`close CODE REASON`, and denies at `/denied`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from support.chromium import Page, find_chromium

ROOT = Path(__file__).parents[2]
FRAMEWORKS = {"starlette": 401, "fastapi": 401, "channels": 403, "litestar": 403, "quart": 401}
"""Each with the status of what it denies."""


class Running:
    """An application in a process of its own.

    Attributes:
        port: where it listens.
        said: the lines of its log.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.port = 0
        self.said: list[str] = []
        self._reading: asyncio.Task[None] | None = None

    async def started(self) -> None:
        assert self.process.stderr is not None
        while not self.port:
            line = await self.process.stderr.readline()
            assert line, "\n".join(self.said)
            self._note(line)
        self._reading = asyncio.ensure_future(self._read())

    def _note(self, line: bytes) -> None:
        self.said.append(line.decode().rstrip())
        if found := re.search(r"running on http://127.0.0.1:(\d+)", self.said[-1]):
            self.port = int(found[1])

    async def _read(self) -> None:
        assert self.process.stderr is not None
        while line := await self.process.stderr.readline():
            self._note(line)

    async def terminate(self) -> None:
        """SIGTERM, and its end."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        await self.process.wait()
        if self._reading is not None:
            await self._reading


@contextlib.asynccontextmanager
async def running(framework: str, *options: str) -> AsyncIterator[Running]:
    """The application of `framework`, started by the command line."""
    command = [sys.executable, "-m", "fabric", "asgi", f"with_{framework}:app", "--port", "0", *options]
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=Path(__file__).parent / "frameworks",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    app = Running(process)
    try:
        await app.started()
        yield app
        await app.terminate()
        assert not [line for line in app.said if "Traceback" in line], "\n".join(app.said)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.deadline(120)
@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("loop_factory", ["asyncio"], indirect=True)
async def test_a_framework(framework: str, http: str, require: Callable[[object, str], None]) -> None:
    for package in (framework, http):
        require(importlib.util.find_spec(package), f"{package} is not installed")
    async with running(framework, "--http", http, "--loop", "uvloop" if http == "httptools" else "asyncio") as app:
        url = f"ws://127.0.0.1:{app.port}"
        async with connect(f"{url}/echo", subprotocols=["other", "chat"], proxy=None) as client:  # type: ignore[list-item]
            assert client.subprotocol == "chat"
            messages = ["", "é" * 100, b"", bytes(range(256)), "x" * 70_000, b"y" * 200_000]
            if framework == "quart":  # which takes an empty binary message for a text, as under uvicorn's own
                messages.remove(b"")
            for message in messages:
                await client.send(message)
                assert await client.recv() == message
            await client.send(["a", "", "b"])
            assert await client.recv() == "ab"
            await (await client.ping())
            many = [f"{number}" for number in range(200)]
            sending = asyncio.ensure_future(send_all(client.send, many))
            assert [await client.recv() for _ in many] == many
            await sending
            await client.send("close 4001 enough said")
            with pytest.raises(ConnectionClosed, match=r"received 4001 \(private use\) enough said"):
                await client.recv()
        with pytest.raises(InvalidStatus) as denied:
            await connect(f"{url}/denied", proxy=None)
        assert denied.value.response.status_code == FRAMEWORKS[framework]
        async with connect(f"{url}/echo", proxy=None) as client:
            assert client.subprotocol is None
            client.transport.abort()  # cut off
        async with connect(f"{url}/echo", proxy=None) as client:  # and back
            await client.send("again")
            assert await client.recv() == "again"
            await app.terminate()
            with pytest.raises(ConnectionClosed, match=r"received 1012 \(service restart\)"):
                await client.recv()


async def send_all(send: Callable[[str], object], texts: list[str]) -> None:
    for text in texts:
        await send(text)  # type: ignore[misc]


@pytest.mark.deadline(120)
@pytest.mark.parametrize("loop_factory", ["uvloop"], indirect=True)
async def test_chromium_against_fastapi(tmp_path: Path, require: Callable[[object, str], None]) -> None:
    chromium = find_chromium()
    require(chromium, "chromium is not installed")
    require(importlib.util.find_spec("fastapi"), "fastapi is not installed")
    async with running("fastapi") as app, Page.open(chromium, tmp_path) as page:
        await page.goto(f"http://127.0.0.1:{app.port}/")
        await page.until("document.body.dataset.said")
        said = json.loads(await page.evaluate("document.body.dataset.said"))
    assert said == ["é", [0, 255], 100_000, "chat", "permessage-deflate", 4001, "enough", True, 1006]
