"""A NATS server that this process starts as its child, on loopback and with a random token.

It ends with this process, in whatever way that ends: between the two is a shell that waits for the end of its standard
input, and then removes what the server has stored. A server that ends before, and is started again, finds its store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from fabric._connection.events import log_event
from fabric.broker import BrokerUnavailable

__all__ = ["EmbeddedNats", "find_nats_server", "port_in"]

logger = logging.getLogger("fabric.broker")

PORT = re.compile(r'"(?:nats|tls)://[^"]*:(\d+)"')
AGAIN = 1.0  # seconds until another attempt to start one that could not be started again
START = 30.0  # seconds that the server has to begin to listen
END = 5.0  # seconds that it has to end
LOOK = 0.005  # seconds between two checks whether it listens
# Ends the server at the end of standard input, and itself when the server has ended. The first argument is the
# directory in which the server stores.
GUARD = """\
store=$1
shift
exec 3<&0
"$@" </dev/null 3<&- &
server=$!
(read -r _ <&3; : >"$store/end"; kill $server) 2>/dev/null &
guard=$!
wait $server
status=$?
kill $guard 2>/dev/null
[ ! -e "$store/end" ] || rm -rf "$store"
exit $status
"""


class EmbeddedNats:
    """Starts a server, and stops it.

    Attributes:
        url: with the token in it; empty before the first start, and the same after each further one.
    """

    def __init__(self) -> None:
        self.url = ""
        self._token = secrets.token_urlsafe(24)
        self._port = -1  # any
        self._store = ""  # a directory, from the first start on
        self._process: asyncio.subprocess.Process | None = None

    @property
    def is_running(self) -> bool:
        """Has it been started, and not ended?"""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Return once it listens.

        Raises:
            BrokerUnavailable: it is not installed, or does not begin to listen.
        """
        program = find_nats_server()
        if program is None:
            raise BrokerUnavailable(
                'nats-server is not in PATH: install it, or pip install "websocket-fabric[nats-server]"'
            )
        is_first = not self._store
        if is_first:
            self._store = tempfile.mkdtemp(prefix="fabric-nats-store-")
        try:
            await self._launch(program)
        except BaseException:
            if is_first:
                await self.stop()
            raise

    async def _launch(self, program: str) -> None:
        with tempfile.TemporaryDirectory(dir=self._store) as folder:  # so that it goes with that in any case
            config = Path(folder) / "nats.conf"
            config.touch(mode=0o600)  # no other user may read the token, as they could in the arguments
            config.write_text(
                f'host: "127.0.0.1"\nport: {self._port}\nports_file_dir: "{folder}"\n'
                f'authorization {{ token: "{self._token}" }}\njetstream {{ store_dir: "{self._store}" }}\n'
            )
            self._process = await asyncio.create_subprocess_exec(
                "/bin/sh",
                "-c",
                GUARD,
                "sh",
                self._store,
                program,
                "-c",
                str(config),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C on a terminal is for this process, which stops it
            )
            self._port = await self._listening(Path(folder))
        self.url = f"nats://{self._token}@127.0.0.1:{self._port}"

    async def _listening(self, folder: Path) -> int:
        """The port that the server has chosen, which it writes to a file once it listens."""
        assert self._process is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START):
                while self._process.returncode is None:
                    port = port_in(folder)
                    if port is not None:
                        return port
                    await asyncio.sleep(LOOK)
        process, self._process = self._process, None
        code = process.returncode
        if code is None:
            kill(process)  # the shell would remove what an earlier server has stored
            await process.wait()
        raise BrokerUnavailable(f"nats-server does not begin to listen (exit status {code})")

    async def wait(self) -> int | None:
        """Wait until it has ended; return the exit status."""
        return None if self._process is None else await self._process.wait()

    async def keep_running(self) -> None:
        """Start it again whenever it ends, on the same port, until cancelled."""
        while True:
            code = await self.wait()
            log_event(logger, logging.ERROR, "nats-server has ended (exit status %s); it is started again", code)
            while not self.is_running:
                try:
                    await self.start()
                except (BrokerUnavailable, OSError) as error:
                    log_event(logger, logging.ERROR, "nats-server could not be started again: %s", error)
                    await asyncio.sleep(AGAIN)

    async def stop(self) -> None:
        """Stop it, and remove what it has stored."""
        try:
            await self._end()
        finally:
            store, self._store = self._store, ""
            shutil.rmtree(store, ignore_errors=True)

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), END)
        finally:  # also where this is cancelled
            if process.returncode is None:
                kill(process)
        await process.wait()


def kill(process: asyncio.subprocess.Process) -> None:
    """Kill the shell and the server."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it has just ended
        os.killpg(process.pid, signal.SIGKILL)  # the shell alone would leave the server behind


def port_in(folder: Path) -> int | None:
    """The port in the file that a NATS server writes once it listens."""
    for file in folder.glob("*.ports"):
        found = PORT.search(file.read_text())
        if found is not None:
            return int(found[1])
    return None


def find_nats_server() -> str | None:
    """The program `nats-server`: in PATH, or where this Python's packages put programs."""
    return shutil.which("nats-server") or shutil.which("nats-server", path=str(Path(sys.executable).parent))
