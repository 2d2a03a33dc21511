"""A NATS server that this process starts as its child, on loopback and with a random token.

It ends with this process, in whatever way that ends: between the two is a shell that waits for the end of its standard
input, and then removes what the server has stored. The shell also makes the directory for that, so none is left behind
if this process ends in between. A server that ends before, and is started again, finds its store.
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

__all__ = ["FILE", "EmbeddedNats", "find_nats_server", "port_in", "shared_url"]

logger = logging.getLogger("fabric.broker")

FILE = "FABRIC_EMBEDDED_NATS"  # path of the file with the URL, for the children of the process that started the server
PORT = re.compile(r'"(?:nats|tls)://[^"]*:(\d+)"')
AGAIN = 1.0  # seconds until another attempt to start one that could not be started again
START = 30.0  # seconds that the server has to begin to listen
END = 5.0  # seconds that it has to end
LOOK = 0.005  # seconds between two checks whether it listens
# Takes the configuration from standard input, starts the server, ends it at the end of standard input, and itself when
# the server has ended. The arguments are the directory in which the server stores, and the program.
GUARD = """\
store=$1
umask 077
rm -rf "$store/run"
mkdir -p "$store/run" || exit
while IFS= read -r line && [ "$line" != end ]; do
    printf '%s\\n' "$line"
done >"$store/run/nats.conf"
[ "$line" = end ] || { rm -rf "$store"; exit 1; }
exec 3<&0
"$2" -c "$store/run/nats.conf" </dev/null 3<&- &
server=$!
(read -r _ <&3; : >"$store/end"; kill $server) 2>/dev/null &
guard=$!
wait $server
status=$?
kill $guard 2>/dev/null
[ ! -e "$store/end" ] || rm -rf "$store"
exit $status
"""

inherited = ""  # in a worker: the URL of its parent's server, which the parent has sent over a channel of its own


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
            self._store = str(Path(tempfile.gettempdir()) / f"fabric-nats-store-{secrets.token_hex(8)}")
        try:
            await self._launch(program)
        except BaseException:
            if is_first:
                await self.stop()
            raise

    async def _launch(self, program: str) -> None:
        folder = Path(self._store) / "run"
        config = (  # no other user may read the token, as they could in the arguments
            f'host: "127.0.0.1"\nport: {self._port}\nports_file_dir: "{folder}"\n'
            f'authorization {{ token: "{self._token}" }}\njetstream {{ store_dir: "{self._store}" }}\nend\n'
        )
        self._process = await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-c",
            GUARD,
            "sh",
            self._store,
            program,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C on a terminal is for this process, which stops it
        )
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(config.encode())
            self._port = await self._listening(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self.url = f"nats://{self._token}@127.0.0.1:{self._port}"

    def share(self) -> str:
        """Write the URL into a file that no other user can read, for other processes; return its path."""
        path = Path(self._store) / "url"
        path.write_text(self.url)  # the directory is this user's alone
        return str(path)

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


def shared_url() -> str | None:
    """The URL of the server that a parent process, or this one, has started; None if there is none.

    Raises:
        BrokerUnavailable: it has ended.
    """
    path = os.environ.get(FILE)
    if inherited or path is None:
        return inherited or None
    try:
        return Path(path).read_text()
    except OSError as error:
        raise BrokerUnavailable(f"the nats-server of a parent process has ended: {path}: {error.strerror}") from error


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
