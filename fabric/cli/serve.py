"""`fabric serve`: a server that echoes, repeats to all, or only listens; with a live page if asked for.

Owns the command's line and what the server does with messages.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import signal
import socket
import time
from typing import Any

from fabric._http.messages import Request, Response
from fabric._version import VERSION
from fabric.cli.arguments import (
    Formatter,
    UsageError,
    add_busy_poll_option,
    add_loop_option,
    count,
    duration,
    server_context,
    size,
)
from fabric.cli.screen import Screen
from fabric.cli.units import format_bytes, format_count, format_rate
from fabric.config import DEFAULT_MAX_MESSAGE_SIZE, ServerConfig
from fabric.error import Error
from fabric.server import ConnectedClient, WebSocketServer

__all__ = ["configure", "run"]

PAGE = "/dashboard"
REFRESH = 1.0  # seconds between two lines of status

DESCRIPTION = """\
Serve WebSockets until interrupted. Ctrl-C and SIGTERM close every connection with 1001 (going away) first.

GET /health answers 200 while the server runs. With --dashboard, open /dashboard in a browser.
"""
EPILOG = """\
examples:
  fabric serve
  fabric serve --bind 0.0.0.0:8080 --broadcast --dashboard
  fabric serve --bind :8443 --tls-cert cert.pem --tls-key key.pem
"""


def configure(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "serve",
        help="run a server that echoes, with a live page if wanted",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=Formatter,
    )
    parser.add_argument(
        "--bind",
        default="127.0.0.1:8080",
        metavar="HOST:PORT",
        help="where to listen; port 0 finds a free one (default: %(default)s)",
    )
    modes = parser.add_mutually_exclusive_group()
    for mode, text in (
        ("echo", "send each message back (the default)"),
        ("broadcast", "send each message to all connections"),
        ("discard", "read and forget"),
    ):
        modes.add_argument(f"--{mode}", dest="mode", action="store_const", const=mode, default="echo", help=text)
    parser.add_argument("--dashboard", action="store_true", help="a live page at /dashboard")
    parser.add_argument("--duration", type=duration, metavar="SECONDS", help="stop after this time")
    limits = parser.add_argument_group("limits and options")
    limits.add_argument(
        "--max-connections", type=count, default=10_000, metavar="N", help="at once (default: %(default)s)"
    )
    limits.add_argument(
        "--max-size",
        type=size,
        default=DEFAULT_MAX_MESSAGE_SIZE,
        metavar="BYTES",
        help="of a message (default: 10M)",
    )
    limits.add_argument("--no-compression", dest="compression", action="store_false", help="do not agree to compress")
    limits.add_argument(
        "-s",
        "--subprotocol",
        dest="subprotocols",
        metavar="NAME",
        action="append",
        default=[],
        help="spoken; may be repeated",
    )
    add_busy_poll_option(limits)
    limits.add_argument("--tls-cert", metavar="FILE", help="certificate chain (PEM); serves wss://")
    limits.add_argument("--tls-key", metavar="FILE", help="its private key, if not in the same file")
    report = parser.add_argument_group("report")
    report.add_argument("--json", action="store_true", help="once listening, say where as one line of JSON")
    report.add_argument("-q", "--quiet", action="store_true", help="no status line")
    report.add_argument("-v", "--verbose", action="store_true", help="log what fabric.server logs")
    add_loop_option(parser)
    parser.set_defaults(run=run)


class Service:
    """What is served: the messages by mode, plain HTTP, and the page."""

    def __init__(self, config: ServerConfig, mode: str, *, dashboard: bool) -> None:
        self._mode = mode
        self._has_page = dashboard
        self.server = WebSocketServer(config, self._handle, process_request=self._respond)
        if dashboard:
            self.server.mount_dashboard(PAGE)

    def _respond(self, request: Request) -> Response | None:
        if request.path == "/health":
            return Response(200, body="ok\n")
        if self._has_page and request.path == "/" and "Upgrade" not in request.headers:
            return Response(302, {"Location": PAGE}, f"see {PAGE}\n")
        return None

    async def _handle(self, client: ConnectedClient) -> None:
        async for message in client:
            if self._mode == "echo":
                await client.send(message)
            elif self._mode == "broadcast":
                await self.server.broadcast(message)


async def run(arguments: argparse.Namespace, screen: Screen) -> int:
    """Serve until interrupted, told to stop, or the time is up; 0."""
    if arguments.verbose:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    service = Service(_config(arguments), arguments.mode, dashboard=arguments.dashboard)
    stop = asyncio.Event()
    with contextlib.suppress(NotImplementedError):  # where the platform has no such signal
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with service.server as server:
        _announce(arguments, screen, server)
        status = asyncio.create_task(_show_status(screen, server))
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(arguments.duration):
                    await stop.wait()
        finally:
            status.cancel()
            await asyncio.wait([status])
            screen.clear()
            screen.note("closing the connections")
    return 0


def _config(arguments: argparse.Namespace) -> ServerConfig:
    try:
        config = ServerConfig(
            arguments.bind,
            max_connections=arguments.max_connections,
            max_message_size=arguments.max_size,
            subprotocols=arguments.subprotocols,
            busy_poll=arguments.busy_poll,
            ssl=server_context(arguments.tls_cert, arguments.tls_key),
        )
    except (TypeError, ValueError, Error) as error:
        raise UsageError(str(error).removeprefix("ServerConfig.")) from None
    return config if arguments.compression else config.with_compression(None)


def _announce(arguments: argparse.Namespace, screen: Screen, server: WebSocketServer) -> None:
    secure = "s" if arguments.tls_cert else ""
    sock = server.sockets[0]
    page = None
    if sock.family == socket.AF_UNIX:
        url = f"unix:{sock.getsockname()}"
    else:
        host = sock.getsockname()[0]
        authority = f"[{host}]:{server.port}" if ":" in host else f"{host}:{server.port}"
        url = f"ws{secure}://{authority}/"
        page = f"http{secure}://{authority}{PAGE}" if arguments.dashboard else None
    if arguments.json:
        place = {
            "url": url,
            "port": server.port,
            "dashboard": page,
            "fabric": VERSION,
        }
        screen.say(json.dumps(place))
        return
    screen.say(f"{arguments.mode} server on {url}")
    if page is not None:
        screen.say(f"dashboard at {page}")
    screen.note("Ctrl-C stops it")


async def _show_status(screen: Screen, server: WebSocketServer) -> None:
    """Keep a line about the last second on a terminal; elsewhere a server says nothing while all is well."""
    if not screen.is_live:
        return
    metrics, at = server.metrics, time.monotonic()
    before = metrics.messages_received, metrics.messages_sent, metrics.bytes_received + metrics.bytes_sent
    while True:
        await asyncio.sleep(REFRESH)
        now = time.monotonic()
        after = metrics.messages_received, metrics.messages_sent, metrics.bytes_received + metrics.bytes_sent
        received, sent, volume = ((new - old) / (now - at) for old, new in zip(before, after, strict=True))
        screen.progress(
            f"{format_count(server.connection_count)} connections  in {format_rate(received)} msg/s"
            f"  out {format_rate(sent)} msg/s  {format_bytes(volume)}/s"
        )
        before, at = after, now
