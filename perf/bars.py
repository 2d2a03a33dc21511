"""The bars: what must be true of the figures, evaluated on one run and printed.

Most compare two peers turn by turn, so the speed of the machine cancels out. A bar whose figures are
not in the run says so instead of passing.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from peers import (
    BARE_NATS,
    BARE_REDIS,
    BLOCKING,
    BLOCKING_POLLING,
    BLOCKING_WEBSOCKETS,
    CHANNELS,
    FLOOR,
    ONE_BY_ONE,
    OVER_REDIS,
    POLLING,
    RAW_POLLING,
    SMALLEST,
    SOCKET_IO,
    UWS,
)


def ratio(ours: dict[str, Any], theirs: dict[str, Any], name: str) -> float | None:
    """The median, over all turns, of one figure of ours over theirs in the same turn; None where there is none."""
    pairs = [(run.get(name), other.get(name)) for run, other in zip(ours["runs"], theirs["runs"], strict=True)]
    found = [a / b for a, b in pairs if a is not None and b]
    return statistics.median(found) if found else None


class Measured:
    """The results of a run. What was not measured raises KeyError."""

    def __init__(self, results: list[dict[str, Any]]) -> None:
        self._by_name = {(result["workload"], result["case"]): result["peers"] for result in results}

    def median(self, workload: str, case: str, peer: str, name: str) -> float:
        """The median of one figure."""
        value: float = self._by_name[workload, case][peer]["median"][name]
        return value

    def ratio(self, workload: str, case: str, ours: str, theirs: str, name: str) -> float:
        """Ours over theirs, turn by turn."""
        peers = self._by_name[workload, case]
        found = ratio(peers[ours], peers[theirs], name)
        if found is None:
            raise KeyError(name)
        return found


Value = Callable[[Measured], float]

PIPE = "1 × 32 B, depth 64"
SAME = "same core, 1 × 32 B"
TWO = "two cores, 1 × 32 B"
SINGLY = "200 clients, one at a time"


@dataclass(frozen=True)
class Bar:
    """`value` must be at most (or at least) `limit`."""

    workload: str
    text: str
    value: Value
    limit: float
    at_most: bool = True
    unit: str = ""
    by_cpu: Value | None = None  # a rate's ratio again, from CPU time: it repeats better
    floor: Value | None = None  # what bare system calls in C reach in the same run


def cpu(workload: str, case: str, ours: str, theirs: str, limit: float, figure_name: str = "cpu_ns") -> Bar:
    """Our cost over theirs, at most `limit`."""

    def value(measured: Measured) -> float:
        return measured.ratio(workload, case, ours, theirs, figure_name)

    what = "CPU per message" if figure_name == "cpu_ns" else figure_name
    return Bar(workload, f"{case}: {what}, {ours} / {theirs}", value, limit)


def faster(workload: str, case: str, theirs: str, limit: float) -> Bar:
    """Our rate over theirs, at least `limit`."""

    def value(measured: Measured) -> float:
        return measured.ratio(workload, case, "fabric", theirs, "per_second")

    def by_cpu(measured: Measured) -> float:
        return measured.ratio(workload, case, theirs, "fabric", "cpu_ns")

    return Bar(workload, f"{case}: rate, fabric / {theirs}", value, limit, at_most=False, by_cpu=by_cpu)


def absolute(
    workload: str,
    case: str,
    peer: str,
    name: str,
    limit: float,
    unit: str,
    scale: float = 1,
    at_most: bool = True,
) -> Bar:
    """One of our own figures, in `unit`, against a fixed limit."""

    def value(measured: Measured) -> float:
        return measured.median(workload, case, peer, name) * scale

    return Bar(workload, f"{case}: {name} of {peer}", value, limit, at_most, unit)


def compressed_extra(measured: Measured) -> float:
    """KB that an idle connection costs more once it has compressed."""
    touched = measured.median("i", "compressed after one message, 1000", "fabric", "bytes_per_connection")
    return (touched - measured.median("i", "plain after one message, 1000", "fabric", "bytes_per_connection")) / 1024


def broadcast_gain(peer: str) -> Value:
    """The rate of `peer` to 1,000 connections over that of `websockets`."""
    return lambda measured: measured.ratio("e", "1000 × 128 B", peer, "websockets", "per_second")


def broadcast_growth(peer: str) -> Value:
    """Cost per connection at 5,000 connections over that at 100."""
    many, few = "5000 × 128 B", "100 × 128 B"
    return lambda measured: measured.median("e", many, peer, "cpu_ns") / measured.median("e", few, peer, "cpu_ns")


def unslept(case: str) -> Value:
    """Round trip of a client and a server in C that both poll, over that of `fabric`, which sleeps."""
    polled = "blocking client, asyncio server, 1 × 32 B"
    return lambda measured: (
        measured.median("l", polled, RAW_POLLING, "p50") / measured.median("l", case, "fabric", "p50")
    )


def smallest_gain(measured: Measured) -> float:
    """The worst, over the sizes and the two others, of our rate over theirs."""
    return min(compressed_gains(lambda case, peer: measured.ratio("g", case, "fabric", peer, "per_second")))


def smallest_cpu_gain(measured: Measured) -> float:
    """The same from CPU time per message."""
    return min(compressed_gains(lambda case, peer: measured.ratio("g", case, peer, "fabric", "cpu_ns")))


def compressed_gains(gain: Callable[[str, str], float]) -> list[float]:
    """Our gain over `websockets` and over aiohttp, for every size that was measured."""
    gains = []
    for size in ("150 B", "1.2 KB", "10 KB"):
        with contextlib.suppress(KeyError):
            gains += [gain(f"JSON {size}, depth 16", peer) for peer in ("websockets", "aiohttp")]
    if not gains:
        raise KeyError("no compressed case was measured")
    return gains


def gathered(times: int) -> Value:
    """Cost of a delivery where a turn publishes `times` messages, over that of one message a turn."""
    one, many = (f"1000 subscribers, {count} a turn" for count in (1, times))
    return lambda measured: (
        measured.median("o", many, "fabric", "cpu_ns") / measured.median("o", one, "fabric", "cpu_ns")
    )


def more_than_bare(ours: str, bare: str) -> Value:
    """How much longer a message takes to a client of another server than the broker's own way, in µs."""
    way = "one way to a client of another server"
    return lambda measured: (measured.median("p", way, ours, "p50") - measured.median("p", way, bare, "p50")) / 1e3


