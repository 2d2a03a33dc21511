"""`fabric serve`: a server that echoes, repeats to all, or only listens; with a live page if asked for.

Owns the command's line and what the server does with messages.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import logging
import os
import signal
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fabric import workers
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

if TYPE_CHECKING:
    from fabric._workers.supervisor import Supervisor

__all__ = ["configure", "run", "run_workers"]

INTERRUPTED = 130
PAGE = "/dashboard"
ALL = "all"  # the topic of --broadcast
BROKER = "FABRIC_BROKER"  # instead of --broker
REFRESH = 1.0  # seconds between two lines of status

DESCRIPTION = """\
Serve WebSockets until interrupted. Ctrl-C and SIGTERM close every connection with 1001 (going away) first.

GET /health answers 200 while the server runs. With --dashboard, open /dashboard in a browser. With --workers,
SIGHUP replaces all of them, and --metrics says where the page about all is.
"""
EPILOG = """\
examples:
  fabric serve
  fabric serve --bind 0.0.0.0:8080 --broadcast --dashboard
  fabric serve --workers 4 --balance least --metrics 127.0.0.1:9090
  FABRIC_BROKER=$(cat secrets/broker) fabric serve --workers 4 --broadcast
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
    several = parser.add_argument_group("several processes")
    several.add_argument("--workers", type=count, metavar="N", help="serve by so many processes")
    several.add_argument(
        "--balance",
        choices=("hash", "least"),
        default="hash",
        help="connections by the kernel's hash of addresses, or to the worker with the fewest (default: %(default)s)",
    )
    several.add_argument(
        "--broker",
        metavar="URL",
        help="for --broadcast to all of them: nats:embedded, nats://HOST or redis://HOST; a URL with a password "
        f"stands in {BROKER} instead, as other users see arguments",
    )
    several.add_argument(
        "--metrics", metavar="HOST:PORT", help="a page about all: /dashboard, /metrics, /metrics.json, /health"
    )
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

    def __init__(self, config: ServerConfig, mode: str, *, dashboard: bool, broker: str = "memory:") -> None:
        self._mode = mode
        self._has_page = dashboard
        self.server = WebSocketServer(config, self._handle, process_request=self._respond, broker=broker)
        if dashboard:
            self.server.mount_dashboard(PAGE)

    def _respond(self, request: Request) -> Response | None:
        if request.path == "/health":
            return Response(200, body="ok\n")
        if self._has_page and request.path == "/" and "Upgrade" not in request.headers:
            return Response(302, {"Location": PAGE}, f"see {PAGE}\n")
        return None

    async def _handle(self, client: ConnectedClient) -> None:
        if self._mode == "broadcast":
            client.subscribe(ALL)
        async for message in client:
            if self._mode == "echo":
                await client.send(message)
            elif self._mode == "broadcast":
                self.server.publish(ALL, message)


def run_workers(arguments: argparse.Namespace, screen: Screen) -> int:
    """Serve by several processes, of which this one is the parent; 0, or 130 after Ctrl-C."""
    broker = os.environ.pop(BROKER, "")  # out of the environment, so that no other process inherits it
    if arguments.broker:
        broker = arguments.broker
        if _has_password(broker):
            screen.note(f"other users see the password in --broker: set {BROKER} instead")
    if arguments.mode == "broadcast" and arguments.workers > 1 and broker in ("", "memory:"):
        raise UsageError("--broadcast with --workers needs --broker, for messages to reach all: nats:embedded, say")
    _log(arguments)
    _config(arguments)  # what is wrong is said here, and once
    try:
        settings = workers.make_settings(
            functools.partial(work, arguments),
            arguments.workers,
            bind=arguments.bind,
            balance=arguments.balance,
            broker=broker or "memory:",
            metrics=arguments.metrics or ("127.0.0.1:0" if arguments.dashboard else None),
            loop=arguments.loop,
        )
    except (TypeError, ValueError) as error:
        raise UsageError(str(error).removeprefix("ServerConfig.")) from None
    ended_by = workers.supervise(settings, functools.partial(_announce_workers, arguments, screen))
    return 0 if ended_by is signal.SIGTERM else INTERRUPTED


def _has_password(url: str) -> bool:
    try:
        return urlsplit(url).username is not None
    except ValueError:  # `make_settings` says what is wrong with it
        return False


def work(arguments: argparse.Namespace, worker: workers.Worker) -> WebSocketServer:
    """What a worker serves."""
    _log(arguments)
    return Service(_config(arguments, worker), arguments.mode, dashboard=False, broker=worker.broker).server


def _announce_workers(arguments: argparse.Namespace, screen: Screen, supervisor: Supervisor) -> None:
    page = None
    if supervisor.page_port is not None:
        host = ServerConfig(arguments.metrics or "127.0.0.1:0").host or "127.0.0.1"
        page = f"http://{_authority(host, supervisor.page_port)}{PAGE}"
    _announce(arguments, screen, supervisor.addresses[0], page)
    if arguments.duration is not None:
        asyncio.get_running_loop().call_later(arguments.duration, supervisor.stop, signal.SIGTERM)


def _log(arguments: argparse.Namespace) -> None:
    if arguments.verbose:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")


async def run(arguments: argparse.Namespace, screen: Screen) -> int:
    """Serve until interrupted, told to stop, or the time is up; 0."""
    for name in ("metrics", "broker"):
        if getattr(arguments, name):
            raise UsageError(f"--{name} is for --workers")
    _log(arguments)
    service = Service(_config(arguments), arguments.mode, dashboard=arguments.dashboard)
    stop = asyncio.Event()
    with contextlib.suppress(NotImplementedError):  # where the platform has no such signal
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with service.server as server:
        name = server.sockets[0].getsockname()
        page = None
        if arguments.dashboard and isinstance(name, tuple):
            page = f"http{'s' if arguments.tls_cert else ''}://{_authority(name[0], server.port)}{PAGE}"
        _announce(arguments, screen, name, page)
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


def _config(arguments: argparse.Namespace, worker: workers.Worker | None = None) -> ServerConfig:
    try:
        config = ServerConfig(
            **{"bind": arguments.bind} if worker is None else {"sock": worker.sockets},
            max_connections=arguments.max_connections,
            max_message_size=arguments.max_size,
            subprotocols=arguments.subprotocols,
            busy_poll=arguments.busy_poll,
            ssl=server_context(arguments.tls_cert, arguments.tls_key),
        )
    except (TypeError, ValueError, Error) as error:
        raise UsageError(str(error).removeprefix("ServerConfig.")) from None
    return config if arguments.compression else config.with_compression(None)


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _announce(arguments: argparse.Namespace, screen: Screen, name: Any, page: str | None) -> None:
    """Say where it listens: `name`, as sockets have it, and the page."""
    secure = "s" if arguments.tls_cert else ""
    is_path = not isinstance(name, tuple)
    url = f"unix:{name}" if is_path else f"ws{secure}://{_authority(*name[:2])}/"
    if arguments.json:
        place = {"url": url, "port": 0 if is_path else name[1], "dashboard": page, "fabric": VERSION}
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
