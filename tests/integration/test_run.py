"""The server of the README, run as a program: it ends in good order when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fabric import ConnectionFailed, WebSocketClient
from support.frames import CLOSE
from support.pages import ROOT, blocks
from support.ports import reserved_port
from support.raw_peer import RawPeer

Stack = contextlib.AsyncExitStack


def program() -> str:
    """The first one that serves."""
    return next(block.body for block in blocks(ROOT / "README.md") if "fabric.run(" in block.body)


async def connected(port: int) -> WebSocketClient:
    while True:
        try:
            return await WebSocketClient.connect(f"ws://127.0.0.1:{port}/", auto_reconnect=False)
        except ConnectionFailed:  # it does not listen yet
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running(port: int, folder: Path, text: str | None = None) -> AsyncIterator[asyncio.subprocess.Process]:
    """The program on `port`; every warning is an error, so that a transport left open shows."""
    script = folder / "server.py"
    script.write_text((text or program()).replace("8080", str(port)))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        str(script),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored, where the tests run behind a `&`
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_says_goodbye_and_ends_with_0(stack: Stack, tmp_path: Path, number: signal.Signals) -> None:
    port = stack.enter_context(reserved_port())
    async with running(port, tmp_path) as process:
        client = await stack.enter_async_context(await connected(port))
        await client.send("hello")
        assert (message := await client.recv()) is not None
        assert message.as_text() == "hello"
        process.send_signal(number)
        assert await client.recv() is None
        assert (client.close_code, client.close_reason) == (1001, "server shutdown")
        assert await process.communicate() == (b"", b"")
        assert process.returncode == 0


async def test_it_ends_although_somebody_has_connected_and_says_nothing(stack: Stack, tmp_path: Path) -> None:
    port = stack.enter_context(reserved_port())
    async with running(port, tmp_path) as process:
        await stack.enter_async_context(await connected(port))
        _, silent = await asyncio.open_connection("127.0.0.1", port)
        stack.callback(silent.close)
        client = await stack.enter_async_context(await connected(port))  # accepted after it
        await client.ping()
        process.send_signal(signal.SIGTERM)
        assert await process.communicate() == (b"", b"")
        assert process.returncode == 0


PATIENT = """
import fabric
from fabric import ServerConfig, WebSocketServer

class Server(WebSocketServer):
    async def shutdown(self, timeout=3600, *, code=1001):
        await super().shutdown(3600, code=code)

fabric.run(Server(ServerConfig("127.0.0.1:8080", close_timeout=3600), lambda client: client.wait_closed()))
"""


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_aborts_what_is_still_closing(
    stack: Stack, tmp_path: Path, second: signal.Signals
) -> None:
    """The peer does not answer the close frame, and an hour is what the server would wait for that."""
    port = stack.enter_context(reserved_port())
    async with running(port, tmp_path, PATIENT) as process:
        await stack.enter_async_context(await connected(port))  # it listens
        peer = await stack.enter_async_context(await RawPeer.open(port))
        process.send_signal(signal.SIGTERM)
        close = await peer.frame()
        assert close is not None
        assert (close.opcode, close.payload[:2]) == (CLOSE, (1001).to_bytes(2, "big"))
        process.send_signal(second)
        assert await process.communicate() == (b"", b"")
        assert process.returncode == 0


# The first screen of the README


@pytest.mark.deadline(90)
@pytest.mark.parametrize("loop_factory", ["uvloop"], indirect=True)  # the commands are what is tested
async def test_three_commands_from_pip_install_to_the_first_message(stack: Stack, tmp_path: Path) -> None:
    """The first one installs: `.ci/wheel` runs all three."""
    port = stack.enter_context(reserved_port())
    first = next(block for block in blocks(ROOT / "README.md") if block.language == "sh")
    install, serve, talk = (line.partition("#")[0].strip() for line in first.body.splitlines())
    assert install == "pip install websocket-fabric"
    command = tmp_path / "fabric"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fabric "$@"\n')
    command.chmod(0o755)
    assert serve == "fabric serve &"
    assert talk.endswith("--wait 5")  # 50 here: this machine may be busy
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join([str(ROOT), *paths()])}
    text = f"fabric serve --bind 127.0.0.1:{port} &\n{talk.replace('8080', str(port))}0\nkill %1\nwait"
    process = await asyncio.create_subprocess_exec(
        "bash", "-mc", text, env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert b"> text, 5 B: hello" in said
    assert b"< text, 5 B: hello" in said


def paths() -> list[str]:
    """What PYTHONPATH has."""
    return [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
