"""Brokers that refuse: no permission, no TLS, too old, too small. Each has its error, and concerns nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from fabric.broker import Broker, BrokerUnavailable, make_broker
from fabric.broker.echo import Echo
from fabric.broker.embedded import FILE, EmbeddedNats, find_nats_server
from fabric.broker.nats import EmbeddedNatsBroker, NatsBroker
from fabric.broker.redis import RedisBroker, _Connection
from fabric.broker.streams import Streams
from fabric.server import WebSocketServer
from support.brokers import NatsServer, RealBroker, RedisServer
from support.raw_peer import RawPeer
from support.serving import Held, serve, turns, until
from support.tls import certificate_file, client_context, server_context

Stack = contextlib.AsyncExitStack


@pytest.fixture(params=["nats", "redis"])
def broker(request: pytest.FixtureRequest, tmp_path: Path, require: Callable[[object, str], None]) -> RealBroker:
    if request.param == "nats":
        require(find_nats_server(), 'nats-server is not in PATH: pip install "websocket-fabric[nats-server]" brings it')
        return NatsServer(tmp_path)
    require(RedisServer.program(), "redis-server is not in PATH: .ci/setup installs it")
    return RedisServer(tmp_path)


def adapter(broker: RealBroker, *, tls: bool = False, login: str = "") -> Broker:
    if broker.scheme == "nats":
        options = {"tls": client_context()} if tls else {}
        return NatsBroker(f"{'tls' if tls else 'nats'}://{login}{broker.address}", **options)
    url = f"{'rediss' if tls else 'redis'}://{login}{broker.address}"
    return RedisBroker(url, ssl_context=client_context() if tls else None)


async def refused(made: Broker | str, why: str) -> None:
    """A server does not start with it, and says why."""
    server = WebSocketServer.bind("127.0.0.1:0", Held(), broker=made)
    with pytest.raises(BrokerUnavailable, match=why) as caught:
        await server.start()
    assert "secret" not in str(caught.value)
    assert not server.is_running
    await server.shutdown()


#: Lines that let a user speak and hear only what begins with "open", besides what the adapter needs.
PARTLY = {
    "nats": (
        (
            'accounts { A { users = [ { user: "user", password: "secret", permissions: { '
            'publish: ["fabric.open.>", "fabric.$echo.*"], subscribe: ["fabric.open.>", "fabric.$echo.*"] } } ] } }'
        ),
    ),
    "redis": ("user user on >secret resetchannels &fabric:open.* &fabric:$echo.* +@all",),
}
#: Lines that let a user log in, and nothing else.
NOTHING = {
    "nats": (
        (
            'accounts { A { users = [ { user: "user", password: "secret", permissions: { '
            'publish: ["elsewhere"], subscribe: ["elsewhere"] } } ] } }'
        ),
    ),
    "redis": ("user user on >secret resetchannels +ping +subscribe +publish",),
}


async def test_one_without_any_permission(broker: RealBroker) -> None:
    broker.lines = NOTHING[broker.scheme]
    async with broker:
        await refused(adapter(broker, login="user:secret@"), r"(?i)permission")


@pytest.mark.deadline(60)
async def test_a_topic_that_is_forbidden_is_told_and_concerns_no_other(
    stack: Stack, broker: RealBroker, caplog: pytest.LogCaptureFixture
) -> None:
    broker.lines = PARTLY[broker.scheme]
    await stack.enter_async_context(broker)
    held = Held()
    near = await serve(stack, held, broker=adapter(broker, login="user:secret@"))
    far = await serve(stack, Held(), broker=adapter(broker, login="user:secret@"))
    peer = await stack.enter_async_context(await RawPeer.open(near.port))
    client = await held.next()
    client.subscribe("open.1")
    with pytest.raises(BrokerUnavailable, match=r"refuses: .*(?i:permission)"):
        await client.subscribe("closed.1")
    await client.subscribe("open.2")
    with pytest.raises(BrokerUnavailable, match=r"refuses: .*(?i:permission)"):
        await far.publish("closed.1", "nobody")
    await far.publish("open.1", "1")
    await near.publish("open.2", "2")
    assert sorted([await peer.payload(), await peer.payload()]) == [b"1", b"2"]
    assert near.broker_healthy
    assert far.broker_healthy
    assert any("refuses" in record.getMessage() for record in caplog.records)
    # Nor does it keep the others from being subscribed again.
    gaps: list[str] = []
    near.on_gap = lambda topic, _: gaps.append(topic)
    await broker.kill()
    await until(lambda: not near.broker_healthy and not far.broker_healthy)
    await broker.start()
    await until(lambda: near.broker_healthy and far.broker_healthy and gaps)
    await far.publish("open.1", "again")
    assert await peer.payload() == b"again"


async def test_a_broker_without_tls(broker: RealBroker) -> None:
    """It never sees the password."""
    async with broker:
        await refused(adapter(broker, tls=True, login="user:secret@"), r"no TLS|SSL|TLS")


async def test_a_password_is_not_said_without_tls() -> None:
    """A server, or who is in between, that says it has no TLS hears nothing more of us."""
    async with listening(b"INFO " + json.dumps(NEW).encode() + b"\r\n") as (port, heard):
        await refused(NatsBroker(f"tls://user:secret@127.0.0.1:{port}"), "has no TLS")
    assert b"".join(heard) == b""


async def test_a_broker_that_wants_tls(stack: Stack, broker: RealBroker, tmp_path: Path) -> None:
    pem = certificate_file(tmp_path)
    if broker.scheme == "nats":
        broker.lines = (f'tls {{ cert_file: "{pem}", key_file: "{pem}" }}',)
        await stack.enter_async_context(broker)
        port = broker.port
    else:  # Debian's knows no TLS without a library: what stands before it does
        await stack.enter_async_context(broker)
        port = await stack.enter_async_context(tls_before(broker.port))
        broker.port = port
    await refused(adapter(broker), "unavailable")
    server = await serve(stack, Held(), broker=adapter(broker, tls=True))
    assert server.broker_healthy
    assert await server.publish("a", "x") == 0


@contextlib.asynccontextmanager
async def tls_before(target: int) -> AsyncIterator[int]:
    """A port with TLS before the one without."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def link(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(carry(reader, there), carry(there_reader, writer))
        for each in (writer, there):
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await each.wait_closed()

    tasks: set[asyncio.Task[None]] = set()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(link(reader, writer))
        tasks.add(task)

    server = await asyncio.start_server(begin, "127.0.0.1", 0, ssl=server_context())
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        if tasks:
            await asyncio.wait(tasks)


