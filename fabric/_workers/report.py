"""The metrics of a worker's server as a report to the parent, and the sum of several reports.

Counters are added and histograms merged, as if one server had counted it all.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from fabric.metrics import LoopMetrics, ServerMetrics, TopicMetrics
from fabric_ext.histogram import Histogram

__all__ = ["Totals", "packed", "unpacked"]

HISTOGRAMS = ("latency", "heartbeat_rtt", "handshake")


def packed(metrics: ServerMetrics) -> dict[str, Any]:
    """All that `metrics` holds, as a dict that can be encoded as JSON."""
    topics, loop = metrics.topics, metrics.loop
    return {
        "counters": metrics.as_dict() | {"last_activity_ns": metrics.last_activity_ns},
        "handshake_timeouts": metrics.handshake_timeouts,
        "refusals": {str(status): count for status, count in metrics.refusals.items()},
        "closes": {str(code): count for code, count in metrics.closes.items()},
        "histograms": {name: getattr(metrics, name).encode_base64() for name in HISTOGRAMS},
        "topics": None if topics is None else asdict(topics),
        "loop": None
        if loop is None
        else {
            "counters": {name: getattr(loop, name) for name in ("passes", "hits", "polled_ns")},
            "lateness": loop.lateness.encode_base64(),
        },
    }


def unpacked(report: dict[str, Any], loop: asyncio.AbstractEventLoop) -> ServerMetrics:
    """The metrics in a `report` that `packed` made; `loop` is the running event loop, for their `LoopMetrics`."""
    metrics = ServerMetrics()
    for name, value in report["counters"].items():
        setattr(metrics, name, value)
    metrics.handshake_timeouts = report["handshake_timeouts"]
    metrics._refusals = {int(status): count for status, count in report["refusals"].items()}
    metrics._closes = {int(code): count for code, count in report["closes"].items()}
    for name in HISTOGRAMS:
        getattr(metrics, name).add(Histogram.decode(report["histograms"][name]))
    if report["topics"] is not None:
        topics = TopicMetrics(**report["topics"])
        metrics.source = lambda: topics
    if report["loop"] is not None:
        metrics.loop = LoopMetrics(loop)
        for name, value in report["loop"]["counters"].items():
            setattr(metrics.loop, name, value)
        metrics.loop.lateness.add(Histogram.decode(report["loop"]["lateness"]))
    return metrics


class Totals:
    """Sums over workers. They include workers that have ended, so that no counter ever goes back."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._loop_metrics = LoopMetrics(loop)  # of those that have ended, too
        self._ended = ServerMetrics()
        self._ended_drops: Counter[str] = Counter()

    def keep(self, last: ServerMetrics) -> None:
        """A worker has ended; `last` is from its last report."""
        last.active_connections = 0
        if last.topics is not None:
            self._ended_drops.update(last.topics.drops)
        if last.loop is not None:
            _add_loop(self._loop_metrics, last.loop)
        last.loop = None
        self._ended.add(last)

    def of(self, workers: Iterable[ServerMetrics]) -> ServerMetrics:
        """The sum over `workers`, which run, and those that have ended."""
        total = ServerMetrics.merged([self._ended])
        total.loop = LoopMetrics(self._loop)
        _add_loop(total.loop, self._loop_metrics)
        topics, subscriptions, drops, healthy = 0, 0, Counter(self._ended_drops), True
        for metrics in workers:
            total.add(metrics)
            if metrics.loop is not None:
                _add_loop(total.loop, metrics.loop)
            if (these := metrics.topics) is not None:
                topics, subscriptions = topics + these.topics, subscriptions + these.subscriptions
                drops.update(these.drops)
                healthy = healthy and these.broker_healthy
        total.source = lambda: TopicMetrics(topics, subscriptions, dict(drops), healthy)
        return total


def _add_loop(total: LoopMetrics, other: LoopMetrics) -> None:
    total.passes += other.passes
    total.hits += other.hits
    total.polled_ns += other.polled_ns
    total.lateness.add(other.lateness)
