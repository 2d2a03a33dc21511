"""`fabric run`: runs a Python program for which `websockets` means `fabric.websockets`.

Owns what the program sees of its start: `sys.argv`, `sys.path`, the name `__main__`.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from typing import Any

from fabric import websockets
from fabric.cli.arguments import Formatter, UsageError

__all__ = ["configure", "run"]

DESCRIPTION = """\
Run a Python program that was written for the package websockets on fabric, without editing it: for the program, and
for packages that it uses, `import websockets` means `fabric.websockets`.

The program has the interpreter to itself, as if it had been started by `python SCRIPT`: its output, its exit code, its
own choice of an event loop. Processes that it starts are not changed.
"""
EPILOG = """\
examples:
  fabric run --as-websockets app.py --port 8080
  fabric run --as-websockets -m package.module
"""


def configure(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "run",
        help="run a program that was written for websockets",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=Formatter,
    )
    parser.add_argument(
        "--as-websockets", action="store_true", required=True, help="`import websockets` means fabric.websockets"
    )
    parser.add_argument("-m", dest="is_module", action="store_true", help="SCRIPT is the name of a module")
    parser.add_argument("script", metavar="SCRIPT", help="the program")
    parser.add_argument("arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER, help="of the program")


def run(arguments: argparse.Namespace) -> int:
    """Run the program in this interpreter. What it raises, SystemExit too, goes on.

    Raises:
        UsageError: there is no such program.
    """
    script: str = arguments.script
    if not arguments.is_module and not os.path.exists(script):
        raise UsageError(f"{script}: no such file")
    websockets.install()
    sys.argv = [script, *arguments.arguments]
    if arguments.is_module:
        sys.path[0] = os.getcwd()
        runpy.run_module(script, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(script))
        runpy.run_path(script, run_name="__main__")
    return 0
