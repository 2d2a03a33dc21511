"""Metrics for Prometheus. Needs the extra `prometheus`: `pip install 'websocket-fabric[prometheus]'`.

Owns the exported names and their help texts. Counts nothing: it reads a `MetricsCollector` when scraped.

    async def process_request(request):
        if request.path == "/metrics":
            return 200, {"Content-Type": prometheus.CONTENT_TYPE}, prometheus.render(server.metrics)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from fabric.metrics import LoopMetrics, MetricsCollector, ServerMetrics, TopicMetrics
from fabric_ext.histogram import Histogram

try:
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
    from prometheus_client.registry import Collector
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "fabric.prometheus needs prometheus_client: pip install 'websocket-fabric[prometheus]'",
        name=error.name,
    ) from None

__all__ = ["CONTENT_TYPE", "DEFAULT_BUCKETS", "PrometheusCollector", "render"]

CONTENT_TYPE = CONTENT_TYPE_LATEST

# Upper bounds in seconds: 10 µs on loopback to 10 s for a handshake in trouble.
DEFAULT_BUCKETS = (
    *(float(f"{step}e{magnitude}") for magnitude in range(-5, 1) for step in (1, 2.5, 5)),
    10.0,
)

Source: TypeAlias = MetricsCollector | Callable[[], MetricsCollector]

# Attribute of MetricsCollector: exported name without prefix and `_total`, help.
_COUNTERS = {
    "total_connections": ("connections", "Connections opened."),
    "messages_sent": ("messages_sent", "Data messages sent."),
    "messages_received": ("messages_received", "Data messages received."),
    "bytes_sent": ("bytes_sent", "Payload bytes sent, before compression."),
    "bytes_received": ("bytes_received", "Payload bytes received, after decompression."),
    "send_errors": ("send_errors", "Messages that could not be sent."),
    "receive_errors": ("receive_errors", "Messages or frames that could not be received."),
    "handshake_timeouts": ("handshake_timeouts", "Opening handshakes not over within the server's handshake_timeout."),
    "reconnections": ("reconnections", "Connections that replaced a lost one."),
    "rate_limit_drops": ("rate_limit_drops", "Messages dropped over a rate limit."),
    "slow_peer_drops": ("slow_peer_drops", "Broadcast messages not delivered to slow peers."),
    "compression_bytes_in": ("compression_bytes_in", "Bytes given to the compressor."),
    "compression_bytes_out": ("compression_bytes_out", "Bytes the compressor made of them."),
    "decompression_bytes_in": ("decompression_bytes_in", "Bytes given to the decompressor."),
    "decompression_bytes_out": ("decompression_bytes_out", "Bytes the decompressor made of them."),
}

# Counter of MetricsCollector by a number: exported name without prefix and `_total`, the label for the number, help.
_BY_NUMBER = {
    "refusals": ("handshakes_refused", "status", "Opening handshakes answered 400 or more, by HTTP status."),
    "closes": ("connections_closed", "code", "Connections that have ended, by close code; 0: other codes."),
}

# Attribute of TopicMetrics: exported name without prefix, help.
_TOPICS = {
    "topics": ("topics", "Topics and patterns that have subscribers on this server."),
    "subscriptions": ("subscriptions", "Subscriptions of this server's clients and listeners."),
    "broker_healthy": ("broker_healthy", "1 while the broker is connected and answers, or there is none; 0 otherwise."),
}

# Histogram of MetricsCollector: exported name without prefix, help.
_HISTOGRAMS = {
    "latency": ("latency_seconds", "Latencies recorded by the application, and round trips of pings."),
    "heartbeat_rtt": ("heartbeat_rtt_seconds", "Round trips of pings."),
    "handshake": ("handshake_seconds", "Time from the start of a connection attempt until it was open."),
}


# Counter of LoopMetrics: exported name without prefix and `_total`, help, what one of the exported unit is.
_OF_LOOP = {
    "passes": ("busy_poll_passes", "Looks of the event loop's poller at its hot connections.", 1),
    "hits": ("busy_poll_hits", "Reads of the poller that found bytes.", 1),
    "polled_ns": ("busy_poll_seconds", "Time for which the poller kept the event loop from sleeping.", 1e9),
}
_LATENESS = ("loop_lateness_seconds", "How late timers of the event loop have fired.")


class PrometheusCollector(Collector):
    """Exports metrics: `prometheus_client.REGISTRY.register(PrometheusCollector(server.metrics))`.

    Args:
        metrics: a collector, or a function that returns one when scraped; or a mapping of several by name,
            which a label tells apart (one registry takes each metric name only once).
        label: that label's name.
        namespace: the first word of every exported name.
        buckets: ascending upper bounds of the histograms' buckets in seconds; +Inf is added.
    """

    def __init__(
        self,
        metrics: Source | Mapping[str, Source],
        *,
        label: str = "endpoint",
        namespace: str = "fabric",
        buckets: Sequence[float] = DEFAULT_BUCKETS,
    ) -> None:
        if list(buckets) != sorted(set(buckets)) or not all(0 < bound < math.inf for bound in buckets):
            raise ValueError(f"buckets = {buckets!r}: expected ascending, finite seconds above 0")
        self._sources: Mapping[tuple[str, ...], Source]
        if isinstance(metrics, Mapping):
            self._label_names = [label]
            self._sources = {(name,): source for name, source in metrics.items()}
        else:
            self._label_names = []
            self._sources = {(): metrics}
        self._namespace = namespace
        self._bounds_ns = [round(bound * 1e9) for bound in buckets]
        self._bound_names = [str(float(bound)) for bound in buckets]

    def collect(self) -> Iterator[Metric]:
        """All metrics as of now; called by the registry on every scrape."""
        current = {
            labels: source if isinstance(source, MetricsCollector) else source()
            for labels, source in self._sources.items()
        }
        active = GaugeMetricFamily(
            f"{self._namespace}_connections_active", "Connections open now.", labels=self._label_names
        )
        for labels, metrics in current.items():
            active.add_metric(labels, metrics.active_connections)
        yield active
        for attribute, (name, text) in _COUNTERS.items():
            counter = CounterMetricFamily(f"{self._namespace}_{name}", text, labels=self._label_names)
            for labels, metrics in current.items():
                counter.add_metric(labels, getattr(metrics, attribute))
            yield counter
        for attribute, (name, label, text) in _BY_NUMBER.items():
            counter = CounterMetricFamily(f"{self._namespace}_{name}", text, labels=[*self._label_names, label])
            for labels, metrics in current.items():
                for number, count in sorted(getattr(metrics, attribute).items()):
                    counter.add_metric([*labels, str(number)], count)
            yield counter
        yield from self._topics(current)
        for attribute, (name, text) in _HISTOGRAMS.items():
            family = HistogramMetricFamily(f"{self._namespace}_{name}", text, labels=self._label_names)
            for labels, metrics in current.items():
                histogram: Histogram = getattr(metrics, attribute)
                family.add_metric(labels, self._buckets(histogram), histogram.sum / 1e9)
            yield family
        yield from self._of_loops({labels: metrics.loop for labels, metrics in current.items() if metrics.loop})

    def _of_loops(self, loops: Mapping[tuple[str, ...], LoopMetrics]) -> Iterator[Metric]:
        if not loops:
            return
        for attribute, (name, text, unit) in _OF_LOOP.items():
            counter = CounterMetricFamily(f"{self._namespace}_{name}", text, labels=self._label_names)
            for labels, loop in loops.items():
                counter.add_metric(labels, getattr(loop, attribute) / unit)
            yield counter
        name, text = _LATENESS
        family = HistogramMetricFamily(f"{self._namespace}_{name}", text, labels=self._label_names)
        for labels, loop in loops.items():
            family.add_metric(labels, self._buckets(loop.lateness), loop.lateness.sum / 1e9)
        yield family

    def _topics(self, current: Mapping[tuple[str, ...], MetricsCollector]) -> Iterator[Metric]:
        """The metrics of topics, where there is a server among the sources."""
        found: list[tuple[tuple[str, ...], TopicMetrics]] = [
            (labels, topics)
            for labels, metrics in current.items()
            if isinstance(metrics, ServerMetrics) and (topics := metrics.topics) is not None
        ]
        if not found:
            return
        for attribute, (name, text) in _TOPICS.items():
            gauge = GaugeMetricFamily(f"{self._namespace}_{name}", text, labels=self._label_names)
            for labels, topics in found:
                gauge.add_metric(labels, getattr(topics, attribute))
            yield gauge
        drops = CounterMetricFamily(
            f"{self._namespace}_topic_drops",
            "Messages published that did not reach a subscriber, by reason.",
            labels=[*self._label_names, "reason"],
        )
        for labels, topics in found:
            for reason, count in sorted(topics.drops.items()):
                drops.add_metric([*labels, reason], count)
        yield drops

    def _buckets(self, histogram: Histogram) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound."""
        names = [*self._bound_names, "+Inf"]
        return list(zip(names, [*histogram.counts_up_to(self._bounds_ns), histogram.count], strict=True))


def render(
    metrics: Source | Mapping[str, Source],
    *,
    label: str = "endpoint",
    namespace: str = "fabric",
    buckets: Sequence[float] = DEFAULT_BUCKETS,
) -> bytes:
    """The text that Prometheus scrapes, of type `CONTENT_TYPE`. Arguments as for `PrometheusCollector`."""
    return generate_latest(PrometheusCollector(metrics, label=label, namespace=namespace, buckets=buckets))
