"""`fabric asgi`: uvicorn's command line, with WebSockets on fabric's core."""

from __future__ import annotations

import argparse
from typing import Any

from fabric.cli.arguments import UsageError

__all__ = ["configure", "run"]


def configure(commands: Any) -> None:
    """Add the command to the parser's subcommands. What follows it is uvicorn's, `--help` too."""
    parser = commands.add_parser("asgi", help="serve an ASGI application by uvicorn", add_help=False, prefix_chars="\0")
    parser.add_argument("arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER)


def run(arguments: argparse.Namespace) -> int:
    """Run uvicorn in this interpreter; return its exit code. SystemExit goes on.

    Raises:
        UsageError: uvicorn is not installed, or is told to take other WebSockets.
    """
    try:
        import click
        from click.core import ParameterSource
        from uvicorn.main import main as command

        from fabric.asgi import WebSocketProtocol
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is not installed: pip install 'websocket-fabric[asgi]'") from None
    try:
        with command.make_context("fabric asgi", list(arguments.arguments)) as context:
            if context.get_parameter_source("ws") is not ParameterSource.DEFAULT:
                raise UsageError(f"--ws {context.params['ws']}: WebSockets are fabric's here; `uvicorn` has the others")
            context.params["ws"] = WebSocketProtocol
            command.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return 0
