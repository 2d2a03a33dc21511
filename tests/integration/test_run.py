"""The server of the README, run as a program: it ends in good order when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fabric import ConnectionFailed, WebSocketClient
from support.pages import ROOT, blocks
from support.ports import reserved_port

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
async def running(port: int, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """The program on `port`; every warning is an error, so that a transport left open shows."""
    script = folder / "server.py"
    script.write_text(program().replace("8080", str(port)))
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
