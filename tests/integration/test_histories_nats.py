"""Topics with history of several servers over JetStream: what is NATS' own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fabric.broker import BrokerUnavailable
from fabric.broker.embedded import FILE, find_nats_server
from fabric.broker.nats import EmbeddedNatsBroker, NatsBroker
from fabric.history import History
from fabric.server import ConnectedClient, WebSocketServer
from support.brokers import NatsServer
from support.histories import Counted, connect, payloads, started
from support.serving import Held, serve, until

Stack = contextlib.AsyncExitStack


@pytest.fixture
def nats(require: Callable[[object, str], None], tmp_path: Path) -> NatsServer:
    require(find_nats_server(), 'nats-server is not in PATH: pip install "websocket-fabric[nats-server]" brings it')
    return NatsServer(tmp_path, *NatsServer.KEPT)


async def ask(server: WebSocketServer, what: str, body: Any = None) -> Any:
    """JetStream's answer."""
    broker: Any = server.topics.broker
    reply = await broker._client.request(f"$JS.API.{what}", b"" if body is None else json.dumps(body).encode(), 10)
    return json.loads(reply.data)


async def stream_of(server: WebSocketServer) -> Any:
    """What JetStream says of our one stream; None if there is none."""
    names = (await ask(server, "STREAM.NAMES"))["streams"]
    if not names:
        return None
    assert len(names) == 1
    return await ask(server, f"STREAM.INFO.{names[0]}")


async def again(client: ConnectedClient) -> History | None:
    with contextlib.suppress(BrokerUnavailable):
        return await client.subscribe("room.7")
    return None


