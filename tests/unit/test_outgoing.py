"""fabric_ext.outgoing: what is said to a broker, when it leaves, and how much may wait."""

from __future__ import annotations

import asyncio

import hiredis
import pytest

from fabric_ext.outgoing import NatsOutgoing, Outgoing, RedisOutgoing, nats_subscriptions, redis_commands

NATS, REDIS = b"fabric.", b"fabric:"


class Connection:
    """Notes what is written, and holds as many bytes as a test says."""

    def __init__(self, held: int = 0) -> None:
        self.written: list[bytes] = []
        self.held = held
        self.asked = 0

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def unwritten(self) -> int:
        self.asked += 1
        return self.held


def nats(limit: int = 1000, most_topics: int = 10) -> NatsOutgoing:
    return NatsOutgoing(NATS, limit, most_topics)


def commands(data: bytes) -> list[list[bytes]]:
    """Commands for Redis, read by another reader."""
    reader = hiredis.Reader()
    reader.feed(data)
    found = []
    while (command := reader.gets()) is not False:
        found.append(command)
    return found


async def test_what_is_published_in_one_turn_leaves_by_one_write() -> None:
    outgoing, connection = nats(), Connection()
    outgoing.open(connection.write, connection.unwritten)
    assert outgoing.publish("a.é", b"1\r\n2")
    outgoing.add(b"UNSUB f7\r\n")
    assert outgoing.publish("b", b"")
    assert connection.written == []
    await asyncio.sleep(0)
    expected = "PUB fabric.a.é 4\r\n1\r\n2\r\nUNSUB f7\r\nPUB fabric.b 0\r\n\r\n".encode()
    assert connection.written == [expected]
    outgoing.publish("c", b"x")
    outgoing.flush()  # before the turn ends
    assert connection.written[1:] == [b"PUB fabric.c 1\r\nx\r\n"]
    await asyncio.sleep(0)
    assert len(connection.written) == 2
    outgoing.publish("d", b"y")
    await asyncio.sleep(0)
    assert connection.written[2:] == [b"PUB fabric.d 1\r\ny\r\n"]


async def test_where_turns_publish_one_message_each_it_leaves_at_once() -> None:
    outgoing, connection = nats(), Connection()
    outgoing.open(connection.write, connection.unwritten)
    for topic in "abc":  # of the first turn it is not known whether more follow
        outgoing.publish(topic, b"")
        assert len(connection.written) == (0 if topic == "a" else 1 + "abc".index(topic))
        await asyncio.sleep(0)
    assert connection.written == [b"PUB fabric.%c 0\r\n\r\n" % topic for topic in b"abc"]
    connection.written.clear()
    for topic in "de":  # the others of a turn wait for its end
        outgoing.publish(topic, b"")
    assert connection.written == [b"PUB fabric.d 0\r\n\r\n"]
    await asyncio.sleep(0)
    assert connection.written[1:] == [b"PUB fabric.e 0\r\n\r\n"]
    connection.written.clear()
    for topic in "fg":  # and where turns publish several, all of them
        outgoing.publish(topic, b"")
        assert connection.written == []
    await asyncio.sleep(0)
    assert connection.written == [b"PUB fabric.f 0\r\n\r\nPUB fabric.g 0\r\n\r\n"]


async def test_a_lone_message_comes_behind_what_waits() -> None:
    outgoing, connection = nats(), Connection()
    outgoing.open(connection.write, connection.unwritten)
    outgoing.publish("a", b"")
    await asyncio.sleep(0)
    connection.written.clear()
    outgoing.add(b"SUB fabric.b f1\r\n")
    outgoing.publish("b", b"")
    await asyncio.sleep(0)
    assert connection.written == [b"SUB fabric.b f1\r\nPUB fabric.b 0\r\n\r\n"]
    outgoing.close()
    outgoing.publish("c", b"")
    outgoing.open(connection.write, connection.unwritten)
    outgoing.publish("d", b"")
    assert connection.written[1:] == [b"PUB fabric.c 0\r\n\r\n", b"PUB fabric.d 0\r\n\r\n"]
    await asyncio.sleep(0)
    assert len(connection.written) == 3


async def test_redis_reads_the_same() -> None:
    outgoing, connection = RedisOutgoing(REDIS, 1_000_000, 10), Connection()
    outgoing.open(connection.write, connection.unwritten)
    messages = [("a.é", b"1\r\n2"), ("b", b""), ("c", bytes(200_000))]
    for topic, envelope in messages:
        assert outgoing.publish(topic, envelope)
    await asyncio.sleep(0)
    expected = [[b"PUBLISH", f"fabric:{topic}".encode(), envelope] for topic, envelope in messages]
    assert commands(b"".join(connection.written)) == expected


