"""Topics with history: what clients that come back get, in which order, and what they are told."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from fabric.broker import Broker
from fabric.config import BackpressureConfig
from fabric.error import InvalidState, NotSupported
from fabric.history import History, Position
from fabric.message import Message
from fabric.server import ConnectedClient, WebSocketServer
from support.fake_broker import FakeBroker, Hub
from support.raw_peer import RawPeer
from support.serving import Held, serve, until

Stack = contextlib.AsyncExitStack


async def connect(stack: Stack, server: WebSocketServer, held: Held) -> tuple[ConnectedClient, RawPeer]:
    peer = await stack.enter_async_context(await RawPeer.open(server.port))
    return await held.next(), peer


async def started(stack: Stack, **limits: Any) -> tuple[WebSocketServer, Held]:
    held = Held()
    server = await serve(stack, held)
    server.topics.configure("room.>", **(limits or {"history": 100}))
    return server, held


async def test_a_client_that_comes_back_gets_the_rest(stack: Stack) -> None:
    server, held = await started(stack)
    client, peer = await connect(stack, server, held)
    first = await client.subscribe("room.7")
    assert first is not None
    assert (first.position.offset, first.recovered, first.publications) == (0, False, ())
    for number in range(3):
        outcome = server.publish("room.7", str(number))
        assert await outcome == 1
    assert outcome.position == (first.position.epoch, 3)
    assert [await peer.payload() for _ in range(3)] == [b"0", b"1", b"2"]
    peer.reset()
    await until(lambda: not server.connection_count)
    for number in range(3, 6):
        server.publish("room.7", str(number))
    again, peer = await connect(stack, server, held)
    history = await again.subscribe("room.7", since=outcome.position)
    server.publish("room.7", "6")
    assert history is not None
    assert history.recovered
    assert history.position == (first.position.epoch, 6)
    assert [offset for offset, _ in history.publications] == [4, 5, 6]
    assert [await peer.payload() for _ in range(4)] == [b"3", b"4", b"5", b"6"]


async def test_one_that_was_away_for_too_long_is_told(stack: Stack) -> None:
    server, held = await started(stack, history=2)
    positions = [server.publish("room.7", str(number)).position for number in range(5)]
    client, peer = await connect(stack, server, held)
    for since, recovered in ((positions[1], False), (("other", 4), False), ((positions[0].epoch, 9), False)):  # type: ignore[union-attr]
        history = await client.subscribe("room.7", since=since)
        assert history == History(positions[4], recovered)  # type: ignore[arg-type]
        client.unsubscribe("room.7")
    await client.subscribe("room.7", since=list(positions[2] or ()))
    server.publish("room.7", "live")
    assert [await peer.payload() for _ in range(3)] == [b"3", b"4", b"live"]


async def test_on_recovery_comes_before_all_that_is_newer(stack: Stack) -> None:
    server, held = await started(stack)
    position = server.publish("room.7", "1").position
    server.publish("room.7", "2")
    client, peer = await connect(stack, server, held)

    def tell(history: History) -> None:
        client.send_nowait(f"{history.recovered} {len(history.publications)}")
        server.publish("room.7", "inside")

    history = await client.subscribe("room.7", since=position, on_recovery=tell)
    server.publish("room.7", "after")
    assert [await peer.payload() for _ in range(3)] == [b"True 1", b"inside", b"after"]
    assert history is not None
    assert history.position.offset == 2

    def fail(_: History) -> None:
        raise LookupError

    client.unsubscribe("room.7")
    with pytest.raises(LookupError):
        client.subscribe("room.7", on_recovery=fail)
    assert client.topics == frozenset()


@pytest.mark.parametrize("since", [None, ("other", 3)])
async def test_one_that_is_new_gets_the_latest(stack: Stack, since: Any) -> None:
    server, held = await started(stack)
    for number in range(1, 6):
        position = server.publish("room.7", str(number)).position
    client, peer = await connect(stack, server, held)
    history = await client.subscribe("room.7", since=since, recent=2)
    server.publish("room.7", "live")
    assert history is not None
    assert (history.recovered, history.position) == (False, position)
    assert [offset for offset, _ in history.publications] == [4, 5]
    assert [await peer.payload() for _ in range(3)] == [b"4", b"5", b"live"]
    with pytest.raises(ValueError, match="recent is -1"):
        client.subscribe("room.8", recent=-1)


async def test_subscribing_twice_sends_nothing_twice(stack: Stack) -> None:
    server, held = await started(stack)
    client, peer = await connect(stack, server, held)
    await client.subscribe("room.7")
    position = server.publish("room.7", "1").position
    assert position is not None
    history = await client.subscribe("room.7", since=(position.epoch, 0))
    assert history == History(position, False)
    await client.send("end")
    assert [await peer.payload() for _ in range(2)] == [b"1", b"end"]


async def test_patterns_get_it_live(stack: Stack) -> None:
    server, held = await started(stack)
    client, peer = await connect(stack, server, held)
    assert await client.subscribe("room.*") is None
    server.publish("room.7", "1")
    assert await peer.payload() == b"1"
    with pytest.raises(ValueError, match="a topic is needed here, not a pattern"):
        client.subscribe("room.*", since=("e", 0))


async def test_what_a_server_reads(stack: Stack) -> None:
    server, _ = await started(stack)
    positions = [server.publish("room.7", str(number)).position for number in range(4)]
    history = await server.history("room.7")
    assert [message for _, message in history.publications] == ["0", "1", "2", "3"]
    assert history.position == positions[3]
    history = await server.history("room.7", since=positions[1], limit=1)
    assert history == History(positions[3], True, history.publications)  # type: ignore[arg-type]
    assert [message for _, message in history.publications] == ["2"]
    history = await server.history("room.7", limit=2, reverse=True)
    assert [message for _, message in history.publications] == ["3", "2"]
    assert await server.history("room.7", limit=0) == History(positions[3], False)  # type: ignore[arg-type]


async def test_a_listener_knows_positions(stack: Stack) -> None:
    server, _ = await started(stack)
    async with server.topic(">") as listener:
        position = server.publish("room.7", "1").position
        server.publish("plain", "2")
        assert await anext(listener) == "1"
        assert listener.position == position
        assert await anext(listener) == "2"
        assert listener.position is None


async def test_what_connections_get_instead(stack: Stack) -> None:
    server, held = await started(stack)

    def wrap(topic: str, message: Message, position: Position | None) -> Any:
        return f"{topic} {position and position.offset} {message.text}"

    server.topics.wrap = wrap
    client, peer = await connect(stack, server, held)
    start = server.publish("room.7", "1").position
    server.publish("room.7", "2")
    await client.subscribe("room.7", since=start)
    await client.subscribe("plain")
    async with server.topic("room.7") as listener:
        server.publish("room.7", "3")
        server.publish("plain", "4")
        assert await anext(listener) == "3"
    assert [await peer.payload() for _ in range(3)] == [b"room.7 2 2", b"room.7 3 3", b"plain None 4"]
    server.topics.wrap = None
    server.publish("plain", "5")
    assert await peer.payload() == b"5"
    wrong: Any = lambda topic: topic  # noqa: E731
    with pytest.raises(TypeError, match="wrap is called with"):
        server.topics.wrap = wrong


async def test_what_comes_from_other_servers_is_wrapped_too(stack: Stack) -> None:
    hub, held = Hub(), Held()
    near = await serve(stack, held, broker=FakeBroker(hub))
    far = await serve(stack, Held(), broker=FakeBroker(hub))
    near.topics.wrap = lambda topic, message, position: f"{topic} {position} {message.text}"
    client, peer = await connect(stack, near, held)
    client.subscribe("plain")
    far.publish("plain", "1")
    assert await peer.payload() == b"plain None 1"


@pytest.mark.parametrize("kind", [ValueError, asyncio.CancelledError, GeneratorExit])
async def test_what_wrap_raises_concerns_one_message(stack: Stack, kind: type[BaseException]) -> None:
    """The others of a read of the broker are delivered, and its adapter hears of nothing."""
    hub, held = Hub(), Held()
    near = await serve(stack, held, broker=FakeBroker(hub))
    far = await serve(stack, Held(), broker=FakeBroker(hub))

    def wrap(topic: str, message: Message, position: Position | None) -> Any:
        if message.text == "1":
            raise kind
        return message

    near.topics.wrap = wrap
    client, peer = await connect(stack, near, held)
    client.subscribe("plain")
    for text in ("1", "2"):
        far.publish("unheard", text)
    near.topics.deliver([("plain", envelope) for _, envelope in hub.said])
    assert await peer.payload() == b"2"


async def test_a_slow_client_is_closed_and_comes_back(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held, backpressure=BackpressureConfig(max_buffer_size=4), close_timeout=0.2)
    server.topics.configure(">", history=100)
    assert server.topics.settings("a").on_full == "close"
    server.topics.configure("b", on_full="drop")
    assert server.topics.settings("b").on_full == "drop"
    client, _ = await connect(stack, server, held)
    client.subscribe("a")
    while not client._is_blocked:
        client.send_nowait(b"x" * 100_000)
        await asyncio.sleep(0)
    for number in range(10):
        server.publish("a", str(number))
    assert server.topics.drops["closed"] == 1
    await client.wait_closed()


async def test_what_has_no_history(stack: Stack) -> None:
    server, held = await started(stack)
    client, _ = await connect(stack, server, held)
    for call in (
        lambda: client.subscribe("plain", since=("e", 0)),
        lambda: client.subscribe("plain", on_recovery=print),
        lambda: client.subscribe("plain", recent=1),
    ):
        with pytest.raises(InvalidState, match="'plain' has no history"):
            call()
    with pytest.raises(InvalidState, match="'plain' has no history"):
        await server.history("plain")
    assert client.topics == frozenset()
    assert server.publish("plain", "x").position is None
    with pytest.raises(TypeError, match="a position is"):
        client.subscribe("room.7", since="e:0")
    for limit in (-1, 1.0, True):
        with pytest.raises(ValueError, match="limit is"):
            await server.history("room.7", limit=limit)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [{"history": -1}, {"history": 1.5}, {"history": True}, {"history": 10**6}, {"ttl": 0}, {"ttl": "1"}],
    ids=str,
)
async def test_wrong_limits(stack: Stack, wrong: Any) -> None:
    server = await serve(stack, Held())
    with pytest.raises(ValueError, match=r"history is|ttl is"):
        server.topics.configure("a", **wrong)


async def test_the_order_of_a_topic(stack: Stack) -> None:
    server = await serve(stack, Held())
    topics = server.topics
    topics.configure("local", order="local")
    topics.configure("ordered", order="broker")
    topics.configure("history.>", history=10)
    topics.configure("history.local", order="local")
    found = {topic: topics.settings(topic) for topic in ("other", "local", "ordered", "history.1", "history.local")}
    assert {topic: (settings.order, settings.history) for topic, settings in found.items()} == {
        "other": ("local", 0),
        "local": ("local", 0),
        "ordered": ("broker", 1),
        "history.1": ("broker", 10),
        "history.local": ("broker", 10),
    }
    assert (found["ordered"].on_full, found["history.1"].on_full) == ("drop", "close")
    with pytest.raises(ValueError, match=r"order is 'first', allowed are: 'local', 'broker'"):
        topics.configure("a", order="first")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"order is 'local', but with history=5"):
        topics.configure("a", order="local", history=5)


async def test_a_broker_that_keeps_no_histories(stack: Stack) -> None:
    broker: Broker = FakeBroker(Hub())
    server = await serve(stack, Held(), broker=broker)
    with pytest.raises(NotSupported, match=r"history=10: the broker <.*FakeBroker.*> keeps no histories"):
        server.topics.configure("a", history=10)
    server.topics.configure("a", history=0)
    with pytest.raises(NotSupported, match=r"order='broker': the broker <.*FakeBroker.*> keeps no histories"):
        server.topics.configure("a", order="broker")


async def test_topics_that_clients_only_think_of_are_not_remembered(stack: Stack) -> None:
    server, held = await started(stack)
    client, peer = await connect(stack, server, held)
    for number in range(50):
        client.subscribe(f"room.{number}")
        client.unsubscribe(f"room.{number}")
    await client.subscribe("room.7")
    assert len(server.topics._logs) == 1
    peer.reset()
    await until(lambda: not server.connection_count)
    assert len(server.topics._logs) == 0
