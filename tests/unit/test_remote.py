"""fabric_ext.remote: envelopes, who gets what is in them, and the readers of brokers' protocols."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from fabric.broker import MemoryBroker
from fabric.config import ServerConfig
from fabric.metrics import MetricsCollector
from fabric.topics import Topics
from fabric_ext.connection import Connection
from fabric_ext.counters import Counters
from fabric_ext.remote import Incoming, NatsReader, RedisReader, wrap
from fabric_ext.topics import Index, Subscriber
from support.fake_transport import FakeTransport
from support.frames import decode_all

OWN, OTHER, THIRD = b"own-node", b"othernod", b"thirdnod"


@pytest.fixture
def index() -> Index:
    return Index()


def heard(incoming: Incoming, *envelopes: bytes, topic: str = "a") -> list[Any]:
    """The payloads that a subscriber is to get."""
    left = incoming.deliver([(topic, envelope) for envelope in envelopes])
    return [message.as_text() if message.is_text else message.as_bytes() for _, message, _, _ in left]


def test_an_envelope_is_thirteen_bytes() -> None:
    envelope = wrap(1, OTHER, 7, b"payload")
    assert len(envelope) == 13 + 7
    assert envelope[:9] == b"\x01" + OTHER
    assert envelope.endswith(b"payload")
    for kind, node in ((0, OTHER), (4, OTHER), (8, OTHER), (1, b"short"), (1, b"too long a node")):
        with pytest.raises(ValueError, match="envelope"):
            wrap(kind, node, 1, b"")


def test_it_is_delivered_once_and_not_to_the_node_it_comes_from(index: Index) -> None:
    incoming = Incoming(index, OWN, 0)
    subscriber = Subscriber("listener")
    index.subscribe(subscriber, "a")
    assert heard(incoming, wrap(1, OTHER, 1, b"x"), wrap(1, OTHER, 1, b"x")) == ["x"]
    assert heard(incoming, wrap(1, OWN, 2, b"mine")) == []
    assert heard(incoming, wrap(1, OTHER, 2, b"y"), wrap(2, THIRD, 2, b"\xff"), wrap(1, OTHER, 2, b"y")) == [
        "y",
        b"\xff",
    ]
    assert heard(incoming, wrap(1, OTHER, 3, b"z"), topic="nobody") == []
    assert incoming.messages == 4
    assert incoming.malformed == 0


def test_what_servers_tell_each_other_is_handed_over(index: Index) -> None:
    """Once, as it came, in its place among the messages, and to nobody else."""
    incoming = Incoming(index, OWN, 0)
    subscriber = Subscriber("listener")
    index.subscribe(subscriber, ">")
    told = wrap(3, OTHER, 1, b"told")
    left = incoming.deliver([("$fleet", told), ("$fleet", told), ("a", wrap(1, OTHER, 2, b"x")), ("$fleet.1", b"")])
    assert left[0] == ("$fleet", told, None, [])
    assert [topic for topic, _, _, _ in left] == ["$fleet", "a"]
    assert incoming.deliver([("$fleet", wrap(3, OWN, 3, b"mine"))]) == []
    assert (incoming.messages, incoming.malformed) == (1, 1)


async def test_what_a_read_brings_leaves_when_it_was_delivered() -> None:
    """A connection gets it by one write, before the turn of the event loop ends, and nothing at its end."""
    topics = Topics(ServerConfig(), MetricsCollector(), MemoryBroker())
    connection = Connection(asyncio.get_running_loop(), Counters(), queue_limit=10, queue_byte_limit=1 << 20)
    transport = FakeTransport().connect(connection)
    subscriber = Subscriber(connection)
    topics._index.subscribe(subscriber, "a")
    topics._index.subscribe(subscriber, "b.*")
    topics.deliver([("a", wrap(2, OTHER, 1, b"1")), ("b.c", wrap(2, OTHER, 2, b"2")), ("d", wrap(2, OTHER, 3, b"3"))])
    assert [frame.payload for frame in decode_all(b"".join(transport.written))] == [b"1", b"2"]
    assert len(transport.written) == 1
    await asyncio.sleep(0)
    topics.deliver([("d", wrap(2, OTHER, 4, b"4"))])
    topics.deliver([])
    await asyncio.sleep(0)
    assert len(transport.written) == 1
    topics._leave(subscriber)
    transport.lose()


def test_what_is_malformed_is_counted(index: Index) -> None:
    incoming = Incoming(index, OWN, 0)
    subscriber = Subscriber("listener")
    index.subscribe(subscriber, "a")
    wrong = [b"", b"\x01" * 12, wrap(1, OTHER, 1, b"\xff"), b"\x09" + wrap(1, OTHER, 2, b"x")[1:]]
    assert heard(incoming, *wrong, wrap(1, OTHER, 3, b"good")) == ["good"]
    assert heard(incoming, wrap(1, OTHER, 4, b"x"), topic="a b") == []
    assert heard(incoming, wrap(1, OTHER, 5, b"x"), topic="a.*") == []
    assert (incoming.messages, incoming.malformed) == (1, 6)


def msg(topic: str, payload: bytes, *, sid: str = "f1", reply: str = "", headers: bytes = b"") -> bytes:
    words = ["HMSG" if headers else "MSG", f"fabric.{topic}", sid, *([reply] if reply else [])]
    words += [str(len(headers))] if headers else []
    words.append(str(len(headers) + len(payload)))
    return " ".join(words).encode() + b"\r\n" + headers + payload + b"\r\n"


def test_messages_are_taken_out_and_the_rest_is_passed_on() -> None:
    reader = NatsReader(b"fabric.")
    foreign = msg("x", b"MSG fabric.a f1 3\r\n", sid="12")
    data = b"PING\r\n" + msg("a.b", b"1\r\n2") + b"+OK\r\n" + foreign + msg("é", b"", reply="_INBOX.1") + b"PONG\r\n"
    data += msg("h", b"with", headers=b"NATS/1.0\r\n\r\n") + msg("h", b"both", reply="r", headers=b"NATS/1.0\r\n\r\n")
    batch, others = reader.feed(data)
    assert batch == [("a.b", b"1\r\n2"), ("é", b""), ("h", b"with"), ("h", b"both")]
    assert others == b"PING\r\n+OK\r\n" + foreign + b"PONG\r\n"


def test_in_any_cut(rng: random.Random) -> None:
    messages = [(rng.choice(["a", "b.c", "日本.x"]), rng.randbytes(rng.choice([0, 1, 50, 3000]))) for _ in range(60)]
    parts = []
    others = b""
    for topic, payload in messages:
        if rng.random() < 0.3:
            other = rng.choice([b"PING\r\n", b"PONG\r\n", b"+OK\r\n", msg("q", b"MSG ", sid="7")])
            parts.append(other)
            others += other
        parts.append(msg(topic, payload, reply=rng.choice(["", "reply"])))
    data = b"".join(parts)
    reader = NatsReader(b"fabric.")
    got: list[Any] = []
    passed = b""
    while data:
        cut = rng.choice([1, 2, 7, 100, 5000])
        batch, rest = reader.feed(data[:cut])
        data = data[cut:]
        got += batch
        passed += rest
    assert got == messages
    assert passed == others


def test_what_a_stream_has_kept_has_its_number() -> None:
    reader = NatsReader(b"fabric.")

    def headers(stream: str, number: str, before: str) -> bytes:
        return (
            f"NATS/1.0\r\nNats-Msg-Id: Nats-Sequence: 7\r\nNats-Stream: {stream}\r\nNats-Sequence: {number}\r\n"
            f"Nats-Last-Sequence: {before}\r\n\r\n"
        ).encode()

    ours = "fabric-0123456789abcdef"
    batch, _ = reader.feed(msg("a", b"x", headers=headers(ours, "12", "0")))
    assert batch == [("a", b"\x040123456789abcdef" + b"12".zfill(16) + b"0".zfill(16) + b"x")]
    for wrong in (
        headers("theirs", "12", "0"),
        headers("fabric-short", "12", "0"),
        headers(ours, "-1", "0"),
        headers(ours, "1" * 17, "0"),
        headers(ours, "12", ""),
        b"NATS/1.0\r\n\r\n",
        b"NATS/1.0\r\nNats-Stream: " + ours.encode(),
    ):
        assert reader.feed(msg("a", b"x", headers=wrong)) == ([("a", b"x")], b"")


@pytest.mark.parametrize(
    "line",
    [
        b"MSG fabric.a f1\r\n",
        b"MSG fabric.a f1 x\r\n",
        b"MSG fabric.a f1 -1\r\n",
        b"MSG fabric.a f1 99999999999\r\n",
        b"MSG a b c d e f g\r\n",
        b"HMSG fabric.a f1 5\r\n",
        b"HMSG fabric.a f1 5 4\r\n",
        b"x" * 70_000,
    ],
)
def test_what_is_not_the_protocol(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"MSG|line"):
        NatsReader(b"fabric.").feed(line)


def test_a_subject_shorter_than_the_prefix(index: Index) -> None:
    batch, _ = NatsReader(b"fabric.").feed(b"MSG a f1 1\r\nx\r\n")
    incoming = Incoming(index, OWN, 0)
    assert incoming.deliver(batch) == []
    assert incoming.malformed == 1


def resp(*words: bytes) -> bytes:
    """What Redis sends for a list of texts."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def pushed(topic: str, payload: bytes, pattern: str = "") -> bytes:
    channel = f"fabric:{topic}".encode()
    return resp(b"pmessage", pattern.encode(), channel, payload) if pattern else resp(b"message", channel, payload)


