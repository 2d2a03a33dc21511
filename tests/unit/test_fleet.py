"""fabric.fleet: names over several servers, in faked time, over a broker in memory that loses what a test wants."""

from __future__ import annotations

import asyncio
import copy
import logging
import pickle
import random
import uuid
from collections.abc import Callable
from typing import Any, Literal

import pytest

from fabric import fleet as module
from fabric._fleet import membership, wire
from fabric.broker import BrokerUnavailable, MemoryBroker
from fabric.config import ServerConfig
from fabric.error import BufferFull, ConnectionClosed, InvalidState, Timeout
from fabric.fleet import Fleet, Member, NameTaken, NobodyThere, RequestFailed
from fabric.message import Message
from fabric.metrics import MetricsCollector
from fabric.topics import HEAD, SERVERS, Topics
from fabric_ext.remote import wrap
from support.fake_broker import FakeBroker, Hub
from support.fake_time import in_fake_time, settle

Duplicates = Literal["newest", "reject", "both"]


class Client:
    """What a fleet sees of a connection.

    Attributes:
        error: what sending to it raises.
        closed: code and reason.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.id = uuid.uuid4()
        self.fleet = fleet
        self.topics: set[str] = set()
        self.sent: list[str] = []
        self.error: Exception | None = None
        self.closed: tuple[int, str] | None = None

    def send_nowait(self, message: Message) -> None:
        if self.error is not None:
            raise self.error
        self.sent.append(message.as_text())

    def subscribe(self, topic: str) -> None:
        self.topics.add(topic)
        self.fleet.subscribed(self, topic)  # type: ignore[arg-type]

    def unsubscribe(self, topic: str) -> None:
        self.topics.discard(topic)
        self.fleet.unsubscribed(self, topic)  # type: ignore[arg-type]

    def _close_when_sent(self, code: int, reason: str) -> None:
        self.closed = code, reason
        self.fleet.leave(self)  # type: ignore[arg-type]


class Server:
    """A fleet and its topics, as a server has them."""

    def __init__(self, hub: Hub | None, duplicates: Duplicates = "newest") -> None:
        config = ServerConfig(duplicate_names=duplicates)
        self.broker: Any = MemoryBroker() if hub is None else FakeBroker(hub)
        self.topics = Topics(config, MetricsCollector(), self.broker)
        self.topics.configure("room.>", presence=True)
        self.fleet = Fleet(self.topics, config)
        self.fleet.on_join = lambda topic, member: self.told.append(f"+{topic} {member.name}")
        self.fleet.on_leave = lambda topic, member: self.told.append(f"-{topic} {member.name}")
        self.told: list[str] = []

    async def start(self) -> None:
        await self.topics._start()
        self.fleet.start()

    async def close(self) -> None:
        await self.fleet.close()
        await self.topics._close(1)

    def vanish(self) -> None:
        """As a process that is killed: nothing more is said or heard."""
        self.broker.is_away = True

    def client(self, name: str | None = None, *topics: str) -> Client:
        client = Client(self.fleet)
        self.name(client, name)
        for topic in topics:
            client.subscribe(topic)
        return client

    def name(self, client: Client, name: str | None) -> None:
        self.fleet.set_name(client, name)  # type: ignore[arg-type]

    def name_of(self, client: Client) -> str | None:
        return self.fleet.name_of(client)  # type: ignore[arg-type]

    async def present(self, topic: str = "room.7") -> list[str]:
        return [member.name for member in await self.fleet.presence(topic)]

    @property
    def known(self) -> set[tuple[str, str, tuple[str, ...]]]:
        """All members that it knows: server, name, topics."""
        return {
            (node.hex(), entry.member.name, tuple(sorted(entry.topics)))
            for node, known in self.fleet._directory.nodes.items()
            for entry in known.entries.values()
        }


async def started(hub: Hub | None, count: int = 2, duplicates: Duplicates = "newest") -> list[Server]:
    servers = [Server(hub, duplicates) for _ in range(count)]
    for server in servers:
        await server.start()
    await settle()
    return servers


async def stop(*servers: Server) -> None:
    for server in servers:
        server.broker.is_away = False
        await server.close()


@in_fake_time
async def test_one_server_without_a_broker() -> None:
    (server,) = await started(None, 1)
    client = server.client("agent-7", "room.7", "other", "room.*")
    assert server.name_of(client) == "agent-7"
    assert await server.fleet.send_to("agent-7", "hello", 1) == 1
    assert client.sent == ["hello"]
    assert await server.present() == ["agent-7"]
    server.fleet.on_request = lambda _, message: message.text.upper()
    assert await server.fleet.request("agent-7", "how?", 1) == "HOW?"
    assert await server.fleet.unsubscribe("agent-7", "room.7", 1) == 1
    assert await server.fleet.unsubscribe("agent-7", "room.7", 1) == 0
    assert client.topics == {"other", "room.*"}
    assert await server.fleet.disconnect("agent-7", 1008, "enough", 1) == 1
    assert client.closed == (1008, "enough")
    for call in (server.fleet.send_to("agent-7", "x", 1), server.fleet.request("agent-7", "x", 1)):
        with pytest.raises(NobodyThere, match="nobody has the name 'agent-7'"):
            await call
    assert await server.fleet.disconnect("agent-7", 1000, "", 1) == 0
    assert await server.fleet.unsubscribe("agent-7", "a", 1) == 0
    await settle()
    assert server.told == ["+room.7 agent-7", "-room.7 agent-7"]
    assert asyncio.get_running_loop().time() == 1000.0  # nothing has waited
    await stop(server)


@in_fake_time
async def test_two_servers() -> None:
    near, far = await started(Hub())
    client = near.client("agent-7", "room.7")
    await settle()
    assert await far.present() == ["agent-7"]
    assert await far.fleet.send_to("agent-7", "hello", 1) == 1
    assert client.sent == ["hello"]

    async def answer(asked: Any, message: Message) -> bytes:
        assert asked is client
        await asyncio.sleep(0)
        return message.as_bytes()[::-1]

    near.fleet.on_request = answer
    reply = await far.fleet.request("agent-7", "abc", 1)
    assert reply.is_binary
    assert reply == b"cba"
    assert await far.fleet.unsubscribe("agent-7", "room.7", 1) == 1
    assert client.topics == set()
    assert await far.fleet.disconnect("agent-7", 4000, "why", 1) == 1
    assert client.closed == (4000, "why")
    await settle()
    with pytest.raises(NobodyThere):
        await far.fleet.send_to("agent-7", "x", 1)
    assert near.told == far.told == ["+room.7 agent-7", "-room.7 agent-7"]
    assert near.fleet.malformed == far.fleet.malformed == 0
    assert not near.fleet._calls
    assert not far.fleet._calls
    await stop(near, far)


@in_fake_time
async def test_nothing_is_said_before_names_matter() -> None:
    hub = Hub()
    servers = [Server(hub) for _ in range(2)]
    for server in servers:
        server.fleet.on_join = server.fleet.on_leave = None
        await server.start()
    client = Client(servers[0].fleet)
    client.subscribe("room.7")
    servers[0].fleet.leave(client)  # type: ignore[arg-type]
    await asyncio.sleep(60)
    assert not hub.said
    servers[0].client("a")
    await settle()
    assert await servers[1].fleet.send_to("a", "x", 1) == 1  # it begins here, and asks
    await stop(*servers)


@in_fake_time
async def test_the_first_call_waits_for_the_others_once() -> None:
    near, far = await started(Hub())
    begun = asyncio.get_running_loop().time()
    with pytest.raises(NobodyThere):
        await far.fleet.send_to("nobody", "x", 1)
    assert asyncio.get_running_loop().time() == begun + membership.SETTLING
    with pytest.raises(NobodyThere):
        await far.fleet.request("nobody", "x", 1)
    assert asyncio.get_running_loop().time() == begun + membership.SETTLING
    await stop(near, far)


@in_fake_time
async def test_a_name_that_comes_while_it_waits() -> None:
    near, far = await started(Hub())
    sending = asyncio.ensure_future(far.fleet.send_to("late", "x", 1))
    await settle()
    client = near.client("late")
    assert await sending == 1
    assert client.sent == ["x"]
    await stop(near, far)


@in_fake_time
async def test_a_server_that_comes_later_knows_all() -> None:
    hub = Hub()
    near, far = await started(hub)
    for number in range(20):
        near.client(f"near-{number}", "room.7")
        far.client(f"far-{number}", "room.8")
    third = Server(hub)
    await third.start()
    await settle()
    assert third.known == near.known == far.known
    assert len(third.known) == 40
    assert len(await third.present("room.7")) == 20
    await stop(near, far, third)


@in_fake_time
async def test_a_state_in_several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "PART", 200)
    monkeypatch.setattr(membership, "AT_ONCE", 3)
    hub = Hub()
    (near,) = await started(hub, 1)
    for number in range(20):
        near.client(f"near-{number}", "room.7")
    await settle()
    (far,) = await started(hub, 1)
    assert far.known == near.known
    states = [said for said in map(heard, hub.said) if isinstance(said, wire.State)]
    assert len(states) >= 5
    assert [said.part for said in states] == list(range(len(states)))
    assert [said.is_last for said in states] == [False] * (len(states) - 1) + [True]
    for number in range(20):
        near.client(f"more-{number}")
    await settle()
    assert far.known == near.known
    await stop(near, far)


def heard(said: tuple[str, bytes]) -> wire.Spoken:
    return wire.decode(said[1][HEAD:])


@in_fake_time
async def test_a_part_of_a_state_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes of two states in parts is never put together."""
    monkeypatch.setattr(membership, "PART", 100)
    hub = Hub()
    (near,) = await started(hub, 1)
    clients = [near.client(f"near-{number}", "room.7") for number in range(6)]
    await settle()
    lost = iter([False, False, True, True, True])  # the hello goes through, of the first state one part does
    hub.is_lost = lambda _: next(lost, False)
    (far,) = await started(hub, 1)
    near.fleet.leave(clients[0])  # type: ignore[arg-type]
    near.fleet._membership.tell_changes()
    assert far.known == set()
    lost = iter([True])
    near.fleet._membership.tell_state(far.fleet._own)  # all but its first part
    await settle()
    assert far.known == set()
    await asyncio.sleep(2 * membership.BEAT)
    assert far.known == near.known
    assert len(far.known) == 5
    await stop(near, far)


