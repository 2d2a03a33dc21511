"""The SSH tool `fabric` in the same environment: found, and told of, whichever of the two was installed last."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fabric
from fabric import _namesake

OURS = Path(fabric.__file__).parent
COMPILED = Path(sys.modules["fabric_ext"].__file__ or "").parent


def linked(folder: Path) -> Path:
    """Our package in a folder of its own, file by file."""
    package = folder / "fabric"
    package.mkdir()
    for path in OURS.iterdir():
        (package / path.name).symlink_to(path)
    (folder / "fabric_ext").symlink_to(COMPILED)
    return package


def run(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONSAFEPATH", None)
    return subprocess.run(
        [sys.executable, *argv], check=False, capture_output=True, text=True, cwd=folder, env=environment, timeout=60
    )


def test_nothing_is_said_of_our_own_files() -> None:
    assert _namesake.foreign_files() == []
    assert not _namesake.is_overwritten()


@pytest.mark.parametrize("name", _namesake.FOREIGN)
def test_importing_warns_of_foreign_files(name: str, tmp_path: Path) -> None:
    package = linked(tmp_path)
    (package / name).touch()
    done = run(tmp_path, "-c", "import fabric; print(fabric.VERSION)")
    assert done.stdout.strip() == fabric.VERSION
    assert "RuntimeWarning: two packages have been installed into" in done.stderr
    assert "pip uninstall -y fabric websocket-fabric && pip install websocket-fabric" in done.stderr
    assert "<string>:1" in done.stderr  # the line that imports it, not one of ours


def test_the_doctor_tells_of_foreign_files(tmp_path: Path) -> None:
    package = linked(tmp_path)
    (package / "tunnels.py").touch()
    done = run(tmp_path, "-W", "ignore", "-m", "fabric", "doctor")
    assert done.returncode == 1, done.stderr
    assert "problem: two packages have been installed into" in done.stdout


def test_the_command_tells_when_it_was_overwritten(tmp_path: Path) -> None:
    """The other package came last: its `__init__.py` is there, and files of ours that it does not have."""
    package = linked(tmp_path)
    for name in ("__init__.py", "__main__.py", "_version.py", "auth.py", "config.py"):
        (package / name).unlink()
        (package / name).write_text("__version__ = '3.2.2'\n")
    (package / "tunnels.py").touch()
    done = run(tmp_path, "-c", "import sys; from fabric.cli.start import main; sys.exit(main())")
    assert done.returncode == 1
    assert done.stderr.startswith("fabric: two packages have been installed into")
    assert "Traceback" not in done.stderr
