"""`fabric demo`: what fabric does, shown in a few seconds by a server and clients in one process.

Owns the little program and its words. It starts everything it needs, on loopback, and ends by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from fabric._version import VERSION
from fabric.cli import chart
from fabric.cli.arguments import Formatter, add_busy_poll_option, add_loop_option, count, duration
from fabric.cli.bench import live
from fabric.cli.load import Load, Measurement, Meter, Plan
from fabric.cli.screen import Screen
from fabric.cli.units import format_bytes, format_count, format_duration
from fabric.client import WebSocketClient
from fabric.config import ClientConfig
from fabric.error import Error
from fabric.server import ConnectedClient, WebSocketServer

__all__ = ["configure", "run"]

REFRESH = 0.1  # seconds between two lines of progress
DEPTH = 64  # messages in flight in the run for throughput
SIZE = 32  # bytes
TEXT = "Grüße aus dem Äther: 世界 🚀"

DESCRIPTION = """\
Start a server and clients on loopback and show: text, binary, typed JSON, a broadcast, then the latency
and the throughput of one connection, with the distribution drawn. Server and clients share one thread,
and so one core.
"""


@dataclass(slots=True)
class Order:
    """What travels as JSON in the demonstration."""

    symbol: str
    side: str
    price: float
    size: int


def configure(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "demo", help="see what it does, in a few seconds", description=DESCRIPTION, formatter_class=Formatter
    )
    parser.add_argument(
        "-t",
        "--duration",
        type=duration,
        default=5.0,
        metavar="SECONDS",
        help="of each measured run (default: 5)",
    )
    parser.add_argument("-c", "--clients", type=count, default=100, metavar="N", help="in the broadcast (default: 100)")
    add_busy_poll_option(parser)
    add_loop_option(parser)
    parser.set_defaults(run=run)


async def _echo(client: ConnectedClient) -> None:
    async for message in client:
        await client.send(message)


async def run(arguments: argparse.Namespace, screen: Screen) -> int:
    """Show it; 0, or 1 when something came back changed."""
    loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
    python = f"{platform.python_implementation()} {platform.python_version()}"
    title = screen.style(f"fabric {VERSION}", "bold")
    screen.say(f"{title} · {python} · {loop} · {sys.platform} {platform.machine()}")
    screen.say()
    async with WebSocketServer.bind("127.0.0.1:0", _echo, busy_poll=arguments.busy_poll) as server:
        url = f"ws://127.0.0.1:{server.port}/"
        _step(screen, "server", f"listening on {url}")
        async with WebSocketClient.connect(url, auto_reconnect=False) as client:
            await _show_text(screen, client)
            await _show_binary(screen, client)
            await _show_json(screen, client)
        await _show_broadcast(screen, server, url, arguments.clients)
        config = ClientConfig(
            url, auto_reconnect=False, heartbeat=None, compression=None, busy_poll=arguments.busy_poll
        )
        alone = await _measure(screen, config, Plan(depth=1, size=SIZE), "latency", arguments.duration)
        piped = await _measure(screen, config, Plan(depth=DEPTH, size=SIZE), "throughput", arguments.duration)
    _report(screen, alone, piped)
    return 0


def _step(screen: Screen, name: str, text: str) -> None:
    screen.say(f"{screen.style(f'{name:<11}', 'bold')} {text}")


def _require_same(sent: object, received: object) -> None:
    if sent != received:
        raise Error("what came back is not what was sent")


async def _show_text(screen: Screen, client: WebSocketClient) -> None:
    begun = time.perf_counter()
    await client.send(TEXT)
    answer = await client.recv()
    took = time.perf_counter() - begun
    _require_same(TEXT, answer and answer.text)
    _step(screen, "text", f'"{TEXT}" came back in {format_duration(took)}')


async def _show_binary(screen: Screen, client: WebSocketClient) -> None:
    data = os.urandom(1024 * 1024)
    begun = time.perf_counter()
    await client.send(data)
    answer = await client.recv()
    took = time.perf_counter() - begun
    _require_same(data, answer and answer.as_bytes())
    _step(screen, "binary", f"{format_bytes(len(data))} came back, byte for byte, in {format_duration(took)}")


async def _show_json(screen: Screen, client: WebSocketClient) -> None:
    order = Order("EURUSD", "buy", 1.0842, 250_000)
    await client.send_json(order)
    answer = await client.recv()
    assert answer is not None
    _require_same(order, answer.json(Order))
    _step(screen, "JSON", answer.text)
    _step(screen, "", f"→ {answer.json(Order)}")


async def _show_broadcast(screen: Screen, server: WebSocketServer, url: str, clients: int) -> None:
    async with AsyncExitStack() as stack:
        audience = []
        for number in range(clients):
            audience.append(await stack.enter_async_context(WebSocketClient.connect(url, auto_reconnect=False)))
            screen.progress(f"connecting: {number + 1} of {clients}")
        begun = time.perf_counter()
        reached = await server.broadcast_text(TEXT)
        answers = await asyncio.gather(*(client.recv() for client in audience))
        took = time.perf_counter() - begun
        for answer in answers:
            _require_same(TEXT, answer and answer.text)
    _step(screen, "broadcast", f"one message to {reached} clients; all had it after {format_duration(took)}")


async def _measure(screen: Screen, config: ClientConfig, plan: Plan, name: str, seconds: float) -> Measurement:
    meter = Meter()

    async def watch() -> None:
        begun = last = time.perf_counter()
        while True:
            await asyncio.sleep(REFRESH)
            at = time.perf_counter()
            done = min((at - begun) / seconds, 1)
            bar = _bar(done, 16, unicode=screen.unicode)
            screen.progress(f"{name:<11} {bar} {live(meter, at - last)}")
            last = at

    async with Load(config, plan) as load:
        watcher = asyncio.create_task(watch())
        try:
            result = await load.run(seconds, meter)
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
    p50, p99 = result.latency.values_at_percentiles((50, 99))
    if plan.depth == 1:
        text = f"one message in flight: p50 {format_duration(p50 * 1e-9)}, p99 {format_duration(p99 * 1e-9)}"
    else:
        text = f"{plan.depth} in flight: {format_count(result.rate)} messages/s there, and back again"
    _step(screen, name, text)
    return result


def _bar(done: float, width: int, *, unicode: bool) -> str:
    full, empty = ("█", "░") if unicode else ("#", ".")
    filled = round(done * width)
    return full * filled + empty * (width - filled)


def _report(screen: Screen, alone: Measurement, piped: Measurement) -> None:
    screen.say()
    screen.say(f"Round trips of {SIZE} bytes, one connection, server and client in one thread")
    screen.say()
    for line in chart.table([("1 in flight", alone.latency), (f"{DEPTH} in flight", piped.latency)]):
        screen.say(line)
    screen.say()
    screen.say(f"1 in flight: {format_count(alone.messages)} round trips in {format_duration(alone.seconds)}")
    for line in chart.distribution(alone.latency, width=screen.width - 2, unicode=screen.unicode):
        screen.say(line)
    screen.say()
    screen.say("Next:  python -m fabric serve --dashboard")
    screen.say("       python -m fabric bench ws://127.0.0.1:8080")
