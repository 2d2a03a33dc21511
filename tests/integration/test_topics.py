"""Topics of one server: who gets what is published, in which order, and what becomes of it where a client is slow."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import gc
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

from fabric import WebSocketClient
from fabric.config import BackpressureConfig
from fabric.error import ConnectionClosed, InvalidState
from fabric.message import Message
from fabric.server import ConnectedClient, WebSocketServer
from fabric.topics import Listener, TooManyTopics
from support.fake_broker import FakeBroker, Hub
from support.raw_peer import RawPeer
from support.serving import Held, serve, turns, until

Stack = contextlib.AsyncExitStack

SMALL = BackpressureConfig(max_buffer_size=4)


async def join(stack: Stack, server: WebSocketServer, held: Held, *topics: str) -> tuple[ConnectedClient, RawPeer]:
    """A client that has subscribed."""
    peer = await stack.enter_async_context(await RawPeer.open(server.port, receive_buffer=4096))
    client = await held.next()
    for topic in topics:
        assert await client.subscribe(topic) is None
    return client, peer


async def block(client: ConnectedClient) -> int:
    """Send until the client's socket is full; how many messages."""
    count = 0
    while not client._is_blocked:
        client.send_nowait(b"x" * 100_000)
        count += 1
        await asyncio.sleep(0)
    return count


async def read(peer: RawPeer, count: int) -> list[bytes]:
    return [await peer.payload() for _ in range(count)]


async def test_it_goes_to_subscribers_and_nobody_else(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held)
    one, one_peer = await join(stack, server, held, "room.1", "room.*")
    two, two_peer = await join(stack, server, held, "room.2")
    assert await server.publish("room.1", "a") == 1
    assert await server.publish("room.2", b"b") == 2
    assert await server.publish("room.3", "c", exclude=one) == 0
    assert await server.publish("room.2", "d", exclude=[one, two]) == 0
    assert await server.publish("elsewhere", "e") == 0
    assert server.publish("room.2", Message("f")).value == 2
    assert await read(one_peer, 3) == [b"a", b"b", b"f"]
    assert await read(two_peer, 2) == [b"b", b"f"]
    assert one.topics == {"room.1", "room.*"}
    assert sorted(server.topics.names()) == ["room.*", "room.1", "room.2"]
    assert server.topics.clients("room.2") == [two, one]
    assert repr(server.topics) == "<Topics: 3 topics, 3 subscriptions>"


async def test_unsubscribing_and_leaving(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held)
    one, one_peer = await join(stack, server, held, "a", "b")
    two, two_peer = await join(stack, server, held, "a")
    one.unsubscribe("a")
    one.unsubscribe("never")
    two.unsubscribe("b")
    assert await server.publish("a", "1") == 1
    assert await two_peer.payload() == b"1"
    one_peer.reset()
    await until(lambda: server.connection_count == 1)
    assert server.topics.names() == ["a"]
    assert server.topics.count("a") == 1
    assert "b" not in server.topics
    with pytest.raises(ConnectionClosed):
        one.subscribe("a")
    assert await server.publish("b", "2") == 0


async def test_a_client_that_wants_too_many_topics(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held, max_topics=3)
    client, _ = await join(stack, server, held, "a", "b.*", "c")
    for topic in ("d", "d.>", "e"):
        with pytest.raises(TooManyTopics, match="3 topics at most") as caught:
            client.subscribe(topic)
    assert caught.value.limit == 3
    assert client.topics == {"a", "b.*", "c"}
    assert sorted(server.topics.names()) == ["a", "b.*", "c"]
    client.subscribe("b.*")  # it has
    client.unsubscribe("c")
    client.subscribe("d")
    assert client.topics == {"a", "b.*", "d"}
    await join(stack, server, held, "a", "b", "c")  # the limit is each client's


async def test_metrics(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held)
    await join(stack, server, held, "a", "b.*")
    await join(stack, server, held, "a")
    for limit in (0, -1, 1.5, True, None):
        with pytest.raises(ValueError, match="limit is"):
            server.topic("a", limit=limit)  # type: ignore[arg-type]
    listener = server.topic("a", limit=1)
    server.publish("a", "1")
    server.publish("a", "2")
    told = server.metrics.topics
    assert told is not None
    assert (told.topics, told.subscriptions, told.broker_healthy) == (2, 4, True)
    assert told.drops == {"full": 0, "closed": 0, "replaced": 0, "listener": 1, "broker": 0}
    assert server.metrics.snapshot()["topics"]["subscriptions"] == 4
    listener.close()


