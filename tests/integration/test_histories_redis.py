"""Topics with history of several servers over a real Redis: counted messages, whatever is killed or cut when."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fabric.broker import NO_EPOCH, BrokerUnavailable
from fabric.history import History, Position
from fabric.server import ConnectedClient, WebSocketServer
from support.brokers import RedisServer
from support.raw_peer import RawPeer
from support.serving import Held, serve, until

Stack = contextlib.AsyncExitStack

KEPT = ("appendonly yes", "appendfsync always")


@pytest.fixture
def redis(require: Callable[[object, str], None], tmp_path: Path) -> RedisServer:
    require(RedisServer.program(), "redis-server is not in PATH: .ci/setup installs it")
    return RedisServer(tmp_path, *KEPT)


async def started(stack: Stack, redis: RedisServer, held: Held, **limits: Any) -> tuple[WebSocketServer, ...]:
    await stack.enter_async_context(redis)
    servers = await serve(stack, held, broker=redis.url), await serve(stack, Held(), broker=redis.url)
    for server in servers:
        server.topics.configure("room.>", **({"history": 1000} | limits))
    return servers


async def connect(stack: Stack, server: WebSocketServer, held: Held) -> tuple[ConnectedClient, RawPeer]:
    peer = await stack.enter_async_context(await RawPeer.open(server.port))
    return await held.next(), peer


async def payloads(peer: RawPeer, count: int) -> list[str]:
    return [(await peer.payload()).decode() for _ in range(count)]


async def test_it_reaches_all_servers_in_the_order_of_the_offsets(stack: Stack, redis: RedisServer) -> None:
    held = Held()
    near, far = await started(stack, redis, held)
    client, peer = await connect(stack, near, held)
    other, other_peer = await connect(stack, near, held)
    first = await client.subscribe("room.7")
    await other.subscribe("room.*")
    assert first is not None
    assert (first.position.offset, first.recovered, first.publications) == (0, False, ())
    outcomes = [near.publish("room.7", "0"), far.publish("room.7", b"1"), near.publish("room.7", "2", exclude=other)]
    assert [await outcome for outcome in outcomes] == [2, 0, 1]
    positions = [outcome.position for outcome in outcomes]
    assert {position and position.epoch for position in positions} == {first.position.epoch}
    assert sorted(position.offset for position in positions if position) == [1, 2, 3]
    ordered = [str(number) for _, number in sorted((position, n) for n, position in enumerate(positions))]  # type: ignore[type-var]
    assert await payloads(peer, 3) == ordered
    await far.publish("room.7", "end")
    assert await payloads(other_peer, 3) == [*(text for text in ordered if text != "2"), "end"]
    history = await far.history("room.7")
    assert [publication.message for publication in history.publications[:3]] != []
    assert [bytes(publication.message).decode() for publication in history.publications] == [*ordered, "end"]
    assert history.position == (first.position.epoch, 4)


async def test_a_client_that_comes_back_to_another_server(stack: Stack, redis: RedisServer) -> None:
    held = Held()
    near, far = await started(stack, redis, held)
    for number in range(5):
        outcome = far.publish("room.7", str(number))
    await outcome
    assert outcome.position is not None
    epoch = outcome.position.epoch
    for since, expected in ((2, ["2", "3", "4"]), (5, []), (0, ["0", "1", "2", "3", "4"])):  # by broker, by mirror
        client, peer = await connect(stack, near, held)
        history = await client.subscribe("room.7", since=(epoch, since))
        assert history is not None
        assert history.recovered
        assert history.position == (epoch, 5)
        await client.send("end")
        assert await payloads(peer, len(expected) + 1) == [*expected, "end"]
    for wrong in ((epoch, 6), ("other", 2)):
        client, _ = await connect(stack, near, held)
        assert await client.subscribe("room.7", since=wrong) == History(outcome.position, False)
        client.unsubscribe("room.7")


async def test_a_topic_that_was_heard_through_a_pattern(stack: Stack, redis: RedisServer) -> None:
    """Its mirror begins in the middle: it is made whole for a client that wants more, and nobody gets it twice."""
    held = Held()
    near, far = await started(stack, redis, held)
    await far.publish("room.7", "0")
    listener, listener_peer = await connect(stack, near, held)
    await listener.subscribe("room.*")
    outcome = far.publish("room.7", "1")
    await outcome
    assert await payloads(listener_peer, 1) == ["1"]
    client, peer = await connect(stack, near, held)
    assert outcome.position is not None
    joining = client.subscribe("room.7", since=(outcome.position.epoch, 0))
    racing = [far.publish("room.7", str(number)) for number in range(2, 50)]
    await joining
    await asyncio.gather(*racing)
    await far.publish("room.7", "50")
    assert await payloads(peer, 51) == [str(number) for number in range(51)]
    assert await payloads(listener_peer, 49) == [str(number) for number in range(2, 51)]


async def test_the_seam_between_history_and_live(stack: Stack, redis: RedisServer) -> None:
    """Clients come back again and again while messages are published: each gets all, once, in order."""
    held = Held()
    near, far = await started(stack, redis, held)
    first = far.publish("room.7", "0")
    await first
    assert first.position is not None
    total = 400

    async def publish() -> None:
        outcomes = []
        for number in range(1, total):
            outcomes.append((far if number % 2 else near).publish("room.7", str(number)))
            await asyncio.sleep(0)
        await asyncio.gather(*outcomes)
        await far.publish("room.7", "end")

    near.topics.wrap = lambda topic, message, position: f"{position and position.offset} {message.text}"

    async def follow() -> list[str]:
        got: list[str] = []
        has = Position(first.position.epoch, 0)  # type: ignore[union-attr]
        while not got or got[-1] != "end":
            async with await RawPeer.open(near.port) as peer:
                client = await held.next()
                history = await client.subscribe("room.7", since=has)
                assert history is not None
                assert history.recovered
                for _ in range(30):
                    offset, _, text = (await peer.payload()).decode().partition(" ")
                    assert int(offset) == has.offset + 1
                    has = Position(has.epoch, int(offset))
                    got.append(text)
                    if text == "end":
                        break
        return got

    publishing = asyncio.create_task(publish())
    got = await follow()
    await publishing
    assert sorted(got[:-1], key=int) == [str(number) for number in range(total)]


class Counted:
    """Two topics, two publishers, a listener on one server, all counted."""

    def __init__(self, near: WebSocketServer, far: WebSocketServer) -> None:
        self.near, self.far = near, far
        self.begun = 0
        self.gaps: list[tuple[str, float, float]] = []
        self.received: dict[str, list[tuple[str, int]]] = {"room.1": [], "room.2": []}
        self.epochs: dict[str, list[str]] = {"room.1": [], "room.2": []}
        self.published: dict[tuple[str, str, int], float] = {}
        near.on_gap = lambda topic, since: self.gaps.append((topic, since, time.time()))

    async def hear(self, topic: str) -> None:
        async with self.near.topic(topic, limit=100_000) as listener:
            self.begun += 1
            async for message in listener:
                publisher, _, number = message.text.partition(" ")
                if publisher == "end":
                    return
                self.received[topic].append((publisher, int(number)))
                assert listener.position is not None
                if listener.position.epoch not in self.epochs[topic]:
                    self.epochs[topic].append(listener.position.epoch)

    async def run(self, faults: dict[int, Callable[[], Any]], total: int = 300) -> None:
        hearing = [asyncio.create_task(self.hear(topic)) for topic in self.received]
        await until(lambda: self.begun == 2)
        for number in range(total):
            for topic in self.received:
                for name, server in (("near", self.near), ("far", self.far)):
                    self.published[topic, name, number] = time.time()
                    server.publish(topic, f"{name} {number}")
            if number in faults:
                await faults[number]()
            await asyncio.sleep(0.001)
        await until(lambda: self.near.broker_healthy and self.far.broker_healthy)
        for topic in self.received:
            for name, server in (("near", self.near), ("far", self.far)):
                await self.retry(server, topic, f"last {name == 'far':d}")
            await self.retry(self.far, topic, "end")
        await asyncio.gather(*hearing)

    @staticmethod
    async def retry(server: WebSocketServer, topic: str, text: str) -> None:
        """It stands in line behind all that the server has published, so it is confirmed after that."""
        outcome = server.publish(topic, text)
        await outcome

    def lost(self) -> list[tuple[str, str, int]]:
        lost = []
        for topic, received in self.received.items():
            for name in ("near", "far"):
                numbers = [number for publisher, number in received if publisher == name]
                assert numbers == sorted(set(numbers)), "doubled, or not in order"
                lost += [(topic, name, n) for t, p, n in self.published if (t, p) == (topic, name) and n not in numbers]
        return lost

    def all_away(self) -> bool:
        return not self.near.broker_healthy and not self.far.broker_healthy


@pytest.mark.deadline(120)
@pytest.mark.parametrize("loop_factory", ["uvloop"], indirect=True)
async def test_a_killed_redis_that_keeps_its_data_costs_nothing(stack: Stack, redis: RedisServer) -> None:
    counted = Counted(*await started(stack, redis, Held(), history=5000))

    async def back() -> None:
        await until(counted.all_away)
        await redis.start()

    await counted.run({50: redis.kill, 100: back, 180: redis.kill, 220: back})
    assert counted.lost() == []
    assert [topic for topic, _, _ in counted.gaps if topic in counted.received] == []
    assert [len(epochs) for epochs in counted.epochs.values()] == [1, 1]


@pytest.mark.deadline(120)
@pytest.mark.parametrize("loop_factory", ["uvloop"], indirect=True)
async def test_a_redis_that_has_lost_its_data(stack: Stack, redis: RedisServer) -> None:
    """Another epoch, nothing twice, and every loss in a gap that is reported."""
    held = Held()
    near, far = await started(stack, redis, held, history=5000)
    counted = Counted(near, far)
    before = near.publish("room.1", "near -1")
    await before

    async def back() -> None:
        await until(counted.all_away)
        shutil.rmtree(redis.folder / "appendonlydir")
        await redis.start()

    await counted.run({50: redis.kill, 100: back})
    assert [len(epochs) for epochs in counted.epochs.values()] == [2, 2]
    for topic, name, number in counted.lost():
        published = counted.published[topic, name, number]
        assert any(gap == topic and since <= published <= until for gap, since, until in counted.gaps)
    assert {topic for topic, _, _ in counted.gaps} >= {"room.1", "room.2"}
    client, _ = await connect(stack, near, held)
    history = await client.subscribe("room.1", since=before.position)
    assert history is not None
    assert not history.recovered
    assert history.position.epoch == counted.epochs["room.1"][-1]


@pytest.mark.deadline(60)
async def test_connections_that_are_cut_cost_nothing(stack: Stack, redis: RedisServer) -> None:
    near, far = await started(stack, redis, Held(), history=5000)
    counted = Counted(near, far)
    brokers: list[Any] = [near.topics.broker, far.topics.broker]

    async def cut_hearing() -> None:
        brokers[0]._hears.abort()

    async def cut_streams() -> None:
        for broker in brokers:
            if broker._streams._connection is not None:
                broker._streams._connection.abort()

    await counted.run({20: cut_hearing, 40: cut_streams, 60: cut_streams, 80: cut_hearing}, 100)
    assert counted.lost() == []
    assert counted.gaps == []


@pytest.mark.deadline(60)
async def test_what_is_kept_no_more_is_a_gap(stack: Stack, redis: RedisServer) -> None:
    """A server that does not hear for a while, in which more is published than is kept."""
    near, far = await started(stack, redis, Held(), history=5)
    gaps: list[str] = []
    near.on_gap = lambda topic, since: gaps.append(topic)
    async with near.topic("room.7") as listener:
        await far.publish("room.7", "0")
        assert await anext(listener) == "0"
        broker: Any = near.topics.broker
        deliver, broker._node = broker._node, None  # nothing reaches it
        for number in range(1, 11):
            await far.publish("room.7", str(number))
        await broker.flush()
        broker._node = deliver
        await far.publish("room.7", "11")
        assert [await anext(listener) for _ in range(5)] == ["7", "8", "9", "10", "11"]
    assert gaps == ["room.7"]


@pytest.mark.deadline(60)
async def test_an_old_copy_of_the_data_is_another_epoch(stack: Stack, redis: RedisServer) -> None:
    """Offsets that a client has seen already are not given again."""
    held = Held()
    near, far = await started(stack, redis, held)
    client, peer = await connect(stack, near, held)
    await client.subscribe("room.7")
    await near.publish("room.7", "0")
    await redis.kill()
    await until(lambda: not near.broker_healthy and not far.broker_healthy)
    folder = redis.folder / "appendonlydir"
    shutil.copytree(folder, redis.folder / "copy")
    await redis.start()
    await until(lambda: near.broker_healthy and far.broker_healthy)
    newest = near.publish("room.7", "1")
    await newest
    assert newest.position is not None
    assert newest.position.offset == 2
    await redis.kill()
    await until(lambda: not near.broker_healthy and not far.broker_healthy)
    shutil.rmtree(folder)
    shutil.move(redis.folder / "copy", folder)
    await redis.start()
    await until(lambda: near.broker_healthy and far.broker_healthy)
    after = near.publish("room.7", "2")
    await after
    assert after.position is not None
    assert after.position.epoch != newest.position.epoch
    assert await payloads(peer, 3) == ["0", "1", "2"]


@pytest.mark.deadline(60)
async def test_subscribing_while_the_broker_is_away(stack: Stack, redis: RedisServer) -> None:
    held = Held()
    near, far = await started(stack, redis, held)
    position = near.publish("room.7", "0")
    await position
    await near.publish("room.7", "1")
    await redis.kill()
    await until(lambda: not near.broker_healthy and not far.broker_healthy)
    client, peer = await connect(stack, near, held)
    leaving, leaving_peer = await connect(stack, near, held)
    with pytest.raises(BrokerUnavailable, match="away"):
        await client.subscribe("room.7", since=position.position)
    leaving.subscribe("room.7", since=position.position)
    leaving_peer.reset()
    with pytest.raises(BrokerUnavailable):
        await near.history("room.7")
    near.publish("room.7", "2")
    await redis.start()
    assert await payloads(peer, 2) == ["1", "2"]
    assert client.topics == {"room.7"}


@pytest.mark.deadline(60)
async def test_what_waits_for_redis_is_bounded(
    stack: Stack, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fabric.broker.redis.MAX_QUEUED", 10_000)
    near, far = await started(stack, redis, Held())
    await near.publish("room.7", "x")
    await redis.kill()
    await until(lambda: not near.broker_healthy and not far.broker_healthy)
    outcomes = [near.publish("room.7", b"x" * 1000) for _ in range(12)]
    refused = near.topics.drops["broker"]
    assert 3 <= refused <= 5
    with pytest.raises(BrokerUnavailable, match="up to its bound"):
        await outcomes[-1]
    await redis.start()
    await outcomes[0]
    await outcomes[11 - refused]
    assert (await far.history("room.7", limit=0)).position.offset == 13 - refused


async def test_messages_that_are_too_old(stack: Stack, redis: RedisServer) -> None:
    near, far = await started(stack, redis, Held(), ttl=0.05)
    outcome = near.publish("room.7", "0")
    await outcome
    assert outcome.position is not None
    while (history := await far.history("room.7", since=(outcome.position.epoch, 0))).publications:
        await asyncio.sleep(0.01)
    assert history == History(outcome.position, False)


async def test_redis_refuses_a_message(stack: Stack, redis: RedisServer) -> None:
    near, _ = await started(stack, redis, Held())
    broker: Any = near.topics.broker
    await near.publish("room.7", "0")
    await near.publish("room.8", "0")
    await broker._streams._connection.call("SET", "fabric-stream:room.8", "no stream")
    outcome = near.publish("room.8", "1")
    with pytest.raises(BrokerUnavailable, match="WRONGTYPE"):
        await outcome
    assert near.topics.drops["broker"] == 1
    await near.publish("room.7", "2")
    await broker._streams._connection.call("SCRIPT", "FLUSH")
    await near.publish("room.7", "3")  # the script is loaded again
    assert (await near.history("room.7")).position.offset == 3
    before = broker._streams._connection
    await before.call("SCRIPT", "FLUSH")
    with pytest.raises(BrokerUnavailable, match="NOSCRIPT"):
        await near.history("room.7")
    await until(lambda: broker._streams._connection not in (None, before))
    assert (await near.history("room.7")).position.offset == 3  # and so it is for one who only reads


async def test_what_nobody_of_ours_has_written_into_a_stream(stack: Stack, redis: RedisServer) -> None:
    near, far = await started(stack, redis, Held())
    broker: Any = near.topics.broker
    await near.publish("room.7", "0")
    for offset, fields in ((2, ("what", "ever")), (3, ("at", "noon", "data", "x")), (4, ("at", "9" * 15, "data", "x"))):
        await broker._streams._connection.call("XADD", "fabric-stream:room.7", f"{offset}-0", *fields)
    await broker._streams._connection.call("XDEL", "fabric-stream:room.7", "1-0")
    await broker._streams._connection.call("HSET", "fabric-meta:room.7", "top", "4")
    await near.publish("room.7", "5")
    history = await far.history("room.7")
    assert [(offset, message.text) for offset, message in history.publications] == [(5, "5")]


async def test_what_is_no_message_of_a_history(stack: Stack, redis: RedisServer) -> None:
    held = Held()
    near, far = await started(stack, redis, held)
    client, peer = await connect(stack, near, held)
    await client.subscribe("room.7")
    foreign = far.topics.broker
    head = b"\x04" + b"e" * 16
    for wrong in (b"\x04" * 13, head + b"x" * 16, head + b"1" * 16, head + b"1" * 16 + b"\x01" + bytes(12) + b"\xff"):
        foreign.publish("room.7", wrong)
    await far.publish("room.7", "good")
    assert await payloads(peer, 1) == ["good"]
    shared = near.topics._shared
    assert shared is not None
    assert shared.malformed == 4


async def test_reading_leaves_no_key_and_asks_for_no_more_than_it_needs(stack: Stack, redis: RedisServer) -> None:
    near, _ = await started(stack, redis, Held())
    broker: Any = near.topics.broker
    nothing = await near.history("room.guessed")
    assert nothing == History(Position(NO_EPOCH, 0), False)
    connection = broker._streams._connection
    assert await connection.call("KEYS", "*") == []
    outcomes = [near.publish("room.7", str(number)) for number in range(1, 11)]
    for outcome in outcomes:
        await outcome
    position = outcomes[4].position
    assert position is not None
    replies: list[Any] = []
    ask = broker._streams._ask

    async def watch(command: bytes, *, wait: bool) -> Any:
        replies.append(await ask(command, wait=wait))
        return replies[-1]

    broker._streams._ask = watch
    for arguments, expected in (
        ({"limit": 2, "reverse": True}, ["10", "9"]),
        ({"limit": 2}, ["1", "2"]),
        ({"limit": 0}, []),
        ({"limit": 2, "since": position}, ["6", "7"]),
        ({"limit": 2, "since": position, "reverse": True}, ["4", "3"]),
        ({"since": (position.epoch, 1), "reverse": True}, []),
        ({"since": position}, ["6", "7", "8", "9", "10"]),
        ({"since": ("other", 5)}, []),
        ({"since": ("\udc80", 5)}, []),
    ):
        history = await near.history("room.7", **arguments)
        assert [message.text for _, message in history.publications] == expected
        assert len(replies[-1][4]) == len(expected)
        assert history.position == (position.epoch, 10)
        assert history.recovered == (arguments.get("since") in (position, (position.epoch, 1)))
