"""fabric._topics.gaps: which topics are reported as gaps, and since when."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from fabric._topics.gaps import ON_ITS_WAY, Gaps
from fabric.broker.losses import EVERYTHING, Lost
from fabric_ext.topics import Index, Subscriber

NOW = 1000.0


@pytest.fixture
def told() -> list[tuple[str, float]]:
    return []


@pytest.fixture
def gaps(told: list[tuple[str, float]], monkeypatch: pytest.MonkeyPatch) -> Gaps:
    """Of a server with subscribers of two topics and a pattern, one of them with a history."""
    monkeypatch.setattr("time.time", lambda: NOW)
    index = Index()
    for topic in ("a.1", "b.*", "kept"):
        index.subscribe(Subscriber(topic), topic)
    made = Gaps(index)
    made.recovered = {"kept"}
    made.on_gap = lambda topic, since: told.append((topic, since))
    return made


def hear(gaps: Gaps, topics: list[str], begins: float, ends: float) -> None:
    gaps.hear(msgspec.msgpack.encode(Lost(topics, begins, ends)))


def test_the_broker_was_away_from_this_server(gaps: Gaps, told: list[tuple[str, float]]) -> None:
    gaps.was_away(990.0)
    assert sorted(told) == [("a.1", 990.0 - ON_ITS_WAY), ("b.*", 990.0 - ON_ITS_WAY)]


@pytest.mark.parametrize(
    ("topics", "concerned"),
    [
        (["a.1"], ["a.1"]),
        (["b.7", "b.8"], ["b.*"]),
        (["a.2", "b.c.d", "kept"], []),
        ([EVERYTHING], ["a.1", "b.*"]),
    ],
)
def test_what_another_server_has_lost(
    gaps: Gaps, told: list[tuple[str, float]], topics: list[str], concerned: list[str]
) -> None:
    hear(gaps, topics, begins=10.0, ends=5.0)
    assert sorted(told) == [(topic, 990.0 - ON_ITS_WAY) for topic in concerned]


def test_one_outage_of_all_servers_is_reported_once(gaps: Gaps, told: list[tuple[str, float]]) -> None:
    gaps.was_away(980.0)
    told.clear()
    hear(gaps, [EVERYTHING], begins=10.0, ends=5.0)
    assert told == []
    hear(gaps, ["a.1"], begins=30.0, ends=5.0)  # it began before this server's own
    assert told == [("a.1", 970.0 - ON_ITS_WAY)]


def test_a_history_that_the_broker_has_lost(gaps: Gaps, told: list[tuple[str, float]]) -> None:
    """What was published before the last message that was heard may have been under way, too."""
    gaps.report("kept", 990.0)
    assert told == [("kept", 990.0 - ON_ITS_WAY)]


def test_what_is_malformed(gaps: Gaps, told: list[tuple[str, float]]) -> None:
    gaps.hear(b"\xff")
    assert told == []


@pytest.mark.parametrize("error", [ValueError("no"), asyncio.CancelledError()])
def test_what_on_gap_raises_is_logged(gaps: Gaps, error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    def fail(topic: str, since: float) -> None:
        raise error

    gaps.on_gap = fail
    gaps.was_away(990.0)
    assert [record.message for record in caplog.records] == ["on_gap raised"] * 2
    gaps.on_gap = None
    gaps.was_away(990.0)
    assert len(caplog.records) == 2
