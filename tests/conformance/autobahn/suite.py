"""Drives the Autobahn test suite: installs it, runs it against a server or a client, gathers its verdicts.

`sync` is the client without an event loop.

    python tests/conformance/autobahn/suite.py [server|client|sync] [PATTERN…]     prints what is not OK

The suite (`autobahntestsuite` on PyPI) needs Python 2.7, found as python2.7, as pyenv's, or by PYTHON27. It
is installed once, into `.autobahn/` at the root of the tree.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

HERE = Path(__file__).parent
HOME = HERE.parents[2] / ".autobahn"
SUITE = "autobahntestsuite==25.10.1"

STALL = 240.0
"""Seconds without any result after which a run is given up; the slowest case takes some 30."""

Verdict = tuple[str, str]
"""How the peer behaved in a case, and in its close: OK, NON-STRICT, INFORMATIONAL, FAILED …"""

SERVER = [sys.executable, str(HERE / "echo_server.py")]
CLIENT = [sys.executable, str(HERE / "echo_client.py")]
SYNC_CLIENT = [sys.executable, str(HERE / "sync_client.py")]

NOTHING_LEFT_OUT: dict[str, object] = {"exclude-cases": [], "exclude-agent-cases": {}}


class Unavailable(Exception):
    """The suite cannot run on this machine; the text says why."""


@lru_cache
def python27() -> str:
    """A working Python 2.7."""
    pyenv = sorted(Path.home().glob(".pyenv/versions/2.7.*/bin/python2.7"))
    for python in (os.environ.get("PYTHON27"), *map(str, pyenv), shutil.which("python2.7")):
        probe = "import ssl, sys, zlib; sys.exit(sys.version_info[:2] != (2, 7))"
        if python and subprocess.run([python, "-c", probe], capture_output=True, check=False).returncode == 0:
            return python
    raise Unavailable("the Autobahn suite needs Python 2.7; set PYTHON27 to its path")


@lru_cache
def packages() -> Path:
    """The folder that holds the suite, installed when it is missing."""
    place = HOME / "packages"
    done = HOME / SUITE
    if not done.exists():
        # The pip that comes with 2.7 may be too old to find wheels; 20.3 is the last for 2.7.
        bootstrap, install = HOME / "pip", [python27(), "-m", "pip", "install", "-q", "--target"]
        shutil.rmtree(HOME, ignore_errors=True)  # what an interrupted install left
        subprocess.run([*install, bootstrap, "pip<21"], check=True)
        environment = os.environ | {"PYTHONPATH": str(bootstrap)}
        subprocess.run([*install, place, SUITE], check=True, env=environment)
        done.touch()
    return place


@lru_cache
def all_cases() -> list[str]:
    """The ids of the suite's cases, in its order."""
    command = [python27(), HERE / "fuzzer27.py", packages(), "cases"]
    return list(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))


def select(patterns: Sequence[str], without: Sequence[str] = (), known: Sequence[str] | None = None) -> list[str]:
    """The cases that match one of `patterns` and none of `without`."""

    def hits(case: str, tried: Sequence[str]) -> bool:
        return any(fnmatch.fnmatchcase(case, pattern) for pattern in tried)

    return [c for c in known or all_cases() if hits(c, patterns) and not hits(c, without)]


class Wstest:
    """One wstest process and what it says."""

    def __init__(self, mode: str, specification: dict[str, object], scratch: Path) -> None:
        self.verdicts: dict[str, Verdict] = {}
        self.port = 0
        self.listening = threading.Event()
        self._log: list[str] = []
        path = scratch / f"{mode}.json"
        path.write_text(json.dumps(specification | {"outdir": str(scratch)}))
        self.process = subprocess.Popen(
            [python27(), "-u", HERE / "fuzzer27.py", packages(), mode, path],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
            text=True,
            errors="replace",
        )
        self._watchdog = self._new_watchdog()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _new_watchdog(self) -> threading.Timer:
        timer = threading.Timer(STALL, self.process.kill)
        timer.start()
        return timer

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            kind, _, rest = line.partition(" ")
            if kind == "RESULT":
                case, behaviour, close = json.loads(rest)
                self.verdicts[case] = (behaviour, close)
                self._watchdog.cancel()
                self._watchdog = self._new_watchdog()
            elif kind == "LISTENING":
                (self.port,) = json.loads(rest)
                self.listening.set()
            else:
                self._log = [*self._log[-30:], line]
        self._watchdog.cancel()
        self.listening.set()

    def log(self) -> str:
        return "".join(self._log)

    def wait(self) -> None:
        """Until it ends by itself, or stalls and is killed."""
        self.process.wait()
        self._reader.join()

    def stop(self) -> None:
        self.process.terminate()
        self.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextmanager
def wstest(mode: str, specification: dict[str, object]) -> Iterator[Wstest]:
    with tempfile.TemporaryDirectory() as scratch:
        running = Wstest(mode, specification, Path(scratch))
        try:
            yield running
        finally:
            running.stop()


def run_server(cases: Sequence[str], command: Sequence[str] = SERVER) -> dict[str, Verdict]:
    """Test a server: `command` starts it, and it prints the port that it listens on as its first line."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            target = {"agent": "fabric", "url": f"ws://127.0.0.1:{port}"}
            with wstest("fuzzingclient", {"servers": [target], "cases": list(cases), **NOTHING_LEFT_OUT}) as run:
                run.wait()
                return _complete(run)
        finally:
            server.terminate()


def run_client(cases: Sequence[str], command: Sequence[str] = CLIENT) -> dict[str, Verdict]:
    """Test a client: `command`, given a URL, runs the cases that it finds there and ends."""
    # wstest takes no port 0 from its specification.
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    url = f"ws://127.0.0.1:{port}"
    with wstest("fuzzingserver", {"url": url, "cases": list(cases), **NOTHING_LEFT_OUT}) as run:
        run.listening.wait()
        with subprocess.Popen([*command, url], stdin=subprocess.DEVNULL) as client:
            # A client that hangs is ended with the fuzzer, by the watchdog.
            threading.Thread(target=_kill_after, args=(run.process, client), daemon=True).start()
            client.wait()
        return _complete(run)


def run_sync(cases: Sequence[str]) -> dict[str, Verdict]:
    """Test the client without an event loop."""
    return run_client(cases, SYNC_CLIENT)


def _kill_after(first: subprocess.Popen[str], second: subprocess.Popen[bytes]) -> None:
    first.wait()
    second.kill()


def _complete(run: Wstest) -> dict[str, Verdict]:
    if not run.verdicts:
        raise RuntimeError(f"wstest ran no case:\n{run.log()}")
    return run.verdicts


RUN = {"server": run_server, "client": run_client, "sync": run_sync}


def main(arguments: list[str]) -> int:
    side = arguments.pop(0) if arguments and arguments[0] in RUN else "server"
    cases = select(arguments or ["*"], without=() if arguments else ("9.*", "12.*", "13.*"))
    verdicts = RUN[side](cases)
    odd = {case: verdicts.get(case) for case in cases if verdicts.get(case) != ("OK", "OK")}
    for case, verdict in odd.items():
        print(case, verdict or "did not run")
    print(f"{side}: {len(cases)} cases, {len(odd)} other than OK")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
