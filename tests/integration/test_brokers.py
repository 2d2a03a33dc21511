"""Topics of several servers over real brokers: what arrives, what it costs when the broker goes, what is told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fabric.broker import BrokerUnavailable, MemoryBroker, make_broker
from fabric.broker.embedded import FILE, GUARD, EmbeddedNats, find_nats_server
from fabric.broker.nats import NatsBroker
from fabric.broker.redis import RedisBroker, glob
from fabric.message import Message
from fabric.server import ConnectedClient, WebSocketServer
from support.brokers import NatsServer, RealBroker, RedisServer
from support.raw_peer import RawPeer
from support.serving import Held, serve, turns, until

Stack = contextlib.AsyncExitStack


@pytest.fixture
def nats(require: Callable[[object, str], None]) -> type[NatsServer]:
    require(find_nats_server(), 'nats-server is not in PATH: pip install "websocket-fabric[nats-server]" brings it')
    return NatsServer


@pytest.fixture
def redis(require: Callable[[object, str], None]) -> type[RedisServer]:
    require(RedisServer.program(), "redis-server is not in PATH: .ci/setup installs it")
    return RedisServer


@pytest.fixture(params=["nats", "redis"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> RealBroker:
    made: RealBroker = request.getfixturevalue(request.param)(tmp_path)
    return made


async def join(stack: Stack, server: WebSocketServer, held: Held, *topics: str) -> tuple[ConnectedClient, RawPeer]:
    """A client that has subscribed, and the broker knows."""
    peer = await stack.enter_async_context(await RawPeer.open(server.port))
    client = await held.next()
    for topic in topics:
        await client.subscribe(topic)
    return client, peer


async def two(stack: Stack, broker: RealBroker, held: Held, **options: Any) -> tuple[WebSocketServer, WebSocketServer]:
    await stack.enter_async_context(broker)
    return await serve(stack, held, broker=broker.url, **options), await serve(stack, Held(), broker=broker.url)


def reopen(broker: Any) -> None:
    """Let what is published leave again, by the connection that there is."""
    if isinstance(broker, NatsBroker):
        transport = broker._transport()
        broker._out.open(transport.write, transport._io_writer.transport.get_write_buffer_size)
    else:
        broker._out.open(broker._speaks.write, broker._speaks.unwritten)


async def test_it_reaches_the_subscribers_of_other_servers(stack: Stack, broker: RealBroker) -> None:
    held = Held()
    near, far = await two(stack, broker, held)
    _, peer = await join(stack, near, held, "room.7")
    assert await far.publish("room.7", "text é") == 0
    assert await far.publish("room.8", "elsewhere") == 0
    assert await far.publish("room.7", b"\x00binary") == 0
    frames = [await peer.frame() for _ in range(2)]
    assert await near.publish("room.7", "local") == 1  # each publisher's messages are in order, not those of two
    frames.append(await peer.frame())
    assert [frame.payload.decode() for frame in frames] == ["text é", "\x00binary", "local"]
    assert [frame.opcode for frame in frames] == [1, 2, 1]
    await far.publish("room.7", "x" * 300_000)
    assert await peer.payload() == b"x" * 300_000
    assert near.broker_healthy
    assert far.broker_healthy


async def test_each_client_gets_it_once_however_many_subscriptions_fit(stack: Stack, broker: RealBroker) -> None:
    held = Held()
    near, far = await two(stack, broker, held)
    _, one = await join(stack, near, held, "md.*.trades", "md.eur.trades", "md.>", ">")
    _, other = await join(stack, near, held, "md.eur.*")
    for number in range(20):
        await far.publish("md.eur.trades", str(number))
        await near.publish("md.eur.trades", f"near {number}")
    await far.publish("end", "end")
    await far.publish("md.eur.end", "end")
    expected = sorted([str(number) for number in range(20)] + [f"near {number}" for number in range(20)])
    for peer, last in ((one, 2), (other, 1)):
        got = [(await peer.payload()).decode() for _ in range(40 + last)]
        assert got[40:] == ["end"] * last
        assert sorted(got[:40]) == expected
        assert [text for text in got if text.isdigit()] == [str(number) for number in range(20)]


async def test_only_what_has_subscribers_is_heard(stack: Stack, broker: RealBroker) -> None:
    held = Held()
    near, far = await two(stack, broker, held)
    client, peer = await join(stack, near, held, "a", "b")
    client.unsubscribe("a")
    await client.subscribe("c")  # the broker knows by then
    for topic in ("a", "b", "other", "c"):
        await far.publish(topic, topic)
    assert [await peer.payload() for _ in range(2)] == [b"b", b"c"]
    assert near.topics._incoming.messages == 2
    peer.reset()
    await until(lambda: not near.connection_count)
    async with near.topic("end") as listener:
        await far.publish("b", "nobody")
        await far.publish("end", "end")
        assert await anext(listener) == "end"
    assert near.topics._incoming.messages == 3


async def test_a_server_listens_to_others(stack: Stack, broker: RealBroker) -> None:
    near, far = await two(stack, broker, Held())
    async with near.topic("md.*.trades") as listener:
        for number in range(3):
            far.publish(f"md.{number}.trades", Message(b"%d" % number))
        seen = [(await anext(listener), listener.topic) for _ in range(3)]
    assert seen == [(b"%d" % number, f"md.{number}.trades") for number in range(3)]


async def test_what_is_no_envelope_is_left_out(stack: Stack, broker: RealBroker) -> None:
    held = Held()
    near, far = await two(stack, broker, held)
    _, peer = await join(stack, near, held, "a")
    foreign = far.topics.broker
    for wrong in (b"", b"short", b"\x07" * 20, b"\x01" + bytes(12) + b"\xff"):
        foreign.publish("a", wrong)
    await far.publish("a", "good")
    assert await peer.payload() == b"good"
    assert near.topics._incoming.malformed == 4


@pytest.mark.deadline(60)
async def test_a_broker_that_is_killed_and_comes_back(stack: Stack, broker: RealBroker) -> None:
    """Local delivery goes on, what is published meanwhile waits, every loss lies in a gap that is reported."""
    held = Held()
    near, far = await two(stack, broker, held)
    gaps: list[tuple[str, float]] = []
    near.on_gap = lambda topic, since: gaps.append((topic, since))
    _, peer = await join(stack, near, held, "a", "b.*")
    await far.publish("a", "before")
    assert await peer.payload() == b"before"
    begun = time.time()
    await broker.kill()
    await until(lambda: not near.broker_healthy and not far.broker_healthy)
    assert near.publish("a", "local").value == 1
    assert await peer.payload() == b"local"
    outcome = far.publish("a", "kept")
    with pytest.raises(BrokerUnavailable, match="there is no connection"):
        await outcome
    late_peer = await stack.enter_async_context(await RawPeer.open(near.port))
    late = await held.next()
    late.subscribe("c")  # holds here at once
    await broker.start()
    await until(lambda: near.broker_healthy and len(gaps) >= 3)
    assert {topic for topic, _ in gaps} == {"a", "b.*", "c"}
    assert all(since <= begun for _, since in gaps)
    await until(lambda: far.broker_healthy)
    await far.publish("b.1", "after")
    await far.publish("c", "late")
    # What was kept is lost where the other server was back sooner than ours had subscribed: that is in the gap.
    payload = await peer.payload()
    assert payload in (b"kept", b"after")
    if payload == b"kept":
        assert await peer.payload() == b"after"
    assert await late_peer.payload() == b"late"
    assert late.topics == {"c"}


@pytest.mark.deadline(60)
async def test_a_broker_that_stands_still_is_noticed(stack: Stack, broker: RealBroker) -> None:
    held = Held()
    near, far = await two(stack, broker, held)
    _, peer = await join(stack, near, held, "a")
    broker.freeze()
    await until(lambda: not near.broker_healthy)
    broker.thaw()
    await until(lambda: near.broker_healthy and far.broker_healthy)
    for _ in range(2):
        with contextlib.suppress(BrokerUnavailable):
            await far.publish("a", "again")
            break
    assert await peer.payload() == b"again"


@pytest.mark.deadline(60)
async def test_what_waits_for_the_broker_is_bounded(
    stack: Stack, broker: RealBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"fabric.broker.{broker.scheme}.MAX_QUEUED", 10_000)  # before the broker is made
    await stack.enter_async_context(broker)
    server = await serve(stack, Held(), broker=broker.url)
    await broker.kill()
    await until(lambda: not server.broker_healthy)
    for _ in range(9):
        server.publish("a", b"x" * 1000)
    assert server.topics.drops["broker"] == 0
    outcome = server.publish("a", b"x" * 1000)
    assert outcome.value == 0
    assert server.topics.drops["broker"] == 1
    with pytest.raises(BrokerUnavailable, match="up to its bound"):
        await outcome


async def test_a_message_over_the_brokers_limit(stack: Stack, nats: type[NatsServer], tmp_path: Path) -> None:
    async with nats(tmp_path, "max_payload: 1000") as broker:
        server = await serve(stack, Held(), broker=broker.url)
        with pytest.raises(BrokerUnavailable, match="takes messages of 1000 bytes"):
            await server.publish("a", b"x" * 1000)
        assert await server.publish("a", b"x" * 900) == 0
        assert server.topics.drops["broker"] == 1


LOGINS = {
    "nats": ('authorization { user: "user", password: "right" }', "user:right@"),
    "redis": ("requirepass right", ":right@"),
}


@pytest.mark.parametrize("login", ["user:wrong@", ":wrong@", "", "wrong@"])
async def test_a_wrong_password(broker: RealBroker, login: str) -> None:
    line, right = LOGINS[broker.scheme]
    broker.lines = (line,)
    async with broker:
        server = WebSocketServer.bind("127.0.0.1:0", Held(), broker=f"{broker.scheme}://{login}{broker.address}")
        with pytest.raises(BrokerUnavailable, match=r"(?i)auth|pass") as caught:
            await server.start()
        assert "wrong@" not in str(caught.value)
        assert ":wrong" not in str(caught.value)
        assert not server.is_running
        good = WebSocketServer.bind("127.0.0.1:0", Held(), broker=f"{broker.scheme}://{right}{broker.address}")
        async with good:
            assert good.broker_healthy
            assert await good.publish("a", "x") == 0
            assert "right" not in repr(good.topics.broker)


@pytest.mark.parametrize("scheme", ["nats", "redis"])
async def test_nobody_is_there(scheme: str, monkeypatch: pytest.MonkeyPatch, unused_port: int) -> None:
    monkeypatch.setattr(f"fabric.broker.{scheme}.CONNECT_TIMEOUT", 0.3)
    server = WebSocketServer.bind("127.0.0.1:0", Held(), broker=f"{scheme}://127.0.0.1:{unused_port}")
    with pytest.raises(BrokerUnavailable, match="cannot be reached"):
        await server.start()
    await turns()


@pytest.fixture
def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


@pytest.mark.parametrize(
    "wrong", ["", "memory", "redis", "http://x", "nats:", "nats:other", "nats://", "redis:", "redis://"]
)
def test_wrong_urls(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"broker is|URL of a"):
        make_broker(wrong)


def test_the_error_says_what_was_given_but_no_password() -> None:
    with pytest.raises(ValueError, match=r"not 'memory'$"):
        make_broker("memory")
    with pytest.raises(ValueError, match=r"not 'kafka:…'$"):
        make_broker("kafka://user:password@host")


@pytest.mark.parametrize("rest", ["/1", "/0/1", "?db=1"])
def test_a_redis_broker_has_no_other_database(rest: str) -> None:
    make_broker("redis://127.0.0.1:6379/0")
    with pytest.raises(ValueError, match="has something after host and port"):
        make_broker("redis://127.0.0.1:6379" + rest)


@pytest.mark.parametrize(("url", "extra"), [("nats://127.0.0.1", "nats"), ("nats:embedded", "nats-server")])
def test_the_extra_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, url: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, "fabric.broker.nats", None)  # as without nats-py: ModuleNotFoundError
    with pytest.raises(BrokerUnavailable, match=rf"websocket-fabric\[{extra}\]"):
        make_broker(url)


def test_urls() -> None:
    assert isinstance(make_broker("memory:"), MemoryBroker)
    own = MemoryBroker()
    assert make_broker(own) is own
    for url, kind in (("nats://me:secret@host:1", NatsBroker), ("redis://:secret@host:1", RedisBroker)):
        made = make_broker(url)
        assert isinstance(made, kind)
        assert "secret" not in repr(made)
    assert isinstance(make_broker("rediss://host"), RedisBroker)
    wrong: Any = 1
    with pytest.raises(TypeError):
        make_broker(wrong)


async def test_a_server_of_its_own(stack: Stack, nats: type[NatsServer], monkeypatch: pytest.MonkeyPatch) -> None:
    """nats:embedded: the first starts one, the second finds it by the environment; it ends with the first."""
    monkeypatch.delenv(FILE, raising=False)
    held = Held()
    near = await serve(stack, held, broker="nats:embedded")
    far = await serve(stack, Held(), broker="nats:embedded")
    first: Any = near.topics.broker
    second: Any = far.topics.broker
    assert second._server is None
    program = first._server
    assert program.is_running
    path = Path(os.environ[FILE])
    assert path.read_text() == program.url  # noqa: ASYNC240
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700  # so no other user can read what is in it
    _, peer = await join(stack, near, held, "a")
    await far.publish("a", "hello")
    assert await peer.payload() == b"hello"
    await far.shutdown()
    assert program.is_running
    held.release()
    peer.reset()
    await near.shutdown()
    assert not program.is_running
    monkeypatch.setenv(FILE, str(path))  # as a child of the process has it that outlives it
    with pytest.raises(BrokerUnavailable, match="the nats-server of a parent process has ended"):
        await serve(stack, Held(), broker="nats:embedded")


async def test_a_server_of_its_own_is_started_again_as_it_was(nats: type[NatsServer]) -> None:
    server = EmbeddedNats()
    assert await server.wait() is None
    await server.start()
    url = server.url
    assert server._process is not None
    os.killpg(server._process.pid, signal.SIGKILL)
    assert await server.wait() is not None
    assert not server.is_running
    await server.start()
    assert (server.url, server.is_running) == (url, True)
    await server.stop()
    await server.stop()


async def test_a_server_of_its_own_ends_when_its_input_does(nats: type[NatsServer]) -> None:
    """As when the process is killed that has started it."""
    server = EmbeddedNats()
    await server.start()
    assert server._process is not None
    assert server._process.stdin is not None
    server._process.stdin.close()
    await server.wait()
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    await server.stop()


@pytest.mark.parametrize("told", ["", 'host: "127.0.0.1"\n', 'host: "127.0.0.1"\nport: -1\nend\n'])
async def test_nothing_is_left_of_a_start_in_which_its_process_was_killed(
    nats: type[NatsServer], tmp_path: Path, told: str
) -> None:
    """Standard input has ended before the server had its configuration, or just behind it."""
    program = find_nats_server()
    assert program is not None
    guard = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", GUARD, "sh", tmp_path / "store", program, stdin=asyncio.subprocess.PIPE
    )
    await guard.communicate(told.encode())
    assert os.listdir(tmp_path) == []


async def test_topics_of_before_the_start(
    stack: Stack, nats: type[NatsServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that listens before it starts hears of the others."""
    monkeypatch.delenv(FILE, raising=False)
    near = WebSocketServer.bind("127.0.0.1:0", Held(), broker="nats:embedded")
    listener = near.topic("a")
    await stack.enter_async_context(near)
    far = await serve(stack, Held(), broker="nats:embedded")
    await far.publish("a", "hello")
    assert (await anext(aiter(listener))).text == "hello"


