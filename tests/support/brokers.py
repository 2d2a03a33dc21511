"""A real broker for one test: started, killed, stopped for a while, and started again on the same port."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Self

from fabric.broker.nats import find_nats_server, port_in


class NatsServer:
    """nats-server on loopback; `lines` are added to its configuration."""

    def __init__(self, folder: Path, *lines: str) -> None:
        self._folder = folder
        self._lines = lines
        self._process: asyncio.subprocess.Process | None = None
        self.port = -1

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"nats://{self.address}"

    async def start(self) -> None:
        program = find_nats_server()
        assert program is not None
        for old in self._folder.glob("*.ports"):
            old.unlink()
        config = self._folder / "nats.conf"
        listen = ['host: "127.0.0.1"', f"port: {self.port}", f'ports_file_dir: "{self._folder}"', *self._lines]
        config.write_text("\n".join(listen))
        log = (self._folder / "log").open("ab")
        self._process = await asyncio.create_subprocess_exec(program, "-c", str(config), stdout=log, stderr=log)
        log.close()
        while (port := port_in(self._folder)) is None:
            assert self._process.returncode is None, (self._folder / "log").read_text()
            await asyncio.sleep(0.005)
        self.port = port

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