#: Replies for another reader, and some that tell nothing.
OTHERS = [
    b"+PONG\r\n",
    b"-NOPERM this user has no permissions\r\n",
    b"$-1\r\n",
    b"$0\r\n\r\n",
    b"*0\r\n",
    b"*-1\r\n",
    b"$5\r\n*3\r\nx\r\n",
    resp(b"pong", b"fabric-1"),
    resp(b"message", b"of two"),
    resp(b"messages", b"fabric:a", b"x"),
    b"*3\r\n$1\r\na\r\n*2\r\n:1\r\n*1\r\n+b\r\n$-1\r\n",
]
NOTHING = [b":0\r\n", b":123\r\n"] + [
    b"*3\r\n$%d\r\n%b\r\n$8\r\nfabric:a\r\n:1\r\n" % (len(word), word)
    for word in (b"subscribe", b"psubscribe", b"unsubscribe", b"punsubscribe")
]


def test_messages_of_redis_are_taken_out_and_the_rest_is_passed_on() -> None:
    reader = RedisReader(b"fabric:")
    data = pushed("a.b", b"1\r\n2") + b"".join(OTHERS) + pushed("é", b"", "fabric:*") + b"".join(NOTHING)
    batch, others = reader.feed(data + pushed("a.b", b"*3\r\n"))
    assert batch == [("a.b", b"1\r\n2"), ("é", b""), ("a.b", b"*3\r\n")]
    assert others == b"".join(OTHERS)
    assert reader.feed(b"") == ([], b"")


