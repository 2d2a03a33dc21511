"""mypy in strict mode and pyright, as the author of a program meets them: what they say of files that use fabric."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

import fabric

PYRIGHT = Path(__file__).parents[1] / "interop/node/node_modules/.bin/pyright"
MISSING = "pyright is not installed: make test does it where there is npm"


def require_pyright(require: Callable[[object, str], None]) -> None:
    """Skip the test where there is no npm, by which pyright comes; fail it in CI where only pyright is missing."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, and so pyright is not")
    require(PYRIGHT.exists(), MISSING)


PATIENCE = 240.0  # seconds: they take 20, and pytest ends the whole run where a test takes 300

_HOME = Path(fabric.__file__).parents[1]
_MYPY = """[mypy]
strict = True
ignore_missing_imports = True
untyped_calls_exclude = Cython
cache_dir = {}
[mypy-setuptools.*]
ignore_missing_imports = True
"""


class Objection(NamedTuple):
    """One error that a checker has found."""

    file: Path
    line: int
    text: str


def mypy(folder: Path, programs: Iterable[Path], beside: Iterable[Path] = ()) -> list[Objection]:
    """What mypy finds in `programs`. `folder` is for its files; modules are also looked for in the folders `beside`."""
    config = folder / "mypy.ini"
    config.write_text(_MYPY.format(folder / "cache"))
    command = [sys.executable, "-m", "mypy", "--config-file", config, "--no-error-summary", "--no-pretty"]
    paths = os.pathsep.join(map(str, (_HOME, *beside)))
    checked = {program.resolve() for program in programs}
    said = _run([*command, "--show-absolute-path", *checked], folder, os.environ | {"MYPYPATH": paths})
    found = (line.split(":", 2) for line in said.splitlines() if ": error:" in line)
    objections = [Objection(Path(file), int(line), text.strip()) for file, line, text in found]
    return [objection for objection in objections if objection.file in checked]


def pyright(folder: Path, programs: Iterable[Path], beside: Iterable[Path] = ()) -> list[Objection]:
    """What pyright finds in `programs`; arguments as for `mypy`."""
    settings = {
        "include": [str(program.resolve()) for program in programs],
        "extraPaths": [str(_HOME), *map(str, beside)],
        "typeCheckingMode": "standard",
        "reportMissingImports": False,  # what a program uses beside fabric need not be there
        "reportMissingModuleSource": False,
    }
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [PYRIGHT, "--project", folder, "--pythonpath", sys.executable, "--outputjson"]
    said = _run(command, folder, os.environ)
    return [
        Objection(Path(each["file"]), each["range"]["start"]["line"] + 1, each["message"])
        for each in json.loads(said)["generalDiagnostics"]
        if each["severity"] == "error"
    ]


def _run(command: Sequence[str | Path], folder: Path, environment: Mapping[str, str]) -> str:
    """What a checker prints. On a machine that is too busy for it, the test is skipped."""
    try:
        run = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"no verdict within {PATIENCE:.0f} s")
    assert run.returncode in (0, 1), run.stdout + run.stderr
    return run.stdout