@in_fake_time
async def test_a_server_that_is_killed_is_forgotten_within_six_seconds() -> None:
    near, far, third = await started(Hub(), 3)
    near.client("ghost", "room.7")
    await settle()
    far.client("alive", "room.7")
    await asyncio.sleep(11)
    near.vanish()
    killed = asyncio.get_running_loop().time()
    while "ghost" in await far.present():
        await asyncio.sleep(0.01)
    assert 4 <= asyncio.get_running_loop().time() - killed <= 6.01
    await asyncio.sleep(0.1)
    assert far.told == third.told == ["+room.7 ghost", "+room.7 alive", "-room.7 ghost"]
    with pytest.raises(NobodyThere):
        await far.fleet.send_to("ghost", "x", 1)
    await asyncio.sleep(3600)
    assert await far.present() == await third.present() == ["alive"]
    await stop(near, far, third)


@in_fake_time
async def test_servers_are_forgotten_although_the_log_raises(broken_log: list[str]) -> None:
    near, far, third = await started(Hub(), 3)
    third.fleet.on_join = fail
    for number, server in enumerate((near, far)):
        server.client(f"ghost{number}", "room.7")
        await settle()
        server.vanish()
        await asyncio.sleep(11)
        assert await third.present() == []
    assert sum("has been silent" in text for text in broken_log) >= 2
    await stop(near, far, third)


