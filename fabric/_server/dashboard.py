"""A live page about a server, served by that server itself: `WebSocketServer.mount_dashboard`.

Owns what the page is told: one sample a second, a little history for pages opened later, and pings to a few
connections, so that there are latencies to show. The page is `dashboard.html`, a single file. Its own connections are
not shown: they are none of the application's.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import itertools
import os
import random
import re
import resource
import sys
import time
import uuid
from collections import deque
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from fabric._http.messages import Request, Response
from fabric._version import VERSION
from fabric.error import Error
from fabric.metrics import ServerMetrics
from fabric_ext.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fabric._connection.base import BaseConnection
    from fabric._http.messages import Address
    from fabric.metrics import LoopMetrics, MetricsCollector

__all__ = ["Dashboard", "Process", "pressure"]

INTERVAL = 1.0  # seconds between two samples
HISTORY = 300  # samples a new page starts with
PINGED = 32  # connections pinged for each sample
PING_TIMEOUT = 5.0  # seconds

TIMELINE = (50.0, 95.0, 99.0, 99.9)
RARE = 99.9  # a percentile that is told only of
ENOUGH = 1000  # so many values
RECENT = 60  # samples whose latencies together are told as recent
LISTED = 50  # connections in the list of a sample
CURVE = (0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99, 100.0)
# Nanoseconds from 1 µs to 10 s, twelve in each decade.
BOUNDS = tuple(round(1000 * 10 ** (step / 12)) for step in range(7 * 12 + 1))


class Interval:
    """Tells what was added to a histogram since it was last asked."""

    def __init__(self) -> None:
        self._before: dict[int, int] = {}

    def take(self, histogram: Histogram) -> Histogram:
        """The values recorded since the last call, in a histogram of their own."""
        added, now = Histogram(significant_figures=histogram.significant_figures), {}
        for slot in histogram.recorded():
            now[slot.highest] = slot.samples
            more = slot.samples - self._before.get(slot.highest, 0)
            if more > 0:
                added.record_n(slot.highest, more)
        self._before = now
        return added


class Process:
    """What this process takes of the machine: CPU time since it was last asked, and memory."""

    def __init__(self) -> None:
        self._before = time.monotonic(), time.process_time()

    def take(self) -> dict[str, Any]:
        """Percent of one core since the last call, and bytes of memory; of the latter the most so far off Linux."""
        now = time.monotonic(), time.process_time()
        elapsed, used = now[0] - self._before[0], now[1] - self._before[1]
        self._before = now
        return {"cpu_percent": round(100 * used / max(elapsed, 1e-3), 1), "memory": _resident()}


def _resident() -> int:
    """Bytes of memory that this process has now; on other systems than Linux the most that it has had."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Shown(Protocol):
    """A server, as far as the page shows it."""

    @property
    def metrics(self) -> MetricsCollector: ...

    def clients(self) -> Sequence[BaseConnection]: ...