async def test_what_is_published_while_there_is_no_connection_waits_for_it() -> None:
    outgoing, connection = nats(), Connection()
    assert not outgoing.is_open
    outgoing.publish("a", b"1")
    outgoing.flush()
    outgoing.open(connection.write, connection.unwritten)
    assert outgoing.is_open
    assert connection.written == [b"PUB fabric.a 1\r\n1\r\n"]
    outgoing.publish("a", b"2")
    outgoing.close()
    await asyncio.sleep(0)
    outgoing.publish("a", b"3")
    assert len(connection.written) == 1
    outgoing.open(connection.write, connection.unwritten)
    assert connection.written[1:] == [b"PUB fabric.a 1\r\n2\r\nPUB fabric.a 1\r\n3\r\n"]
    outgoing.publish("a", b"4")
    await asyncio.sleep(0)
    assert len(connection.written) == 3


@pytest.mark.parametrize("scheme", ["nats", "redis"])
def test_messages_like_the_one_before(scheme: str) -> None:
    """The same topic or another one, the same size or another one, in any order, with a failure in between."""
    outgoing = nats() if scheme == "nats" else RedisOutgoing(REDIS, 1000, 10)
    told = [("a", b"1"), ("a", b"2"), ("a", b"33"), ("b", b"44"), ("b", b"5"), ("\ud800", b"7"), ("b", b"8")]
    for topic, envelope in told:
        try:
            outgoing.publish(topic, envelope)
        except UnicodeEncodeError:
            assert topic == "\ud800"
        if envelope == b"33":
            outgoing.take_topics()
    connection = Connection()
    outgoing.open(connection.write, connection.unwritten)
    said = connection.written[0]
    if scheme == "nats":
        assert said == b"".join(
            b"PUB fabric.%b %d\r\n%b\r\n" % (topic.encode(), len(envelope), envelope)
            for topic, envelope in told
            if envelope != b"7"
        )
    else:
        assert [(topic[len(REDIS) :].decode(), envelope) for _, topic, envelope in commands(said)] == [
            one for one in told if one[1] != b"7"
        ]


def test_what_waits_is_bounded() -> None:
    outgoing = nats(limit=100)
    command = len(b"PUB fabric.a 20\r\n\r\n") + 20
    assert outgoing.publish("a", bytes(20))
    assert outgoing.publish("a", bytes(20))
    assert not outgoing.publish("a", bytes(100 - 2 * command + 1))
    assert outgoing.publish("a", bytes(100 - 2 * command))
    assert not outgoing.publish("a", b"")
    assert not outgoing.is_overfull
    outgoing.add(bytes(100))  # subscriptions are not bounded
    assert outgoing.is_overfull
    connection = Connection(held=90)
    outgoing.open(connection.write, connection.unwritten)
    assert len(connection.written) == 1
    assert not outgoing.is_overfull
    asked = connection.asked
    assert not outgoing.publish("a", bytes(11))
    assert connection.asked == asked + 1
    connection.held = 0
    outgoing.close()
    assert outgoing.publish("a", bytes(11))  # what the transport held is gone with it


def test_a_message_that_is_too_large_is_not_sent() -> None:
    outgoing = nats()
    assert outgoing.largest == 1000
    outgoing.largest = 10
    assert outgoing.publish("a", bytes(10))
    assert not outgoing.publish("b", bytes(11))
    assert outgoing.take_topics() == {"a": None}


def test_topics_are_told_once() -> None:
    outgoing = nats(most_topics=3)
    for topic in ("b", "a", "b", "c"):
        outgoing.publish(topic, b"")
    assert list(outgoing.take_topics()) == ["b", "a", "c"]
    assert outgoing.take_topics() == {}
    for topic in ("a", "b", "c", "d", "e"):
        outgoing.publish(topic, b"")
    assert list(outgoing.take_topics()) == [">", "e"]


def test_a_topic_that_no_broker_takes_leaves_nothing() -> None:
    outgoing = nats()
    with pytest.raises(UnicodeEncodeError):
        outgoing.publish("\ud800", b"x")
    assert outgoing.take_topics() == {}
    connection = Connection()
    outgoing.open(connection.write, connection.unwritten)
    assert connection.written == []
    with pytest.raises(NotImplementedError):
        Outgoing(b"", 100, 10).publish("a", b"x")


def test_subscriptions() -> None:
    assert nats_subscriptions(NATS, [("a.*", 0), ("é", 12345678901), (">", 9)]) == (
        "SUB fabric.a.* f0\r\nSUB fabric.é f12345678901\r\nSUB fabric.> f9\r\n".encode()
    )
    assert nats_subscriptions(NATS, []) == redis_commands(b"SUBSCRIBE", REDIS, []) == b""
    words = ["a", "é" * 50, ""]
    expected = [[b"SUBSCRIBE", f"fabric:{word}".encode()] for word in words]
    assert commands(redis_commands(b"SUBSCRIBE", REDIS, words)) == expected
    many = [f"topic.{number}" for number in range(5000)]
    assert len(commands(redis_commands(b"SUBSCRIBE", REDIS, many))) == 5000
