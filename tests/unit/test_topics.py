"""fabric_ext.topics: names, patterns, and who gets what is published."""

from __future__ import annotations

import contextlib
import gc
import re
import sys
import tracemalloc
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from fabric._topics.settings import fits
from fabric_ext.broadcast import Shared
from fabric_ext.message import Message
from fabric_ext.topics import Index, Subscriber, check_topic

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

SHARED = Shared(Message(b"x"), None, 0)


def published(index: Index, topic: str, exclude: Any = ()) -> list[Any]:
    sent, rest = index.publish(topic, SHARED, exclude)
    assert sent == 0
    return sorted(rest)


@pytest.mark.parametrize("name", ["a", "room.7", "a.b.c", "é.日本", "a-b_c", "x" * 255, ".".join("a" * 32), "a$"])
def test_names(name: str) -> None:
    check_topic(name)
    check_topic(name, pattern=True)


@pytest.mark.parametrize("pattern", ["*", ">", "a.*", "*.a", "a.*.b", "a.>", "*.>"])
def test_patterns(pattern: str) -> None:
    check_topic(pattern, pattern=True)
    with pytest.raises(ValueError, match=re.escape(repr(pattern))):
        check_topic(pattern)
    index = Index()
    index.subscribe(Subscriber(1), pattern)
    with pytest.raises(ValueError, match="a topic is needed here, not a pattern"):
        index.publish(pattern, SHARED)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "empty token"),
        (".a", "empty token"),
        ("a.", "empty token"),
        ("a..b", "empty token"),
        ("a b", "white space"),
        ("a\nb", "white space"),
        ("a\x00", "control"),
        ("a\x7f", "control"),
        ("a\u2028", "white space"),
        ("x" * 256, "255 bytes at most, not 256"),
        ("é" * 128, "255 bytes at most, not 256"),
        (".".join("a" * 33), "32 tokens at most, not 33"),
        ("$SYS.a", "reserved"),
        ("\ud800", "surrogates"),
        ("a*", "whole token"),
        ("a.>.b", "whole token"),
        (">>", "whole token"),
        ("**", "whole token"),
    ],
)
def test_wrong_names(name: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check_topic(name, pattern=True)
    with pytest.raises(ValueError, match=r"a topic|a message|topics that"):
        check_topic(name)
    index = Index()
    for call in (lambda: index.subscribe(Subscriber(1), name), lambda: index.publish(name, SHARED)):
        with pytest.raises(ValueError, match=r"a topic|a message|a wildcard|topics that"):
            call()
    assert len(index) == 0


@pytest.mark.parametrize("wrong", [None, 1, b"a", ["a"]])
def test_what_is_no_name(wrong: Any) -> None:
    with pytest.raises(TypeError):
        check_topic(wrong)
    with pytest.raises(TypeError):
        Index().subscribe(Subscriber(1), wrong)


@pytest.mark.parametrize(
    ("pattern", "fitting", "others"),
    [
        ("a.*", ["a.b", "a.c"], ["a", "a.b.c", "b.a"]),
        ("*", ["a", "b"], ["a.b"]),
        (">", ["a", "a.b", "a.b.c"], []),
        ("a.>", ["a.b", "a.b.c"], ["a", "b.a", "ab.c"]),
        ("*.b.>", ["a.b.c", "x.b.c.d"], ["a.b", "a.c.b"]),
        ("a.*.c", ["a.b.c", "a.c.c"], ["a.c", "a.b.d"]),
        ("a.b", ["a.b"], ["a.c", "a.b.c", "a"]),
    ],
)
def test_what_fits(pattern: str, fitting: list[str], others: list[str]) -> None:
    index = Index()
    index.subscribe(Subscriber(0), "something.else.*")
    subscriber = Subscriber(7)
    index.subscribe(subscriber, pattern)
    for topic in fitting:
        assert fits(pattern, topic)
        assert index.has_subscribers(topic)
        assert published(index, topic) == [7]
    for topic in others:
        assert not fits(pattern, topic)
        assert not index.has_subscribers(topic)
        assert published(index, topic) == []


def test_each_subscriber_gets_it_once() -> None:
    index = Index()
    one, two = Subscriber(1), Subscriber(2)
    for pattern in ("a.b", "a.*", ">", "a.>", "*.b"):
        index.subscribe(one, pattern)
    index.subscribe(two, "a.*")
    assert published(index, "a.b") == [1, 2]
    assert index.subscribers("a.b") == [1, 2]
    assert published(index, "a.b", [one]) == [2]
    assert published(index, "a.b", (one, two)) == []
    assert published(index, "a.b") == [1, 2]


def test_first_and_last() -> None:
    index = Index()
    one, two = Subscriber(1), Subscriber(2)
    for name in ("a", "a.*"):
        assert index.subscribe(one, name) is True
        assert index.subscribe(one, name) is None
        assert index.subscribe(two, name) is False
        assert index.count(name) == 2
        assert index.unsubscribe(one, name) is False
        assert index.unsubscribe(one, name) is None
        assert name in index
        assert index.unsubscribe(two, name) is True
        assert name not in index
        assert index.unsubscribe(two, "unknown") is None
    assert (len(index), index.subscriptions) == (0, 0)


def test_leaving() -> None:
    index = Index()
    one, two = Subscriber(1), Subscriber(2)
    for name in ("a", "b", "c.*", "d"):
        index.subscribe(one, name)
    index.subscribe(two, "b")
    assert sorted(one.topics) == ["a", "b", "c.*", "d"]
    assert sorted(index.leave(one)) == ["a", "c.*", "d"]
    assert index.leave(one) == []
    assert (one.topics, len(one)) == ([], 0)
    assert index.names() == ["b"]
    assert published(index, "b") == [2]


def test_a_subscriber_that_goes_without_leaving() -> None:
    index = Index()
    one, two = Subscriber(1), Subscriber(2)
    for name in ("a", "b.*"):
        index.subscribe(two, name)
        index.subscribe(one, name)
    del two
    assert published(index, "a") == published(index, "b.c") == [1]
    index.unsubscribe(one, "b.*")
    del one
    assert published(index, "a") == []
    three = Subscriber(3)
    assert index.subscribe(three, "a") is True
    assert published(index, "a") == [3]
    del index
    assert three.topics == ["a"]


def test_an_index_in_a_cycle_is_collected_with_its_subscribers() -> None:
    for _ in range(20):
        index = Index()
        cycle: list[Any] = [index]
        subscribers = [Subscriber(cycle) for _ in range(50)]
        cycle.append(subscribers)
        for number, subscriber in enumerate(subscribers):
            for name in ("a", "b.*", f"c.{number}"):
                index.subscribe(subscriber, name)
        del index, subscribers, cycle, subscriber
        gc.collect()


class Finalized:
    """Garbage in a cycle: the collector, whenever it runs next, calls a function."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.function = function
        self.itself = self

    def __del__(self) -> None:
        self.function()


@contextlib.contextmanager
def collected_at_once(function: Callable[[], object]) -> Iterator[None]:
    """The collector, and with it `function`, runs as soon as something is made that it counts."""
    before = gc.get_threshold()
    gc.collect()
    gc.disable()
    try:
        Finalized(function)
        gc.set_threshold(1, 1, 1)
        gc.enable()
        yield
    finally:
        gc.set_threshold(*before)
        gc.enable()
        gc.collect()


@pytest.mark.parametrize("name", ["a.b", "a.*", "a.>"])
def test_a_finalizer_that_subscribes_meanwhile(name: str) -> None:
    index = Index()
    one, two = Subscriber(1), Subscriber(2)
    with collected_at_once(lambda: index.subscribe(two, name)):
        index.subscribe(one, name)
    assert index.count(name) == index.subscriptions == 2
    assert published(index, "a.b") == [1, 2]
    index.leave(one)
    with collected_at_once(lambda: index.subscribe(one, name)):  # before, meanwhile or after: the interpreter decides
        index.unsubscribe(two, name)
    assert one.topics == [name]
    assert published(index, "a.b") == [1]
    assert index.leave(one) == [name]
    assert (index.names(), index.subscriptions) == ([], 0)


@pytest.mark.parametrize("name", ["a.b", "a.*", "a.>"])
def test_a_finalizer_that_unsubscribes_meanwhile(name: str) -> None:
    index = Index()
    one, two = Subscriber(1), Subscriber(2)
    index.subscribe(one, name)
    with collected_at_once(lambda: index.leave(one)):
        published(index, "a.b")
    assert published(index, "a.b") == []
    index.subscribe(one, name)
    with collected_at_once(lambda: index.leave(one)):
        index.subscribe(two, name)
    assert published(index, "a.b") == [2]
    assert index.leave(two) == [name]
    assert (index.names(), index.subscriptions) == ([], 0)


def test_subscribers_that_have_gone_are_told_from_each_other() -> None:
    index = Index()
    gone = [weakref.ref(Finalized(int)) for _ in range(3)]
    gc.collect()
    subscribers = [Subscriber(target) for target in gone]
    for subscriber in subscribers:
        index.subscribe(subscriber, "a")
    assert index.subscribers("a") == gone


def test_against_a_model(rng: random.Random) -> None:
    index = Index()
    subscribers = [Subscriber(number) for number in range(20)]
    model: dict[int, set[str]] = {number: set() for number in range(20)}
    tokens = ["a", "b", "c"]

    def name(last: list[str]) -> str:
        parts = [rng.choice([*tokens, *last]) for _ in range(rng.randint(1, 4))]
        return ".".join([*parts, ">"] if last and rng.random() < 0.2 else parts)

    for _ in range(4000):
        number = rng.randrange(20)
        step = rng.random()
        if step < 0.45:
            topic = name(["*"])
            first = not any(topic in own for own in model.values())
            expected = None if topic in model[number] else first
            assert index.subscribe(subscribers[number], topic) is expected
            model[number].add(topic)
        elif step < 0.7:
            topic = rng.choice(sorted(model[number])) if model[number] and rng.random() < 0.8 else name(["*"])
            known = topic in model[number]
            model[number].discard(topic)
            last = not any(topic in own for own in model.values())
            assert index.unsubscribe(subscribers[number], topic) is (last if known else None)
        elif step < 0.72:
            gone = sorted(
                topic for topic in model[number] if not any(topic in model[other] for other in model if other != number)
            )
            assert sorted(index.leave(subscribers[number])) == gone
            model[number].clear()
        else:
            topic = name([])
            left_out = rng.sample(range(20), rng.randint(0, 3))
            expected = [
                each
                for each, own in model.items()
                if each not in left_out and any(fits(pattern, topic) for pattern in own)
            ]
            assert published(index, topic, [subscribers[each] for each in left_out]) == expected
        assert index.subscriptions == sum(map(len, model.values()))
        assert sorted(subscribers[number].topics) == sorted(model[number])
    for subscriber in subscribers:
        index.leave(subscriber)
    assert len(index) == 0


@pytest.mark.skipif(sys.gettrace() is not None, reason="a tracer allocates too")
def test_a_subscription_takes_no_more_than_forty_bytes() -> None:
    index = Index()
    names = [f"topic.{number}" for number in range(50)]
    subscribers = [Subscriber(number) for number in range(1000)]
    keeper = Subscriber("keeper")
    for topic in names:
        index.subscribe(keeper, topic)
    tracemalloc.start()
    try:
        for subscriber in subscribers:
            for topic in names:
                index.subscribe(subscriber, topic)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert index.subscriptions == 50 * 1001
    assert used / 50_000 <= 40
