"""Starts pinned processes, talks to the load generator, reads the kernel's figures about a server."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import tools


def environment() -> dict[str, str]:
    """Ours, plus the source tree on the path where `fabric` is built in place and not installed."""
    if importlib.util.find_spec("fabric"):
        return dict(os.environ)
    path = [str(tools.HERE.parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}


class Failed(Exception):
    """A measurement did not come off; the text says why."""


CORES = sorted(os.sched_getaffinity(0))


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """Processes started in this block are bound to one core (all to the same where there is only one)."""
    os.sched_setaffinity(0, {CORES[core % len(CORES)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, CORES)


def read_line(stream: IO[str], seconds: float) -> str:
    """One line, or "" when none comes in time. The stream must be unbuffered or fresh."""
    ready, _, _ = select.select([stream], [], [], seconds)
    return stream.readline() if ready else ""


@contextlib.contextmanager
def started(command: list[str], ready: float, complaint: str, core: int = 0) -> Iterator[IO[str]]:
    """A pinned process that has said "ready" within `ready` seconds: what it says from then on. Killed in the end."""
    with pinned(core):
        running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    assert running.stdout is not None
    try:
        with running.stdout:
            if read_line(running.stdout, ready) != "ready\n":
                raise Failed(complaint)
            yield running.stdout
    finally:
        running.kill()
        running.wait()


def result(command: list[str], core: int = 0, wait: float = 60) -> dict[str, Any]:
    """The JSON object that a pinned process prints."""
    with pinned(core):
        done = subprocess.run(command, capture_output=True, text=True, timeout=wait, env=environment(), check=False)
    if done.returncode:
        raise Failed((done.stderr.strip().splitlines() or ["no output"])[-1])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class Server:
    """A server process: pinned, started, its port known. Ends with the `with` block."""

    def __init__(self, command: tuple[str, ...], flags: tuple[str, ...] = (), core: int = 0, wait: float = 20) -> None:
        self.complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- closed by __exit__
        try:
            with pinned(core):
                self.process = subprocess.Popen(
                    [*command, *flags],
                    stdout=subprocess.PIPE,
                    stderr=self.complaints,
                    text=True,
                    env=environment(),
                )
        except OSError as error:
            raise Failed(f"{command[0]}: {error.strerror}") from None
        self.pid = self.process.pid
        assert self.process.stdout is not None
        line = read_line(self.process.stdout, wait)
        if not line.strip().isdigit():
            self.stop()
            raise Failed(f"the server did not start: {self.last_words()}")
        self.port = int(line)

    def last_words(self) -> str:
        """The last line the server wrote to stderr."""
        self.complaints.seek(0)
        lines = [line for line in self.complaints.read().strip().splitlines() if not line.startswith("==")]
        return lines[-1] if lines else "it said nothing"

    def stop(self) -> None:
        """Terminates the process, by force after 3 s."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(3)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self.complaints.close()

    def cpu_seconds(self) -> float:
        """CPU time used by the whole process so far."""
        return time.clock_gettime((~self.pid << 3) | 2)  # what clock_getcpuclockid(3) computes on Linux

    def private_bytes(self) -> int:
        """Memory that only this process holds (smaps_rollup: private clean and dirty)."""
        text = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        return 1024 * sum(int(kb) for kb in re.findall(r"^Private_(?:Clean|Dirty):\s+(\d+) kB", text, re.M))


@contextlib.contextmanager
def broker(scheme: str, core: int = 1, port: str = "") -> Iterator[str]:
    """A NATS or Redis server on `port`, or a free one, as long as the block lasts; its URL."""
    beside = os.fspath(Path(sys.executable).parent)
    name = {"nats": "nats-server", "redis": "redis-server"}[scheme]
    program = shutil.which(name) or shutil.which(name, path=beside)
    if program is None:
        raise Failed(f"{name} is not installed")
    if not port:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = str(probe.getsockname()[1])
    flags = (
        ("-a", "127.0.0.1", "-p", port) if scheme == "nats" else ("--bind", "127.0.0.1", "--port", port, "--save", "")
    )
    with pinned(core):
        running = subprocess.Popen([program, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 10
        while running.poll() is None and time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(port)), 1):
                yield f"{scheme}://127.0.0.1:{port}"
                return
            time.sleep(0.01)
        raise Failed(f"{name} does not begin to listen")
    finally:
        running.kill()
        running.wait()


def load_command(server: Server, mode: str, arguments: tuple[str, ...]) -> list[str]:
    """The load generator's command line against `server`."""
    return [str(tools.LOAD), mode, "--port", str(server.port), "--server-pid", str(server.pid), *arguments]


def load(server: Server, mode: str, arguments: tuple[str, ...], core: int = 1, wait: float = 120) -> dict[str, Any]:
    """Runs the load generator to its end and returns what it measured."""
    try:
        with pinned(core):
            command = load_command(server, mode, arguments)
            done = subprocess.run(command, capture_output=True, text=True, timeout=wait, check=False)
    except subprocess.TimeoutExpired:
        raise Failed(f"no result after {wait:g} s") from None
    if done.returncode:
        raise Failed(f"{done.stderr.strip()} (server: {server.last_words()})")
    result: dict[str, Any] = json.loads(done.stdout)
    if result["unanswered"]:
        raise Failed(f"{result['unanswered']} messages were never answered")
    if mode == "connect" and result["failures"]:
        raise Failed(f"{result['failures']} connections failed")
    return result


class Steps:
    """The load generator in a mode that obeys its stdin: waits for a phase, is told to go on."""

    def __init__(self, server: Server, mode: str, arguments: tuple[str, ...], core: int = 1) -> None:
        self.server = server
        with pinned(core):
            self.process = subprocess.Popen(
                load_command(server, mode, arguments),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

    def reached(self, phase: str, seconds: float) -> None:
        """Waits until the generator says `phase`."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        line = read_line(self.process.stdout, seconds)
        if f'"phase": "{phase}"' not in line:
            self.process.kill()
            raise Failed(f"{self.process.stderr.read().strip()} (server: {self.server.last_words()})")

    def say(self, word: str = "on") -> None:
        """Tells the generator to go on."""
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """Lets the generator finish."""
        if self.process.poll() is None:
            try:
                self.process.communicate("quit\n", timeout=20)
            except (subprocess.TimeoutExpired, BrokenPipeError):
                self.process.send_signal(signal.SIGKILL)
        self.process.wait()
