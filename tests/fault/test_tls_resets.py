"""A TLS peer that resets the connection together with its last bytes is noticed at once.

uvloop calls a reader once more after a reset, and then forgets it. In another process: when a loop keeps a descriptor
that is closed, libuv ends the process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.tls import authority, certificate_file

TESTS = Path(__file__).parent.parent


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("side", ["server", "client", "tunnel"])
def test_resets_are_noticed(side: str, loop: str, tmp_path: Path) -> None:
    certificate_file(tmp_path)
    trusted = tmp_path / "authority.pem"
    trusted.write_bytes(authority().cert_pem.bytes())
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    done = subprocess.run(
        [sys.executable, "-m", "fault.resets", side, loop, str(tmp_path), "7", "300"],
        env=os.environ | {"SSL_CERT_FILE": str(trusted), "PYTHONPATH": paths},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "noticed 300\n", "")
