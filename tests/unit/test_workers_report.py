"""What workers tell of their servers: sums, as if one server had counted it all."""

from __future__ import annotations

import asyncio
import json

from fabric._workers.report import Totals, packed, unpacked
from fabric.metrics import LoopMetrics, ServerMetrics, TopicMetrics


def metrics(times: int, topics: TopicMetrics) -> ServerMetrics:
    """Of a server on which everything has happened so often."""
    made = ServerMetrics()
    for _ in range(times):
        made.record_connection()
        made.record_message_sent(10)
        made.record_latency(0.001 * times)
        made.record_heartbeat_rtt(0.002)
        made.record_handshake(0.003)
        made.record_refusal(404)
        made.record_handshake_timeout()
    made.record_disconnection(1000 + times)
    made.loop = LoopMetrics(asyncio.get_running_loop())
    made.loop.passes = times
    made.loop.record_lateness(0.001 * times)
    made.source = lambda: topics
    return made


async def test_nothing_is_lost_on_the_way() -> None:
    before = metrics(3, TopicMetrics(1, 2, {"full": 3}, broker_healthy=True))
    after = unpacked(json.loads(json.dumps(packed(before))), asyncio.get_running_loop())
    told, same = before.snapshot(), after.snapshot()
    assert told.pop("loop")["lateness_us"] == same.pop("loop")["lateness_us"]
    assert told == same
    assert after.latency == before.latency
    assert after.last_activity_ns == before.last_activity_ns


async def test_sums_over_those_that_live_and_those_that_have_ended() -> None:
    totals = Totals(asyncio.get_running_loop())
    one = metrics(1, TopicMetrics(1, 10, {"full": 1}, broker_healthy=True))
    two = metrics(2, TopicMetrics(2, 20, {"full": 2, "broker": 1}, broker_healthy=False))
    both = totals.of([one, two])
    assert (both.messages_sent, both.active_connections, both.total_connections) == (3, 1, 3)
    assert both.closes == {1001: 1, 1002: 1}
    assert both.refusals == {404: 3}
    assert both.handshake_timeouts == 3
    assert (both.latency.count, both.heartbeat_rtt.count, both.handshake.count) == (6, 3, 3)
    assert both.topics == TopicMetrics(3, 30, {"full": 3, "broker": 1}, broker_healthy=False)
    assert both.loop is not None
    assert (both.loop.passes, both.loop.lateness.count) == (3, 2)

    totals.keep(two)
    later = totals.of([one])
    assert (later.messages_sent, later.active_connections, later.latency.count) == (3, 0, 6)
    assert later.topics == TopicMetrics(1, 10, {"full": 3, "broker": 1}, broker_healthy=True)
    assert later.loop is not None
    assert (later.loop.passes, later.loop.lateness.count) == (3, 2)
    assert totals.of([]).messages_sent == 2


async def test_without_any() -> None:
    assert Totals(asyncio.get_running_loop()).of([]).messages_sent == 0
