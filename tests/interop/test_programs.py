"""Packages from PyPI that are written for websockets, run unchanged by `fabric run --as-websockets`.

Each program in `programs` connects to a server of its own on loopback, exchanges messages, is cut off, and comes back.
`make programs` installs the packages; without them the tests are skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "programs"
INSTALLED = Path(os.environ.get("FABRIC_PROGRAMS") or Path(sys.prefix) / "programs")


@pytest.mark.parametrize("program", sorted(path.stem for path in PROGRAMS.glob("*.py")))
def test_a_program_written_for_websockets(program: str) -> None:
    if not INSTALLED.is_dir():
        pytest.skip("its packages are not installed: `make programs`")
    command = [sys.executable, "-m", "fabric", "run", "--as-websockets", str(PROGRAMS / f"{program}.py")]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{INSTALLED}", "NO_PROXY": "*"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, env=environment)
    said = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr[-2000:]
    assert "cut" in said
    assert said[-1] == "done"