@in_fake_time
async def test_a_server_that_shuts_down_is_forgotten_at_once() -> None:
    near, far = await started(Hub())
    near.client("a", "room.7")
    await settle()
    await near.close()
    await settle()
    assert await far.present() == []
    assert far.told == ["+room.7 a", "-room.7 a"]
    assert near.fleet._membership._timer is not None
    assert near.fleet._membership._timer.cancelled()
    await stop(far)


@in_fake_time
async def test_a_server_that_stood_still_forgets_nobody() -> None:
    near, far = await started(Hub())
    near.client("a", "room.7")
    await asyncio.sleep(3)
    loop: Any = asyncio.get_running_loop()
    loop.now += 60  # both
    await settle()
    assert await far.present() == ["a"]
    await asyncio.sleep(60)
    assert await far.present() == ["a"]
    assert far.told == ["+room.7 a"]
    await stop(near, far)


@in_fake_time
async def test_a_broker_that_was_away() -> None:
    near, far = await started(Hub())
    near.client("before", "room.7")
    await settle()
    far.broker.is_away = True
    near.client("meanwhile", "room.7")
    with pytest.raises(BrokerUnavailable, match="'before' cannot be reached"):
        await far.fleet.send_to("before", "x", 1)
    mine = far.client("mine", "room.7")
    assert await far.fleet.send_to("mine", "x", 1) == 1
    assert mine.sent == ["x"]
    await asyncio.sleep(10)
    assert await far.present() == ["mine"]  # what cannot be reached is not there
    assert await near.present() == ["before", "meanwhile"]
    far.broker.is_away = False
    far.topics.gap(0.0)
    assert sorted(await far.present()) == ["before", "meanwhile", "mine"]
    assert far.known == near.known
    await stop(near, far)


