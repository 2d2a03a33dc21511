"""Measures one client library: wall time, own CPU time, round trips. A client script is a few lines on top.

The hot loops hold no clock: a short run tells the speed, then as many messages are run as fill the time.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import uvloop

CURVE = (0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99)

Send = Callable[[bytes], Awaitable[Any]]
Receive = Callable[[], Awaitable[Any]]
Unwrap = Callable[[Any], bytes]


def arguments() -> argparse.Namespace:
    """Reads the command line all clients understand."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--depth", type=int, default=64, help="messages in flight; 1 is ping-pong")
    parser.add_argument("--size", type=int, default=32, help="payload bytes")
    parser.add_argument("--messages", type=Path, help="the payloads instead, one a line, over and over")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--tls", metavar="CERTIFICATE", help="connect to a wss server that has this certificate")
    parser.add_argument(
        "--deflate", action="store_true", help="ask for permessage-deflate where that is not the default"
    )
    parser.add_argument(
        "--busy-poll", type=float, default=0.0, metavar="SECONDS", help="look for messages for so long before sleeping"
    )
    found = parser.parse_args()
    found.context = ssl.create_default_context(cafile=found.tls) if found.tls else None
    found.url = f"{'wss' if found.tls else 'ws'}://127.0.0.1:{found.port}/"
    return found


async def pipelined(send: Send, receive: Receive, payloads: Iterator[bytes], depth: int, count: int) -> Any:
    """Echoes `count` messages with `depth` in flight; returns the last."""
    for payload in itertools.islice(payloads, depth):
        await send(payload)
    for payload in itertools.islice(payloads, count - depth):
        await receive()
        await send(payload)
    last = None
    for _ in range(depth):
        last = await receive()
    return last


async def ping_pong(send: Send, receive: Receive, payloads: Iterator[bytes], count: int, times: list[int]) -> Any:
    """Echoes `count` messages one at a time and notes each round trip in ns; returns the last."""
    clock = time.perf_counter_ns
    last = None
    for payload in itertools.islice(payloads, count):
        start = clock()
        await send(payload)
        last = await receive()
        times.append(clock() - start)
    return last


def pipelined_blocking(
    send: Callable[[bytes], Any], receive: Callable[[], Any], payloads: Iterator[bytes], depth: int, count: int
) -> Any:
    """As `pipelined`, for calls that block."""
    for payload in itertools.islice(payloads, depth):
        send(payload)
    for payload in itertools.islice(payloads, count - depth):
        receive()
        send(payload)
    last = None
    for _ in range(depth):
        last = receive()
    return last


def ping_pong_blocking(
    send: Callable[[bytes], Any], receive: Callable[[], Any], payloads: Iterator[bytes], count: int, times: list[int]
) -> Any:
    """As `ping_pong`, for calls that block."""
    clock = time.perf_counter_ns
    last = None
    for payload in itertools.islice(payloads, count):
        start = clock()
        send(payload)
        last = receive()
        times.append(clock() - start)
    return last


async def measure(options: argparse.Namespace, send: Send, receive: Receive, unwrap: Unwrap) -> None:
    """Runs the workload through `send` and `receive` and prints one JSON object."""
    ring = ring_of(options)
    times: list[int] = []

    async def run(count: int) -> float:
        payloads = itertools.cycle(ring)
        start = time.perf_counter()
        if options.depth == 1:
            last = await ping_pong(send, receive, payloads, count, times)
        else:
            last = await pipelined(send, receive, payloads, options.depth, count)
        check(ring, count, unwrap(last))
        return time.perf_counter() - start

    trial = max(1000, 8 * options.depth)
    await run(trial)
    count = max(trial, int(options.seconds * trial / await run(trial)))
    times.clear()
    cpu = time.process_time_ns()
    seconds = await run(count)
    report(count, seconds, time.process_time_ns() - cpu, times)


def measure_blocking(
    options: argparse.Namespace, send: Callable[[bytes], Any], receive: Callable[[], Any], unwrap: Unwrap
) -> None:
    """As `measure`, for a client whose calls block."""
    ring = ring_of(options)
    times: list[int] = []

    def run(count: int) -> float:
        payloads = itertools.cycle(ring)
        start = time.perf_counter()
        if options.depth == 1:
            last = ping_pong_blocking(send, receive, payloads, count, times)
        else:
            last = pipelined_blocking(send, receive, payloads, options.depth, count)
        check(ring, count, unwrap(last))
        return time.perf_counter() - start

    trial = max(1000, 8 * options.depth)
    run(trial)
    count = max(trial, int(options.seconds * trial / run(trial)))
    times.clear()
    cpu = time.process_time_ns()
    seconds = run(count)
    report(count, seconds, time.process_time_ns() - cpu, times)


def ring_of(options: argparse.Namespace) -> list[bytes]:
    """The payloads that are sent, over and over."""
    if options.messages:
        lines: list[bytes] = options.messages.read_bytes().splitlines()
        return lines
    return [bytes(i % 251 for i in range(options.size))]


def check(ring: list[bytes], count: int, last: bytes) -> None:
    if last != ring[(count - 1) % len(ring)]:
        raise SystemExit("the echo differs from what was sent")


def report(count: int, seconds: float, cpu: int, times: list[int]) -> None:
    """Prints what was measured; `times` are round trips, if any were."""
    times.sort()

    def at(percentile: float) -> int:
        return times[min(len(times) - 1, int(len(times) * percentile / 100))]

    result: dict[str, Any] = {
        "messages": count,
        "seconds": seconds,
        "per_second": count / seconds,
        "client_cpu_ns": cpu / count,
    }
    if times:
        result["latency"] = {name: at(p) for name, p in (("p50", 50), ("p95", 95), ("p99", 99), ("p999", 99.9))}
        result["percentiles"] = [[p, at(p)] for p in CURVE]
    print(json.dumps(result))


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Runs `main` on uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())  # type: ignore[arg-type]
