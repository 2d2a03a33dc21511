"""fabric._topics.arrivals: what a broker brings is delivered in order, and in slices where it is much."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from fabric._topics.arrivals import MOST_WAITING
from fabric.broker import MemoryBroker
from fabric.config import ServerConfig
from fabric.metrics import MetricsCollector
from fabric.topics import Topics
from fabric_ext.connection import Connection
from fabric_ext.counters import Counters
from fabric_ext.remote import wrap
from fabric_ext.topics import Subscriber
from support.fake_transport import FakeTransport
from support.frames import decode_all
from support.serving import turns, until

NODE = b"othernod"
MUCH = 300  # messages of 1 KB: five times what is put off for connections


class Client:
    """A connection that has subscribed to a topic."""

    def __init__(self, topics: Topics, topic: str) -> None:
        self.connection = Connection(asyncio.get_running_loop(), Counters(), queue_limit=10, queue_byte_limit=1 << 20)
        self.transport = FakeTransport().connect(self.connection)
        self.subscriber = Subscriber(self.connection)
        topics._index.subscribe(self.subscriber, topic)

    @property
    def got(self) -> list[int]:
        return [int(frame.payload[:8]) for frame in decode_all(self.transport.output)]


@pytest.fixture
def topics() -> Topics:
    return Topics(ServerConfig(), MetricsCollector(), MemoryBroker())


@contextlib.contextmanager
def subscribers(topics: Topics, count: int) -> Iterator[list[Client]]:
    clients = [Client(topics, "a") for _ in range(count)]
    yield clients
    for each in clients:
        topics._index.leave(each.subscriber)
        each.transport.lose()


def batch(start: int, end: int, size: int = 1000) -> list[tuple[str, bytes]]:
    return [("a", wrap(2, NODE, number, b"%08d" % number + bytes(size - 8))) for number in range(start, end)]


async def test_the_event_loop_goes_on_between_its_slices(topics: Topics) -> None:
    with subscribers(topics, 3) as clients:
        topics.deliver(batch(0, MUCH))
        counts = []
        while not all(len(each.got) == MUCH for each in clients):
            counts.append(len(clients[-1].got))
            await asyncio.sleep(0)
        assert all(each.got == list(range(MUCH)) for each in clients)
        assert len(set(counts)) >= 4
        assert len(clients[0].transport.written) < MUCH / 10  # many messages share a write


async def test_what_comes_meanwhile_goes_behind_it(topics: Topics) -> None:
    with subscribers(topics, 2) as clients:
        topics.deliver(batch(0, MUCH))
        topics.deliver(batch(MUCH, MUCH + 1))
        assert clients[0].got[-1:] != [MUCH]
        await asyncio.sleep(0)
        topics.deliver(batch(MUCH + 1, MUCH + 3))
        await until(lambda: len(clients[0].got) == len(clients[1].got) == MUCH + 3)
        assert clients[0].got == clients[1].got == list(range(MUCH + 3))


async def test_little_is_delivered_at_once(topics: Topics) -> None:
    with subscribers(topics, 2) as clients:
        topics.deliver(batch(0, 20))
        assert [each.got for each in clients] == [list(range(20))] * 2


async def test_too_much_waits_no_longer(topics: Topics) -> None:
    """What waits is bounded: beyond that a read takes as long as it takes, and the broker is read no faster."""
    large = MOST_WAITING // 10
    with subscribers(topics, 1) as clients:
        topics.deliver(batch(0, 2, large))
        assert len(clients[0].got) < 2
        for number in range(2, 20):
            topics.deliver(batch(number, number + 1, large))
        assert len(clients[0].got) > 5
        await until(lambda: len(clients[0].got) == 20)
        assert clients[0].got == list(range(20))


async def test_what_python_code_delivers_comes_in_slices_too(topics: Topics) -> None:
    topics.wrap = lambda topic, message, position: message
    with subscribers(topics, 3) as clients:
        topics.deliver(batch(0, MUCH))
        assert len(clients[0].got) < MUCH
        await until(lambda: all(len(each.got) == MUCH for each in clients))
        assert all(each.got == list(range(MUCH)) for each in clients)


async def test_the_rest_follows_although_a_callback_was_interrupted(topics: Topics) -> None:
    calls = 0

    def interrupted(topic: str, message: Any, position: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return message

    topics.wrap = interrupted
    with subscribers(topics, 1) as clients:
        with pytest.raises(KeyboardInterrupt):
            topics.deliver(batch(0, 20))
        await until(lambda: clients[0].got[-1:] == [19])
        assert clients[0].got == sorted(clients[0].got)


async def test_a_callback_under_which_more_arrives(topics: Topics) -> None:
    def more(topic: str, message: Any, position: Any) -> Any:
        if message.as_bytes()[:8] == b"%08d" % 1:
            topics.deliver(batch(3, 5))
        return message

    topics.wrap = more
    with subscribers(topics, 1) as clients:
        topics.deliver(batch(0, 3))
        await turns()
        assert clients[0].got == [0, 1, 2, 3, 4]


async def test_nothing_comes_after_the_end(topics: Topics) -> None:
    with subscribers(topics, 1) as clients:
        await topics._start()
        topics.deliver(batch(0, MUCH))
        await topics._close(1)
        count = len(clients[0].got)
        assert count < MUCH
        topics.deliver([])
        await turns()
        assert len(clients[0].got) <= count + 64  # what was due already