NEW = {"server_id": "x", "version": "2.10.0", "proto": 1, "headers": True, "max_payload": 1 << 20}


@contextlib.asynccontextmanager
async def listening(first: bytes, answers: dict[bytes, bytes] | None = None) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that says `first`, then its answers to what contains a word; yields its port and what it has heard."""
    heard: list[bytes] = []
    writers: list[asyncio.StreamWriter] = []

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.write(first)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                heard.append(data)
                for word, answer in (answers or {}).items():
                    if word in data:
                        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve_one, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], heard
    finally:
        server.close()
        for writer in writers:
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@pytest.mark.parametrize("scheme", ["nats", "tls", "redis", "rediss"])
@pytest.mark.parametrize(
    "rest",
    [
        "user:sec/ret@host:1",
        "user:sec#ret@host",
        "user:secret@host:secret",
        "user:[ret@host",
        # What stands before the character looks like a host, or a port, and would be shown.
        "sec/ret@host",
        "sec?ret@host",
        "sec#ret@host",
        "user:12#secret@host",
        "user:secret@host/ret",
        "user:secret@host?ret",
        "user:secret@host:0",
        "user:secret@host:65536",
        "user:secret@",
    ],
)
def test_a_malformed_url_is_refused_without_its_password(scheme: str, rest: str) -> None:
    with pytest.raises(ValueError, match=r"^the URL of a \w+ server is \w+://.*host") as caught:
        make_broker(f"{scheme}://{rest}")
    assert not re.search(r"sec|ret\b|\b12\b", str(caught.value))
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("nats://host", "nats://host:4222"),
        ("nats://user:secret@host:1/", "nats://host:1"),
        ("tls://token@[::1]:1", "tls://[::1]:1"),
        ("redis://[::1]", "redis://[::1]:6379"),
        ("REDIS://:secret@Host/0", "redis://host:6379"),
        ("rediss://user:secret@host:1/", "rediss://host:1"),
    ],
)
def test_what_is_shown_of_a_url(url: str, where: str) -> None:
    scheme = url.partition(":")[0].lower()
    made = (NatsBroker if scheme in ("nats", "tls") else RedisBroker)(url)
    assert f" {where} " in repr(made)


@pytest.mark.deadline(60)
async def test_a_password_with_special_characters(broker: RealBroker) -> None:
    password = "p/w#?@:%[ é"
    broker.lines = {
        "nats": (f'authorization {{ user: user, password: "{password}" }}',),
        "redis": (f'requirepass "{password}"',),
    }[broker.scheme]
    user = "user" if broker.scheme == "nats" else ""
    async with broker, contextlib.AsyncExitStack() as stack:
        url = f"{broker.scheme}://{user}:{quote(password, safe='')}@{broker.address}"
        server = await serve(stack, Held(), broker=url)
        assert server.broker_healthy


async def test_a_server_that_says_nothing_is_told_of() -> None:
    async with listening(b"") as (port, _):
        await refused(f"nats://user:secret@127.0.0.1:{port}", "it cannot be reached: it has not answered in time")


async def test_a_server_that_is_no_redis_is_told_of() -> None:
    async with listening(b"", {b"PING": b"HTTP/1.1 400 Bad Request\r\n\r\n"}) as (port, _):
        await refused(f"redis://127.0.0.1:{port}", "what it says is malformed")


async def test_a_nats_server_that_is_too_old() -> None:
    old = {"server_id": "x", "version": "1.4.1", "proto": 1, "max_payload": 1 << 20}
    async with listening(b"INFO " + json.dumps(old).encode() + b"\r\n") as (port, _):
        await refused(f"nats://127.0.0.1:{port}", r"version 1\.4\.1, needed is 2\.2")


async def test_a_redis_server_that_is_too_old() -> None:
    info = b"# Server\r\nredis_version:4.0.9\r\n"
    answers = {
        b"fabric-1\r\n": b"$8\r\nfabric-1\r\n",
        b"INFO": b"$%d\r\n%b\r\n" % (len(info), info),
    }
    async with listening(b"", answers) as (port, _):
        await refused(f"redis://127.0.0.1:{port}", r"version 4\.0, needed is 5\.0")


async def test_a_message_over_the_limit_of_redis(
    stack: Stack, tmp_path: Path, require: Callable[[object, str], None]
) -> None:
    require(RedisServer.program(), "redis-server is not in PATH: .ci/setup installs it")
    async with RedisServer(tmp_path, "proto-max-bulk-len 1048576") as broker:
        held = Held()
        near, far = await serve(stack, held, broker=broker.url), await serve(stack, Held(), broker=broker.url)
        peer = await stack.enter_async_context(await RawPeer.open(near.port))
        await (await held.next()).subscribe("a")
        far.publish("a", "before")
        with pytest.raises(BrokerUnavailable, match="takes messages of 1048576 bytes"):
            await far.publish("a", bytes(1 << 20))
        await far.publish("a", "after")
        assert [await peer.payload() for _ in range(2)] == [b"before", b"after"]
        assert far.topics.drops["broker"] == 1


async def test_a_message_over_the_limit_of_redis_keeps_no_history_from_going_on(
    stack: Stack, tmp_path: Path, require: Callable[[object, str], None]
) -> None:
    require(RedisServer.program(), "redis-server is not in PATH: .ci/setup installs it")
    async with RedisServer(tmp_path, "proto-max-bulk-len 1048576") as broker:
        server = await serve(stack, Held(), broker=broker.url)
        server.topics.configure("a", history=10)
        with pytest.raises(BrokerUnavailable, match="takes messages of 1048576 bytes"):
            await server.publish("a", bytes(1 << 20))
        await server.publish("a", "after")
        assert [str(each.message.text) for each in (await server.history("a")).publications] == ["after"]
        assert server.topics.drops["broker"] == 1


async def test_histories_that_redis_forbids(
    stack: Stack, tmp_path: Path, require: Callable[[object, str], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody waits for them for ever, and it is logged once."""
    require(RedisServer.program(), "redis-server is not in PATH: .ci/setup installs it")
    async with RedisServer(tmp_path, "user user on >secret ~* &* +@all -script") as broker:
        held = Held()
        server = await serve(stack, held, broker=adapter(broker, login="user:secret@"))
        server.topics.configure("a", history=10)
        await stack.enter_async_context(await RawPeer.open(server.port))
        client = await held.next()
        for awaited in (lambda: server.publish("a", "x"), lambda: client.subscribe("a"), lambda: server.history("a")):
            for _ in range(2):
                with pytest.raises(BrokerUnavailable, match="NOPERM"):
                    await awaited()
        assert server.topics.drops["broker"] == 2
        assert len([record for record in caplog.records if "no histories" in record.getMessage()]) == 1
        assert server.broker_healthy


