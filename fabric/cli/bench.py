"""`fabric bench`: load for one server that echoes, or for two in alternation.

Owns the command's line, its rounds and its report; `fabric.cli.load` sends and measures.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import platform
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fabric._version import VERSION
from fabric.cli import chart
from fabric.cli.arguments import (
    Formatter,
    UsageError,
    add_busy_poll_option,
    add_connection_options,
    add_loop_option,
    client_config,
    count,
    duration,
    rate,
    size,
)
from fabric.cli.load import Load, Measurement, Meter, Plan
from fabric.cli.screen import Screen
from fabric.cli.units import format_bytes, format_count, format_duration, format_rate
from fabric.metrics import LatencyPercentiles

__all__ = ["Spread", "configure", "run"]

REFRESH = 0.25  # seconds between two looks at what is being measured
ROUNDS = 10  # of each of two servers
NAMES = "AB"

DESCRIPTION = """\
Load a server that echoes (`fabric serve`) and report throughput and latency.

Closed loop, without --rate: every connection keeps DEPTH messages in flight. Latency is the round
trip; with more than one in flight it includes waiting behind the others.
Open loop, with --rate: messages are due at a fixed rate. Latency counts from when a message was due,
so a stall of the server is charged for all that should have been sent meanwhile (coordinated
omission); the plain round trip is shown beside it.
With two URLs the two take turns (ABBA ...), and the ratio of each pair of rounds is reported with its
spread.
"""
EPILOG = """\
examples:
  fabric bench ws://127.0.0.1:8080 --depth 64
  fabric bench ws://127.0.0.1:8080 --rate 20k --connections 10 --hgrm latency.hgrm
  fabric bench ws://127.0.0.1:8080 ws://127.0.0.1:9090 --duration 20 --json
"""


def configure(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "bench",
        help="measure a server that echoes, or compare two",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=Formatter,
    )
    parser.add_argument("url", metavar="URL", help="server to measure: ws://host:port/path")
    parser.add_argument("other", metavar="URL2", nargs="?", help="server to compare it with")
    load = parser.add_argument_group("load")
    load.add_argument("-c", "--connections", type=count, default=1, metavar="N", help="at once (default: 1)")
    load.add_argument("-d", "--depth", type=count, metavar="N", help="in flight on each connection (default: 1)")
    load.add_argument("-r", "--rate", type=rate, metavar="N", help="messages per second in all; opens the loop")
    load.add_argument("--size", type=size, default=32, metavar="BYTES", help="payload of a message (default: 32)")
    load.add_argument("--text", action="store_true", help="send text that looks like JSON, not random bytes")
    load.add_argument(
        "-t", "--duration", type=duration, default=10.0, metavar="SECONDS", help="for each URL (default: 10)"
    )
    load.add_argument(
        "--warmup", type=duration, default=0.5, metavar="SECONDS", help="before, not counted (default: 0.5)"
    )
    load.add_argument("--rounds", type=count, metavar="N", help=f"turns of each of two URLs (default: {ROUNDS})")
    add_busy_poll_option(load)
    report = parser.add_argument_group("report")
    report.add_argument("--json", action="store_true", help="the result as one JSON object")
    report.add_argument(
        "--hgrm",
        type=Path,
        metavar="FILE",
        help="write the distribution, in ms, for HdrHistogram's plotters; of two URLs to FILE-a and FILE-b",
    )
    report.add_argument("-q", "--quiet", action="store_true", help="no progress")
    add_connection_options(parser, compression=False)
    add_loop_option(parser)
    parser.set_defaults(run=run)


@dataclass(frozen=True, slots=True)
class Spread:
    """How ratios of several rounds lie: the median, the middle half, and all."""

    median: float
    lower_quartile: float
    upper_quartile: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        if len(values) == 1:
            return cls(*[values[0]] * 5)
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, lower, upper, min(values), max(values))

    def __str__(self) -> str:
        return (
            f"{self.median:6.3f}   middle half {self.lower_quartile:.3f} – {self.upper_quartile:.3f},"
            f"   all {self.low:.3f} – {self.high:.3f}"
        )


async def run(arguments: argparse.Namespace, screen: Screen) -> int:
    """Measure and report; 0."""
    plan = _plan(arguments)
    limits = {"max_message_size": max(plan.size, 1 << 20), "heartbeat": None, "busy_poll": arguments.busy_poll}
    urls = [arguments.url, *([arguments.other] if arguments.other else [])]
    configs = [client_config(url, arguments, auto_reconnect=False, **limits) for url in urls]
    files = _hgrm_files(arguments.hgrm, len(urls))
    rounds = _order(len(urls), arguments.rounds or ROUNDS)
    results: list[list[Measurement]] = [[] for _ in urls]
    async with contextlib.AsyncExitStack() as stack:
        loads = []
        for config in configs:
            opened = _connecting(screen, plan.connections)
            loads.append(await stack.enter_async_context(Load(config, plan, opened)))
        for load in loads:
            async with _shown(screen, "warming up", Meter()) as meter:
                await load.run(arguments.warmup, meter)
        for number, which in enumerate(rounds):
            label = "measuring"
            if len(urls) > 1:
                label = f"round {number // 2 + 1} of {len(rounds) // 2}: {NAMES[which]}"
            async with _shown(screen, label, Meter()) as meter:
                turn = arguments.duration * len(urls) / len(rounds)
                results[which].append(await loads[which].run(turn, meter))
    totals = [Measurement.total(parts) for parts in results]
    for path, total in zip(files, totals, strict=False):
        _write_hgrm(path, total)
    names = [str(config.address) for config in configs]
    ratios = _ratios(results) if len(urls) == 2 else {}
    if arguments.json:
        screen.say(json.dumps(_as_json(arguments, plan, names, totals, ratios), indent=2))
    else:
        _report(screen, plan, names, totals, ratios)
    return 0


def _plan(arguments: argparse.Namespace) -> Plan:
    if arguments.rate is not None and arguments.depth is not None:
        raise UsageError("--depth is for the closed loop, --rate opens it: give one of them")
    if arguments.rounds is not None and arguments.other is None:
        raise UsageError("--rounds needs two URLs to alternate between")
    return Plan(arguments.connections, arguments.depth or 1, arguments.rate, arguments.size, arguments.text)


def _order(servers: int, rounds: int) -> list[int]:
    """Whose turn it is: ABBA, so that what drifts with time meets both alike."""
    if servers == 1:
        return [0]
    return [which for number in range(rounds) for which in ((0, 1) if number % 2 == 0 else (1, 0))]


def _ratios(results: Sequence[Sequence[Measurement]]) -> dict[str, Spread]:
    """B over A, from the pairs of rounds that lie next to each other."""
    pairs = list(zip(*results, strict=True))

    def at(measurement: Measurement, percentile: float) -> float:
        return measurement.latency.value_at_percentile(percentile) or 1

    return {
        "throughput": Spread.of([b.rate / a.rate for a, b in pairs]),
        "p50": Spread.of([at(b, 50) / at(a, 50) for a, b in pairs]),
        "p99": Spread.of([at(b, 99) / at(a, 99) for a, b in pairs]),
    }


# -- while it runs


def _connecting(screen: Screen, connections: int) -> Any:
    def opened(number: int) -> None:
        screen.progress(f"connecting: {format_count(number)} of {format_count(connections)}")

    return opened


@contextlib.asynccontextmanager
async def _shown(screen: Screen, label: str, meter: Meter) -> AsyncIterator[Meter]:
    """Show what the last moment of `meter` was like, until the block ends."""

    async def watch() -> None:
        begun = last = time.perf_counter()
        while True:
            await asyncio.sleep(REFRESH)
            at = time.perf_counter()
            screen.progress(f"{label}  {at - begun:4.1f} s  {live(meter, at - last)}")
            last = at

    watcher = asyncio.create_task(watch())
    try:
        yield meter
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
        screen.clear()


def live(meter: Meter, seconds: float) -> str:
    """The current interval of `meter`, which is `seconds` long, in a line; starts the next one."""
    ended = meter.turn()
    if not ended.count:
        return "no answers"
    p50, p99, p999 = (format_duration(ns * 1e-9) for ns in ended.values_at_percentiles((50, 99, 99.9)))
    return f"{format_rate(ended.count / seconds):>7} msg/s  p50 {p50}  p99 {p99}  p99.9 {p999}"


# -- the report


def _report(
    screen: Screen, plan: Plan, names: Sequence[str], totals: Sequence[Measurement], ratios: dict[str, Spread]
) -> None:
    screen.say(_describe(plan))
    screen.say(f"{format_duration(totals[0].seconds)} for each server, fabric {VERSION}")
    for index, (name, total) in enumerate(zip(names, totals, strict=True)):
        letter = f"{NAMES[index]}  " if len(names) > 1 else ""
        screen.say()
        screen.say(screen.style(f"{letter}{name}", "bold"))
        volume = format_bytes(total.rate * plan.size)
        screen.say(f"{format_count(total.rate)} messages/s, {volume}/s each way")
        if total.unanswered:
            screen.say(f"{format_count(total.unanswered)} were not answered; they count with the time waited")
        rows = [("latency", total.latency)]
        if total.service is not None:
            rows = [("latency since due", total.latency), ("latency since sent", total.service)]
        if total.waited is not None:
            rows.append(("from read to task", total.waited))
        for line in chart.table(rows):
            screen.say(line)
        if len(names) == 1:
            screen.say()
            for line in chart.distribution(total.latency, width=screen.width - 2, unicode=screen.unicode):
                screen.say(line)
    if ratios:
        screen.say()
        screen.say(screen.style("B / A", "bold"))
        for what, spread in ratios.items():
            screen.say(f"{what:<11}{spread}")


def _describe(plan: Plan) -> str:
    connections = f"{format_count(plan.connections)} connection{'s' if plan.connections > 1 else ''}"
    loop = f"closed loop, {plan.depth} in flight on each"
    if plan.rate is not None:
        loop = f"open loop at {format_rate(plan.rate)} msg/s"
    return f"{connections}, {loop}, {format_bytes(plan.size)} of {'text' if plan.text else 'binary'}"


def _as_json(
    arguments: argparse.Namespace,
    plan: Plan,
    names: Sequence[str],
    totals: Sequence[Measurement],
    ratios: dict[str, Spread],
) -> dict[str, Any]:
    return {
        "fabric": VERSION,
        "python": platform.python_version(),
        "loop": type(asyncio.get_running_loop()).__module__.partition(".")[0],
        "platform": f"{sys.platform} {platform.machine()}",
        "mode": "closed" if plan.rate is None else "open",
        "connections": plan.connections,
        "depth": plan.depth if plan.rate is None else None,
        "rate": plan.rate,
        "size": plan.size,
        "type": "text" if plan.text else "binary",
        "compression": arguments.compression,
        "servers": [
            {
                "url": name,
                "messages": total.messages,
                "seconds": total.seconds,
                "messages_per_second": total.rate,
                "unanswered": total.unanswered,
                "latency_us": asdict(LatencyPercentiles.of(total.latency)),
                "read_to_task_us": total.waited and asdict(LatencyPercentiles.of(total.waited)),
                "latency_since_sent_us": total.service and asdict(LatencyPercentiles.of(total.service)),
                "histogram_ns": total.latency.encode_base64(),
            }
            for name, total in zip(names, totals, strict=True)
        ],
        "ratio": {what: asdict(spread) for what, spread in ratios.items()} or None,
    }


def _hgrm_files(path: Path | None, servers: int) -> list[Path]:
    """Where the distributions go; tried now, not after the measurement."""
    if path is None:
        return []
    paths = [path] if servers == 1 else [path.with_stem(f"{path.stem}-{name}") for name in "ab"]
    for each in paths:
        try:
            each.touch()
        except OSError as error:
            raise UsageError(f"--hgrm {each}: {error.strerror}") from None
    return paths


def _write_hgrm(path: Path, total: Measurement) -> None:
    path.write_text(total.latency.percentile_distribution(scale=1e6))
