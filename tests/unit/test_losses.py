"""fabric.broker.losses: what other servers are told of messages that they may not have got."""

from __future__ import annotations

import msgspec
import pytest

from fabric.broker import BrokerUnavailable
from fabric.broker.losses import AT_ONCE, EVERYTHING, MOST, Losses, Lost


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def losses(clock: Clock) -> Losses:
    return Losses(clock)


def topics(*names: str) -> dict[str, None]:
    return dict.fromkeys(names)


def told(losses: Losses) -> list[Lost]:
    return [msgspec.msgpack.decode(part, type=Lost) for part in losses.tell()]


def test_what_is_confirmed_is_not_lost(losses: Losses) -> None:
    question = losses.asked(topics("a"))
    losses.confirmed(question)
    losses.disconnected(990.0, topics("b"))
    assert told(losses) == [Lost(["b"], 10.0, 0.0)]


def test_what_is_published_again_waits_for_the_later_answer(losses: Losses) -> None:
    first = losses.asked(topics("a"))
    second = losses.asked(topics("a"))
    losses.confirmed(first)
    losses.disconnected(990.0, topics())
    assert told(losses) == [Lost(["a"], 10.0, 0.0)]
    losses.confirmed(second)  # an answer on the connection before says nothing of it
    losses.disconnected(995.0, topics("a"))
    assert told(losses) == [Lost(["a"], 10.0, 0.0)]


def test_each_topic_is_told_once(losses: Losses) -> None:
    losses.asked(topics("a", "b"))
    losses.asked(topics("b", "c"))
    losses.disconnected(990.0, topics("c", "a", "d"))
    assert told(losses) == [Lost(["a", "b", "c", "d"], 10.0, 0.0)]


def test_nothing_is_told_twice_unless_the_connection_is_lost(losses: Losses, clock: Clock) -> None:
    losses.refused("a")
    clock.now += 5
    losses.refused("b")
    clock.now += 1
    assert told(losses) == [Lost(["a", "b"], 6.0, 1.0)]
    assert told(losses) == []
    losses.disconnected(clock.now, {})
    assert told(losses) == [Lost(["a", "b"], 6.0, 1.0)]
    losses.confirmed(losses.asked({}))
    losses.disconnected(clock.now, {})
    assert told(losses) == []
    losses.refused("c")
    assert told(losses) == [Lost(["c"], 0.0, 0.0)]


def test_many_topics(losses: Losses) -> None:
    losses.disconnected(1000.0, topics(*(f"a{number}" for number in range(AT_ONCE + 1))))
    assert [len(part.topics) for part in told(losses)] == [AT_ONCE, 1]
    losses.confirmed(losses.asked({}))
    losses.asked(topics(*(f"a{number}" for number in range(MOST))))
    question = losses.asked(topics("b"))
    losses.asked(topics("c"))
    assert losses._count == 2
    losses.confirmed(question)
    assert losses._count == 1
    losses.asked(topics(*(f"a{number}" for number in range(MOST))))
    losses.disconnected(1000.0, {})
    assert [part.topics for part in told(losses)] == [[EVERYTHING]]
    losses.confirmed(losses.asked({}))
    for number in range(MOST + 2):
        losses.refused(f"a{number}")
    assert [part.topics for part in told(losses)] == [[EVERYTHING]]


def test_a_clock_that_is_set_back(losses: Losses, clock: Clock) -> None:
    losses.refused("a")
    clock.now -= 100
    assert told(losses) == [Lost(["a"], 0.0, 0.0)]


class Server:
    """What is told, unless the broker takes nothing."""

    def __init__(self) -> None:
        self.told: list[bytes] = []
        self.refuses = False

    def lost(self, told: list[bytes]) -> None:
        if self.refuses:
            raise BrokerUnavailable("it takes no more")
        self.told += told

    def deliver(self, batch: list[tuple[str, bytes]]) -> None:
        raise NotImplementedError

    def gap(self, since: float) -> None:
        raise NotImplementedError


def test_what_could_not_be_told_is_told_the_next_time(losses: Losses) -> None:
    server = Server()
    losses.report(server)
    losses.refused("a")
    server.refuses = True
    losses.report(server)
    assert server.told == []
    server.refuses = False
    losses.report(server)
    losses.report(server)
    assert [msgspec.msgpack.decode(part, type=Lost).topics for part in server.told] == [["a"]]
