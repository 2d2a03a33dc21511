"""A real broker for one test: started, killed, stopped for a while, and started again on the same port."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
from pathlib import Path
from typing import Self

from fabric.broker.embedded import find_nats_server, port_in


class RealBroker:
    """A program on loopback; `lines` are added to its configuration."""

    scheme = ""
    KEPT: tuple[str, ...] = ()  # lines with which it keeps its data
    DATA = ""  # where, below its folder

    def __init__(self, folder: Path, *lines: str) -> None:
        self.folder = folder
        self.lines = lines
        self.port = 0
        self._process: asyncio.subprocess.Process | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.address}"

    @property
    def data(self) -> Path:
        return self.folder / self.DATA

    async def start(self) -> None:
        raise NotImplementedError

    async def run(self, *command: str) -> None:
        log = (self.folder / "log").open("ab")
        self._process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, cwd=self.folder)
        log.close()

    def check(self) -> None:
        assert self._process is not None
        assert self._process.returncode is None, (self.folder / "log").read_text()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.kill()

    async def kill(self) -> None:
        """As a machine that is switched off."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


class NatsServer(RealBroker):
    """nats-server."""

    scheme = "nats"
    KEPT = ('jetstream { store_dir: "store" }',)
    DATA = "store"

    async def start(self) -> None:
        program = find_nats_server()
        assert program is not None
        for old in self.folder.glob("*.ports"):
            old.unlink()
        config = self.folder / "nats.conf"
        port = self.port or -1  # any
        config.write_text(
            "\n".join(['host: "127.0.0.1"', f"port: {port}", f'ports_file_dir: "{self.folder}"', *self.lines])
        )
        await self.run(program, "-c", str(config))
        while (found := port_in(self.folder)) is None:
            self.check()
            await asyncio.sleep(0.005)
        self.port = found


class RedisServer(RealBroker):
    """redis-server, or valkey-server."""

    scheme = "redis"
    KEPT = ("appendonly yes", "appendfsync always")
    DATA = "appendonlydir"

    @staticmethod
    def program() -> str | None:
        return shutil.which("redis-server") or shutil.which("valkey-server")

    async def start(self) -> None:
        program = self.program()
        assert program is not None
        for _ in range(10):  # it takes no port 0, and another process may be faster at a free one
            if not self.port:
                with socket.create_server(("127.0.0.1", 0)) as probe:
                    self.port = probe.getsockname()[1]
            config = self.folder / "redis.conf"
            config.write_text("\n".join(["bind 127.0.0.1", f"port {self.port}", 'save ""', *self.lines]))
            await self.run(program, str(config))
            if await self._listens():
                return
            self.port = 0
        raise AssertionError((self.folder / "log").read_text())

    async def _listens(self) -> bool:
        """Wait until it accepts connections; False if it has ended."""
        assert self._process is not None
        while self._process.returncode is None:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.005)
            else:
                writer.close()
                await writer.wait_closed()
                return True
        return False