async def test_no_server_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FILE, raising=False)
    monkeypatch.setattr("fabric.broker.embedded.find_nats_server", lambda: None)
    server = WebSocketServer.bind("127.0.0.1:0", Held(), broker="nats:embedded")
    with pytest.raises(BrokerUnavailable, match="nats-server is not in PATH"):
        await server.start()


async def test_what_is_published_while_the_broker_is_away_waits_for_it(stack: Stack, broker: RealBroker) -> None:
    """A subscriber that is back first gets all of it, in order, before anything newer."""
    held = Held()
    near, far = await two(stack, broker, held)
    _, peer = await join(stack, near, held, "a")
    sender: Any = far.topics.broker
    sender._out.close()  # as between the loss of a connection and the next one
    for number in range(100):
        far.publish("a", str(number))
    await turns()
    reopen(sender)
    await far.publish("a", "100")
    assert [await peer.payload() for _ in range(101)] == [b"%d" % number for number in range(101)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("a.*", "fabric:a.*"), ("a.>", "fabric:a.*"), ("[x]?.*.\\", "fabric:\\[x\\]\\?.*.\\\\")],
)
def test_patterns_of_redis(pattern: str, expected: str) -> None:
    assert glob(pattern) == expected


async def test_redis_sends_more_than_was_asked_for(stack: Stack, redis: type[RedisServer], tmp_path: Path) -> None:
    broker = redis(tmp_path)
    held = Held()
    near, far = await two(stack, broker, held)
    _, peer = await join(stack, near, held, "a.*.[c]", "end")
    for topic in ("a.x.y.[c]", "a.b.c", "a.b.[c]", "end"):
        await far.publish(topic, topic)
    assert [await peer.payload() for _ in range(2)] == [b"a.b.[c]", b"end"]


