"""`fabric.run`: what it takes, what it returns, and what a signal does to it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import uvloop

import fabric
from fabric import WebSocketServer


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """SIGINT as a program in the foreground has it: tests that run behind a `&` inherit that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


async def answer() -> int:
    assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
    await asyncio.sleep(0)
    return 42


def test_it_returns_what_the_coroutine_returns() -> None:
    assert fabric.run(answer()) == 42


def test_it_raises_what_the_coroutine_raises() -> None:
    async def fail() -> None:
        raise KeyError("mine")

    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(KeyError, match="mine"):
        fabric.run(fail())
    with pytest.raises(asyncio.CancelledError):
        fabric.run(cancelled())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_it_and_is_no_error(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    seen: list[str] = []

    async def main() -> str:
        os.kill(os.getpid(), number)
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("cancelled")
        return "never"

    assert fabric.run(main()) is None
    assert seen == ["cancelled"]
    assert signal.getsignal(number) is before


def test_what_it_does_about_the_signal_counts() -> None:
    async def main(result: Callable[[], str]) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return result()
        return "never"

    def fail() -> str:
        raise LookupError("while it ended")

    assert fabric.run(main(lambda: "by itself")) == "by itself"
    with pytest.raises(LookupError, match="while it ended"):
        fabric.run(main(fail))


def test_a_second_signal_cancels_the_end_too() -> None:
    seen: list[str] = []

    async def main() -> None:
        for what in ("first", "second"):
            os.kill(os.getpid(), signal.SIGTERM)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append(what)
        raise asyncio.CancelledError

    assert fabric.run(main()) is None
    assert seen == ["first", "second"]


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    async def main() -> str:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.01)
        return "done"

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert fabric.run(main()) == "done"
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_run_too_and_hear_of_no_signal() -> None:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(fabric.run(answer())))
    thread.start()
    thread.join()
    assert results == [42]


def test_what_is_neither_is_told_what_to_write() -> None:
    wrong: Any = answer
    with pytest.raises(TypeError, match=r"not function: call it, run\(main\(\)\)"):
        fabric.run(wrong)
    with pytest.raises(TypeError, match="not str"):
        fabric.run("127.0.0.1:8080")  # type: ignore[call-overload]


async def test_a_loop_that_runs_is_refused_without_a_warning() -> None:
    with pytest.raises(RuntimeError, match="an event loop is running"):
        fabric.run(answer())
    with pytest.raises(RuntimeError, match="an event loop is running"):
        fabric.run(WebSocketServer.bind("127.0.0.1:0", _handler))


def test_a_server_is_served_until_the_signal() -> None:
    ports: list[int] = []

    class Announcing(WebSocketServer):
        async def start(self) -> None:
            await super().start()
            ports.append(self.port)
            os.kill(os.getpid(), signal.SIGTERM)

    server = Announcing.bind("127.0.0.1:0", _handler)
    fabric.run(server)
    assert ports[0] > 0
    assert not server.is_running


def _handler(client: fabric.ConnectedClient) -> Awaitable[None]:
    return client.wait_closed()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_program_ends_with_0_and_says_nothing(number: signal.Signals) -> None:
    program = (
        "import fabric, os, signal\n"
        "class Server(fabric.WebSocketServer):\n"
        "    async def start(self):\n"
        "        await super().start()\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
        "fabric.run(Server.bind('127.0.0.1:0', lambda client: client.wait_closed()))\n"
        "print('done')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
