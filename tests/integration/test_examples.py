"""Each example runs alone, ends by itself, and says what it shows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
ELSEWHERE = ("apps/", "chat_fleet/", "deploy/", "tutorial/")

# What the output must say, in this order, as regular expressions.
EXPECTED = {
    "basic_client": [
        r"text:   sent 'hello', received 'hello'",
        r"binary: sent 3 bytes, received b'\\x00\\x01\\x02'",
        r"decoded Quote\(symbol='EURUSD', bid=1.0841, ask=1.0843\)",
        r"ping:   \d+ µs",
        r"loop:   message 0\nloop:   message 1\nloop:   message 2\nloop:   last\n",
        r"closed with 1000",
    ],
    "basic_server": [
        r"broadcast reached 2 of 2 clients",
        r"GET /health answers 'ok'",
        r"welcome, Ada\n  Ada said 'good morning'\n  the market opens\n",
        r"\(closed with 1001: server shutdown\)",
        r"welcome, Grace",
        r"in all: 2 messages in, 6 out",
    ],
    "configured_client": [
        r"\('Authorization', '\*\*\*'\)",
        r"connected:    subprotocol prices.v2, extensions permessage-deflate",
        r"received:     'example: one'",
        r"disconnected: .*1001",
        r"sent:         'two', while there is no connection \(RECONNECTING\)",
        r"received:     'example: two'",
        r"reconnected:  1 time, one object, 2 messages",
    ],
    "connection_pool": [
        r"200 calls at once: '0 squared is 0' ... '199 squared is 39601'",
        r"connections opened: 5,",
        r"open already: \d+",
        r"in use: 0, waiting: 0",
        r"1 discarded",
        r"the server has 0 connections",
    ],
    "echo_server": [
        r"(\+ [0-9a-f]{8} from \('127\.0\.0\.1', \d+\)\n){3}",
        r"connection +messages/s +received +sent +ping",
        r"[0-9a-f]{8} +[\d,]+ +[\d,]+ +[\d,]+ +[\d,]+ µs",
        r"- [0-9a-f]{8} closed with 1000 after \d+ messages",
        r"in all [\d,]+ messages over 3 connections",
    ],
    "fragmentation": [
        r"opcode 1, fin False  b'Fragments may be cut'",
        r"opcode 0, fin True ",
        r"(not complete yet: None\n +){3}put together again: 'Fragments may be cut anywhere.*🦊\.'",
        r"over the limit of 50 bytes",
        r"came in 4 parts: \['part 0, ', 'part 1, ', 'part 2, ', 'end'\]",
        r"came back as one message of 1,000,000",
    ],
    "rate_limiting": [
        r"operation 5: allowed, 0 left\n  operation 6: refused, retry after \d+ ms",
        r"acquire\(\) waits until it is allowed: \d+ ms",
        r"slow   30 of 30 messages answered within 0\.[3-9] s; the connection stays open",
        r"drop   1\d of 30 messages answered .*; (1\d|20) were dropped",
        r"close  1\d of 30 messages answered .*; closed with 1008",
    ],
    "subprotocol_negotiation": [
        r"offered \['chat.v2', 'chat.v1'\]: chat.v2",
        r"offered \['mqtt'\]: None",
        r"takes any: mqtt",
        r"requires one: no subprotocol in common",
        r"names are tokens: invalid subprotocol",
        r"agreed on calc.json; \[1, 2, 3\] -> \{\"sum\":6\}",
        r"agreed on calc.text; 1 2 3 -> 6",
        r"refused with 400, no subprotocol in common",
    ],
    "sync_client": [
        r"received: 'hello'",
        r"ping:     \d+ µs",
        r"nothing:  recv timed out after 0.01 s",
        r"thread:   one\nthread:   two\nthread:   three\nthread:   end\n",
        r"polled:   'quick'",
        r"closed with 1000",
    ],
    "cython_echo/run": [
        r"compiling pinger.pyx against the .pxd files of fabric_ext",
        r"20,000 round trips, each timed and recorded in C",
        r"p50 [\d.]+ µs",
    ],
}


def run(program: Path, folder: Path) -> str:
    """Run an example with warnings as errors, away from the source tree; what it printed."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONIOENCODING": "utf-8",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    if os.environ.get("PYTHONSAFEPATH"):  # the build under test is elsewhere on the path
        environment["PYTHONPATH"] = paths[1]
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        check=False,
        capture_output=True,
        encoding="utf-8",
        cwd=folder,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stderr == ""
    return done.stdout


def test_every_example_is_tested() -> None:
    """Here, but for those in folders that have test files of their own."""
    programs = {path.relative_to(EXAMPLES).with_suffix("").as_posix() for path in EXAMPLES.rglob("*.py")}
    assert {name for name in programs if not name.startswith(ELSEWHERE)} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_example(name: str, tmp_path: Path, require: Callable[[object, str], None]) -> None:
    if name == "cython_echo/run":
        require(shutil.which(os.environ.get("CC", "cc")), "there is no C compiler")
        pytest.importorskip("Cython")
        pytest.importorskip("setuptools")
    printed = run(EXAMPLES / f"{name}.py", tmp_path)
    at = 0
    for pattern in EXPECTED[name]:
        found = re.compile(pattern).search(printed, at)
        assert found, f"{pattern!r} is not where it should be in:\n{printed}"
        at = found.end()
