"""`fabric.prometheus`: exported names and values, as Prometheus' own parser reads them."""

from __future__ import annotations

import subprocess
import sys

import pytest

prometheus_client = pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from fabric import prometheus  # noqa: E402
from fabric.metrics import LoopMetrics, MetricsCollector, ServerMetrics, TopicMetrics  # noqa: E402
from fabric_ext.counters import FIELDS  # noqa: E402

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(text: bytes) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


def test_every_counter_is_exported_under_its_conventional_name() -> None:
    metrics = MetricsCollector()
    for number, name in enumerate(FIELDS, start=1):
        setattr(metrics, name, number)
    samples = scrape(prometheus.render(metrics))
    exported = {
        "active_connections": "fabric_connections_active",
        "total_connections": "fabric_connections_total",
    }
    for name in FIELDS:
        assert value(samples, exported.get(name, f"fabric_{name}_total")) == getattr(metrics, name)


def test_refusals_timeouts_and_close_codes_are_exported() -> None:
    metrics = MetricsCollector()
    for status in (503, 403, 503):
        metrics.record_refusal(status)
    metrics.record_disconnection(1006)
    metrics.record_handshake_timeout()
    samples = scrape(prometheus.render({"api": metrics}))
    assert value(samples, "fabric_handshakes_refused_total", endpoint="api", status="503") == 2
    assert value(samples, "fabric_handshakes_refused_total", endpoint="api", status="403") == 1
    assert value(samples, "fabric_connections_closed_total", endpoint="api", code="1006") == 1
    assert value(samples, "fabric_handshake_timeouts_total", endpoint="api") == 1


def test_topics_of_servers_are_exported() -> None:
    server, other, client = ServerMetrics(), ServerMetrics(), MetricsCollector()
    server.source = lambda: TopicMetrics(3, 7, {"full": 2, "broker": 0}, broker_healthy=False)
    samples = scrape(prometheus.render({"server": server, "other": other, "client": client}))
    assert value(samples, "fabric_topics", endpoint="server") == 3
    assert value(samples, "fabric_subscriptions", endpoint="server") == 7
    assert value(samples, "fabric_broker_healthy", endpoint="server") == 0
    assert value(samples, "fabric_topic_drops_total", endpoint="server", reason="full") == 2
    assert value(samples, "fabric_topic_drops_total", endpoint="server", reason="broker") == 0
    assert {dict(labels)["endpoint"] for name, labels in samples if name.startswith("fabric_topic")} == {"server"}
    assert b"topic" not in prometheus.render(client)


def test_types_and_help_are_declared() -> None:
    families = {
        family.name: family for family in text_string_to_metric_families(prometheus.render(MetricsCollector()).decode())
    }
    assert families["fabric_connections_active"].type == "gauge"
    assert families["fabric_bytes_received"].type == "counter"
    assert families["fabric_latency_seconds"].type == "histogram"
    assert all(family.documentation for family in families.values())


def test_latency_is_a_cumulative_histogram_in_seconds() -> None:
    metrics = MetricsCollector()
    for seconds in (20e-6, 80e-6, 80e-6, 0.3, 60.0):
        metrics.record_latency(seconds)
    samples = scrape(prometheus.render(metrics))
    by_bound = {
        float(dict(labels)["le"]): count
        for (name, labels), count in samples.items()
        if name == "fabric_latency_seconds_bucket"
    }
    assert sorted(by_bound) == [*prometheus.DEFAULT_BUCKETS, float("inf")]
    for bound, count in by_bound.items():
        assert count == sum(seconds <= bound for seconds in (20e-6, 80e-6, 80e-6, 0.3, 60.0)), bound
    assert value(samples, "fabric_latency_seconds_count") == 5
    assert value(samples, "fabric_latency_seconds_sum") == pytest.approx(60.30018, rel=1e-3)


def test_a_latency_on_a_bound_is_below_it() -> None:
    metrics = MetricsCollector()
    metrics.record_handshake(0.25)
    samples = scrape(prometheus.render(metrics))
    assert value(samples, "fabric_handshake_seconds_bucket", le="0.25") == 1
    assert value(samples, "fabric_handshake_seconds_bucket", le="0.1") == 0


def test_several_collectors_are_told_apart_by_a_label() -> None:
    chat, feed = MetricsCollector(), MetricsCollector()
    chat.record_message_sent(5)
    feed.record_heartbeat_rtt(0.002)
    samples = scrape(prometheus.render({"chat": chat, "feed": lambda: feed}, label="server"))
    assert value(samples, "fabric_messages_sent_total", server="chat") == 1
    assert value(samples, "fabric_messages_sent_total", server="feed") == 0
    assert value(samples, "fabric_heartbeat_rtt_seconds_count", server="feed") == 1


def test_the_collector_reads_at_every_scrape() -> None:
    made: list[MetricsCollector] = []

    def current() -> MetricsCollector:
        metrics = MetricsCollector()
        metrics.messages_sent = len(made) + 1
        made.append(metrics)
        return metrics

    registry = prometheus_client.CollectorRegistry()
    registry.register(prometheus.PrometheusCollector(current, namespace="app"))
    assert registry.get_sample_value("app_messages_sent_total") == 1
    assert registry.get_sample_value("app_messages_sent_total") == 2


def test_buckets_are_chosen_and_checked() -> None:
    samples = scrape(prometheus.render(MetricsCollector(), buckets=(0.001, 1)))
    bounds = [dict(labels)["le"] for name, labels in samples if name == "fabric_latency_seconds_bucket"]
    assert bounds == ["0.001", "1.0", "+Inf"]
    for bad in ((1, 0.5), (0, 1), (1, 1), (-1,), (1, float("inf")), (float("nan"),)):
        with pytest.raises(ValueError, match="buckets"):
            prometheus.PrometheusCollector(MetricsCollector(), buckets=bad)


def test_content_type_is_the_text_format() -> None:
    assert prometheus.CONTENT_TYPE.startswith("text/plain; version=")


def test_a_missing_extra_is_named() -> None:
    script = "import sys; sys.modules['prometheus_client'] = None; import fabric.prometheus"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    last = run.stderr.splitlines()[-1]
    assert last == (
        "ModuleNotFoundError: fabric.prometheus needs prometheus_client: pip install 'websocket-fabric[prometheus]'"
    )


def test_the_event_loop_is_exported_where_it_is_known() -> None:
    metrics = MetricsCollector()
    assert b"busy_poll" not in prometheus.render(metrics)
    loop = metrics.loop = LoopMetrics(object())  # type: ignore[arg-type]
    loop.passes, loop.hits, loop.polled_ns = 7, 3, 1_500_000_000
    loop.record_lateness(0.003)
    samples = scrape(prometheus.render({"api": metrics, "other": MetricsCollector()}))
    assert value(samples, "fabric_busy_poll_passes_total", endpoint="api") == 7
    assert value(samples, "fabric_busy_poll_hits_total", endpoint="api") == 3
    assert value(samples, "fabric_busy_poll_seconds_total", endpoint="api") == 1.5
    assert value(samples, "fabric_loop_lateness_seconds_count", endpoint="api") == 1
    assert value(samples, "fabric_loop_lateness_seconds_bucket", endpoint="api", le="0.0025") == 0
    assert value(samples, "fabric_loop_lateness_seconds_bucket", endpoint="api", le="0.005") == 1
    assert ("fabric_busy_poll_passes_total", (("endpoint", "other"),)) not in samples