async def test_order_with_what_is_sent_and_broadcast(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held)
    client, peer = await join(stack, server, held, "a", ">")
    server.publish("a", "1")
    server.publish("b", "2")
    await client.send("3")
    await server.broadcast("4")
    server.publish("a", "5")
    await server.broadcast("6", to="b")
    client.send_nowait("7")
    assert await read(peer, 7) == [b"1", b"2", b"3", b"4", b"5", b"6", b"7"]


async def test_a_chat(stack: Stack) -> None:
    """The example of the module, with clients of ours."""

    async def handler(client: ConnectedClient) -> None:
        client.subscribe("room.7")
        async for message in client:
            client.server.publish("room.7", message, exclude=client)

    server = await serve(stack, handler)
    clients = [
        await stack.enter_async_context(WebSocketClient.connect(f"ws://127.0.0.1:{server.port}")) for _ in range(3)
    ]
    await until(lambda: server.topics.count("room.7") == 3)
    for number, client in enumerate(clients):
        await client.send(str(number))
        for other in clients:
            if other is not client:
                message = await other.recv()
                assert message is not None
                assert message.text == str(number)


async def test_subscribing_and_closing_while_a_message_goes_out(stack: Stack) -> None:
    """`on_disconnect` publishes, unsubscribes another and subscribes: nobody is missed, nobody gets it twice."""
    held = Held()
    others: list[ConnectedClient] = []

    def gone(_: ConnectedClient) -> None:
        others[0].unsubscribe("a")
        others[1].subscribe("b")
        server.publish("a", "gone")
        server.publish("b", "gone too")

    server = await serve(stack, held, on_disconnect=gone)
    _, leaving = await join(stack, server, held, "a")
    one, one_peer = await join(stack, server, held, "a")
    two, two_peer = await join(stack, server, held, "a")
    others += [one, two]
    server.publish("a", "1")
    leaving.reset()
    await until(lambda: server.connection_count == 2)
    server.publish("a", "2")
    assert await read(two_peer, 4) == [b"1", b"gone", b"gone too", b"2"]
    await one.send("end")
    assert await read(one_peer, 2) == [b"1", b"end"]


async def test_a_connection_without_gathering_gets_it_at_once(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held, cork=False)
    client, peer = await join(stack, server, held, "a")
    assert server.publish("a", "1").value == 1
    assert client.messages_sent == 1
    assert await peer.payload() == b"1"


@pytest.mark.parametrize("policy", ["drop", "close", "wait"])
async def test_a_full_outbox_is_treated_as_slow_peer_says(stack: Stack, policy: str) -> None:
    held = Held()
    server = await serve(stack, held, backpressure=SMALL, slow_peer=policy, close_timeout=0.2)
    slow, peer = await join(stack, server, held, "a")
    _, quick = await join(stack, server, held, "a")
    count = await block(slow)
    while slow.backpressure.messages < SMALL.max_buffer_size:
        slow.send_nowait("more")
    assert [await server.publish("a", str(number)) for number in range(3)] == [1, 1, 1]
    assert await read(quick, 3) == [b"0", b"1", b"2"]
    if policy == "close":
        assert +server.topics.drops == Counter(closed=1)
        assert not slow.is_connected
        await slow.wait_closed()
    else:
        assert +server.topics.drops == Counter(full=3)
        assert server.metrics.slow_peer_drops == 3
        assert len(await read(peer, count + SMALL.max_buffer_size)) == count + SMALL.max_buffer_size
        await until(lambda: not slow._outbox_size)
        assert await server.publish("a", "again") == 2
        assert await peer.payload() == b"again"


async def test_latest_goes_although_a_sender_that_waited_was_to_go_first(stack: Stack) -> None:
    """Between the moment when a sender is let in and its message there is room, but not for others."""
    held = Held()
    server = await serve(stack, held, backpressure=SMALL)
    server.topics.configure("price", on_full="latest")
    client, peer = await join(stack, server, held, "price")
    loop = asyncio.get_running_loop()
    count = await block(client)
    while client.backpressure.level < 1:
        client.send_nowait(b"filling")
        count += 1
    sending = asyncio.create_task(client.send(b"has waited"))
    await until(lambda: client.backpressure.waiting == 1)
    seen: list[bool] = []

    def publish() -> None:
        seen.append(client._is_blocked or client._outbox_size > 0)
        server.publish("price", b"3")

    client.backpressure.on_state_change(lambda is_active: None if is_active else loop.call_soon(publish))
    await read(peer, count)
    assert await read(peer, 2) == [b"has waited", b"3"]
    await sending
    assert seen == [False]