@pytest.mark.parametrize("info", [b"*1\r\n:1\r\n", b"$-1\r\n", b"+OK\r\n", b"$1\r\n\xff\r\n"])
@pytest.mark.parametrize("largest", [b"$-1\r\n", b"*0\r\n", b"$3\r\nabc\r\n", b"$2\r\n-5\r\n", b"$3\r\n 5 \r\n"])
async def test_a_redis_server_that_says_nothing_of_use_about_itself(info: bytes, largest: bytes) -> None:
    """It is taken for one as most are: here it does not answer in the end."""
    limit = b"*2\r\n$18\r\nproto-max-bulk-len\r\n" + largest
    answers = {b"fabric-1\r\n": b"$8\r\nfabric-1\r\n", b"INFO": info, b"CONFIG": limit, b"SUBSCRIBE": b"-ERR no\r\n"}
    async with listening(b"", answers) as (port, _):
        await refused(f"redis://127.0.0.1:{port}", "it refuses us: ERR no")


@pytest.mark.parametrize("made", ["asked", "asking"])
async def test_nobody_waits_for_histories_of_a_server_that_has_closed(made: str) -> None:
    async def connect(_: Any) -> Any:
        await asyncio.Event().wait()

    streams = Streams(connect, lambda what, error: BrokerUnavailable(f"{what}: {error}"), "node", 1000)
    appended = streams.append("a", b"a", b"x", 1, 10, 1.0, None)
    reading = asyncio.ensure_future(streams.read("a", 10, 1.0, None, 0, wait=True))
    if made == "asking":
        await turns()
    await streams.close(0)
    for waiting in (appended, reading):
        with pytest.raises(BrokerUnavailable, match="the server has closed"):
            await waiting


