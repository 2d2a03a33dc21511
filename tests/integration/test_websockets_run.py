"""`fabric run --as-websockets`: programs written for websockets, unedited, on fabric."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """\
import asyncio
import sys

import websockets
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosedOK


async def echo(websocket):
    async for message in websocket:
        await websocket.send(message)


async def main():
    async with serve(echo, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}") as websocket:
            await websocket.send("hello")
            print(await websocket.recv())
        try:
            await websocket.recv()
        except ConnectionClosedOK as error:
            print(error)


print(__name__, websockets.__name__, sys.argv[1:])
asyncio.run(main())
sys.exit(7)
"""
EXPECTED = """\
__main__ fabric.websockets ['--option', 'x']
hello
sent 1000 (OK); then received 1000 (OK)
"""

BLOCKING = """\
import threading

from websockets.sync.client import connect
from websockets.sync.server import serve


def echo(websocket):
    for message in websocket:
        websocket.send(message)


with serve(echo, "127.0.0.1", 0) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    host, port = server.socket.getsockname()
    with connect(f"ws://{host}:{port}") as websocket:
        websocket.send("hello")
        print(type(websocket).__module__, websocket.recv())
thread.join()
"""


def fabric(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "fabric", *arguments]
    path = str(Path(__file__).parents[2])
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=60, cwd=cwd, env={"PYTHONPATH": path}
    )


def test_a_program_runs_on_fabric(tmp_path: Path) -> None:
    program = tmp_path / "app.py"
    program.write_text(PROGRAM)
    done = fabric("run", "--as-websockets", str(program), "--option", "x")
    assert (done.stdout, done.stderr, done.returncode) == (EXPECTED, "", 7)


def test_a_program_with_threads_runs_on_fabric(tmp_path: Path) -> None:
    program = tmp_path / "app.py"
    program.write_text(BLOCKING)
    done = fabric("run", "--as-websockets", str(program))
    assert (done.stdout, done.stderr, done.returncode) == ("fabric.websockets.sync.client hello\n", "", 0)


def test_a_module_runs_too_with_modules_beside_it(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("import beside\n" + PROGRAM)
    (tmp_path / "beside.py").write_text("")
    done = fabric("run", "--as-websockets", "-m", "app", "--option", "x", cwd=tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == (EXPECTED, "", 7)
    done = fabric("run", "--as-websockets", "app.py", "--option", "x", cwd=tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == (EXPECTED, "", 7)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "app.py"], "the following arguments are required: --as-websockets"),
        (["run", "--as-websockets"], "the following arguments are required: SCRIPT"),
        (["run", "--as-websockets", "missing.py"], "fabric run: missing.py: no such file\n"),
    ],
)
def test_a_wrong_line_is_a_sentence(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = fabric(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_what_a_program_raises_is_its_own(tmp_path: Path) -> None:
    program = tmp_path / "app.py"
    program.write_text("raise LookupError('mine')")
    done = fabric("run", "--as-websockets", str(program))
    assert done.returncode == 1
    assert done.stderr.endswith("LookupError: mine\n")