@in_fake_time
async def test_what_is_lost_is_noticed_with_the_next_beat() -> None:
    hub = Hub()
    near, far = await started(hub)
    near.client("a", "room.7")
    await settle()
    hub.is_lost = lambda _: True
    near.client("b", "room.7")
    await settle()
    hub.is_lost = lambda _: False
    assert await far.present() == ["a"]
    await asyncio.sleep(membership.BEAT)
    await settle()
    assert await far.present() == ["a", "b"]
    hub.is_lost = lambda _: True
    near.client("c", "room.7")
    await settle()
    hub.is_lost = lambda _: False
    near.client("d", "room.7")  # its number tells
    await settle()
    assert await far.present() == ["a", "b", "c", "d"]
    await stop(near, far)


def test_servers_agree_whatever_was_lost(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model: what each server's clients do, with a third of all messages lost; then nothing is, and all agree."""
    monkeypatch.setattr(membership, "PART", 300)
    for _ in range(2):
        agree(rng)


def agree(rng: random.Random) -> None:
    @in_fake_time
    async def run() -> None:
        hub = Hub()
        servers = await started(hub, 3, rng.choice(("newest", "both")))
        clients: list[tuple[Server, Client]] = []
        hub.is_lost = lambda _: rng.random() < 0.3
        for _ in range(150):
            action = rng.randrange(7)
            if action < 2 or not clients:
                server = rng.choice(servers)
                client = server.client(f"agent-{rng.randrange(20)}", *rng.sample(["room.1", "room.2", "x"], 2))
                clients.append((server, client))
            else:
                server, client = rng.choice(clients)
                if action == 2:
                    clients.remove((server, client))
                    server.fleet.leave(client)  # type: ignore[arg-type]
                elif action == 3:
                    server.name(client, rng.choice([None, f"agent-{rng.randrange(20)}"]))
                elif action == 4:
                    client.subscribe("room.3")
                elif action == 5:
                    client.unsubscribe("room.1")
                else:
                    await asyncio.sleep(rng.random() * 5)
        hub.is_lost = lambda _: False
        await asyncio.sleep(10)
        expected = {
            (
                server.fleet._own.hex(),
                server.name_of(client),
                tuple(sorted(client.topics & {"room.1", "room.2", "room.3"})),
            )
            for server, client in clients
            if server.name_of(client) is not None
        }
        for server in servers:
            assert server.known == expected
        if servers[0].fleet._duplicates == "newest":
            names = [name for _, name, _ in expected]
            assert len(names) == len(set(names))
        await stop(*servers)

    run()


@in_fake_time
async def test_the_newest_of_two_keeps_the_name() -> None:
    near, far = await started(Hub())
    first = near.client("a", "room.7")
    await settle()
    second = far.client("a", "room.7")
    await settle()
    assert first.closed == (1008, "another connection has this name")
    assert near.name_of(first) is None
    third = far.client("a")
    assert second.closed is not None
    assert third.closed is None
    await settle()
    assert await near.fleet.send_to("a", "x", 1) == 1
    assert third.sent == ["x"]
    assert near.known == far.known
    assert len(near.known) == 1
    await stop(near, far)


@in_fake_time
async def test_the_newest_whatever_the_clocks_say(monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = await started(Hub())
    first = near.client("a")
    await settle()
    monkeypatch.setattr("time.time", lambda: 5.0)  # far's is years behind
    second = far.client("a")
    await settle()
    assert first.closed
    assert second.closed is None
    await stop(near, far)


@pytest.mark.parametrize("duplicates", ["newest", "reject"])
def test_a_race_for_a_name_is_decided_alike(duplicates: Duplicates) -> None:
    @in_fake_time
    async def run() -> None:
        near, far = await started(Hub(), duplicates=duplicates)
        clients = [near.client("a"), far.client("a")]  # neither knows of the other's
        assert [client.closed for client in clients] == [None, None]
        await settle()
        assert [client.closed is None for client in clients].count(True) == 1
        assert near.known == far.known
        assert len(near.known) == 1
        await stop(near, far)

    run()


@in_fake_time
async def test_a_second_one_is_rejected() -> None:
    near, far = await started(Hub(), duplicates="reject")
    first = near.client("a")
    await settle()
    for server in (near, far):
        assert server.fleet.is_taken("a")
        with pytest.raises(NameTaken, match="the name 'a' is taken"):
            server.client("a")
        other = server.client("b")
        with pytest.raises(NameTaken):
            server.name(other, "a")
        assert server.name_of(other) == "b"  # it keeps the one it had
        server.name(other, None)
        await settle()
    assert first.closed is None
    near.name(first, "a")  # its own is not taken
    near.fleet.leave(first)  # type: ignore[arg-type]
    await settle()
    assert far.client("a").closed is None
    await stop(near, far)


@in_fake_time
async def test_both_may_have_it() -> None:
    near, far = await started(Hub(), duplicates="both")
    clients = [near.client("a", "room.7"), near.client("a", "room.7"), far.client("a", "room.7")]
    near.fleet.on_request = lambda *_: "near"
    far.fleet.on_request = lambda *_: "far"
    await settle()
    assert not near.fleet.is_taken("a")
    assert await near.fleet.send_to("a", "x", 1) == 3
    assert [client.sent for client in clients] == [["x"]] * 3
    assert await near.fleet.request("a", "x", 1) == "far"  # the newest
    clients[0].error = ConnectionClosed(1000, "")
    clients[1].error = BufferFull(1, 1)
    assert await far.fleet.send_to("a", "y", 1) == 1
    clients[2].error = ConnectionClosed(1000, "")
    with pytest.raises(NobodyThere):
        await far.fleet.send_to("a", "z", 1)
    clients[0].error = clients[1].error
    with pytest.raises(RequestFailed, match="too much waits"):
        await near.fleet.send_to("a", "z", 1)
    assert await near.present() == ["a", "a", "a"]
    assert await far.fleet.unsubscribe("a", "room.7", 1) == 3
    assert await far.fleet.disconnect("a", 1008, "", 1) == 3
    assert all(client.closed for client in clients)
    await stop(near, far)


@in_fake_time
async def test_another_name_and_none() -> None:
    near, far = await started(Hub())
    client = near.client("a", "room.7")
    await settle()
    near.name(client, "b")
    await settle()
    assert far.told == ["+room.7 a", "-room.7 a", "+room.7 b"]
    near.name(client, "b")
    near.name(client, None)
    near.name(client, None)
    await settle()
    assert far.told[3:] == ["-room.7 b"]
    assert near.known == far.known == set()
    near.name(client, "c")  # with the topics that it has
    await settle()
    assert await far.present() == ["c"]
    await stop(near, far)


@in_fake_time
async def test_only_topics_with_presence_and_no_patterns() -> None:
    (server,) = await started(None, 1)
    server.client("a", "room.7", "room.*", "room.>", "elsewhere")
    assert {topics for _, _, topics in server.known} == {("room.7",)}
    with pytest.raises(InvalidState, match=r"'elsewhere' has no presence.*presence=True"):
        await server.fleet.presence("elsewhere")
    for wrong in ("room.*", "", "$fleet"):
        with pytest.raises(ValueError, match=r"topic|message"):
            await server.fleet.presence(wrong)
    assert await server.present("room.8") == []
    await stop(server)


@in_fake_time
async def test_requests_that_fail(caplog: pytest.LogCaptureFixture) -> None:
    near, far = await started(Hub())
    client = near.client("a")
    await settle()

    async def failed(server: Server, why: str) -> None:
        with pytest.raises(RequestFailed, match=why):
            await server.fleet.request("a", "x", 1)

    for server in (near, far):
        near.fleet.on_request = None
        await failed(server, "has no on_request")
        near.fleet.on_request = fail
        await failed(server, "^on_request raised ZeroDivisionError$")
        near.fleet.on_request = lambda *_: None
        await failed(server, "^on_request raised TypeError$")
        near.fleet.on_request = cancelled
        await failed(server, "^on_request raised CancelledError$")
        near.fleet.on_request = cancelled_later
        await failed(server, "^on_request raised CancelledError$")
        near.fleet.on_request = closed
        caplog.clear()
        await failed(server, "^on_request raised ConnectionClosed$")
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
        near.fleet.on_request = lambda *_: asyncio.sleep(60)
        with pytest.raises(Timeout, match="the answer of 'a'"):
            await server.fleet.request("a", "x", 1)
        await settle()
        assert not near.fleet._running
        assert not server.fleet._calls
        client.error = BufferFull(1, 1)
        with pytest.raises(RequestFailed, match="too much waits for the client already"):
            await server.fleet.send_to("a", "x", 1)
        client.error = InvalidState("it reconnects")
        with pytest.raises(NobodyThere):
            await server.fleet.send_to("a", "x", 1)
        client.error = None
    await stop(near, far)


def fail(*_: object) -> None:
    raise ZeroDivisionError("a secret")


def closed(*_: object) -> None:
    raise ConnectionClosed(1000, "")


def cancelled(*_: object) -> None:
    raise asyncio.CancelledError  # as the result of a future that was cancelled


async def cancelled_later(*_: object) -> None:
    cancelled()


class Odd(BaseException):
    """Of no class that anybody expects."""


@in_fake_time
async def test_the_other_server_is_told_whatever_is_raised() -> None:
    near, far = await started(Hub())
    near.client("a")
    await settle()

    def odd(*_: object) -> None:
        raise Odd

    near.fleet.on_request = odd
    with pytest.raises(RequestFailed, match=r"^on_request raised Odd$"):
        await far.fleet.request("a", "x", 1)
    with pytest.raises(Odd):
        await near.fleet.request("a", "x", 1)
    await stop(near, far)


@in_fake_time
async def test_one_that_has_just_gone_is_nobody() -> None:
    hub = Hub()
    near, far = await started(hub)
    client = near.client("a")
    await settle()
    hub.is_lost = lambda topic: topic == "$fleet"
    near.fleet.leave(client)  # type: ignore[arg-type]
    for call in (far.fleet.send_to("a", "x", 1), far.fleet.request("a", "x", 1)):
        with pytest.raises(NobodyThere):
            await call
    assert await far.fleet.disconnect("a", 1000, "", 1) == 0
    assert await far.fleet.unsubscribe("a", "t", 1) == 0
    await stop(near, far)


@in_fake_time
async def test_its_server_goes_meanwhile() -> None:
    near, far = await started(Hub())
    near.client("a")
    near.fleet.on_request = lambda *_: asyncio.sleep(3600)
    await settle()
    for end in (near.close, None):
        asking = asyncio.ensure_future(far.fleet.request("a", "x", 60))
        await settle()
        begun = asyncio.get_running_loop().time()
        if end is None:
            near.vanish()
        else:
            await end()
        with pytest.raises(RequestFailed, match="has gone"):
            await asking
        assert asyncio.get_running_loop().time() - begun <= 6.0
        if end is not None:
            near = (await started(far.broker.hub, 1))[0]
            near.client("a")
            near.fleet.on_request = lambda *_: asyncio.sleep(3600)
            await settle()
    await stop(near, far)


@in_fake_time
async def test_it_shuts_down_itself_meanwhile() -> None:
    near, far = await started(Hub())
    near.client("a")
    near.fleet.on_request = lambda *_: asyncio.sleep(3600)
    await settle()
    asking = asyncio.ensure_future(far.fleet.request("a", "x", 60))
    await settle()
    await far.close()
    with pytest.raises(RequestFailed, match="shutting down"):
        await asking
    await near.close()
    assert not near.fleet._running


@in_fake_time
async def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_RUNNING", 2)
    near, far, third = await started(Hub(), 3)
    near.client("a")
    near.fleet.on_request = lambda *_: asyncio.sleep(3600)
    await settle()
    asking = [asyncio.ensure_future(far.fleet.request("a", "x", 5)) for _ in range(3)]
    with pytest.raises(RequestFailed, match="is busy"):
        await asking[2]
    asking.append(asyncio.ensure_future(third.fleet.request("a", "x", 5)))
    with pytest.raises(RequestFailed, match="is busy"):
        await asking[3]
    monkeypatch.setattr(module, "FULL", 2)
    with pytest.raises(BufferFull, match="requests to other servers"):
        await far.fleet.send_to("a", "x", 5)
    assert await third.fleet.send_to("a", "x", 5) == 1
    for request in asking[:2]:
        with pytest.raises(Timeout):
            await request
    await stop(near, far, third)


@in_fake_time
async def test_more_than_the_broker_takes() -> None:
    near, far = await started(Hub())
    near.client("a")
    near.fleet.on_request = lambda *_: b"x" * 2000
    await settle()
    near.broker.limit = far.broker.limit = 1000
    for call in (far.fleet.send_to("a", b"x" * 2000, 1), far.fleet.request("a", b"x" * 2000, 1)):
        with pytest.raises(BrokerUnavailable, match="too large"):
            await call
    with pytest.raises(RequestFailed, match="too large"):
        await far.fleet.request("a", "x", 1)
    await stop(near, far)


@in_fake_time
async def test_what_other_programs_say() -> None:
    """Malformed messages, those of strangers, and those that are somebody else's."""
    hub = Hub()
    near, far = await started(hub)
    client = near.client("a", "room.7")
    await settle()
    stranger = b"stranger"
    numbers = iter(range(1000))

    def say(topic: str, said: Any) -> None:
        data = said if isinstance(said, bytes) else wire.encode(said)
        near.topics.deliver([(topic, wrap(SERVERS, stranger, next(numbers), data))])

    inbox = f"$fleet.{near.fleet._own.hex()}"
    key = client.id.bytes
    for wrong in (
        b"",
        b"\xff" * 50,
        wire.Send(1, [key], 1, b"\xff"),
        wire.Request(2, key, 1, b"\xff", 1.0),
        wire.Disconnect(3, [key], 1005, ""),
        wire.Disconnect(3, [key], 1000, "é" * 100),
    ):
        say(inbox, wrong)
    assert near.fleet.malformed == 6
    say("room.7", wire.Disconnect(4, [key], 1000, ""))  # nothing that servers say to each other
    say(f"$fleet.{far.fleet._own.hex()}", wire.Disconnect(5, [key], 1000, ""))
    say(inbox, wire.Reply(1, wire.Status.DONE, 1, 1, b""))
    say(inbox, wire.State(3, part=1, is_last=True, members=[]))
    say("$fleet", wire.Bye())
    say("$fleet", wire.Bye())
    await settle()
    assert client.closed is None
    assert client.sent == []
    say(inbox, wire.Send(6, [key, b"x" * 16], 1, b"good"))
    assert client.sent == ["good"]
    await asyncio.sleep(10)
    assert len(near.fleet._directory.nodes) == 2  # the stranger has been silent
    await stop(near, far)


@in_fake_time
async def test_a_reply_counts_only_from_whom_it_was_asked() -> None:
    hub = Hub()
    near, far, third = await started(hub, 3)
    near.client("a")
    near.fleet.on_request = lambda *_: asyncio.sleep(0.5, "right")
    await settle()
    asking = asyncio.ensure_future(far.fleet.request("a", "x", 1))
    await settle()
    (number,) = far.fleet._calls
    inbox = f"$fleet.{far.fleet._own.hex()}"
    third.fleet._membership.say(inbox, wire.Reply(number, wire.Status.DONE, 1, 1, b"wrong"))
    await settle()
    assert await asking == "right"
    asking = asyncio.ensure_future(far.fleet.request("a", "x", 1))
    await settle()
    (number,) = far.fleet._calls
    near.fleet._membership.say(inbox, wire.Reply(number, wire.Status.DONE, 1, 1, b"\xff"))
    with pytest.raises(RequestFailed, match="UTF-8"):
        await asking
    await stop(near, far, third)


@in_fake_time
async def test_a_callback_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    (server,) = await started(None, 1)
    server.fleet.on_join = fail
    server.client("a", "room.7")
    await settle()
    assert "raised" in caplog.text
    assert await server.present() == ["a"]
    await stop(server)


@in_fake_time
async def test_callbacks_that_are_coroutine_functions(caplog: pytest.LogCaptureFixture) -> None:
    (server,) = await started(None, 1)
    told: list[str] = []

    async def tell(topic: str, member: Member) -> None:
        there = await server.fleet.presence(topic)
        told.append(f"{topic}: {member.name} of {len(there)}")
        if member.name == "wrong":
            raise LookupError("wrong")
        if member.name == "slow":
            try:
                await asyncio.sleep(3600)
            finally:
                told.append("cancelled")

    server.fleet.on_join = server.fleet.on_leave = tell
    client = server.client("a", "room.7")
    await settle()
    server.fleet.leave(client)  # type: ignore[arg-type]
    await settle()
    server.client("wrong", "room.7")
    server.client("slow", "room.7")
    await settle()
    assert told == ["room.7: a of 1", "room.7: a of 0", "room.7: wrong of 2", "room.7: slow of 2"]
    assert "LookupError: wrong" in caplog.text
    await stop(server)
    assert told[-1] == "cancelled"
    assert not server.fleet._telling


@in_fake_time
async def test_asked_before_it_starts_and_after_it_ends() -> None:
    hub = Hub()
    server = Server(hub)
    with pytest.raises(NobodyThere):
        await server.fleet.send_to("a", "x", 1)
    await server.start()
    client = server.client("a", "room.7")
    await server.close()
    said = len(hub.said)
    client.unsubscribe("room.7")
    server.fleet.leave(client)  # type: ignore[arg-type]
    with pytest.raises(NobodyThere):
        await server.fleet.send_to("a", "x", 1)
    await asyncio.sleep(10)
    assert len(hub.said) == said
    await server.fleet.close()


@pytest.mark.parametrize("error", [NobodyThere("a"), NameTaken("a"), RequestFailed("why")])
@pytest.mark.parametrize("again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_errors_can_be_copied(error: Any, again: Callable[[Any], Any]) -> None:
    copied = again(error)
    assert type(copied) is type(error)
    assert str(copied) == str(error)
    assert vars(copied) == vars(error)


def test_a_member_can_be_compared() -> None:
    key = uuid.uuid4()
    assert Member("a", key, "node", 1.0) == Member("a", key, "node", 1.0)
    assert "a" in repr(Member("a", key, "node", 1.0))