async def test_latest_keeps_the_newest_of_each_topic(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held)
    server.topics.configure("price.*", on_full="latest")
    slow, peer = await join(stack, server, held, "price.>", "news")
    _, quick = await join(stack, server, held, "price.a")
    count = await block(slow)
    for number in range(5):
        assert await server.publish("price.a", f"a{number}") == 2
        assert await server.publish("price.b", f"b{number}") == 1
        await server.publish("news", f"n{number}")
    assert server.topics.drops["replaced"] == 8
    assert await read(quick, 5) == [b"a0", b"a1", b"a2", b"a3", b"a4"]
    assert (await read(peer, count + 7))[count:] == [b"n0", b"n1", b"n2", b"n3", b"n4", b"a4", b"b4"]
    assert await server.publish("price.a", "a5") == 2
    assert await peer.payload() == b"a5"


async def test_latest_is_bounded_where_topics_are_many(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held)
    server.topics.configure(">", on_full="latest")
    slow, peer = await join(stack, server, held, ">")
    count = await block(slow)
    for number in range(1003):
        assert await server.publish(f"price.{number}", f"{number}") == 1
    assert server.topics.drops["full"] == 3
    assert (await read(peer, count + 1000))[count:] == [b"%d" % number for number in range(3, 1003)]


async def test_what_is_kept_goes_with_its_client(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held)
    server.topics.configure(">", on_full="latest")
    slow, peer = await join(stack, server, held, "a")
    await block(slow)
    assert await server.publish("a", "1") == 1
    peer.reset()
    await until(lambda: not server.connection_count)
    assert await server.publish("a", "2") == 0


@pytest.mark.parametrize("wrong", ["one", 5, [5], [None]], ids=str)
async def test_what_is_no_connection_is_not_excluded(stack: Stack, wrong: Any) -> None:
    server = await serve(stack, Held())
    with pytest.raises(TypeError, match="exclude is a ConnectedClient of the server, or several, not this"):
        server.publish("room.7", "hello", exclude=wrong)


@pytest.mark.parametrize("wrong", [None, 5, b"room.7"], ids=str)
async def test_what_is_no_name_is_not_published_to(stack: Stack, wrong: Any) -> None:
    server = await serve(stack, Held())
    with pytest.raises(TypeError, match=f"a topic is a str, not {type(wrong).__name__}"):
        server.publish(wrong, "hello")


async def test_what_is_configured_later_counts_first(stack: Stack) -> None:
    server = await serve(stack, Held(), slow_peer="close")
    assert server.topics.settings("a.b").on_full == "close"
    server.topics.configure(">", on_full="drop")
    server.topics.configure("a.*", on_full="latest")
    assert server.topics.settings("a.b").on_full == "latest"
    assert server.topics.settings("a").on_full == "drop"
    server.topics.configure("a.b", on_full="drop")
    assert server.topics.settings("a.b").on_full == "drop"
    wrong: Any = "keep"
    with pytest.raises(ValueError, match="'drop', 'close', 'latest'"):
        server.topics.configure("a", on_full=wrong)
    with pytest.raises(ValueError, match="white space"):
        server.topics.configure("a b", on_full="drop")


async def test_the_server_listens_itself(stack: Stack) -> None:
    server = await serve(stack, Held())
    async with server.topic("md.*.trades") as listener:
        assert await server.publish("md.eur.trades", "1") == 0
        server.publish("md.eur.quotes", "2")
        server.publish("md.usd.trades", b"3")
        seen = []
        async for message in listener:
            seen.append((listener.topic, message))
            if len(seen) == 2:
                break
        assert seen == [("md.eur.trades", "1"), ("md.usd.trades", b"3")]
        waiting = asyncio.create_task(anext(listener))
        await turns()
        with pytest.raises(InvalidState):
            await anext(listener)
        server.publish("md.usd.trades", "4")
        assert await waiting == "4"
    with pytest.raises(StopAsyncIteration):
        await anext(listener)
    assert not server.topics.names()


async def test_a_listener_ends_with_its_server_and_when_nobody_has_it(stack: Stack) -> None:
    server = await serve(stack, Held())
    dropped = server.topic("a")
    assert server.topics.names() == ["a"]
    del dropped
    gc.collect()
    assert not server.topics.names()
    listener = server.topic("b")
    waiting = asyncio.create_task(anext(listener, None))
    await turns()
    await server.shutdown()
    assert await waiting is None