@pytest.mark.parametrize("scheme", ["nats", "redis"])
async def test_more_than_may_wait_is_no_message(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"fabric.broker.{scheme}.MAX_QUEUED", 1000)
    made = NatsBroker("nats://127.0.0.1") if scheme == "nats" else RedisBroker("redis://127.0.0.1")
    with pytest.raises(BrokerUnavailable, match="takes messages of 1000 bytes, not of 1001"):
        made.publish("a", bytes(1001))


@pytest.mark.deadline(60)
async def test_more_subscriptions_than_nats_allows(
    stack: Stack, tmp_path: Path, require: Callable[[object, str], None]
) -> None:
    require(find_nats_server(), 'nats-server is not in PATH: pip install "websocket-fabric[nats-server]" brings it')
    async with NatsServer(tmp_path, "max_subscriptions: 4") as broker:
        held = Held()
        server = await serve(stack, held, broker=broker.url)
        far = await serve(stack, Held(), broker=broker.url)
        peer = await stack.enter_async_context(await RawPeer.open(server.port))
        client = await held.next()
        await client.subscribe("a")
        with pytest.raises(BrokerUnavailable, match="refuses: maximum subscriptions exceeded"):
            for number in range(10):
                await client.subscribe(f"more.{number}")
        await far.publish("a", "still there")
        assert await peer.payload() == b"still there"
        assert server.broker_healthy


