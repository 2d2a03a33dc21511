"""Every target takes its seeds and generated inputs, and those that coverage leads to with FABRIC_FUZZ_SECONDS.

atheris, which the last take, is no peer that every system can have: without it they are skipped, in CI too.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.targets import TARGETS

HERE = Path(__file__).parent
SECONDS = int(os.environ.get("FABRIC_FUZZ_SECONDS") or 0)
NO_ATHERIS = (
    "not guided by coverage: atheris is not installed; `make fuzz` installs it where there are wheels,"
    f" on Linux on x86-64 for CPython 3.11 to 3.14; this is {sys.platform} on {platform.machine()},"
    f" {platform.python_implementation()} {platform.python_version()}"
)

# Words of the grammars that the text targets read.
WORDS = [
    *' \t,;:="\\/?#@[]%.*\r\n\0\x7f\xe9😀0159',
    *"\r\n|\r\n\r\n|GET|HEAD|POST| HTTP/1.1|HTTP/1.0|HTTP/2.0|HTTP/1.1 101 |200 OK".split("|"),
    *"Host: a|Upgrade: websocket|Connection: keep-alive, Upgrade|Sec-WebSocket-Version: 13".split("|"),
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
    *"Content-Length: 0|Transfer-Encoding: chunked|Sec-WebSocket-Extensions: ".split("|"),
    *"permessage-deflate|permessage-zstd|server_no_context_takeover|client_no_context_takeover".split("|"),
    *"server_max_window_bits|client_max_window_bits|dictionary|8|9|10|15|16|chat|superchat".split("|"),
    *"ws://|wss://|http://|user:pass@|example.com|[::1]|:65536|:80|bücher.example|xn--".split("|"),
]

texts = st.lists(st.sampled_from(WORDS), max_size=25).map(lambda words: "".join(words).encode())


@pytest.mark.parametrize("name", TARGETS)
def test_seeds(name: str) -> None:
    seeds = sorted((HERE / "corpus" / name).iterdir())
    assert seeds
    for seed in seeds:
        TARGETS[name](seed.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=SECONDS * 10 or 100)
@given(data=texts | st.binary(max_size=200))
def test_generated(name: str, data: bytes) -> None:
    TARGETS[name](data)


if SECONDS:

    @pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason=NO_ATHERIS)
    @pytest.mark.parametrize("name", TARGETS)
    def test_guided(name: str, tmp_path: Path) -> None:
        command = [sys.executable, HERE / "guided.py", name, str(max(1, SECONDS // len(TARGETS))), tmp_path]
        path = os.pathsep.join([str(HERE.parent), str(HERE.parent.parent)])
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
        )
        crashes = {path.name: path.read_bytes() for path in tmp_path.glob(f"{name}-*")}
        assert done.returncode == 0, f"{crashes}\n{done.stderr[-3000:]}"