async def test_a_listener_that_is_slow_loses_the_oldest(stack: Stack) -> None:
    server = await serve(stack, Held())
    listener = server.topic("a", limit=2)
    for number in range(5):
        server.publish("a", str(number))
    assert [(await anext(listener)).text for _ in range(2)] == ["3", "4"]
    assert server.topics.drops["listener"] == 3


@pytest.mark.parametrize("topic", ["", "a..b", "a b", "room.*", "$x", "x" * 300])
async def test_wrong_names(stack: Stack, topic: str) -> None:
    held = Held()
    server = await serve(stack, held)
    client, _ = await join(stack, server, held)
    with pytest.raises(ValueError, match=r"a topic|a message|topics that"):
        server.publish(topic, "x")
    if "*" not in topic:
        with pytest.raises(ValueError, match=r"a topic|topics that"):
            client.subscribe(topic)
        with pytest.raises(ValueError, match=r"a topic|topics that"):
            server.topic(topic)
    assert client.topics == frozenset()
    assert not server.topics.names()


@pytest.mark.parametrize("wrong", [None, 1, ["a"], Message.ping()], ids=str)
async def test_what_cannot_be_published(stack: Stack, wrong: Any) -> None:
    server = await serve(stack, Held())
    with pytest.raises((TypeError, ValueError)):
        server.publish("a", wrong)


class Room(enum.StrEnum):
    """Names as an application may have them."""

    LOBBY = "room.lobby"
    ALL = "room.*"
    NAME = "somebody"


async def test_names_may_be_members_of_an_enumeration(stack: Stack) -> None:
    hub, held = Hub(), Held()
    near = await serve(stack, held, broker=FakeBroker(hub))
    far = await serve(stack, Held(), broker=FakeBroker(hub))
    for server in (near, far):
        server.topics.configure(Room.LOBBY, presence=True)
    client, peer = await join(stack, near, held, Room.LOBBY, Room.ALL)
    client.name = Room.NAME
    listener = near.topic(Room.ALL)
    far.publish(Room.LOBBY, "1")
    assert await anext(listener) == "1"
    near.publish(Room.LOBBY, "2")
    assert await near.broadcast("3", to=Room.LOBBY) == 1
    assert await read(peer, 3) == [b"1", b"2", b"3"]
    assert near.topics.clients(Room.LOBBY) == [client]
    assert near.topics.count(Room.ALL) == 2
    assert Room.LOBBY in near.topics
    assert [type(name) for name in (*client.topics, client.name, *near.topics.names())] == [str] * 5
    assert [member.name for member in await far.presence(Room.LOBBY)] == ["somebody"]
    assert await far.send_to(Room.NAME, "4") == 1
    assert await far.unsubscribe(Room.NAME, Room.ALL) == 1
    client.unsubscribe(Room.LOBBY)
    assert client.topics == frozenset()


async def test_a_history_may_be_named_by_a_member_of_an_enumeration(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held)
    server.topics.configure(Room.LOBBY, history=5)
    client, peer = await join(stack, server, held)
    start = server.publish(Room.LOBBY, "1").position
    server.publish(Room.LOBBY, "2")
    await client.subscribe(Room.LOBBY, since=start)
    assert await peer.payload() == b"2"
    assert len((await server.history(Room.LOBBY)).publications) == 2


async def test_a_listener_belongs_to_the_thread_of_its_server(stack: Stack) -> None:
    server = await serve(stack, Held())
    listener = server.topic("a")
    for call in (listener.close, lambda: asyncio.run(anext(listener))):  # type: ignore[arg-type]
        with pytest.raises(InvalidState, match="another thread"):
            await asyncio.to_thread(call)
    server.publish("a", "1")
    assert await anext(listener) == "1"
    listener.close()


@pytest.mark.parametrize("way", ["unsubscribe", "leave"])
async def test_one_that_subscribes_while_the_last_one_goes_is_heard(stack: Stack, way: str) -> None:
    """A signal handler or a finalizer may run between the steps."""

    class Interrupted(FakeBroker):
        def unsubscribe(self, patterns: Iterable[str]) -> None:
            listeners.append(server.topic("a"))
            super().unsubscribe(patterns)

    hub = Hub()
    listeners: list[Listener] = []
    server = await serve(stack, Held(), broker=Interrupted(hub))
    far = await serve(stack, Held(), broker=FakeBroker(hub))
    first = server.topic("a")
    if way == "leave":
        first.close()
    else:
        assert first._subscriber is not None
        server.topics._unsubscribe(first._subscriber, "a")
    far.publish("a", "1")
    assert await anext(listeners[0]) == "1"
