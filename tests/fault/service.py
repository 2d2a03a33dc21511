"""A server in a process of its own, to be killed: `python -m fault.service FILE LOOP '{"port": 0, ...}'`.

Echoes, and writes to FILE what happened, a line each and at once, so that it outlives SIGKILL: `open CONNECTION`,
`CONNECTION NUMBER` for each message received, `error TEXT` for each error logged. Prints its port when it listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import resource
import signal
import ssl
import sys
from pathlib import Path
from typing import Any, Self

import uvloop

from fabric.error import ConnectionClosed
from fabric.server import ConnectedClient, WebSocketServer
from support.ports import reserved_port

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.SelectorEventLoop}


def open_notes(path: Path) -> int:
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    # A process that was killed may have left a part of a line: a write that crosses a page is not all or nothing.
    os.truncate(file, path.read_bytes().rfind(b"\n") + 1)
    return file


async def serve(path: str, port: int, descriptors: int | None, certificate: str | None, **options: Any) -> None:
    file = open_notes(Path(path))
    numbers = itertools.count()

    def note(text: str) -> None:
        os.write(file, f"{text}\n".encode())

    class Errors(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            note("error " + record.getMessage().replace("\n", " "))

    logging.getLogger().addHandler(Errors(logging.ERROR))

    async def handle(client: ConnectedClient) -> None:
        me = f"{os.getpid()}-{next(numbers)}"
        note(f"open {me}")
        with contextlib.suppress(ConnectionClosed):
            async for message in client:
                note(f"{me} {message.as_text().partition(':')[0]}")
                await client.send(message)

    if certificate is not None:
        options["ssl"] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        options["ssl"].load_cert_chain(certificate)
    async with WebSocketServer.bind(f"127.0.0.1:{port}", handle, **options) as server:
        if descriptors is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
        print(server.port, flush=True)
        await server.serve_forever()


class Service:
    """What the test sees of it: `async with Service(folder) as service`, on one port over all restarts.

    Args:
        folder: where it keeps its file.
        loop: "uvloop" or "asyncio".
        descriptors: the most that it may have open; None = as many as the test.
        certificate: it speaks TLS, with this file of key and certificate.
        options: those of `WebSocketServer.bind`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        loop: str = "uvloop",
        descriptors: int | None = None,
        certificate: Path | None = None,
        **options: Any,
    ) -> None:
        self._path = folder / "service.log"
        self._loop = loop
        self._scheme = "ws" if certificate is None else "wss"
        file = None if certificate is None else str(certificate)
        own = {"port": 0, "descriptors": descriptors, "certificate": file, "compression": None}
        self._options: dict[str, Any] = {**own, **options}
        self._process: asyncio.subprocess.Process | None = None
        self._reserved = contextlib.ExitStack()

    async def __aenter__(self) -> Self:
        if not self._options["port"]:
            self._options["port"] = self._reserved.enter_context(reserved_port())
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()
        self._reserved.close()

    @property
    def port(self) -> int:
        return int(self._options["port"])

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}/"

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "fault.service",
            str(self._path),
            self._loop,
            json.dumps(self._options),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert self._process.stdout is not None
        self._options["port"] = int(await self._process.stdout.readline())

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGKILL)
            await process.communicate()

    @property
    def lines(self) -> list[list[str]]:
        whole = self._path.read_text().rpartition("\n")[0]  # a line may be under way
        return [line.split(" ", 1) for line in whole.splitlines()]

    @property
    def errors(self) -> list[str]:
        return [text for what, text in self.lines if what == "error"]

    @property
    def connections(self) -> int:
        """Connections so far, over all restarts."""
        return sum(what == "open" for what, _ in self.lines)

    @property
    def arrived(self) -> list[list[int]]:
        """The numbers that each connection brought, in the order of both."""
        found: dict[str, list[int]] = {}
        for what, text in self.lines:
            if what == "open":
                found[text] = []
            elif what != "error":
                found[what].append(int(text))
        return list(found.values())


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=LOOPS[sys.argv[2]]) as runner:
        runner.run(serve(sys.argv[1], **json.loads(sys.argv[3])))
