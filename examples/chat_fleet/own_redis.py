"""A Redis for one program: on loopback, with a random password, in memory alone. It ends with the program."""

from __future__ import annotations

import contextlib
import importlib.util
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

TRIES = 5  # another program may be faster at a port that was free

# Ends Redis when the program has ended, however it ended: its end of the standard input is closed then.
GUARD = """\
exec 3<&0
"$@" </dev/null 3<&- &
redis=$!
(read -r _ <&3; kill $redis) 2>/dev/null &
wait $redis
"""


class NotInstalled(Exception):
    """Something that it needs is not there; the text says what."""


@contextlib.contextmanager
def own_redis() -> Iterator[str]:
    """Start one, and stop it in the end; its URL.

    Raises:
        NotInstalled: redis-server, or valkey-server, or the package hiredis is missing.
    """
    if importlib.util.find_spec("hiredis") is None:
        raise NotInstalled('hiredis is not installed (pip install "websocket-fabric[redis]")')
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise NotInstalled("there is no redis-server in PATH, and no valkey-server")
    password = secrets.token_urlsafe(24)
    with tempfile.TemporaryDirectory(prefix="chat-redis-") as folder:  # nobody else can read it
        for _ in range(TRIES):
            with socket.create_server(("127.0.0.1", 0)) as probe:
                port = probe.getsockname()[1]
            config = Path(folder, "redis.conf")
            config.write_text(f'bind 127.0.0.1\nport {port}\nrequirepass {password}\nsave ""\ndir "{folder}"\n')
            command = ["/bin/sh", "-c", GUARD, "sh", program, str(config)]
            with subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the workers, who still need it
            ) as process:
                if listens(process, port):
                    yield f"redis://:{password}@127.0.0.1:{port}"
                    return
    raise RuntimeError(f"{program} ends at once")


def listens(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until it accepts connections; False if it has ended."""
    while process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return True
        time.sleep(0.01)
    return False
