"""`fabric doctor`: says what the installation consists of, and what is wrong with it.

Owns the list of what matters, and where each version is read.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import resource
import ssl
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fabric import _namesake
from fabric._version import VERSION
from fabric.cli.arguments import Formatter
from fabric.cli.screen import Screen
from fabric_ext.mask import select_kernel

__all__ = ["configure", "run"]

SUCCESS, FAILURE = 0, 1
PACKAGES = ("picows", "aiofastnet", "uvloop", "msgspec", "multidict", "zlib-ng", "zstandard")
FEW_DESCRIPTORS = 10_000  # a server of as many connections needs more

DESCRIPTION = """\
Say what this installation consists of: versions, processor, limits. A report of a problem should begin with it.

What is wrong is said in a sentence each, and makes the exit code 1.
"""


def configure(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "doctor", help="check the installation", description=DESCRIPTION, formatter_class=Formatter
    )
    parser.set_defaults(run=run, loop="auto")


async def run(_: argparse.Namespace, screen: Screen) -> int:
    """Say it; the exit code tells whether something is wrong."""
    facts = list(_facts())
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        screen.say(f"{name:<{width}}  {value}")
    for remark in _remarks():
        screen.say(f"remark: {remark}")
    wrong = _wrong()
    for problem in wrong:
        screen.say(f"problem: {problem}")
    if not wrong:
        screen.say("no problem found")
    return FAILURE if wrong else SUCCESS


def _facts() -> Iterator[tuple[str, str]]:
    yield "fabric", f"{VERSION} in {_namesake.FOLDER}"
    yield "Python", f"{platform.python_implementation()} {platform.python_version()}, {_gil()}"
    yield "system", f"{platform.system()} {platform.release()}, {platform.machine()}, {_libc()}"
    for name in PACKAGES:
        yield name, _version(name) or "not installed"
    yield "OpenSSL", ssl.OPENSSL_VERSION
    yield "zlib", f"{zlib.ZLIB_RUNTIME_VERSION} of Python, {_zlib_ng()}"
    yield "zstd", _zstd()
    yield "processor", f"{_processor()}; {os.cpu_count()} cores; masks with {select_kernel()}"
    yield "files", "at most {} open, {} if asked for".format(*map(_limit, resource.getrlimit(resource.RLIMIT_NOFILE)))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gil() -> str:
    enabled = getattr(sys, "_is_gil_enabled", lambda: True)()  # from Python 3.13 on
    return "with the GIL" if enabled else "without the GIL"


def _libc() -> str:
    return " ".join(filter(None, platform.libc_ver())) or "libc unknown"


def _zlib_ng() -> str:
    try:
        from zlib_ng import zlib_ng
    except ImportError:
        return "no zlib-ng"
    return f"zlib-ng {getattr(zlib_ng, 'ZLIBNG_RUNTIME_VERSION', 'unknown')}"


def _zstd() -> str:
    import zstandard

    return ".".join(map(str, zstandard.ZSTD_VERSION))


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    return model[1] if model else platform.processor() or "unknown"


def _limit(value: int) -> str:
    return "any number" if value == resource.RLIM_INFINITY else f"{value:,}"


def _remarks() -> Iterator[str]:
    if _version("uvloop") is None:
        yield "uvloop is not installed: asyncio's own event loop costs more CPU time per message"
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < FEW_DESCRIPTORS:
        yield f"each connection takes a file descriptor, and {soft:,} are allowed: see `ulimit -n`"
    if _gil().startswith("without"):
        yield "fabric is not tested on the free-threaded build of Python"


def _wrong() -> list[str]:
    """What is wrong, a sentence each."""
    if _namesake.foreign_files() or _version("fabric") is not None:
        return [_namesake.advice()]
    return []
