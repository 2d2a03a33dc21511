"""`fabric.metrics`: recording, percentiles in µs, idleness, snapshots, sums, and starting over."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import sys
import time
from datetime import timedelta

import pytest

from fabric.metrics import (
    LatencyPercentiles,
    LoopMetrics,
    MetricsCollector,
    ServerMetrics,
    TopicMetrics,
    loop_metrics_of,
)
from fabric_ext.counters import FIELDS, Counters
from fabric_ext.histogram import Histogram

EMPTY = LatencyPercentiles(0, 0, 0, 0, 0, 0, 0, 0)


def busy(connections: int = 1, latency: float = 0.001) -> MetricsCollector:
    metrics = MetricsCollector()
    for _ in range(connections):
        metrics.record_connection()
        metrics.record_message_sent(10)
        metrics.record_message_received(20)
        metrics.record_latency(latency)
        metrics.record_heartbeat_rtt(2 * latency)
        metrics.record_handshake(3 * latency)
        metrics.record_disconnection(1000)
        metrics.record_connection()
    metrics.record_refusal(503)
    metrics.record_handshake_timeout()
    return metrics


# ---------------------------------------------------------------------- latencies


def test_percentiles_are_microseconds_to_three_digits() -> None:
    metrics = MetricsCollector()
    for microseconds in range(1, 1001):
        metrics.record_latency(microseconds / 1e6)
    percentiles = metrics.latency_percentiles()
    assert percentiles.count == 1000
    exact = {"p50": 500, "p95": 950, "p99": 990, "p999": 999, "min": 1, "max": 1000, "mean": 500.5}
    for name, value in exact.items():
        assert getattr(percentiles, name) == pytest.approx(value, rel=1e-3), name


@pytest.mark.parametrize("seconds", [1e-6, 47e-6, 0.0123, 3600.0, 86400.0])
def test_one_latency_keeps_its_digits_from_a_microsecond_to_a_day(seconds: float) -> None:
    metrics = MetricsCollector()
    metrics.record_latency(seconds)
    assert metrics.latency_percentiles().p50 == pytest.approx(seconds * 1e6, rel=1e-3)
    assert metrics.latency.clamped_high == 0


def test_durations_are_seconds_or_timedelta() -> None:
    metrics = MetricsCollector()
    metrics.record_latency(timedelta(milliseconds=5))
    metrics.record_latency(0.005)
    metrics.record_latency(0)
    assert metrics.latency.count_at(5_000_000) == 2
    assert metrics.latency.count_at(0) == 1


def test_impossible_durations_are_refused_or_seen() -> None:
    metrics = MetricsCollector()
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="finite"):
            metrics.record_latency(bad)
    with pytest.raises(TypeError):
        metrics.record_latency("1")  # type: ignore[arg-type]
    assert metrics.latency_percentiles() == EMPTY
    metrics.record_latency(-1.0)
    metrics.record_latency(1e12)
    assert (metrics.latency.clamped_low, metrics.latency.clamped_high) == (1, 1)


def test_heartbeats_are_latencies_too_and_handshakes_are_not() -> None:
    metrics = MetricsCollector()
    metrics.record_latency(0.001)
    metrics.record_heartbeat_rtt(0.002)
    metrics.record_handshake(0.003)
    assert metrics.latency_percentiles().count == 2
    assert metrics.latency_percentiles().max == pytest.approx(2000, rel=1e-3)
    assert metrics.heartbeat_percentiles().count == 1
    assert metrics.heartbeat_percentiles().p50 == pytest.approx(2000, rel=1e-3)
    assert metrics.handshake_percentiles().p50 == pytest.approx(3000, rel=1e-3)


def test_percentiles_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EMPTY.p50 = 1.0  # type: ignore[misc]


def test_significant_figures_are_chosen_and_checked() -> None:
    metrics = MetricsCollector(significant_figures=5)
    metrics.record_latency(0.123456)
    assert metrics.latency_percentiles().p50 == pytest.approx(123_456, rel=1e-5)
    for bad in (0, 6):
        with pytest.raises(ValueError, match="significant_figures"):
            MetricsCollector(bad)


def test_unused_histograms_cost_nothing() -> None:
    metrics = MetricsCollector()
    metrics.latency_percentiles()
    metrics.snapshot()
    assert metrics._latency is metrics._heartbeat_rtt is metrics._handshake is None
    assert sys.getsizeof(metrics) < 256


# ---------------------------------------------------------------------- idleness


def test_idle_after_the_timeout_since_the_last_traffic() -> None:
    metrics = MetricsCollector()
    metrics.last_activity_ns = 100_000_000_000
    assert not metrics.is_idle(30, now=129.9)
    assert metrics.is_idle(30, now=130.0)
    assert metrics.is_idle(timedelta(seconds=30), now=130.0)
    metrics.last_activity_ns = 129_000_000_000
    assert not metrics.is_idle(30, now=130.0)


def test_idleness_counts_from_birth_on_the_monotonic_clock() -> None:
    metrics = MetricsCollector()
    assert not metrics.is_idle(60)
    assert metrics.is_idle(0)
    assert metrics.is_idle(60, now=time.monotonic() + 61)


def test_counting_errors_and_latencies_is_not_activity() -> None:
    metrics = MetricsCollector()
    metrics.last_activity_ns = 1
    metrics.record_send_error()
    metrics.record_latency(0.1)
    assert metrics.last_activity_ns == 1


# ---------------------------------------------------------------------- refusals, timeouts, close codes


def test_refusals_are_counted_by_status() -> None:
    metrics = MetricsCollector()
    assert metrics.refusals == {}
    for status in (403, 503, 403):
        metrics.record_refusal(status)
    assert metrics.refusals == {403: 2, 503: 1}
    metrics.refusals.clear()
    assert metrics.refusals == {403: 2, 503: 1}


def test_ends_are_counted_by_close_code_if_there_is_one() -> None:
    metrics = MetricsCollector()
    for code in (1000, None, 1006, 1000):
        metrics.record_connection()
        metrics.record_disconnection(code)
    assert (metrics.active_connections, metrics.closes) == (0, {1000: 2, 1006: 1})


def test_peers_cannot_make_it_grow_with_codes_of_their_own() -> None:
    metrics = MetricsCollector()
    for code in range(3000, 5000):
        metrics.record_disconnection(code)
    metrics.record_disconnection(1006)
    metrics.record_disconnection(3000)
    closes = metrics.closes
    assert len(closes) == 64 + 2
    assert (closes[0], closes[1006], closes[3000]) == (2000 - 64, 1, 2)


# ---------------------------------------------------------------------- snapshot, sum, reset


def test_snapshot_has_everything_and_is_json() -> None:
    snapshot = busy().snapshot()
    of_handshakes = {"handshake_timeouts", "refusals", "closes"}
    assert set(snapshot) == {*FIELDS, *of_handshakes, "latency_us", "heartbeat_rtt_us", "handshake_us", "loop"}
    assert snapshot["loop"] is None
    assert snapshot["messages_sent"] == 1
    assert snapshot["latency_us"]["count"] == 2
    assert set(snapshot["handshake_us"]) == {"p50", "p95", "p99", "p999", "min", "max", "mean", "count"}
    assert json.loads(json.dumps(snapshot)) == snapshot


def test_a_server_tells_of_its_topics() -> None:
    metrics = ServerMetrics()
    assert metrics.topics is None
    assert "topics" not in metrics.snapshot()
    metrics.source = lambda: TopicMetrics(1, 2, {"full": 3}, broker_healthy=True)
    assert metrics.snapshot()["topics"] == {
        "topics": 1,
        "subscriptions": 2,
        "drops": {"full": 3},
        "broker_healthy": True,
        "has_broker": False,
    }
    assert json.loads(json.dumps(metrics.snapshot())) == metrics.snapshot()
    total = ServerMetrics.merged([metrics, busy()])
    assert total.topics is None
    assert total.messages_sent == 1


def test_snapshot_does_not_change_later() -> None:
    metrics = busy()
    before = metrics.snapshot()
    metrics.record_message_sent(1)
    metrics.record_latency(1)
    assert before["messages_sent"] == 1
    assert before["latency_us"]["count"] == 2


def test_merged_sums_counters_and_histograms() -> None:
    parts = [busy(2, 0.001), busy(3, 0.005), MetricsCollector()]
    parts[0].last_activity_ns, parts[1].last_activity_ns, parts[2].last_activity_ns = 5, 7, 6
    before = [part.snapshot() for part in parts]
    total = MetricsCollector.merged(parts)
    for name in FIELDS:
        assert getattr(total, name) == sum(getattr(part, name) for part in parts)
    assert total.active_connections == 5
    assert total.latency.count == 10
    assert total.heartbeat_rtt.count == total.handshake.count == 5
    assert total.last_activity_ns == 7
    assert [part.snapshot() for part in parts] == before


def test_merged_takes_bare_counters_and_nothing() -> None:
    counters = Counters()
    counters.messages_sent = 3
    assert MetricsCollector.merged([counters]).messages_sent == 3
    assert MetricsCollector.merged([]).snapshot() == MetricsCollector().snapshot()


def test_merging_different_precisions_keeps_the_coarser_values() -> None:
    fine = MetricsCollector(significant_figures=4)
    fine.record_latency(0.01)
    total = MetricsCollector.merged([fine])
    assert total.latency_percentiles().p50 == pytest.approx(10_000, rel=1e-3)


def test_reset_starts_over_but_keeps_open_connections_and_histogram_objects() -> None:
    metrics = busy(2)
    latency = metrics.latency
    metrics.reset()
    fresh = MetricsCollector().snapshot() | {"active_connections": 2}
    assert metrics.snapshot() == fresh
    assert metrics.latency is latency  # compiled code may hold it
    metrics.record_latency(0.001)
    assert metrics.latency_percentiles().count == 1


def test_histograms_may_be_recorded_directly_in_nanoseconds() -> None:
    metrics = MetricsCollector()
    assert isinstance(metrics.latency, Histogram)
    metrics.latency.record(1_000_000)
    assert metrics.latency_percentiles().p50 == pytest.approx(1000, rel=1e-3)


# ---------------------------------------------------------------------- the event loop


class Loop:
    """Enough of one: it is not asked for anything."""


def loop_metrics() -> LoopMetrics:
    return LoopMetrics(Loop())  # type: ignore[arg-type]


def test_a_loop_has_one_set_of_metrics_as_long_as_they_are_used() -> None:
    one, other = Loop(), Loop()
    first = loop_metrics_of(one)  # type: ignore[arg-type]
    assert loop_metrics_of(one) is first  # type: ignore[arg-type]
    assert loop_metrics_of(other) is not first  # type: ignore[arg-type]
    first.passes = 5
    del first
    gc.collect()
    assert loop_metrics_of(one).passes == 0  # type: ignore[arg-type]


def test_lateness_is_in_microseconds_and_never_negative() -> None:
    loop = loop_metrics()
    assert loop.lateness_percentiles() == EMPTY
    for seconds in (0.001, 0.001, 0.002, -0.5):
        loop.record_lateness(seconds)
    late = loop.lateness_percentiles()
    assert late.count == 4
    assert late.min == 0
    assert late.p50 == pytest.approx(1000, rel=1e-3)
    assert late.max == pytest.approx(2000, rel=1e-3)


def test_the_share_of_time_polled(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10**12
    monkeypatch.setattr(time, "monotonic_ns", lambda: now)
    loop = loop_metrics()
    assert loop.polled_share == 0
    now += 1000
    assert loop.polled_share == 0
    loop.polled_ns = 250
    assert loop.polled_share == 0.25
    loop.reset()
    now += 100
    assert (loop.polled_ns, loop.polled_share) == (0, 0)
    loop.polled_ns = 300  # begun before
    assert loop.polled_share == 1


def test_a_snapshot_of_a_loop_is_json_and_in_that_of_its_clients() -> None:
    metrics = busy()
    metrics.loop = loop_metrics()
    metrics.loop.passes, metrics.loop.hits = 7, 3
    metrics.loop.record_lateness(0.001)
    snapshot = json.loads(json.dumps(metrics.snapshot()))["loop"]
    assert set(snapshot) == {"passes", "hits", "polled_share", "lateness_us"}
    assert (snapshot["passes"], snapshot["hits"], snapshot["lateness_us"]["count"]) == (7, 3, 1)


def test_a_sum_keeps_the_loop_and_starting_over_leaves_it() -> None:
    part = MetricsCollector()
    part.loop = loop_metrics()
    part.loop.passes = 7
    total = MetricsCollector.merged([MetricsCollector(), part])
    assert total.loop is part.loop
    total.reset()
    assert part.loop.passes == 7
    part.loop.record_lateness(1)
    part.loop.reset()
    assert (part.loop.passes, part.loop.lateness.count) == (0, 0)
