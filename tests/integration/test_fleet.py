"""Names, requests and presence of real servers: of one alone, and of several over real brokers, one of them killed."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fabric
from fabric import ConnectionClosed, HandshakeFailed, WebSocketClient
from fabric.broker.embedded import find_nats_server
from fabric.fleet import Member, NameTaken, NobodyThere, RequestFailed
from fabric.message import Message
from fabric.rpc import Rpc
from fabric.server import ConnectedClient, WebSocketServer
from support.brokers import NatsServer, RealBroker, RedisServer
from support.raw_peer import RawPeer
from support.serving import Held, serve, turns, until

Stack = contextlib.AsyncExitStack


@pytest.fixture(params=["nats", "redis"])
def broker(request: pytest.FixtureRequest, tmp_path: Path, require: Callable[[object, str], None]) -> RealBroker:
    if request.param == "nats":
        require(find_nats_server(), 'nats-server is not in PATH: pip install "websocket-fabric[nats-server]" brings it')
        return NatsServer(tmp_path)
    require(RedisServer.program(), "redis-server is not in PATH: .ci/setup installs it")
    return RedisServer(tmp_path)


async def join(
    stack: Stack, server: WebSocketServer, held: Held, name: str | None, *topics: str
) -> tuple[Any, RawPeer]:
    """A client with a name that has subscribed."""
    peer = await stack.enter_async_context(await RawPeer.open(server.port))
    client = await held.next()
    client.name = name
    for topic in topics:
        client.subscribe(topic)
    return client, peer


def with_presence(*servers: WebSocketServer) -> None:
    for server in servers:
        server.topics.configure("room.>", presence=True)


async def names(server: WebSocketServer, topic: str = "room.7") -> list[str]:
    return [member.name for member in await server.presence(topic)]


async def eventually(server: WebSocketServer, *expected: str) -> None:
    """Wait until these are in room.7, as far as `server` knows."""
    async with asyncio.timeout(30):
        while await names(server) != list(expected):
            await asyncio.sleep(0)


async def test_one_server_alone(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held, on_request=lambda _, message: f"you said {message.text}")
    with_presence(server)
    told: list[tuple[str, str, str]] = []
    server.on_join = lambda topic, member: told.append(("+", topic, member.name))
    server.on_leave = lambda topic, member: told.append(("-", topic, member.name))
    assert server.on_join is not None
    assert server.on_leave is not None
    client, peer = await join(stack, server, held, "agent-7", "room.7", "elsewhere")
    assert client.name == "agent-7"
    assert await server.send_to("agent-7", "hello") == 1
    assert await peer.payload() == b"hello"
    assert await server.request("agent-7", "x") == "you said x"
    (member,) = await server.presence("room.7")
    assert (member.name, member.id) == ("agent-7", client.id)
    assert await server.unsubscribe("agent-7", "elsewhere") == 1
    assert client.topics == {"room.7"}
    assert await server.disconnect("agent-7", 4001, "enough") == 1
    frame = await peer.frame()
    assert frame.payload == b"\x0f\xa1enough"
    assert client.name is None
    with pytest.raises(NobodyThere):
        await server.request("agent-7", "x")
    peer.reset()
    await until(lambda: not server.connection_count)
    await turns()
    assert told == [("+", "room.7", "agent-7"), ("-", "room.7", "agent-7")]
    with pytest.raises(ConnectionClosed):
        client.name = "again"


async def test_it_leaves_with_its_connection(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held)
    with_presence(server)
    _, peer = await join(stack, server, held, "agent-7", "room.7")
    peer.reset()
    await until(lambda: not server.connection_count)
    assert await names(server) == []
    with pytest.raises(NobodyThere):
        await server.send_to("agent-7", "x")
    assert not server._fleet._local
    assert not server._fleet._clients


async def test_wrong_names(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held)
    client, _ = await join(stack, server, held, None)
    for wrong in ("", "a b", "x" * 256, "a\x00"):
        with pytest.raises(ValueError, match="a name"):
            client.name = wrong
        with pytest.raises(ValueError, match="a name"):
            await server.send_to(wrong, "x")
    with pytest.raises(TypeError, match="a name is a str"):
        client.name = 7
    with pytest.raises(ValueError, match="1005"):
        await server.disconnect("a", 1005)
    with pytest.raises(TypeError, match="str or bytes-like"):
        await server.send_to("a", 7)  # type: ignore[arg-type]
    assert client.name is None


def by_query(request: fabric.Request) -> None:
    request.name = request.query.get("name")


async def test_process_request_gives_the_name(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held, process_request=by_query)
    one, _ = (
        await stack.enter_async_context(await RawPeer.open(server.port, line="GET /?name=a HTTP/1.1")),
        await held.next(),
    )
    assert await server.send_to("a", "x") == 1
    assert await one.payload() == b"x"
    await stack.enter_async_context(await RawPeer.open(server.port, line="GET /?name=a HTTP/1.1"))
    assert (await held.next()).name == "a"
    assert (await one.frame()).payload == b"\x03\xf0another connection has this name"
    await stack.enter_async_context(await RawPeer.open(server.port))
    client = await held.next()
    assert client.name is None
    assert client.state_data == {"fabric.name": None}


async def test_a_name_that_is_taken_is_refused_at_the_handshake(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held, process_request=by_query, duplicate_names="reject")
    url = f"ws://127.0.0.1:{server.port}/?name=a"
    await stack.enter_async_context(WebSocketClient.connect(url))
    first = await held.next()
    with pytest.raises(HandshakeFailed, match="409"):
        async with WebSocketClient.connect(url):
            pass
    await stack.enter_async_context(WebSocketClient.connect(url.partition("?")[0]))
    second = await held.next()
    with pytest.raises(NameTaken):
        second.name = "a"
    assert second.name is None
    first.name = None
    second.name = "a"
    assert await server.send_to("a", "x") == 1


async def test_agents_that_answer_by_rpc(stack: Stack, broker: RealBroker) -> None:
    """Requests from one server to an agent of another, which answers in JSON-RPC."""
    await stack.enter_async_context(broker)
    peers: dict[ConnectedClient, Rpc] = {}

    async def handler(client: ConnectedClient) -> None:
        async with Rpc(client) as peer:
            peers[client] = peer
            client.name = client.request.path.strip("/")
            await client.wait_closed()
        del peers[client]

    async def ask(client: ConnectedClient, message: Message) -> Message:
        return Message.json(await peers[client].call("ask", message.text))

    near = await serve(stack, handler, broker=broker.url, on_request=ask)
    far = await serve(stack, broker=broker.url)
    for number in range(3):

        def answer(question: str, number: int = number) -> str:
            if question == "fail":
                raise ZeroDivisionError
            return f"{number}: {question}"

        agent = await stack.enter_async_context(WebSocketClient.connect(f"ws://127.0.0.1:{near.port}/agent-{number}"))
        await stack.enter_async_context(Rpc(agent, {"ask": answer}))
    await until(lambda: near._fleet.is_known("agent-2"))
    replies = await asyncio.gather(*(far.request(f"agent-{number}", "how?", timeout=30) for number in range(3)))
    assert [reply.json() for reply in replies] == ["0: how?", "1: how?", "2: how?"]
    with pytest.raises(RequestFailed, match="on_request raised RpcError"):
        await far.request("agent-1", "fail", timeout=30)


async def two(stack: Stack, broker: RealBroker, held: Held, **options: Any) -> tuple[WebSocketServer, WebSocketServer]:
    await stack.enter_async_context(broker)
    servers = [await serve(stack, held, broker=broker.url, **options) for _ in range(2)]
    with_presence(*servers)
    return servers[0], servers[1]


async def test_names_over_a_broker(stack: Stack, broker: RealBroker) -> None:
    held = Held()
    near, far = await two(stack, broker, held, on_request=lambda client, message: f"{client.name}: {message.text}")
    joined: list[Member] = []
    far.on_join = lambda _, member: joined.append(member)
    client, peer = await join(stack, near, held, "agent-7", "room.7")
    await eventually(far, "agent-7")
    await until(lambda: [member.id for member in joined] == [client.id])
    assert await far.send_to("agent-7", "text é", timeout=30) == 1
    assert await far.send_to("agent-7", b"\x00binary", timeout=30) == 1
    assert [await peer.payload() for _ in range(2)] == ["text é".encode(), b"\x00binary"]
    assert await far.request("agent-7", "how?", timeout=30) == "agent-7: how?"
    with pytest.raises(NobodyThere):
        await far.request("agent-8", "how?", timeout=30)
    assert await far.unsubscribe("agent-7", "room.7", timeout=30) == 1
    await eventually(far)
    assert client.topics == set()
    assert await far.disconnect("agent-7", 4000, "why", timeout=30) == 1
    assert (await peer.frame()).payload == b"\x0f\xa0why"
    with pytest.raises(NobodyThere):
        await near.send_to("agent-7", "x", timeout=30)


async def test_the_newest_over_a_broker(stack: Stack, broker: RealBroker) -> None:
    held = Held()
    near, far = await two(stack, broker, held)
    _, old = await join(stack, near, held, "a", "room.7")
    await eventually(far, "a")
    _, new = await join(stack, far, held, "a", "room.7")
    assert (await old.frame()).payload == b"\x03\xf0another connection has this name"
    await eventually(near, "a")
    assert await near.send_to("a", "x", timeout=30) == 1
    assert await new.payload() == b"x"


async def test_a_listener_to_everything_hears_nothing_of_it(stack: Stack, broker: RealBroker) -> None:
    """What servers say to each other comes by the same broker, and a second time for the pattern."""
    held = Held()
    near, far = await two(stack, broker, held)
    async with near.topic(">") as listener, far.topic(">"):
        client, peer = await join(stack, far, held, "a", "room.7")
        await eventually(near, "a")
        assert await near.send_to("a", "once", timeout=30) == 1
        client.name = "b"
        await eventually(near, "b")
        await far.publish("end", "end")
        assert await anext(listener) == "end"
    assert await peer.payload() == b"once"
    assert await near.send_to("b", "twice", timeout=30) == 1
    assert await peer.payload() == b"twice"
    assert near.topics._incoming.malformed == far.topics._incoming.malformed == 0
    assert near._fleet.malformed == far._fleet.malformed == 0


@pytest.mark.deadline(60)
async def test_after_the_broker_was_killed_all_is_known_again(stack: Stack, broker: RealBroker) -> None:
    held = Held()
    near, far = await two(stack, broker, held)
    await join(stack, near, held, "a", "room.7")
    await eventually(far, "a")
    await broker.kill()
    await until(lambda: not near.broker_healthy and not far.broker_healthy)
    await join(stack, near, held, "b", "room.7")
    await broker.start()
    await until(lambda: near.broker_healthy and far.broker_healthy)
    await eventually(far, "a", "b")
    assert await far.send_to("b", "x", timeout=30) == 1


SERVER = """
import asyncio, sys
from fabric import WebSocketServer

