"""What a connection, server or pool has done, and how long things took.

Owns the numbers: `MetricsCollector`, on the C integers of `fabric_ext.counters` and the HDR histograms of
`fabric_ext.histogram`. Never logs, exports (see `fabric.prometheus`) or starts a timer; one thread uses it.
A server or pool need not count twice: it can sum its connections with `merged` when it is read.
"""

from __future__ import annotations

import time
import weakref
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from fabric_ext.counters import Counters, LoopCounters, coarse_monotonic_now
from fabric_ext.histogram import Histogram

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable
    from typing import Self

__all__ = [
    "LatencyPercentiles",
    "LoopMetrics",
    "MetricsCollector",
    "ServerMetrics",
    "TopicMetrics",
    "loop_metrics_of",
]

_NS_PER_US = 1000
_NS_PER_S = 1e9

_OWN_CODES = 3000  # from here on close codes have no meaning that is registered with the protocol (RFC 6455 §7.4.2)
MAX_CODES = 64  # different close codes that are told apart
OTHER_CODES = 0


@dataclass(frozen=True, slots=True)
class LatencyPercentiles:
    """A distribution of durations in microseconds; all zero while `count` is 0.

    Each figure is exact to the histogram's significant digits (three by default).
    """

    p50: float
    p95: float
    p99: float
    p999: float
    min: float
    max: float
    mean: float
    count: int

    @classmethod
    def of(cls, histogram: Histogram | None) -> Self:
        """The figures of a histogram of nanoseconds; None stands for an empty one."""
        if histogram is None:
            return cls(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0)
        p50, p95, p99, p999 = (ns / _NS_PER_US for ns in histogram.values_at_percentiles((50.0, 95.0, 99.0, 99.9)))
        least, most, mean = (ns / _NS_PER_US for ns in (histogram.min, histogram.max, histogram.mean))
        return cls(p50, p95, p99, p999, least, most, mean, histogram.count)


@dataclass(frozen=True, slots=True)
class TopicMetrics:
    """The topics of a server, at one moment.

    Attributes:
        topics: topics and patterns that have subscribers on this server.
        subscriptions: of its clients and listeners.
        drops: messages that did not reach a subscriber, by reason; see `fabric.topics.Topics`.
        broker_healthy: as `WebSocketServer.broker_healthy`.
        has_broker: are there topics of other servers, too?
    """

    topics: int
    subscriptions: int
    drops: dict[str, int]
    broker_healthy: bool
    has_broker: bool = False


class LoopMetrics(LoopCounters):
    """How an event loop does: how it polls (`busy_poll`), and how late its timers are. One for each loop.

    Attributes:
        passes: how often the poller has looked at the connections that were hot.
        hits: how often it has read bytes from one.
        polled_ns: nanoseconds for which it kept the loop from sleeping.
    """

    __slots__ = ("_lateness", "_loop", "_since_ns")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lateness: Histogram | None = None
        self._since_ns = time.monotonic_ns()

    @property
    def polled_share(self) -> float:
        """The part of all time for which the loop was kept from sleeping, 0 to 1: so much of a processor."""
        return self.polled_ns / max(time.monotonic_ns() - self._since_ns, self.polled_ns, 1)

    @property
    def lateness(self) -> Histogram:
        """How late timers have fired, in ns: those of heartbeats, and that of a dashboard."""
        if self._lateness is None:
            self._lateness = Histogram()
        return self._lateness

    def record_lateness(self, seconds: float) -> None:
        """Add how late a timer has fired, in seconds; one that fired early was not late."""
        self.lateness.record_scaled(max(seconds, 0.0), _NS_PER_S)

    def lateness_percentiles(self) -> LatencyPercentiles:
        """The distribution of `lateness`, in microseconds."""
        return LatencyPercentiles.of(self._lateness)

    def snapshot(self) -> dict[str, Any]:
        """All numbers as of now, in a dict that JSON takes."""
        return {
            "passes": self.passes,
            "hits": self.hits,
            "polled_share": self.polled_share,
            "lateness_us": asdict(self.lateness_percentiles()),
        }

    def reset(self) -> None:
        """Start over."""
        self.passes = self.hits = self.polled_ns = 0
        self._since_ns = time.monotonic_ns()
        if self._lateness is not None:
            self._lateness.reset()


_of_loops: weakref.WeakValueDictionary[int, LoopMetrics] = weakref.WeakValueDictionary()


def loop_metrics_of(loop: asyncio.AbstractEventLoop) -> LoopMetrics:
    """The metrics of `loop`, as long as something uses them."""
    found = _of_loops.get(id(loop))  # they keep their loop: no id is reused
    if found is None:
        found = _of_loops[id(loop)] = LoopMetrics(loop)
    return found