def test_redis_in_any_cut(rng: random.Random) -> None:
    parts = []
    messages = []
    passed = []
    for _ in range(150):
        kind = rng.random()
        if kind < 0.2:
            passed.append(rng.choice(OTHERS))
            parts.append(passed[-1])
        elif kind < 0.4:
            parts.append(rng.choice(NOTHING))
        else:
            messages.append((rng.choice(["a", "b.c", "日本.x"]), rng.randbytes(rng.choice([0, 1, 50, 3000]))))
            parts.append(pushed(*messages[-1], pattern=rng.choice(["", "fabric:*"])))
    data = b"".join(parts)
    for cuts in ([1], [1, 2, 7, 100, 5000]):
        reader = RedisReader(b"fabric:")
        got: list[Any] = []
        others = b""
        at = 0
        while at < len(data):
            cut = rng.choice(cuts)
            batch, rest = reader.feed(data[at : at + cut])
            at += cut
            got += batch
            others += rest
        assert got == messages
        assert others == b"".join(passed)


@pytest.mark.parametrize("scheme", ["nats", "redis"])
def test_a_large_message_in_many_parts(scheme: str) -> None:
    payload = bytes(3_000_000)
    reader = NatsReader(b"fabric.") if scheme == "nats" else RedisReader(b"fabric:")
    make = msg if scheme == "nats" else pushed
    data = make("before", b"x") + make("large", payload) + make("after", b"y")
    got: list[Any] = []
    for at in range(0, len(data), 1000):
        batch, others = reader.feed(data[at : at + 1000])
        got += batch
        assert others == b""
    assert got == [("before", b"x"), ("large", payload), ("after", b"y")]


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"%1\r\n+a\r\n+b\r\n",
        b"+PONG\n",
        b"\n",
        b"*x\r\n",
        b"*-2\r\n",
        b"$-2\r\n",
        b"$99999999999\r\n",
        b"*2\r\n!1\r\n",
        b"*3\r\n$7\r\nmessage\r\n:1\r\n:1\r\n",
        b"*3\r\n$7\r\nmessage\r\n$-1\r\n$-1\r\n",
        b"*4\r\n$8\r\npmessage\r\n$1\r\n*\r\n$x\r\n",
        b"+" + b"x" * 70_000,
    ],
)
def test_what_is_not_the_protocol_of_redis(reply: bytes) -> None:
    with pytest.raises(ValueError, match=r"reply|message|line"):
        RedisReader(b"fabric:").feed(reply)


def test_a_channel_shorter_than_the_prefix(index: Index) -> None:
    batch, _ = RedisReader(b"fabric:").feed(resp(b"message", b"a", b"x"))
    assert batch == [(None, b"x")]