class Dashboard:
    """The page about `server`, at `path`, and its feed below that."""

    def __init__(self, server: Shown, path: str) -> None:
        if not path.startswith("/") or path.endswith("/") or re.search(r"[^!-~]|[?#%]", path):
            raise ValueError(f"path = {path!r}: expected '/name', in ASCII, without '?', '#', '%' and '/' at its end")
        self._server = server
        self._path = path
        self._id = uuid.uuid4().hex  # a page that sees another one knows that the server was started anew
        self._started = time.time()
        self._page, self._headers = _load_page()
        self._viewers: set[BaseConnection] = set()
        self._samples: deque[bytes] = deque(maxlen=HISTORY)
        self._interval = Interval()
        self._lateness = Interval()
        self._polled = (0, 0)  # nanoseconds polled and hits, at the last sample
        self._recent: deque[Histogram] = deque(maxlen=RECENT)
        self._process = Process()
        self._since: dict[Any, float] = {}  # when each connection was opened
        self._counted: dict[Any, tuple[int, int]] = {}  # of those in the list: messages in and out, at the last sample
        self._last: tuple[float, dict[str, int]] | None = None
        self._pings: dict[BaseConnection, asyncio.Task[None]] = {}

    # -- HTTP

    def is_page(self, request: Request) -> bool:
        """Is the page asked for?"""
        return request.raw_path.rstrip("/") == self._path

    def is_feed(self, request: Request) -> bool:
        """Does a page ask for its feed?"""
        return request.raw_path == f"{self._path}/feed"

    def respond(self, request: Request) -> Response | None:
        """The answer to a request for the page or the feed; None lets a page have its feed.

        A script of another site gets 403: a browser would let it read the feed (RFC 6455 §10.2).
        """
        headers = request.headers
        if self.is_page(request):
            return Response(200, self._headers, self._page)
        if not _is_same_origin(headers.get("Origin"), headers.get("Host")):
            return Response(403, body="the dashboard is for its own page\n")
        return None

    # -- the feed

    async def feed(self, client: BaseConnection) -> None:
        """Handle a page until it goes away."""
        self._viewers.add(client)
        try:
            await client.send_text(self._welcome().decode())
            async for _ in client:
                pass  # there is nothing to tell the server
        finally:
            self._viewers.discard(client)

    def _welcome(self) -> bytes:
        hello = {
            "id": self._id,
            "version": VERSION,
            "started": self._started,
            "bounds_us": [bound / 1e3 for bound in BOUNDS],
        }
        return b'{"hello":%b,"history":[%b]}' % (msgspec.json.encode(hello), b",".join(self._samples))

    async def run(self) -> None:
        """Take samples and send them until cancelled."""
        try:
            while True:
                await self._prepare()
                sample = msgspec.json.encode(self.sample())
                self._samples.append(_without_distribution(sample))
                if self._viewers:
                    listed = msgspec.json.encode(self.listed())
                    text = b'{"listed":%b,%b' % (listed, sample[1:])
                    for viewer in list(self._viewers):
                        with contextlib.suppress(Error):  # a page that does not keep up misses a sample
                            viewer.send_nowait(text.decode())
                else:
                    self._counted.clear()
                self._ping_some()
                due = time.monotonic() + INTERVAL
                await asyncio.sleep(INTERVAL)
                if self._server.metrics.loop is not None:
                    self._server.metrics.loop.record_lateness(time.monotonic() - due)
        finally:
            for task in self._pings.values():
                task.cancel()
            await asyncio.gather(*self._pings.values(), return_exceptions=True)

    def _ping_some(self) -> None:
        """Ping a few, spread over the interval: at once they would wait for each other, and for the pages."""
        idle = [client for client in self._to_ping() if client not in self._pings]
        chosen = random.sample(idle, min(PINGED, len(idle)))
        for index, client in enumerate(chosen):
            delay = INTERVAL * (index + 1) / (len(chosen) + 1)
            task = self._pings[client] = asyncio.create_task(_ping(client, delay))
            task.add_done_callback(functools.partial(self._pinged, client))

    def _pinged(self, client: BaseConnection, _: asyncio.Task[None]) -> None:
        del self._pings[client]

    # -- connections, told by the server

    def opened(self, client: BaseConnection) -> None:
        """A connection of the application has been opened."""
        self._since[client] = time.time()

    def ended(self, client: BaseConnection) -> None:
        """It has ended."""
        self._since.pop(client, None)
        self._counted.pop(client, None)

    # -- what is asked

    async def _prepare(self) -> None:
        """Before each sample: nothing, the server is here."""

    def _metrics(self) -> MetricsCollector:
        """What was counted until now."""
        return self._server.metrics

    def _now(self) -> dict[str, Any]:
        """How many connections there are, their backpressure, and what the process takes of the machine."""
        clients = self._server.clients()
        return {"connections": len(clients), **self._process.take(), **pressure(clients)}

    def _to_ping(self) -> Sequence[BaseConnection]:
        """Connections, some of which are pinged."""
        return self._server.clients()

    # -- what is told

    def listed(self) -> list[dict[str, Any]] | None:
        """Some connections, those with the longest queues first, then the oldest; rates since the last call."""
        clients: Sequence[Any] = self._server.clients()
        waiting = sorted((each for each in clients if each._outbox_size), key=lambda each: -each._outbox_size)
        others = (each for each in clients if not each._outbox_size)
        chosen = list(itertools.islice(itertools.chain(waiting, others), LISTED))
        counted, self._counted = self._counted, {}
        found = []
        for client in chosen:
            now = self._counted[client] = client.messages_received, client.messages_sent
            before = counted.get(client, now)
            found.append(
                {
                    "address": _address(client.remote_addr),
                    "path": client.request.raw_path[:100],
                    "since": self._since.get(client, self._started),
                    "in": now[0] - before[0],
                    "out": now[1] - before[1],
                    "queue": client._outbox_size,
                    "paused": client.is_reading_paused,
                    "latency_us": None if client.latency is None else client.latency * 1e6,
                }
            )
        return found

    def sample(self) -> dict[str, Any]:
        """All that the page shows, as of now; rates since the last call."""
        metrics, now = self._metrics(), self._now()
        at, totals = time.monotonic(), metrics.as_dict()
        totals["closed"] = totals["total_connections"] - now["connections"]
        before_at, before = self._last or (at - INTERVAL, totals)
        self._last = at, totals
        elapsed = max(at - before_at, 1e-3)

        def per_second(name: str) -> float:
            return float(round(max(totals[name] - before[name], 0) / elapsed, 1))

        latest = self._interval.take(metrics.latency)
        self._recent.append(latest)
        recent = Histogram(significant_figures=latest.significant_figures)
        for each in self._recent:
            recent.add(each)
        return {
            "time": time.time(),
            "opened": totals["total_connections"],
            "opened_per_s": per_second("total_connections"),
            "closed_per_s": per_second("closed"),
            "messages_in": per_second("messages_received"),
            "messages_out": per_second("messages_sent"),
            "bytes_in": per_second("bytes_received"),
            "bytes_out": per_second("bytes_sent"),
            "latency_us": _percentiles(latest),
            "recent_us": _percentiles(recent),
            "recent_count": recent.count,
            **now,
            **self._of_loop(metrics.loop, elapsed),
            "slow_peer_drops": totals["slow_peer_drops"],
            "rate_limit_drops": totals["rate_limit_drops"],
            "errors": totals["send_errors"] + totals["receive_errors"],
            "send_errors": totals["send_errors"],
            "receive_errors": totals["receive_errors"],
            "handshake_timeouts": metrics.handshake_timeouts,
            "closes": metrics.closes,
            "refusals": metrics.refusals,
            "topics": metrics.topics if isinstance(metrics, ServerMetrics) else None,
            "distribution": _distribution(metrics.latency),
        }

    def _of_loop(self, loop: LoopMetrics | None, elapsed: float) -> dict[str, Any]:
        """How late timers are, and how the loop polls, since the last sample, `elapsed` seconds ago."""
        if loop is None:
            return {"lateness_us": None, "polled": None, "poll_hits": None}
        (polled, hits), self._polled = self._polled, (loop.polled_ns, loop.hits)
        late = self._lateness.take(loop.lateness)
        return {
            "lateness_us": _percentiles(late),
            "polled": round(min(max(loop.polled_ns - polled, 0) / elapsed / 1e9, 1.0), 4),
            "poll_hits": round(max(loop.hits - hits, 0) / elapsed, 1),
        }


