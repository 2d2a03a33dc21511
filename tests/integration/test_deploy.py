"""The files of `examples/deploy`: the program is started, asked and ended as each of them does it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from fabric import ConnectionClosed, ConnectionFailed, WebSocketClient
from fabric.server import DEFAULT_SHUTDOWN_TIMEOUT
from support.pages import ROOT
from support.ports import reserved_port

DEPLOY = ROOT / "examples/deploy"

Require = Callable[[object, str], None]


class Program:
    """The program in a process of its own.

    Attributes:
        port: where it listens.
        process: it.
    """

    def __init__(self, port: int, process: asyncio.subprocess.Process) -> None:
        self.port = port
        self.process = process

    async def get(self, path: str) -> int:
        """The status that it answers to GET."""

        def ask() -> int:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
                    status: int = answer.status
                    return status
            except urllib.error.HTTPError as error:
                with error:
                    return error.code

        return await asyncio.to_thread(ask)

    async def connect(self) -> WebSocketClient:
        """A client, once it listens."""
        while True:
            try:
                return await WebSocketClient.connect(f"ws://127.0.0.1:{self.port}", auto_reconnect=False)
            except ConnectionFailed:
                assert self.process.returncode is None
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running(*before: str, **environment: str) -> AsyncIterator[Program]:
    """Start the program, behind the command `before`, in which PORT stands for a free one."""
    with reserved_port() as port:
        values = {name: value.replace("PORT", str(port)) for name, value in environment.items()}
        command = [word.replace("PORT", str(port)) for word in before]
        process = await asyncio.create_subprocess_exec(
            *command,
            sys.executable,
            "-W",
            "error",
            DEPLOY / "app.py",
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), **values},
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield Program(port, process)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await process.communicate()


async def check_it_serves_and_ends(program: Program) -> None:
    client = await program.connect()
    await client.send("hello")
    assert await client.recv() == "hello"
    program.process.terminate()
    with contextlib.suppress(ConnectionClosed):
        await client.recv()
    assert client.close_code == 1001
    assert await program.process.wait() == 0
    await client.close()


async def test_the_program_serves_and_ends() -> None:
    async with running(BIND="127.0.0.1:PORT") as program:
        await check_it_serves_and_ends(program)


async def test_probes() -> None:
    """As kubernetes.yaml has them: `/ready` says no where there is no room, `/health` goes on saying yes."""
    async with running(BIND="127.0.0.1:PORT", MAX_CONNECTIONS="1") as program:
        client = await program.connect()
        await client.ping()
        assert await program.get("/health") == 200
        assert await program.get("/ready") == 503
        await client.close()
        while await program.get("/ready") != 200:
            await asyncio.sleep(0.01)


def test_systemd_waits_longer_than_the_server() -> None:
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", (DEPLOY / "app.service").read_text(), re.M)
    assert int(seconds) > DEFAULT_SHUTDOWN_TIMEOUT


# Docker


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, with what follows each."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.M))
    lines = [line.partition(" ") for line in text.splitlines() if line.strip()]
    return [(name, rest) for name, _, rest in lines]


def test_the_dockerfile_is_linted(require: Require) -> None:
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=os.path.dirname(sys.executable))
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, DEPLOY / "Dockerfile"], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_the_dockerfile_does_what_its_page_says() -> None:
    found = instructions()
    names = {name for name, _ in found}
    assert names <= {"ARG", "FROM", "COPY", "RUN", "ENV", "EXPOSE", "USER", "HEALTHCHECK", "CMD"}
    for name, rest in found:
        if name == "COPY" and not rest.startswith("--from"):
            *sources, _ = rest.split()
            assert all(source == "wheelhouse/" or (ROOT / source).exists() for source in sources)
    (command,) = [rest for name, rest in found if name == "CMD"]
    assert command.startswith("[")  # no shell, which would keep SIGTERM to itself
    copied = {rest.split()[-1] + Path(rest.split()[-2]).name for name, rest in found if name == "COPY"}
    assert "/srv/app/app.py" in copied
    assert '"/srv/app/app.py"' in command
    assert [rest for name, rest in found if name == "USER"] == ["10001:10001"]


def test_a_wheel_is_made_where_the_dockerfile_looks_for_it() -> None:
    assert "auditwheel repair -w wheelhouse" in (ROOT / "Makefile").read_text()


# Kubernetes


def test_the_manifest() -> None:
    yaml = pytest.importorskip("yaml")
    deployment, service = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    pod: dict[str, Any] = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (port,) = container["ports"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == labels
    assert {each["targetPort"] for each in service["spec"]["ports"]} == {port["name"]}
    environment = {each["name"]: each["value"] for each in container["env"]}
    assert environment["BIND"].endswith(f":{port['containerPort']}")
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {probe["port"] for probe in probes.values()} == {port["name"]}
    assert probes["readiness"]["path"] == "/ready"
    assert probes["startup"]["path"] == probes["liveness"]["path"] == "/health"
    sleep, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    assert pod["terminationGracePeriodSeconds"] > int(seconds) + DEFAULT_SHUTDOWN_TIMEOUT
