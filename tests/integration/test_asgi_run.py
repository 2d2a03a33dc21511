"""`fabric asgi`, `uvicorn.run` and gunicorn: ASGI applications in processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.frames import encode
from support.raw_peer import RawPeer

ROOT = Path(__file__).parents[2]
APP = """\
import os

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        scope["state"]["greeting"] = "hello"
        await send({"type": "lifespan.startup.complete"})
        await receive()
        print("lifespan ended", flush=True)
        await send({"type": "lifespan.shutdown.complete"})
    else:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": f"{scope['state']['greeting']} {os.getpid()}"})
        while (event := await receive())["type"] == "websocket.receive":
            pass
        print("told", event["code"], flush=True)
"""
PROGRAM = """\
import sys

import uvicorn

import app
import fabric.asgi

uvicorn.run(app.app, port=0, ws=fabric.asgi.WebSocketProtocol, http=sys.argv[1])
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


class Running:
    """A server in a process of its own: `port`, and at its end all that it has said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.port = 0
        self.said: list[str] = []

    async def started(self, pattern: str) -> None:
        assert self.process.stdout is not None
        while not self.port:
            line = (await self.process.stdout.readline()).decode()
            assert line, "".join(self.said)
            self.said.append(line)
            if found := re.search(pattern, line):
                self.port = int(found[1])

    async def says(self, text: str, times: int) -> None:
        """Wait until it has said `text` so often."""
        assert self.process.stdout is not None
        while "".join(self.said).count(text) < times:
            line = (await self.process.stdout.readline()).decode()
            assert line, "".join(self.said)
            self.said.append(line)

    async def terminate(self) -> str:
        """SIGTERM; what it has said up to its end."""
        assert self.process.stdout is not None
        self.process.send_signal(signal.SIGTERM)
        self.said.append((await self.process.stdout.read()).decode())
        await self.process.wait()
        return "".join(self.said)


@contextlib.asynccontextmanager
async def running(
    folder: Path, *arguments: str, pattern: str = r"running on http://127.0.0.1:(\d+)"
) -> AsyncIterator[Running]:
    (folder / "app.py").write_text(APP)
    process = await asyncio.create_subprocess_exec(
        *command(*arguments),
        cwd=folder,
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    server = Running(process)
    try:
        await server.started(pattern)
        yield server
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def greeted(port: int) -> str:
    while True:
        try:
            peer = await RawPeer.open(port, rest=encode(1, "early"))
        except ConnectionRefusedError:  # bound, and no worker listens yet
            await asyncio.sleep(0.01)
        else:
            async with peer:
                return (await peer.payload()).decode()


async def told_at_shutdown(server: Running) -> str:
    """Connect, have the server terminated; it closes with 1012, and tells the application."""
    async with await RawPeer.open(server.port) as peer:
        await peer.payload()
        ending = asyncio.ensure_future(server.terminate())
        assert await peer.close_seen() == (1012, "")
        peer.send_close(1012)
        said = await ending
    assert "told 1012" in said
    assert "lifespan ended" in said
    assert "Traceback" not in said
    return said


@pytest.mark.deadline(120)
@pytest.mark.parametrize("loop_factory", ["asyncio"], indirect=True)
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_the_command_line(loop: str, tmp_path: Path) -> None:
    async with running(tmp_path, "-m", "fabric", "asgi", "app:app", "--port", "0", "--loop", loop) as server:
        assert (await greeted(server.port)).startswith("hello ")
        said = await told_at_shutdown(server)
        assert '"WebSocket /" [accepted]' in said


@pytest.mark.deadline(120)
@pytest.mark.parametrize("loop_factory", ["asyncio"], indirect=True)
@pytest.mark.parametrize("http", ["h11", "httptools"])
async def test_uvicorn_run(http: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(http) is None:
        pytest.skip(f"{http} is not installed")
    (tmp_path / "program.py").write_text(PROGRAM)
    async with running(tmp_path, "program.py", http) as server:
        assert (await greeted(server.port)).startswith("hello ")
        await told_at_shutdown(server)


@pytest.mark.deadline(120)
@pytest.mark.parametrize("loop_factory", ["asyncio"], indirect=True)
async def test_worker_processes(tmp_path: Path) -> None:
    async with running(tmp_path, "-m", "fabric", "asgi", "app:app", "--port", "0", "--workers", "2") as server:
        await server.says("Application startup complete.", 2)
        greeting, _, number = (await greeted(server.port)).partition(" ")
        assert greeting == "hello"
        assert int(number) != server.process.pid
        said = await server.terminate()
        assert said.count("lifespan ended") == 2


@pytest.mark.deadline(120)
@pytest.mark.parametrize("loop_factory", ["asyncio"], indirect=True)
async def test_gunicorn(tmp_path: Path) -> None:
    for package in ("gunicorn", "uvicorn_worker"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    options = (
        "-k",
        "fabric.asgi.UvicornWorker",
        "--bind",
        "127.0.0.1:0",
        "--graceful-timeout",
        "10",
        "--no-control-socket",
    )
    async with running(
        tmp_path, "-m", "gunicorn", *options, "app:app", pattern=r"Listening at: http://127.0.0.1:(\d+)"
    ) as server:
        greeting, _, number = (await greeted(server.port)).partition(" ")
        assert greeting == "hello"
        assert int(number) != server.process.pid
        await told_at_shutdown(server)


# --- a wrong line ------------------------------------------------------------------------------------------


def fabric(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("-m", "fabric", "asgi", *arguments),
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment() | changes,
    )


def test_help_is_uvicorns() -> None:
    done = fabric("--help")
    assert done.returncode == 0
    assert "Usage: fabric asgi [OPTIONS] APP" in done.stdout
    assert "--ws-max-size" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "Missing argument 'APP'"),
        (["app:app", "--no-such-option"], 2, "No such option"),
        (["app:app", "--port", "x"], 2, "'x' is not a valid integer"),
        (["app:app", "--ws", "wsproto"], 2, "fabric asgi: --ws wsproto: WebSockets are fabric's here"),
        (["nosuch:app"], 1, 'Could not import module "nosuch"'),
    ],
)
def test_a_wrong_line_is_a_sentence(arguments: list[str], code: int, said: str) -> None:
    done = fabric(*arguments)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert (done.returncode == code) or (code == 1 and done.returncode > 0)


def test_other_websockets_in_the_environment_are_refused_too() -> None:
    done = fabric("app:app", UVICORN_WS="none")
    assert done.returncode == 2
    assert done.stderr == "fabric asgi: --ws none: WebSockets are fabric's here; `uvicorn` has the others\n"