def _percentiles(histogram: Histogram) -> list[float | None] | None:
    """Microseconds at the percentiles of TIMELINE; what is rarer than can be told of so few is None."""
    if not histogram.count:
        return None
    values = zip(TIMELINE, histogram.values_at_percentiles(TIMELINE), strict=True)
    return [None if percentile >= RARE and histogram.count < ENOUGH else value / 1e3 for percentile, value in values]


def _address(address: Address | None) -> str:
    """An address as text: host and port, or what a UNIX-domain socket has."""
    if isinstance(address, tuple):
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return str(address or "-")


def pressure(clients: Sequence[BaseConnection]) -> dict[str, Any]:
    """Backpressure both ways: peers that do not read from us, and peers from which we do not read.

    `oldest_us` is how long the oldest message has waited, from the read that completed it, for its task to take it.
    """
    waiting = [client for client in clients if client._outbox_size]
    oldest = min((received for client in clients if (received := client._oldest_ns)), default=None)
    return {
        "waiting_connections": len(waiting),
        "waiting_messages": sum(client._outbox_size for client in waiting),
        "fullest_buffer": round(max((client.backpressure.level for client in waiting), default=0.0), 3),
        "paused_connections": sum(client.is_reading_paused for client in clients),
        "oldest_us": None if oldest is None else max(round((time.monotonic_ns() - oldest) / 1e3, 1), 0.0),
    }


def _distribution(histogram: Histogram) -> dict[str, Any]:
    """All latencies since the start: counts between BOUNDS, and the values at the percentiles of CURVE."""
    counts = histogram.counts_up_to(BOUNDS)
    steps = [after - before for before, after in zip([0, *counts], [*counts, histogram.count], strict=True)]
    values = histogram.values_at_percentiles(CURVE) if histogram.count else []
    return {
        "count": histogram.count,
        "bins": {index: count for index, count in enumerate(steps) if count},
        "curve": [
            [percentile, value / 1e3]
            for percentile, value in zip(CURVE, values, strict=False)
            if percentile == 100 or histogram.count >= round(100 / (100 - percentile))
        ],
    }


def _without_distribution(sample: bytes) -> bytes:
    """A sample as history keeps it: of the distribution since the start only the latest is shown."""
    return sample[: sample.rindex(b',"distribution":')] + b"}"


async def _ping(client: BaseConnection, delay: float) -> None:
    await asyncio.sleep(delay)
    with contextlib.suppress(Error, TimeoutError):
        async with asyncio.timeout(PING_TIMEOUT):
            await client.ping()  # records its round trip in the server's metrics


def _is_same_origin(origin: str | None, host: str | None) -> bool:
    """Browsers always send an Origin; what sends none is no site's script (RFC 6455 §10.2)."""
    return origin is None or origin.partition("://")[2] == host


def _load_page() -> tuple[bytes, dict[str, str]]:
    """The page, and headers that let it run its own script and nothing else."""
    page = files("fabric._server").joinpath("dashboard.html").read_bytes()
    script = re.search(rb"<script>(.*?)</script>", page, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1]).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:;"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }
