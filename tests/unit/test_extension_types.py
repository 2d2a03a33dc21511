"""Every extension type answers whatever Python does to it; the interpreter lives."""

from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import fabric_ext

HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement
CHILD = Path(__file__).parents[1] / "support" / "extension_types.py"


def extension_types() -> list[tuple[str, str]]:
    """Module and name of every type that compiled code defines."""
    found = []
    for each in pkgutil.iter_modules(fabric_ext.__path__, "fabric_ext."):
        module = importlib.import_module(each.name)
        for name, kind in vars(module).items():
            if isinstance(kind, type) and kind.__module__ == each.name and not kind.__flags__ & HEAP_TYPE:
                found.append((each.name, name))
    return found


def test_there_are_extension_types() -> None:
    assert ("fabric_ext.message", "Message") in extension_types()


@pytest.mark.parametrize(("module", "name"), extension_types())
def test_python_may_do_to_it_what_it_can(module: str, name: str) -> None:
    command = [sys.executable, "-X", "faulthandler", CHILD, module, name]
    path = os.pathsep.join(sys.path)
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0, f"{module}.{name} ended by {done.returncode} at {last}\n{done.stderr[-2000:]}"
