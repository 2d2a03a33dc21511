"""Topics with history of several servers over real brokers: counted messages, whatever is killed or cut when."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fabric.broker import NO_EPOCH, BrokerUnavailable
from fabric.broker.embedded import find_nats_server
from fabric.history import History, Position
from support.brokers import NatsServer, RealBroker, RedisServer
from support.histories import Counted, connect, payloads, started
from support.raw_peer import RawPeer
from support.serving import Held, serve, turns, until

Stack = contextlib.AsyncExitStack


@pytest.fixture(params=["nats", "redis"])
def broker(request: pytest.FixtureRequest, require: Callable[[object, str], None], tmp_path: Path) -> RealBroker:
    """One that keeps its data."""
    if request.param == "nats":
        require(find_nats_server(), 'nats-server is not in PATH: pip install "websocket-fabric[nats-server]" brings it')
        return NatsServer(tmp_path, *NatsServer.KEPT)
    require(RedisServer.program(), "redis-server is not in PATH: .ci/setup installs it")
    return RedisServer(tmp_path, *RedisServer.KEPT)


async def test_it_reaches_all_servers_in_the_order_of_the_offsets(stack: Stack, broker: RealBroker) -> None:
    held = Held()
    near, far = await started(stack, broker, held)
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


@pytest.mark.deadline(60)
async def test_one_order_on_all_servers_without_a_history(stack: Stack, broker: RealBroker) -> None:
    near_held, far_held = Held(), Held()
    await stack.enter_async_context(broker)
    near, far = [await serve(stack, held, broker=broker.url) for held in (near_held, far_held)]
    peers = []
    for server, held in ((near, near_held), (far, far_held)):
        server.topics.configure("game.>", order="broker")
        client, peer = await connect(stack, server, held)
        await client.subscribe("game.1")
        peers.append(peer)
    outcomes = []
    for number in range(200):
        outcomes += [near.publish("game.1", f"near {number}"), far.publish("game.1", f"far {number}")]
        if number % 20 == 0:
            await turns()
    for outcome in outcomes:
        await outcome
    assert near.topics.settings("game.1").history == 1
    heard = [await payloads(peer, 400) for peer in peers]
    assert heard[0] == heard[1]
    for name in ("near", "far"):
        assert [text for text in heard[0] if text.startswith(name)] == [f"{name} {number}" for number in range(200)]


async def test_a_client_that_comes_back_to_another_server(stack: Stack, broker: RealBroker) -> None:
    held = Held()
    near, far = await started(stack, broker, held)
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


async def test_a_topic_that_was_heard_through_a_pattern(stack: Stack, broker: RealBroker) -> None:
    """Its mirror begins in the middle: it is made whole for a client that wants more, and nobody gets it twice."""
    held = Held()
    near, far = await started(stack, broker, held)
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


async def test_the_seam_between_history_and_live(stack: Stack, broker: RealBroker) -> None:
    """Clients come back again and again while messages are published: each gets all, once, in order."""
    held = Held()
    near, far = await started(stack, broker, held)
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


@pytest.mark.deadline(120)
@pytest.mark.parametrize("loop_factory", ["uvloop"], indirect=True)
async def test_a_killed_broker_that_keeps_its_data_costs_nothing(stack: Stack, broker: RealBroker) -> None:
    counted = Counted(*await started(stack, broker, Held(), history=5000))

    async def back() -> None:
        await until(counted.all_away)
        await broker.start()

    await counted.run({50: broker.kill, 100: back, 180: broker.kill, 220: back})
    assert counted.lost() == []
    assert [topic for topic, _, _ in counted.gaps if topic in counted.received] == []
    assert [len(epochs) for epochs in counted.epochs.values()] == [1, 1]


@pytest.mark.deadline(120)
@pytest.mark.parametrize("loop_factory", ["uvloop"], indirect=True)
async def test_a_broker_that_has_lost_its_data(stack: Stack, broker: RealBroker) -> None:
    """Another epoch, twice only what was delivered and not confirmed, and every loss in a gap that is reported."""
    held = Held()
    near, far = await started(stack, broker, held, history=5000)
    counted = Counted(near, far)
    before = near.publish("room.1", "near -1")
    await before

    async def back() -> None:
        await until(counted.all_away)
        shutil.rmtree(broker.data)
        await broker.start()

    await counted.run({50: broker.kill, 100: back})
    assert [len(epochs) for epochs in counted.epochs.values()] == [2, 2]
    assert max((number for _, number in counted.repeated()), default=0) <= 50  # the broker was killed then
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
async def test_what_is_kept_no_more_is_a_gap(stack: Stack, broker: RealBroker) -> None:
    """A server that does not hear for a while, in which more is published than is kept."""
    near, far = await started(stack, broker, Held(), history=5)
    gaps: list[str] = []
    near.on_gap = lambda topic, since: gaps.append(topic)
    async with near.topic("room.7") as listener:
        await far.publish("room.7", "0")
        assert await anext(listener) == "0"
        made: Any = near.topics.broker
        deliver, made._node = made._node, None  # nothing reaches it
        for number in range(1, 11):
            await far.publish("room.7", str(number))
        await made.flush()
        made._node = deliver
        await far.publish("room.7", "11")
        assert [await anext(listener) for _ in range(5)] == ["7", "8", "9", "10", "11"]
    assert gaps == ["room.7"]


@pytest.mark.deadline(60)
async def test_an_old_copy_of_the_data_is_another_epoch(stack: Stack, broker: RealBroker) -> None:
    """Offsets that a client has seen already are not given again."""
    held = Held()
    near, far = await started(stack, broker, held)
    client, peer = await connect(stack, near, held)
    await client.subscribe("room.7")
    await near.publish("room.7", "0")
    await broker.kill()
    await until(lambda: not near.broker_healthy and not far.broker_healthy)
    folder = broker.data
    shutil.copytree(folder, broker.folder / "copy")
    await broker.start()
    await until(lambda: near.broker_healthy and far.broker_healthy)
    newest = near.publish("room.7", "1")
    await newest
    assert newest.position is not None
    assert newest.position.offset == 2
    await broker.kill()
    await until(lambda: not near.broker_healthy and not far.broker_healthy)
    shutil.rmtree(folder)
    shutil.move(broker.folder / "copy", folder)
    await broker.start()
    await until(lambda: near.broker_healthy and far.broker_healthy)
    after = near.publish("room.7", "2")
    await after
    assert after.position is not None
    assert after.position.epoch != newest.position.epoch
    assert await payloads(peer, 3) == ["0", "1", "2"]


@pytest.mark.deadline(60)
async def test_subscribing_while_the_broker_is_away(stack: Stack, broker: RealBroker) -> None:
    held = Held()
    near, far = await started(stack, broker, held)
    position = near.publish("room.7", "0")
    await position
    await near.publish("room.7", "1")
    await broker.kill()
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
    await broker.start()
    assert await payloads(peer, 2) == ["1", "2"]
    assert client.topics == {"room.7"}


@pytest.mark.deadline(60)
async def test_what_waits_for_the_broker_is_bounded(
    stack: Stack, broker: RealBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"fabric.broker.{broker.scheme}.MAX_QUEUED", 10_000)
    near, far = await started(stack, broker, Held())
    await near.publish("room.7", "x")
    await broker.kill()
    await until(lambda: not near.broker_healthy and not far.broker_healthy)
    outcomes = [near.publish("room.7", b"x" * 1000) for _ in range(12)]
    refused = near.topics.drops["broker"]
    assert 3 <= refused <= 5
    with pytest.raises(BrokerUnavailable, match="up to its bound"):
        await outcomes[-1]
    await broker.start()
    await outcomes[0]
    await outcomes[11 - refused]
    assert (await far.history("room.7", limit=0)).position.offset == 13 - refused


async def test_messages_that_are_too_old(stack: Stack, broker: RealBroker) -> None:
    near, far = await started(stack, broker, Held(), ttl=0.05)
    outcome = near.publish("room.7", "0")
    await outcome
    assert outcome.position is not None
    while (history := await far.history("room.7", since=(outcome.position.epoch, 0))).publications:
        await asyncio.sleep(0.01)
    assert history == History(outcome.position, False)


@pytest.mark.deadline(120)
@pytest.mark.parametrize("loop_factory", ["uvloop"], indirect=True)
async def test_a_broker_that_stands_still_for_a_while_costs_nothing(stack: Stack, broker: RealBroker) -> None:
    counted = Counted(*await started(stack, broker, Held(), history=5000))

    async def stand_still() -> None:
        broker.freeze()

    async def go_on() -> None:
        await until(counted.all_away)
        broker.thaw()

    await counted.run({50: stand_still, 100: go_on})
    assert counted.lost() == []
    assert counted.gaps == []
    assert [len(epochs) for epochs in counted.epochs.values()] == [1, 1]


async def test_reading_does_not_begin_a_topic(stack: Stack, broker: RealBroker) -> None:
    near, far = await started(stack, broker, Held())
    assert await near.history("room.guessed") == History(Position(NO_EPOCH, 0), False)
    outcomes = [near.publish("room.7", str(number)) for number in range(1, 11)]
    for outcome in outcomes:
        await outcome
    position = outcomes[4].position
    assert position is not None
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
        history = await far.history("room.7", **arguments)
        assert [message.text for _, message in history.publications] == expected
        assert history.position == (position.epoch, 10)
        assert history.recovered == (arguments.get("since") in (position, (position.epoch, 1)))


@pytest.mark.deadline(60)
async def test_what_comes_after_exactly_as_many_as_are_kept(stack: Stack, broker: RealBroker) -> None:
    held = Held()
    near, far = await started(stack, broker, held, history=3)
    outcomes = [far.publish("room.7", str(number)) for number in range(10)]
    for outcome in outcomes:
        await outcome
    for index, recovered in ((9, True), (6, True), (5, False), (0, False)):
        history = await near.history("room.7", since=outcomes[index].position)
        assert history.recovered == recovered
        client, _ = await connect(stack, near, held)
        joined = await client.subscribe("room.7", since=outcomes[index].position)
        assert joined is not None
        assert joined.recovered == recovered
        client.unsubscribe("room.7")
