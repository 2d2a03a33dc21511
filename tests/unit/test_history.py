"""fabric.history and fabric._history: positions, the window of one topic, and those of a server."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from fabric._history.log import Log
from fabric._history.logs import QUIET, Logs
from fabric.history import History, Position
from fabric.message import Message


def texts(history: History) -> list[str]:
    return [publication.message.as_text() for publication in history.publications]


def filled(count: int, epoch: str = "e") -> Log:
    log = Log(epoch)
    for number in range(1, count + 1):
        log.add(Message(str(number)), float(number))
    return log


def test_positions() -> None:
    position = Position("e:1", 7)
    assert str(position) == "e:1:7"
    assert Position.parse("e:1:7") == position
    assert Position.check(json.loads(json.dumps(position))) == position


@pytest.mark.parametrize("text", ["", "7", ":7", "e:", "e:-1", "e:+1", "e:1_0", "e: 1", "e:\u0661", "e:" + "1" * 17])
def test_what_is_no_text_of_a_position(text: str) -> None:
    with pytest.raises(ValueError, match="epoch:offset"):
        Position.parse(text)


@pytest.mark.parametrize("wrong", [1, None, "e7", "ab", ("e",), ("e", 1, 2), (1, "e"), ("e", True), ("e", 1.0)])
def test_what_is_no_position(wrong: Any) -> None:
    with pytest.raises(TypeError, match="a position is"):
        Position.check(wrong)


@pytest.mark.parametrize("wrong", [("e", -1), ("e", 2**53), ("e" * 65, 1)])
def test_positions_out_of_range(wrong: Any) -> None:
    with pytest.raises(ValueError, match="64 characters at most"):
        Position.check(wrong)


def test_what_came_after_a_position() -> None:
    log = filled(10)
    log.trim(5, 0.0)
    assert (len(log), log.floor, log.top) == (5, 5, 10)
    assert log.read(Position("e", 7)) == History(Position("e", 10), True, log.read(None).publications[2:])
    assert texts(log.read(Position("e", 5))) == ["6", "7", "8", "9", "10"]
    assert log.read(Position("e", 5)).recovered
    assert log.read(Position("e", 10)) == History(Position("e", 10), True)


@pytest.mark.parametrize("since", [None, Position("e", 4), Position("e", 11), Position("other", 7)])
def test_what_is_not_recovered(since: Position | None) -> None:
    log = filled(10)
    log.trim(5, 0.0)
    assert not log.read(since).recovered


@pytest.mark.parametrize("since", [None, Position("e", 4), Position("e", 11), Position("other", 7)])
def test_who_cannot_be_given_the_rest_gets_the_latest(since: Position | None) -> None:
    log = filled(10)
    log.trim(5, 0.0)
    history = log.catch_up(since, 2)
    assert (texts(history), history.recovered, history.position) == (["9", "10"], False, Position("e", 10))
    assert texts(log.catch_up(since, 7)) == ["6", "7", "8", "9", "10"]
    assert log.catch_up(since, 0) == History(Position("e", 10), False)


def test_who_can_gets_the_rest() -> None:
    log = filled(10)
    assert texts(log.catch_up(Position("e", 7), 1)) == ["8", "9", "10"]
    assert log.catch_up(Position("e", 10), 2) == History(Position("e", 10), True)


def test_another_epoch_has_no_messages_in_common() -> None:
    assert filled(3).read(Position("other", 0)) == History(Position("e", 3), False)


def test_parts_of_a_history() -> None:
    log = filled(6)
    assert texts(log.read(None, 2)) == ["1", "2"]
    assert texts(log.read(Position("e", 2), 2)) == ["3", "4"]
    assert texts(log.read(None, 2, reverse=True)) == ["6", "5"]
    assert texts(log.read(Position("e", 3), None, reverse=True)) == ["2", "1"]
    assert log.read(None, 0) == History(Position("e", 6), False)
    assert texts(log.read(None, 100)) == ["1", "2", "3", "4", "5", "6"]


def test_messages_that_are_too_old() -> None:
    log = filled(6)
    log.trim(100, 4.0)
    assert texts(log.read(None)) == ["4", "5", "6"]
    log.trim(100, 7.0)
    assert log.read(Position("e", 6)) == History(Position("e", 6), True)
    assert not log.read(Position("e", 5)).recovered


def test_offsets_that_grow_by_more_than_one() -> None:
    log = Log("e", 40)
    for offset in (41, 50, 60):
        log.add(Message(str(offset)), 0.0, offset)
    log.trim(2, 0.0)
    assert log.floor == 41
    assert texts(log.read(Position("e", 45))) == ["50", "60"]
    assert log.read(Position("e", 45)).recovered
    assert not log.read(Position("e", 40)).recovered


def test_a_model(rng: random.Random) -> None:
    """Beside a list of all messages ever: whatever is said to be recovered is exactly what came after."""
    log, ever = Log("e"), [""]
    for _ in range(2000):
        if rng.random() < 0.5:
            ever.append(str(len(ever)))
            log.add(Message(ever[-1]), float(len(ever)))
            log.trim(rng.randrange(1, 20), rng.choice([0.0, len(ever) - rng.randrange(10)]))
        since = rng.randrange(max(0, len(ever) - 25), len(ever) + 2)
        history = log.read(Position("e", since))
        assert history.position == ("e", len(ever) - 1)
        if history.recovered:
            assert texts(history) == ever[since + 1 :]
        else:
            assert since < log.floor or since > log.top


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_topics_are_apart_and_forgotten_in_the_end() -> None:
    clock, subscribed = Clock(), {"a"}
    logs = Logs(subscribed.__contains__, lambda topic: (2, 10.0 if topic == "a" else 5.0), clock)
    for number in range(3):
        position = logs.add("a", Message(f"a{number}"))
    other = logs.add("b", Message("b"))
    assert position.offset == 3
    assert other.offset == 1
    assert other.epoch != position.epoch
    assert texts(logs.read("a", None)) == ["a1", "a2"]
    clock.now += 5.1
    assert texts(logs.read("a", None)) == ["a1", "a2"]
    assert logs.read("b", other) == History(other, True)
    clock.now += 5
    assert logs.read("a", position) == History(position, True)
    assert logs.read("a", Position(position.epoch, 2)) == History(position, False)
    clock.now += QUIET
    assert logs.read("a", position).recovered  # it has a subscriber
    assert len(logs) == 1
    assert logs.peek("b", other, None, reverse=False) == History(logs.read("b", None).position, False)
    subscribed.clear()
    logs.unheard(["a", "b"])
    clock.now += 2 * QUIET
    logs.read("c", None)
    assert len(logs) == 1


def test_a_topic_without_messages_is_forgotten_with_its_last_subscriber() -> None:
    """Those that have messages, or subscribers by patterns, are not."""
    subscribed = {"a"}
    logs = Logs(subscribed.__contains__, lambda _: (2, 10.0))
    for topic in ("a", "b", "c"):
        epoch = logs.read(topic, None).position.epoch
    logs.add("b", Message("b"))
    logs.unheard(["a", "b", "c", "d", "e.*"])
    assert len(logs) == 2
    assert logs.read("c", None).position.epoch == epoch  # nothing was lost


def test_a_topic_that_nobody_has_used_does_not_begin_when_it_is_read() -> None:
    logs = Logs(lambda _: False, lambda _: (2, 10.0))
    for number in range(100):
        logs.peek(f"guessed.{number}", None, None, reverse=False)
    assert len(logs) == 0
    position = logs.peek("a", None, 10, reverse=True).position
    assert position.offset == 0
    logs.add("a", Message("first"))
    assert texts(logs.peek("a", position, None, reverse=False)) == ["first"]  # the position that was told holds
    assert logs.read("a", position).recovered