class MetricsCollector(Counters):
    """Counters and latency histograms of one connection, server or pool.

    The counters are attributes, incremented by compiled code or by the `record_` methods of `Counters`.
    Durations are seconds or `timedelta` coming in, microseconds in `LatencyPercentiles`, nanoseconds in the
    histograms.
    A histogram takes no memory before its first value, then 2 to 100 KB, more the wider its values spread.

    Attributes:
        loop: how the event loop does, on which this client or server runs; shared by all that run on it. None while
            there is none.

    Args:
        significant_figures: digits to which durations are kept, 1 to 5. Each one more costs up to ten times
            the memory.

    Attributes:
        active_connections: open now.
        total_connections, reconnections: opened so far; of these, replacements of a lost one.
        messages_sent, messages_received, bytes_sent, bytes_received: data messages and their payloads.
        send_errors, receive_errors: messages that could not be sent, messages or frames that could not be received.
        handshake_timeouts: opening handshakes that were not over in time.
        rate_limit_drops, slow_peer_drops: messages that were dropped over a rate limit, and for slow peers.
        compression_bytes_in, compression_bytes_out: what the compressor was given, and what it made of that.
        decompression_bytes_in, decompression_bytes_out: likewise for the decompressor.
    """

    __slots__ = (
        "_closes",
        "_figures",
        "_handshake",
        "_heartbeat_rtt",
        "_latency",
        "_refusals",
        "handshake_timeouts",
        "loop",
    )

    def __init__(self, significant_figures: int = 3) -> None:
        if not 1 <= significant_figures <= 5:
            raise ValueError(f"significant_figures = {significant_figures!r}: expected 1 to 5")
        self._figures = significant_figures
        self._latency: Histogram | None = None
        self._heartbeat_rtt: Histogram | None = None
        self._handshake: Histogram | None = None
        self._closes: dict[int, int] | None = None
        self._refusals: dict[int, int] | None = None
        self.handshake_timeouts = 0
        self.loop: LoopMetrics | None = None
        self.last_activity_ns = coarse_monotonic_now()

    # ------------------------------------------------------------------ recording

    def record_latency(self, duration: float | timedelta) -> None:
        """Add one latency, in seconds, to `latency`. Raises ValueError unless it is finite."""
        histogram = self._latency
        if histogram is None:
            histogram = self.latency
        histogram.record_scaled(_seconds(duration), _NS_PER_S)

    def record_heartbeat_rtt(self, duration: float | timedelta) -> None:
        """Add one round trip of ping and pong, in seconds, to `heartbeat_rtt` and to `latency`."""
        seconds = _seconds(duration)
        self.heartbeat_rtt.record_scaled(seconds, _NS_PER_S)
        self.latency.record_scaled(seconds, _NS_PER_S)

    def record_handshake(self, duration: float | timedelta) -> None:
        """Add the time, in seconds, from the start of a connection attempt until it was open."""
        self.handshake.record_scaled(_seconds(duration), _NS_PER_S)

    def record_disconnection(self, code: int | None = None) -> None:
        """Count a connection that is no longer open, and its close code if one is given."""
        super().record_disconnection()
        if code is not None:
            if self._closes is None:
                self._closes = {}
            if code >= _OWN_CODES and code not in self._closes and len(self._closes) >= MAX_CODES:
                code = OTHER_CODES  # peers choose among 2,000
            self._closes[code] = self._closes.get(code, 0) + 1

    def record_refusal(self, status: int) -> None:
        """Count an opening handshake that a server has answered with `status`, 400 to 599."""
        if self._refusals is None:
            self._refusals = {}
        self._refusals[status] = self._refusals.get(status, 0) + 1

    def record_handshake_timeout(self) -> None:
        """Count an opening handshake of a client that was not over within the server's `handshake_timeout`."""
        self.handshake_timeouts += 1

    # ------------------------------------------------------------------ reading

    @property
    def closes(self) -> dict[int, int]:
        """How many connections have ended with each close code, as `close_code` tells it (a new dict).

        Codes from 3000 on count as 0, which stands for others, when there are 64 different codes already.
        """
        return dict(self._closes or {})

    @property
    def refusals(self) -> dict[int, int]:
        """How many opening handshakes a server has answered with each status from 400 on (a new dict)."""
        return dict(self._refusals or {})

    @property
    def latency(self) -> Histogram:
        """All latencies in ns: those of `record_latency`, and the round trips of pings."""
        if self._latency is None:
            self._latency = Histogram(significant_figures=self._figures)
        return self._latency

    @property
    def heartbeat_rtt(self) -> Histogram:
        """Round trips of pings in ns."""
        if self._heartbeat_rtt is None:
            self._heartbeat_rtt = Histogram(significant_figures=self._figures)
        return self._heartbeat_rtt

    @property
    def handshake(self) -> Histogram:
        """How long connections took to open, in ns."""
        if self._handshake is None:
            self._handshake = Histogram(significant_figures=self._figures)
        return self._handshake

    def latency_percentiles(self) -> LatencyPercentiles:
        """The distribution of `latency`, in microseconds."""
        return LatencyPercentiles.of(self._latency)

    def heartbeat_percentiles(self) -> LatencyPercentiles:
        """The distribution of `heartbeat_rtt`, in microseconds."""
        return LatencyPercentiles.of(self._heartbeat_rtt)

    def handshake_percentiles(self) -> LatencyPercentiles:
        """The distribution of `handshake`, in microseconds."""
        return LatencyPercentiles.of(self._handshake)

    def is_idle(self, timeout: float | timedelta, now: float | None = None) -> bool:
        """Whether nothing was sent, received, opened or closed for `timeout` seconds.

        The clock starts when the collector is made, and is a few milliseconds coarse.

        Args:
            now: the time of `time.monotonic()`, read if not given.
        """
        moment = time.monotonic() if now is None else now
        return moment - self.last_activity_ns / _NS_PER_S >= _seconds(timeout)

    def snapshot(self) -> dict[str, Any]:
        """All numbers as of now, in a dict that JSON takes: counters by name, and distributions in µs."""
        return {
            **self.as_dict(),
            "handshake_timeouts": self.handshake_timeouts,
            "refusals": {str(status): count for status, count in self.refusals.items()},
            "closes": {str(code): count for code, count in self.closes.items()},
            "latency_us": asdict(self.latency_percentiles()),
            "heartbeat_rtt_us": asdict(self.heartbeat_percentiles()),
            "handshake_us": asdict(self.handshake_percentiles()),
            "loop": None if self.loop is None else self.loop.snapshot(),
        }

    # ------------------------------------------------------------------ summing and starting over

    def add(self, other: Counters) -> None:
        """Add the counters of `other` to these, and its histograms if it has any; of two loops the first is kept."""
        super().add(other)
        if not isinstance(other, MetricsCollector):
            return
        self.handshake_timeouts += other.handshake_timeouts
        self.loop = self.loop or other.loop
        self._refusals = _sum(self._refusals, other._refusals)
        self._closes = _sum(self._closes, other._closes)
        if other._latency is not None:
            self.latency.add(other._latency)
        if other._heartbeat_rtt is not None:
            self.heartbeat_rtt.add(other._heartbeat_rtt)
        if other._handshake is not None:
            self.handshake.add(other._handshake)

    @classmethod
    def merged(cls, parts: Iterable[Counters], significant_figures: int = 3) -> Self:
        """A new collector with the sum of `parts`, which stay as they are."""
        total = cls(significant_figures)
        for index, part in enumerate(parts):
            if index == 0:
                total.last_activity_ns = 0  # the parts' own, not the moment of adding up
            total.add(part)
        return total

    def reset(self) -> None:
        """Start over: counters to zero, histograms empty. `active_connections` and `loop` stay: they are still open."""
        super().reset()
        self._closes = self._refusals = None
        self.handshake_timeouts = 0
        for histogram in (self._latency, self._heartbeat_rtt, self._handshake):
            if histogram is not None:
                histogram.reset()  # in place: compiled code may hold it


class ServerMetrics(MetricsCollector):
    """What `WebSocketServer.metrics` is: a collector that knows of the server's topics, too.

    Attributes:
        source: tells how the topics are now; set by the server.
    """

    __slots__ = ("source",)

    def __init__(self, significant_figures: int = 3) -> None:
        super().__init__(significant_figures)
        self.source: Callable[[], TopicMetrics] | None = None

    @property
    def topics(self) -> TopicMetrics | None:
        """The topics as of now; None of a sum of several servers."""
        return None if self.source is None else self.source()

    def snapshot(self) -> dict[str, Any]:
        """As that of `MetricsCollector`, and the fields of `topics`."""
        topics = self.topics
        return super().snapshot() | ({} if topics is None else {"topics": asdict(topics)})


def _sum(one: dict[int, int] | None, other: dict[int, int] | None) -> dict[int, int] | None:
    return dict(Counter(one) + Counter(other)) if one and other else dict(one or other or {}) or None


def _seconds(duration: float | timedelta) -> float:
    return duration.total_seconds() if isinstance(duration, timedelta) else duration