def sent_in_c(peer: str) -> Value:
    """What bare system calls to the same clients cost, over the cost of `peer`: most of a delivery is its send()."""
    return lambda measured: measured.ratio("p", SINGLY, FLOOR, peer, "cpu_ns")


BARS = (
    cpu("b", PIPE, "fabric", "picows core", 0.40),
    cpu("b", PIPE, "fabric", "websockets", 0.12),
    cpu("b", PIPE, "fabric", "aiohttp", 0.25),
    absolute("b", PIPE, "fabric", "cpu_ns", 1.0, "µs (aim)", 1e-3),
    cpu("b", PIPE, "fabric.websockets", "fabric", 1.15),
    cpu("b", PIPE, "fabric.websockets", "websockets", 0.10),
    cpu("b", PIPE, "fabric callbacks", "picows core", 0.08),
    cpu("b", PIPE, "fabric callbacks", "socketify", 0.06),
    cpu("b", PIPE, "fabric callbacks", UWS, 1.70),
    absolute("b", PIPE, "fabric callbacks", "cpu_ns", 0.20, "µs (aim)", 1e-3),
    cpu("a", SAME, "fabric", "picows core", 1.04, "p50"),
    cpu("a", SAME, "fabric", "picows core", 1.04),
    cpu("a", SAME, "fabric", "websockets", 0.70, "p50"),
    cpu("a", SAME, "fabric", "websockets", 0.70),
    cpu("a", SAME, "fabric callbacks", "picows core", 1.00, "p50"),
    cpu("a", SAME, "fabric callbacks", "picows core", 1.00),
    cpu("a", SAME, "fabric callbacks", "Boost.Beast", 1.00, "p50"),
    cpu("a", SAME, "fabric callbacks", "Boost.Beast", 1.00),
    cpu("a", "two cores, 64 × 32 B", "fabric", "picows.websockets", 0.8),
    cpu("a", "two cores, 64 × 32 B", "fabric", "websockets", 0.5),
    cpu("d", "pipelined, depth 64, 32 B", "fabric", "aiohttp", 0.33),
    cpu("d", "pipelined, depth 64, 32 B", "fabric", "picows.websockets", 0.4),
    replace(faster("e", "1000 × 128 B", "websockets", 3), floor=broadcast_gain(FLOOR)),
    Bar(
        "e",
        "cost per peer, 5000 / 100 connections (flat)",
        broadcast_growth("fabric"),
        1.3,
        floor=broadcast_growth(FLOOR),
    ),
    faster("f", "same core, ping-pong 1 × 32 B", "aiohttp", 1.3),
    faster("f", "pipelined 1 × 32 B, depth 64", "aiohttp", 3),
    Bar(
        "g",
        "rate, fabric / better of websockets and aiohttp, worst size",
        smallest_gain,
        3,
        at_most=False,
        by_cpu=smallest_cpu_gain,
    ),
    absolute("g", "JSON 1.2 KB, depth 16", "fabric", "saved", 75, "%", 100, at_most=False),
    absolute("g", "JSON 10 KB, depth 16", SMALLEST, "saved", 85, "%", 100, at_most=False),
    Bar("g", "idle connection that has compressed, more than plain", compressed_extra, 40, unit="KB"),
    faster("h", "32 at a time", "websockets", 1.3),
    faster("h", "32 at a time", "picows core", 1),
    cpu("h", "32 at a time", "fabric", "picows core", 1.00),
    absolute("i", "plain, 1000", "fabric", "bytes_per_connection", 8, "KB", 1 / 1024),
    absolute("i", "plain, 9000", "fabric", "bytes_per_connection", 8, "KB", 1 / 1024),
    cpu("i", "plain, 1000", "fabric", "websockets", 0.5, "bytes_per_connection"),
    absolute("i", "plain after one message, 1000", "fabric callbacks", "bytes_per_connection", 3.5, "KB", 1 / 1024),
    absolute("i", "plain after one message, 1000", "fabric", "bytes_per_connection", 5, "KB", 1 / 1024),
    cpu("i", "TLS, 1000", "fabric", "websockets", 1.00, "bytes_per_connection"),
    absolute("i", "plain, 9000", "fabric", "megabytes", 90, "MB"),
    absolute("i", "CPU of 9000 idle, default heartbeats", "fabric", "cpu_share", 2, "% of a core", 100),
    replace(
        cpu("l", "server, polled by C, 1 × 32 B", POLLING, "fabric", 0.45, "p50"),
        floor=unslept("server, polled by C, 1 × 32 B"),
    ),
    replace(
        cpu("l", "asyncio at both ends, 1 × 32 B", POLLING, "fabric", 0.20, "p50"),
        floor=unslept("asyncio at both ends, 1 × 32 B"),
    ),
    cpu("l", "asyncio at both ends, 1 × 32 B", POLLING, "websockets", 0.20, "p50"),
    cpu("l", "server, 32 × 32 B, 10,000 messages/s", POLLING, "fabric", 1.00, "p99"),
    cpu("l", "blocking client, asyncio server, 1 × 32 B", BLOCKING_POLLING, BLOCKING_WEBSOCKETS, 0.12, "p50"),
    cpu("l", "blocking client, asyncio server, 1 × 32 B", BLOCKING_POLLING, RAW_POLLING, 2.0, "p50"),
    cpu("l", "blocking clients, the same server, 1 × 32 B", BLOCKING, BLOCKING_WEBSOCKETS, 0.6, "p50"),
    cpu("l", "blocking clients, the same server, 1 × 32 B", BLOCKING, BLOCKING_WEBSOCKETS, 0.6),
    cpu("l", "blocking clients, the same server, depth 64", BLOCKING, BLOCKING_WEBSOCKETS, 0.1),
    cpu("m", "bare, 1 × 32 B, depth 64", "fabric.asgi", "websockets-sansio", 0.30),
    cpu("m", "FastAPI, 1 × 32 B, depth 64", "fabric.asgi", "websockets-sansio", 0.55),
    cpu("m", "bare, 1000 idle", "fabric.asgi", "websockets-sansio", 0.60, "bytes_per_connection"),
    absolute("n", "pipelined 1 × 32 B, depth 64", "fabric callbacks", "instructions", 1500, ""),
    absolute("n", "pipelined 1 × 32 B, depth 64", "fabric", "instructions", 2200, ""),
    absolute("n", "ping-pong 1 × 32 B", "fabric callbacks", "instructions", 4500, ""),
    absolute("n", "ping-pong 1 × 32 B", "fabric", "instructions", 7400, ""),
    cpu("o", "1000 subscribers, 1 a turn", "fabric", ONE_BY_ONE, 1.00),
    Bar("o", "cost of a delivery, 10 a turn / 1 a turn", gathered(10), 1 / 8),
    Bar("o", "cost of a delivery, 32 a turn / 1 a turn", gathered(32), 1 / 20),
    cpu("o", "1000 subscribers, 1 a turn", "fabric", "socketify", 1.00),
    cpu("o", "1000 subscribers, 10 a turn", "fabric", "socketify", 1.00),
    cpu("o", "1000 subscribers, 32 a turn", "fabric", "socketify", 1.00),
    cpu("o", "1000 topics × 10 subscribers", "fabric", "socketify", 1.00),
    absolute("p", "1000 clients, 32 a read", "fabric", "cpu_ns", 1.0, "µs", 1e-3),
    absolute("p", "1000 clients, 32 a read", OVER_REDIS, "cpu_ns", 1.0, "µs", 1e-3),
    replace(cpu("p", SINGLY, OVER_REDIS, CHANNELS, 1 / 12), floor=sent_in_c(CHANNELS)),
    cpu("p", "200 clients, 32 a read", OVER_REDIS, CHANNELS, 1 / 100),
    replace(cpu("p", SINGLY, OVER_REDIS, SOCKET_IO, 1 / 12), floor=sent_in_c(SOCKET_IO)),
    cpu("p", "200 clients, 32 a read", OVER_REDIS, SOCKET_IO, 1 / 100),
    Bar("p", "p50 to a client of another server, over NATS' own", more_than_bare("fabric", BARE_NATS), 60, unit="µs"),
    Bar("p", "the same over Redis' own", more_than_bare(OVER_REDIS, BARE_REDIS), 60, unit="µs"),
    absolute("p", "a message of 128 B, 32 a turn", "fabric", "cpu_ns", 0.6, "µs", 1e-3),
    absolute("p", "a message of 128 B, 32 a turn", OVER_REDIS, "cpu_ns", 1.2, "µs", 1e-3),
    absolute("p", "a message of 128 B, 32 a turn", "fabric", "publish_ns", 0.5, "µs", 1e-3),
    absolute("p", "a message of 128 B, 32 a turn", OVER_REDIS, "publish_ns", 0.5, "µs", 1e-3),
    absolute("p", "a message of 128 B, 128 a turn", "fabric", "publish_ns", 0.5, "µs", 1e-3),
    absolute("p", "a message of 128 B, 128 a turn", OVER_REDIS, "publish_ns", 0.5, "µs", 1e-3),
    absolute("p", "100000 topics after a restart of the broker", "fabric", "back_s", 1.5, "s"),
    absolute("p", "100000 topics after a restart of the broker", OVER_REDIS, "back_s", 1.5, "s"),
    absolute("a", TWO, "fabric", "p50", 100, "µs", 1e-3),
    absolute("a", TWO, "fabric", "p95", 500, "µs", 1e-3),
    absolute("b", PIPE, "fabric", "per_second", 100_000, "msg/s", at_most=False),
)


def evaluate(measured: Measured, workloads: str) -> list[dict[str, Any]]:
    """Every bar of the workloads that ran, with its value and PASS, MISS or "not measured"."""
    rows = []
    for bar in BARS:
        if bar.workload not in workloads:
            continue
        row: dict[str, Any] = {
            "workload": bar.workload,
            "bar": bar.text,
            "limit": bar.limit,
            "unit": bar.unit,
            "sense": "at most" if bar.at_most else "at least",
        }
        try:
            value = bar.value(measured)
        except (KeyError, TypeError, ZeroDivisionError):
            row |= {"value": None, "verdict": "not measured"}
        else:
            met = value <= bar.limit if bar.at_most else value >= bar.limit
            row |= {"value": value, "verdict": "PASS" if met else "MISS"}
            for name in ("by_cpu", "floor"):
                with contextlib.suppress(KeyError):
                    if compute := getattr(bar, name):
                        row[name] = compute(measured)
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The bars as text."""
    lines = []
    for row in rows:
        sign = "≤" if row["sense"] == "at most" else "≥"
        value = "—" if row["value"] is None else f"{row['value']:,.{0 if row['value'] >= 1000 else 3}f}"
        limit = f"{sign} {row['limit']:,g} {row['unit']}".strip()
        if "by_cpu" in row:
            limit += f"   ({row['by_cpu']:.2f} by CPU time)"
        if "floor" in row:
            limit += f"   ({FLOOR}: {row['floor']:.3g})"
        lines.append(f"  {row['verdict']:<13}({row['workload']}) {row['bar']:<78} {value:>10}   {limit}")
    return "\n".join(lines)