@pytest.mark.deadline(120)
@pytest.mark.parametrize("loop_factory", ["uvloop"], indirect=True)
async def test_many_topics_are_subscribed_again(stack: Stack, broker: RealBroker) -> None:
    held = Held()
    near, far = await two(stack, broker, held, max_topics=20_001)
    client, peer = await join(stack, near, held)
    for number in range(20_000):
        client.subscribe(f"topic.{number}")
    await client.subscribe("pattern.*")
    await broker.kill()
    await until(lambda: not near.broker_healthy and not far.broker_healthy)
    client.unsubscribe("topic.7")
    await broker.start()
    await until(lambda: near.broker_healthy and far.broker_healthy)
    for topic in ("topic.0", "topic.7", "topic.19999", "pattern.x"):
        await far.publish(topic, topic)
    assert [await peer.payload() for _ in range(3)] == [b"topic.0", b"topic.19999", b"pattern.x"]


@pytest.mark.deadline(120)
@pytest.mark.parametrize("loop_factory", ["uvloop"], indirect=True)
async def test_what_a_killed_broker_costs_lies_in_the_gap(stack: Stack, broker: RealBroker) -> None:
    """Counted messages: in order, none twice, and none lost that was published outside the reported gap."""
    held = Held()
    near, far = await two(stack, broker, held)
    gaps: list[tuple[float, float]] = []
    near.on_gap = lambda topic, since: gaps.append((since, time.time()))
    received: list[int] = []
    published: dict[int, float] = {}

    async def hear() -> None:
        async for message in listener:
            received.append(int(message.as_text()))

    async with near.topic("counted") as listener:
        hearing = asyncio.create_task(hear())
        for number in range(600):
            published[number] = time.time()
            far.publish("counted", str(number))
            if number == 200:
                await broker.kill()
                await until(lambda: not near.broker_healthy and not far.broker_healthy)
            if number == 400:
                await broker.start()
                await until(lambda: near.broker_healthy and far.broker_healthy)
            await asyncio.sleep(0.001)
        await far.publish("counted", "600")
        published[600] = time.time()
        await until(lambda: 600 in received)
    await hearing
    assert received == sorted(set(received))
    lost = published.keys() - set(received)
    assert gaps
    assert all(any(begin <= published[number] <= end for begin, end in gaps) for number in lost)
    assert set(range(401, 601)) <= set(received)


