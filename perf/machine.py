"""Says what a result was measured on: machine, versions, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import tools

DISTRIBUTIONS = (
    "websocket-fabric",
    "picows",
    "aiofastnet",
    "uvloop",
    "websockets",
    "aiohttp",
    "socketify",
    "uvicorn",
    "fastapi",
    "wsproto",
    "Cython",
    "isal",
    "zlib-ng",
    "pyperf",
)


def output(*command: str) -> str | None:
    """First line a command prints, or None."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=tools.HERE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0] if lines and not done.returncode else None


def machine() -> dict[str, Any]:
    """Processor, cores, memory, kernel."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.M)
    megahertz = re.search(r"^cpu MHz\s*:\s*([\d.]+)", info, re.M)
    return {
        "processor": model[1] if model else platform.processor(),
        "megahertz": float(megahertz[1]) if megahertz else None,
        "cores": len(os.sched_getaffinity(0)),
        "virtual": "hypervisor" in info,
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": platform.release(),
        "load_average": os.getloadavg()[0],
    }


def versions() -> dict[str, str | None]:
    """Versions of the interpreter, the peers and what they stand on."""
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "compiler": output("cc", "--version"),
        "node": output("node", "--version"),
    }
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    package = tools.HERE / "node_modules" / "ws" / "package.json"
    if package.exists():
        version = re.search(r'"version":\s*"([^"]+)"', package.read_text())
        found["ws"] = version[1] if version else None
    boost = Path("/usr/include/boost/version.hpp")
    if boost.exists():
        version = re.search(r'BOOST_LIB_VERSION "([^"]+)"', boost.read_text())
        found["boost"] = version[1].replace("_", ".") if version else None
    return found


def commit() -> dict[str, Any]:
    """The commit measured, and whether the tree differed from it."""
    changed = output("git", "status", "--porcelain", "--untracked-files=no")
    return {"commit": output("git", "rev-parse", "HEAD"), "dirty": bool(changed)}