@pytest.mark.deadline(60)
async def test_a_flood_of_subscriptions_that_the_broker_does_not_read(
    stack: Stack, broker: RealBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What waits is bounded; what is subscribed in the end holds once the broker reads again."""
    monkeypatch.setattr(f"fabric.broker.{broker.scheme}.MAX_QUEUED", 20_000)
    monkeypatch.setattr(f"fabric.broker.{broker.scheme}.PROBE_INTERVAL", 3600)  # only the flood tells
    await stack.enter_async_context(broker)
    held = Held()
    near, far = await serve(stack, held, broker=broker.url), await serve(stack, Held(), broker=broker.url)
    peer = await stack.enter_async_context(await RawPeer.open(near.port))
    client = await held.next()
    broker.freeze()
    rounds = 0
    while near.broker_healthy:
        for number in range(500):
            client.subscribe(f"flood.{number}")
            client.unsubscribe(f"flood.{number}")
        rounds += 1
        await asyncio.sleep(0)
    client.subscribe("kept")
    broker.thaw()
    await until(lambda: near.broker_healthy and far.broker_healthy)
    assert any("does not read" in record.getMessage() for record in caplog.records)
    await client.subscribe("kept.too")
    for topic in ("flood.1", "kept", "kept.too"):
        await far.publish(topic, topic)
    assert [await peer.payload() for _ in range(2)] == [b"kept", b"kept.too"]


async def test_an_echo() -> None:
    echo = Echo()
    other = ("a", b"other")
    assert echo.taken_out([other]) == [other]
    expected = echo.begin()
    assert len(expected) == 13
    assert echo.taken_out([other, (echo.topic, expected), other]) == [other, other]
    assert echo.taken_out([(echo.topic, expected)]) == []  # by a pattern too
    await echo.heard(10)
    assert echo.begin() != expected
    with pytest.raises(TimeoutError):
        await echo.heard(0)


@pytest.mark.deadline(60)
async def test_a_server_that_is_deaf_is_noticed(stack: Stack, broker: RealBroker) -> None:
    """Its connection stands and it answers, but sends nothing of what is published: only our own messages tell."""
    await stack.enter_async_context(broker)
    held = Held()
    near, far = await serve(stack, held, broker=broker.url), await serve(stack, Held(), broker=broker.url)
    gaps: list[str] = []
    near.on_gap = lambda topic, _: gaps.append(topic)
    peer = await stack.enter_async_context(await RawPeer.open(near.port))
    await (await held.next()).subscribe("a")
    made: Any = near.topics.broker
    if broker.scheme == "nats":
        made._transport().write(b"".join(b"UNSUB f%d\r\n" % sid for sid in (0, *made._sids.values())))
    else:
        made._hears.write(b"*1\r\n$11\r\nUNSUBSCRIBE\r\n")
    await until(lambda: gaps and near.broker_healthy and far.broker_healthy)
    assert set(gaps) == {"a"}
    await far.publish("a", "heard")
    assert await peer.payload() == b"heard"


@pytest.mark.deadline(60)
async def test_a_broker_that_says_what_is_malformed_is_connected_to_anew(
    stack: Stack, broker: RealBroker, caplog: pytest.LogCaptureFixture
) -> None:
    await stack.enter_async_context(broker)
    held = Held()
    near, far = await serve(stack, held, broker=broker.url), await serve(stack, Held(), broker=broker.url)
    gaps: list[str] = []
    near.on_gap = lambda topic, _: gaps.append(topic)
    peer = await stack.enter_async_context(await RawPeer.open(near.port))
    await (await held.next()).subscribe("a")
    made: Any = near.topics.broker
    if broker.scheme == "nats":
        made._transport()._io_writer.transport.get_protocol().data_received(b"MSG fabric.a f1 x\r\n")
    else:
        made._hears.data_received(b"%1\r\n")
    await until(lambda: gaps and near.broker_healthy)
    assert gaps == ["a"]
    await far.publish("a", "after")
    assert await peer.payload() == b"after"
    if broker.scheme == "nats":
        assert any("malformed" in record.getMessage() for record in caplog.records)


@pytest.mark.deadline(60)
async def test_an_error_that_nobody_expected_does_not_keep_it_from_connecting_again(
    stack: Stack, broker: RealBroker, monkeypatch: pytest.MonkeyPatch, broken_log: list[str]
) -> None:
    """Nor does a log that raises."""
    await stack.enter_async_context(broker)
    held = Held()
    near, far = await serve(stack, held, broker=broker.url), await serve(stack, Held(), broker=broker.url)
    gaps: list[str] = []
    near.on_gap = lambda topic, _: gaps.append(topic)
    peer = await stack.enter_async_context(await RawPeer.open(near.port))
    await (await held.next()).subscribe("a")

    async def fail() -> None:
        monkeypatch.undo()
        raise KeyError("nobody expected this")

    monkeypatch.setattr(near.topics.broker, "_round_trip", fail)
    await until(lambda: any("not expected" in text for text in broken_log))
    await broker.kill()
    await until(lambda: not near.broker_healthy and not far.broker_healthy)
    await broker.start()
    await until(lambda: near.broker_healthy and far.broker_healthy)
    await far.publish("a", "again")
    assert await peer.payload() == b"again"
    await until(lambda: gaps)


async def test_a_closed_transport_is_not_written_to() -> None:
    """One of uvloop would raise."""

    class Closed(asyncio.Transport):
        def is_closing(self) -> bool:
            return True

        def write(self, data: bytes | bytearray | memoryview) -> None:
            raise RuntimeError("it is closed")

    connection = _Connection(lambda _: None)
    connection.connection_made(Closed())
    connection.write(b"x")


@pytest.mark.deadline(60)
async def test_an_embedded_server_that_is_killed_is_started_again(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, require: Callable[[object, str], None]
) -> None:
    require(find_nats_server(), 'nats-server is not in PATH: pip install "websocket-fabric[nats-server]" brings it')
    monkeypatch.delenv(FILE, raising=False)
    first = EmbeddedNatsBroker()
    held = Held()
    near = WebSocketServer.bind("127.0.0.1:0", held, broker=first, ping_interval=None)
    stack.push_async_callback(near.shutdown)
    listener = near.topic("early")  # before it has started
    await near.start()
    far = await serve(stack, Held(), broker="nats:embedded")
    await far.publish("early", "1")
    assert await anext(listener) == "1"
    assert first._server is not None
    process = first._server._process
    assert process is not None
    os.killpg(process.pid, signal.SIGKILL)
    await until(lambda: not near.broker_healthy and not far.broker_healthy)
    await until(lambda: near.broker_healthy and far.broker_healthy)
    assert first._server._process is not process
    await far.publish("early", "2")
    assert await anext(listener) == "2"
    listener.close()
    await far.shutdown()
    again = first._server._process
    assert again is not None
    await near.shutdown()
    assert again.returncode is not None
    assert FILE not in os.environ


async def test_an_embedded_server_that_does_not_begin_to_listen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, require: Callable[[object, str], None]
) -> None:
    """What it has stored is still there, if that is not the first start."""
    require(find_nats_server(), 'nats-server is not in PATH: pip install "websocket-fabric[nats-server]" brings it')
    temporary, program = tmp_path / "temporary", tmp_path / "nats-server"
    temporary.mkdir()
    program.write_text("#!/bin/sh\nsleep 3600\n")
    program.chmod(0o700)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))

    @contextlib.contextmanager
    def deaf() -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr("fabric.broker.embedded.find_nats_server", lambda: str(program))
            patch.setattr("fabric.broker.embedded.START", 0.0)
            with pytest.raises(BrokerUnavailable, match="does not begin to listen"):
                yield

    server = EmbeddedNats()
    with deaf():
        await server.start()
    assert list(temporary.iterdir()) == []
    await server.start()
    assert server._process is not None
    os.killpg(server._process.pid, signal.SIGKILL)
    await server.wait()
    (store,) = temporary.iterdir()
    with deaf():
        await server.start()
    assert (store / "jetstream").is_dir()
    await server.start()
    assert [each.name for each in store.iterdir()] == ["jetstream"]  # and no configuration, with the token
    await server.stop()
    assert list(temporary.iterdir()) == []


async def test_a_server_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only the shell between: as long as it lives, it holds a pipe open."""
    pipe, program = tmp_path / "pipe", tmp_path / "nats-server"
    os.mkfifo(pipe)
    program.write_text(f"""#!/bin/sh
trap '' TERM
exec 9>'{pipe}'
echo '"nats://127.0.0.1:4222"' >"$(dirname "$2")/1.ports"
while :; do sleep 3600; done
""")
    program.chmod(0o700)
    monkeypatch.setattr("fabric.broker.embedded.find_nats_server", lambda: str(program))
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        server = EmbeddedNats()
        await server.start()
        monkeypatch.setattr("fabric.broker.embedded.END", 0.0)
        await server.stop()
        while True:
            with contextlib.suppress(BlockingIOError):
                assert os.read(reading, 1) == b""
                break
            await asyncio.sleep(0.01)
    finally:
        os.close(reading)