@pytest.mark.deadline(60)
async def test_what_the_publisher_alone_has_lost_is_a_gap_elsewhere(
    stack: Stack, broker: RealBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the publisher's connection is cut: what was refused meanwhile is told to those who would have got it."""
    monkeypatch.setattr(f"fabric.broker.{broker.scheme}.MAX_QUEUED", 10_000)  # before the broker is made
    held = Held()
    near, far = await two(stack, broker, held)
    gaps: list[tuple[str, float]] = []
    near.on_gap = lambda topic, since: gaps.append((topic, since))
    _, peer = await join(stack, near, held, "a", "b.*", "c")
    await far.publish("a", "before")
    sender: Any = far.topics.broker
    sender._out.close()  # as between the loss of a connection and the next one
    begun = time.time()
    for number in range(20):
        far.publish("a", f"{number}".ljust(1000))
        far.publish("b.1", f"{number}".ljust(1000))
    assert far.topics.drops["broker"]
    reopen(sender)
    await sender.flush()  # it tells
    await sender.flush()
    await far.publish("c", "after")
    while await peer.payload() != b"after":
        pass
    assert sorted(topic for topic, _ in gaps) == ["a", "b.*"]
    assert all(since <= begun for _, since in gaps)
    assert near.broker_healthy


@pytest.mark.deadline(60)
async def test_what_was_under_way_when_the_publishers_connection_was_lost_is_a_gap_elsewhere(
    stack: Stack, broker: RealBroker
) -> None:
    held = Held()
    near, far = await two(stack, broker, held)
    gaps: list[str] = []
    near.on_gap = lambda topic, since: gaps.append(topic)
    await join(stack, near, held, "a", "b")
    await far.publish("b", "confirmed")
    sender: Any = far.topics.broker
    far.publish("a", "perhaps")
    if broker.scheme == "nats":
        sender._client._transport._io_writer.transport.abort()
    else:
        sender._speaks.abort()
    await until(lambda: gaps)
    assert gaps == ["a"]


@pytest.mark.deadline(60)
async def test_a_wait_that_is_cancelled_does_no_harm(
    stack: Stack, broker: RealBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer that comes later is nobody's; nats-py would stop to read."""
    monkeypatch.setattr(f"fabric.broker.{broker.scheme}.PROBE_INTERVAL", 3600)  # no check connects anew
    await stack.enter_async_context(broker)
    server = await serve(stack, Held(), broker=broker.url)
    gaps: list[str] = []
    server.on_gap = lambda topic, _: gaps.append(topic)
    broker.freeze()
    waiting = asyncio.ensure_future(server.topics.broker.flush())
    await turns()
    waiting.cancel()
    await asyncio.wait([waiting])
    broker.thaw()
    for _ in range(2):
        await server.topics.broker.flush()
    assert gaps == []


async def test_a_check_that_ignores_its_cancellation_does_not_keep_it_open(
    stack: Stack, nats: type[NatsServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nats-py ignores one that comes while it flushes."""
    broker = await stack.enter_async_context(nats(tmp_path))
    server = await serve(stack, Held(), broker=broker.url)
    made: Any = server.topics.broker
    begun = asyncio.Event()

    async def look() -> None:
        begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    monkeypatch.setattr(made, "_look", look)
    monkeypatch.setattr("fabric.broker.nats.PROBE_INTERVAL", 0.001)
    made._probe.cancel()
    made._probe = asyncio.create_task(made._keep_probing())
    await begun.wait()
    monkeypatch.setattr("fabric.broker.nats.PROBE_INTERVAL", 1000)
    await made.close()
