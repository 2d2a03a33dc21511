"""Runs one command: parses the line, picks the event loop, settles the exit code.

Owns what is the same for all commands. A user's mistake or a failed connection is one sentence, never a
traceback.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
from collections.abc import Callable, Sequence

from fabric._version import VERSION
from fabric.cli import asgi, bench, connect, demo, doctor, run, serve
from fabric.cli.arguments import Formatter, UsageError
from fabric.cli.screen import Screen, printable
from fabric.error import Error, HandshakeFailed

__all__ = ["main"]

SUCCESS, FAILURE, USAGE, INTERRUPTED = 0, 1, 2, 130

COMMANDS = (demo, connect, serve, bench, run, asgi, doctor)
PROGRAMS = {"run": run.run, "asgi": asgi.run}  # each sees to its event loop and its exit code itself

DESCRIPTION = "WebSockets from the command line."
EPILOG = """\
exit codes:
  0    it went well (also when a pipe that was written to has been closed)
  1    it failed: no connection, connection lost, address in use
  2    the command line is wrong
  130  interrupted with Ctrl-C

Results go to standard output, progress and remarks to standard error.
`fabric COMMAND --help` tells more.
"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser("fabric", description=DESCRIPTION, epilog=EPILOG, formatter_class=Formatter)
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.configure(commands)
    return parser


def _version() -> str:
    return f"fabric {VERSION}, {platform.python_implementation()} {platform.python_version()}"


def _loop_factory(choice: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if choice == "asyncio":
        return asyncio.SelectorEventLoop
    try:
        import uvloop
    except ImportError:
        if choice == "uvloop":
            raise UsageError("--loop uvloop: uvloop is not installed") from None
        return None
    return uvloop.new_event_loop


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv`, by default that of the process; return its exit code."""
    arguments = build_parser().parse_args(argv)
    screen = Screen(quiet=getattr(arguments, "quiet", False))
    if arguments.command in PROGRAMS:
        try:
            return PROGRAMS[arguments.command](arguments)
        except UsageError as error:
            return _misused(arguments, error, screen)
    try:
        code = _run(arguments, screen)
        screen.out.flush()
    except BrokenPipeError:
        # The reader has what it wanted. What Python would still write on its way out goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SUCCESS
    return code


def _run(arguments: argparse.Namespace, screen: Screen) -> int:
    try:
        factory = _loop_factory(arguments.loop)
        if getattr(arguments, "workers", None):
            return serve.run_workers(arguments, screen)
        with asyncio.Runner(loop_factory=factory) as runner:
            code: int = runner.run(arguments.run(arguments, screen))
    except KeyboardInterrupt:
        screen.clear()
        return INTERRUPTED
    except UsageError as error:
        return _misused(arguments, error, screen)
    except BrokenPipeError:
        raise
    except (Error, OSError) as error:
        screen.complain(f"fabric {arguments.command}: {printable(str(error))}")
        if isinstance(error, HandshakeFailed) and error.body:
            screen.complain(_first_lines(error.body))
        return FAILURE
    return code


def _misused(arguments: argparse.Namespace, error: UsageError, screen: Screen) -> int:
    screen.complain(f"fabric {arguments.command}: {printable(str(error))}")
    return USAGE


def _first_lines(body: bytes, lines: int = 5, characters: int = 400) -> str:
    """What the server wrote instead of upgrading: it often says why."""
    text = body[:4096].decode("utf-8", "replace").strip()[:characters]
    return "\n".join(f"  {printable(line)}" for line in text.splitlines()[:lines])
