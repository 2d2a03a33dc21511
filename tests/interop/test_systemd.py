"""The units of `examples/deploy` under what systemd brings for trying them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from integration.test_deploy import DEPLOY, check_it_serves_and_ends, running

Require = Callable[[object, str], None]


async def test_systemd_passes_the_socket(require: Require) -> None:
    activate = shutil.which("systemd-socket-activate")
    require(activate, "systemd-socket-activate is not installed")
    unit = (DEPLOY / "app.socket").read_text()
    name = re.findall(r"^FileDescriptorName=(.*)$", unit, re.M)[0]
    (address,) = re.findall(r"^Environment=BIND=(.*)$", (DEPLOY / "app.service").read_text(), re.M)
    before = [str(activate), "--listen=127.0.0.1:PORT", f"--fdname={name}", f"--setenv=BIND={address}"]
    before += [f"--setenv={variable}" for variable in ("PYTHONPATH", "PATH")]
    async with running(*before) as program:
        await check_it_serves_and_ends(program)


def test_systemd_accepts_the_units(require: Require, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    require(analyze, "systemd-analyze is not installed")
    for unit in ("app.socket", "app.service"):
        text = (DEPLOY / unit).read_text()
        (tmp_path / unit).write_text(text.replace("/srv/app/venv/bin/python", sys.executable))
    done = subprocess.run(
        [str(analyze), "verify", "--man=no", tmp_path / "app.service", tmp_path / "app.socket"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    ours = [line for line in done.stderr.splitlines() if "app." in line]
    assert ours == []