async def test_without_jetstream_it_says_so(stack: Stack, nats: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    nats.lines = ()
    held = Held()
    near, far = await started(stack, nats, held)
    client, peer = await connect(stack, near, held)
    for call in (
        lambda: near.history("room.7"),
        lambda: near.publish("room.7", "x"),
        lambda: near.publish("room.7", "x"),
        lambda: client.subscribe("room.7"),
    ):
        with pytest.raises(BrokerUnavailable, match="JetStream is not enabled: start nats-server with -js"):
            await call()
    assert near.topics.drops["broker"] == 2
    await client.subscribe("plain")
    await far.publish("plain", "goes on")
    assert await payloads(peer, 1) == ["goes on"]
    # Once it has it, the subscriber hears.
    await nats.kill()
    await until(lambda: not near.broker_healthy and not far.broker_healthy)
    nats.lines = nats.KEPT
    await nats.start()
    await until(lambda: near.broker_healthy and far.broker_healthy)
    while await again(client) is None:  # a server asks again after a second
        await asyncio.sleep(0.01)
    await far.publish("room.7", "kept")
    assert await payloads(peer, 1) == ["kept"]


#: What a user of our histories may do, besides what the tests forbid.
RIGHTS = ["fabric.>", "fabric-history.>", "$JS.API.>", "_INBOX.>"]


def permissions(deny: str = "", deny_hearing: str = "") -> tuple[str, ...]:
    account = (
        f'accounts {{ A {{ jetstream: enabled, users = [ {{ user: "user", password: "secret", permissions: {{ '
        f"publish: {{ allow: {json.dumps(RIGHTS)}, deny: {json.dumps([deny] if deny else [])} }}, "
        f"subscribe: {{ allow: {json.dumps(RIGHTS)}, deny: {json.dumps([deny_hearing] if deny_hearing else [])} }} "
        "} } ] } }"
    )
    return (*NatsServer.KEPT, account)


@pytest.mark.deadline(60)
@pytest.mark.parametrize(
    "deny", ["$JS.API.STREAM.CREATE.>", "$JS.API.STREAM.NAMES", "$JS.API.CONSUMER.>", "_INBOX.>"], ids=str
)
async def test_without_a_permission_it_says_so(stack: Stack, nats: NatsServer, deny: str) -> None:
    nats.lines = permissions(deny) if deny.startswith("$") else permissions(deny_hearing=deny)
    await stack.enter_async_context(nats)
    server = await serve(stack, Held(), broker=f"nats://user:secret@{nats.address}")
    server.topics.configure("room.>", history=10)
    if "CONSUMER" in deny:
        await server.publish("room.7", "x")
        call: Any = lambda: server.history("room.7")  # noqa: E731
    else:
        call = lambda: server.publish("room.7", "x")  # noqa: E731
    with pytest.raises(BrokerUnavailable, match=r"(?i)permissions violation for") as caught:
        await call()
    assert "secret" not in str(caught.value)
    assert server.broker_healthy


async def test_a_topic_that_is_forbidden_concerns_no_other(stack: Stack, nats: NatsServer) -> None:
    nats.lines = permissions("fabric-history.room.closed")
    await stack.enter_async_context(nats)
    server = await serve(stack, Held(), broker=f"nats://user:secret@{nats.address}")
    server.topics.configure("room.>", history=10)
    outcomes = [server.publish(topic, "x") for topic in ("room.open", "room.closed", "room.open")]
    with pytest.raises(BrokerUnavailable, match=r"permissions violation for publish to .*room\.closed"):
        await outcomes[1]
    await outcomes[0]
    await outcomes[2]
    assert len((await server.history("room.open")).publications) == 2


async def test_a_stream_of_others_that_has_our_subjects(stack: Stack, nats: NatsServer) -> None:
    near, _ = await started(stack, nats, Held())
    await ask(near, "STREAM.CREATE.theirs", {"name": "theirs", "subjects": ["fabric-history.>"]})
    with pytest.raises(BrokerUnavailable, match="belong to the stream 'theirs', which is none of ours"):
        await near.publish("room.7", "x")


async def test_a_message_that_is_too_large(stack: Stack, nats: NatsServer) -> None:
    nats.lines += ("max_payload: 1000",)
    near, _ = await started(stack, nats, Held())
    await near.publish("room.7", b"x" * 900)
    with pytest.raises(BrokerUnavailable, match="takes messages of"):
        await near.publish("room.7", b"x" * 950)
    await near.publish("room.7", b"after")
    assert len((await near.history("room.7")).publications) == 2


async def test_reading_makes_no_stream(stack: Stack, nats: NatsServer) -> None:
    near, _ = await started(stack, nats, Held())
    await near.history("room.guessed")
    assert await stream_of(near) is None
    await near.publish("room.7", "x")
    messages = (await stream_of(near))["state"]["messages"]
    await near.history("room.guessed")
    assert (await stream_of(near))["state"]["messages"] == messages == 1


async def test_the_bounds_are_the_streams(stack: Stack, nats: NatsServer) -> None:
    """It keeps one message and one hour more than the largest of the topics, and grows with them."""
    held = Held()
    near, far = await started(stack, nats, held, history=3, ttl=60)
    outcomes = [near.publish("room.7", str(number)) for number in range(6)]
    for outcome in outcomes:
        await outcome
    stream = await stream_of(near)
    assert stream["state"]["messages"] == 4
    assert (stream["config"]["max_msgs_per_subject"], stream["config"]["max_age"]) == (4, 3660 * 10**9)
    far.topics.configure("room.>", history=10, ttl=10)
    later = far.publish("room.7", "6")
    await later
    stream = await stream_of(near)
    assert (stream["config"]["max_msgs_per_subject"], stream["config"]["max_age"]) == (11, 3660 * 10**9)
    assert later.position is not None
    assert outcomes[0].position is not None
    assert later.position.epoch == outcomes[0].position.epoch
    # What was removed before it kept so many is not taken for what never was.
    assert not (await far.history("room.7", since=outcomes[0].position)).recovered
    assert (await far.history("room.7", since=outcomes[5].position)).recovered


async def test_a_quiet_topic_beside_a_busy_one(stack: Stack, nats: NatsServer) -> None:
    """The numbers are of all topics: one that has nothing new is recovered though the stream has gone on."""
    held = Held()
    near, far = await started(stack, nats, held, history=2)
    client, _ = await connect(stack, near, held)
    never = await client.subscribe("room.never")
    await far.publish("room.quiet", "0")
    last = far.publish("room.quiet", "1")
    await last
    for number in range(30):
        await near.publish("room.busy", str(number))
    client.unsubscribe("room.never")
    assert never is not None
    for topic, since in (("room.quiet", last.position), ("room.never", never.position)):
        other, peer = await connect(stack, near, held)
        history = await other.subscribe(topic, since=since)
        assert history is not None
        assert history.recovered
        await far.publish(topic, "next")
        assert await payloads(peer, 1) == ["next"]
        back, back_peer = await connect(stack, near, held)
        again = await back.subscribe(topic, since=history.position)
        assert again is not None
        assert again.recovered
        assert await payloads(back_peer, 1) == ["next"]


async def test_a_window_that_is_read_in_parts(stack: Stack, nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fabric.broker.jetstream.BATCH", 7)
    near, far = await started(stack, nats, Held())
    outcomes = [near.publish("room.7", str(number)) for number in range(50)]
    for outcome in outcomes:
        await outcome
    history = await far.history("room.7")
    assert [message.text for _, message in history.publications] == [str(number) for number in range(50)]
    monkeypatch.setattr("fabric.broker.jetstream.BATCH_SIZE", -(1 << 20) + 300)
    assert await far.history("room.7") == history
    await until_no_consumer(near)


async def until_no_consumer(server: WebSocketServer) -> None:
    while (await stream_of(server))["state"]["consumer_count"]:
        await asyncio.sleep(0.01)


@pytest.mark.deadline(60)
async def test_a_stream_that_is_deleted(stack: Stack, nats: NatsServer) -> None:
    """Another one is made, with another epoch; nothing that is published then is lost."""
    held = Held()
    near, far = await started(stack, nats, held)
    client, peer = await connect(stack, near, held)
    await client.subscribe("room.7")
    first = far.publish("room.7", "0")
    await first
    await ask(near, f"STREAM.DELETE.{(await stream_of(near))['config']['name']}")
    outcomes = [far.publish("room.7", str(number)) for number in range(1, 4)]
    for outcome in outcomes:
        await outcome
    assert first.position is not None
    assert {outcome.position and outcome.position.epoch for outcome in outcomes}.isdisjoint({first.position.epoch})
    assert await payloads(peer, 4) == ["0", "1", "2", "3"]
    history = await near.history("room.7", since=first.position)
    assert not history.recovered
    assert history.position == outcomes[-1].position


@pytest.mark.deadline(60)
async def test_what_the_stream_has_forgotten_to_have_is_not_doubled(
    stack: Stack, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message whose acknowledgement was lost with the connection, and that is sent again too late."""
    monkeypatch.setattr("fabric.broker.jetstream.DOUBLES", 0.1)  # as little as JetStream takes
    monkeypatch.setattr("fabric.broker.jetstream.SURE", 0.0)
    near, far = await started(stack, nats, Held())
    await near.publish("room.7", "0")
    broker: Any = near.topics.broker
    streams = broker._streams
    monkeypatch.setattr(type(streams), "_acknowledged", lambda *_: None)
    waiting = near.publish("room.7", "1")
    while len((await far.history("room.7")).publications) < 2:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)  # that is the server's, no fake time reaches it
    monkeypatch.undo()
    monkeypatch.setattr("fabric.broker.jetstream.SURE", 0.0)
    await broker._client.force_reconnect()
    await waiting
    assert waiting.position is not None
    assert waiting.position.offset == 2
    assert [message.text for _, message in (await far.history("room.7")).publications] == ["0", "1"]


@pytest.mark.deadline(60)
async def test_an_acknowledgement_that_does_not_come(
    stack: Stack, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is sent again, and is there once."""
    monkeypatch.setattr("fabric.broker.jetstream.SILENCE", 0.5)
    near, far = await started(stack, nats, Held())
    await near.publish("room.7", "0")
    broker: Any = near.topics.broker
    with monkeypatch.context() as patch:
        patch.setattr(type(broker._streams), "_acknowledged", lambda *_: None)
        waiting = near.publish("room.7", "1")
        while len((await far.history("room.7")).publications) < 2:
            await asyncio.sleep(0.01)
    await waiting
    assert len((await far.history("room.7")).publications) == 2


@pytest.mark.deadline(60)
async def test_servers_that_begin_at_once_have_one_stream(stack: Stack, nats: NatsServer) -> None:
    """nats-server lets several be made in the same moment, with the same subjects."""
    servers = [*await started(stack, nats, Held()), *[await serve(stack, Held(), broker=nats.url) for _ in range(4)]]
    for server in servers[2:]:
        server.topics.configure("room.>", history=1000)
    outcomes = [server.publish("room.7", "x") for server in servers]
    for outcome in outcomes:
        await outcome
    assert sorted(outcome.position.offset for outcome in outcomes if outcome.position) == [1, 2, 3, 4, 5, 6]
    assert len({outcome.position.epoch for outcome in outcomes if outcome.position}) == 1
    assert (await stream_of(servers[0]))["state"]["messages"] == 6


async def test_what_others_publish_on_our_subjects(stack: Stack, nats: NatsServer) -> None:
    held = Held()
    near, far = await started(stack, nats, held)
    client, peer = await connect(stack, near, held)
    await client.subscribe("room.7")
    foreign = far.topics.broker
    assert isinstance(foreign, NatsBroker)
    assert foreign._client is not None
    head = b"\x04" + b"e" * 16
    for wrong in (b"\x04" * 13, head + b"x" * 32, head + b"1" * 32, head + b"1" * 32 + b"\x01" + bytes(12) + b"\xff"):
        foreign.publish("room.7", wrong)
    await foreign.flush()
    await foreign._client.publish("fabric-history.room.7", b"stored, but none of ours")
    await foreign._client.flush()
    await far.publish("room.7", "good")
    assert await payloads(peer, 1) == ["good"]
    assert [message.text for _, message in (await far.history("room.7")).publications] == ["good"]


@pytest.mark.deadline(60)
async def test_an_embedded_server_keeps_histories_until_it_is_stopped(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, require: Callable[[object, str], None]
) -> None:
    """Though it is killed meanwhile; nothing is left of them then."""
    require(find_nats_server(), 'nats-server is not in PATH: pip install "websocket-fabric[nats-server]" brings it')
    monkeypatch.delenv(FILE, raising=False)
    broker = EmbeddedNatsBroker()
    near = WebSocketServer.bind("127.0.0.1:0", Held(), broker=broker, ping_interval=None)
    stack.push_async_callback(near.shutdown)
    await near.start()
    far = await serve(stack, Held(), broker="nats:embedded")
    for server in (near, far):
        server.topics.configure("room.>", history=5000)
    assert broker._server is not None
    store = [Path(broker._server._store)]
    assert [each.is_dir() for each in store] == [True]
    counted = Counted(near, far)

    async def kill() -> None:
        assert broker._server is not None
        assert broker._server._process is not None
        os.killpg(broker._server._process.pid, signal.SIGKILL)
        await until(counted.all_away)

    await counted.run({30: kill}, 100)
    assert counted.lost() == []
    assert [len(epochs) for epochs in counted.epochs.values()] == [1, 1]
    await far.shutdown()
    await near.shutdown()
    assert [each.exists() for each in store] == [False]


async def test_a_subscriber_by_a_pattern_loses_nothing_to_the_beginning_of_a_mirror(
    stack: Stack, nats: NatsServer
) -> None:
    """The stream can be read before it sends what it has kept."""
    held = Held()
    near, far = await started(stack, nats, held)
    listener, peer = await connect(stack, near, held)
    client, _ = await connect(stack, near, held)
    await listener.subscribe("room.*")
    for number in range(100):
        outcome = far.publish(f"room.{number}", str(number))
        await client.subscribe(f"room.{number}")
        assert await payloads(peer, 1) == [str(number)]
        await outcome