async def handler(client):
    client.name = client.request.path.strip("/")
    await client.subscribe("room.7")
    await client.send("ready")
    await client.wait_closed()

async def main():
    server = WebSocketServer.bind("127.0.0.1:0", handler, broker=sys.argv[1])
    server.topics.configure("room.>", presence=True)
    async with server:
        print(server.port, flush=True)
        await server.serve_forever()

asyncio.run(main())
"""


@pytest.mark.deadline(120)
@pytest.mark.parametrize("loop_factory", ["uvloop"], indirect=True)
async def test_no_ghosts_of_a_process_that_is_killed(stack: Stack, broker: RealBroker) -> None:
    await stack.enter_async_context(broker)
    held = Held()
    server = await serve(stack, held, broker=broker.url)
    with_presence(server)
    left: list[str] = []
    server.on_leave = lambda topic, member: left.append(f"{topic} {member.name}")
    await join(stack, server, held, "alive", "room.7")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, broker.url, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        peers = [
            await stack.enter_async_context(await RawPeer.open(port, line=f"GET /ghost-{n} HTTP/1.1")) for n in range(3)
        ]
        for peer in peers:
            assert await peer.payload() == b"ready"
        await until(lambda: all(server._fleet.is_known(f"ghost-{n}") for n in range(3)))
        assert sorted(await names(server)) == ["alive", "ghost-0", "ghost-1", "ghost-2"]
        assert await server.send_to("ghost-1", "boo", timeout=30) == 1
        assert await peers[1].payload() == b"boo"
    finally:
        process.kill()
        await process.wait()
    await eventually(server, "alive")
    await until(lambda: {"room.7 ghost-0", "room.7 ghost-1", "room.7 ghost-2"} == set(left))
    for name in ("ghost-0", "ghost-1"):
        with pytest.raises(NobodyThere):
            await server.request(name, "x")
