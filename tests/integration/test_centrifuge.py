"""A server that speaks the Centrifugal protocol, spoken to in its own words; SDKs are in interop/test_sdks.py."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fabric.centrifuge
from fabric import WebSocketServer
from fabric.broker.embedded import find_nats_server
from fabric.centrifuge import Action, Refused
from fabric.message import Message
from fabric.server import ConnectedClient
from support.brokers import NatsServer, RedisServer
from support.fake_broker import FakeBroker, Hub
from support.raw_peer import RawPeer
from support.serving import serve, until

Stack = contextlib.AsyncExitStack


class Peer(RawPeer):
    """A client that speaks the protocol in lines of JSON."""

    def say(self, *commands: Any) -> None:
        """Send commands in one frame."""
        self.send_text("\n".join(json.dumps(command) for command in commands))

    async def hear(self) -> Any:
        """The next thing that the server says."""
        return json.loads(await self.payload())

    async def ask(self, **command: Any) -> Any:
        """Have one command answered; nothing else may come before the answer."""
        self.say({"id": 1, **command})
        answer = await self.hear()
        assert answer.pop("id") == 1
        return answer

    async def refused(self, **command: Any) -> int:
        """The code of the error that answers a command."""
        answer = await self.ask(**command)
        assert list(answer) == ["error"], answer
        code: int = answer["error"]["code"]
        return code


def everything(client: ConnectedClient, action: Action, topic: str) -> bool:
    if action == "connect" and action.token:
        client.name = action.token
    return True


async def speaking(stack: Stack, authorize: Any = everything, **options: Any) -> WebSocketServer:
    server = await serve(stack, protocol="centrifuge", authorize=authorize, **options)
    server.topics.configure("room.>", presence=True)
    if "broker" not in options:
        server.topics.configure("log.>", history=5)
    return server


async def open_peer(stack: Stack, server: WebSocketServer) -> Peer:
    return await stack.enter_async_context(await Peer.open(server.port))


async def connect(stack: Stack, server: WebSocketServer, token: str = "", *channels: str) -> Peer:
    peer = await open_peer(stack, server)
    assert "connect" in await peer.ask(connect={"token": token})
    for channel in channels:
        assert "subscribe" in await peer.ask(subscribe={"channel": channel})
    return peer


async def test_a_batch_of_commands_is_answered_in_order(stack: Stack) -> None:
    server = await speaking(stack, ping_interval=24.5)
    peer = await open_peer(stack, server)
    peer.say(
        {"id": 1, "connect": {"token": "ann"}},
        {"id": 2, "subscribe": {"channel": "room.7"}},
        {"id": 3, "presence": {"channel": "room.7"}},
        {"id": 4, "unsubscribe": {"channel": "room.7"}},
        {"id": 5, "presence_stats": {"channel": "room.7"}},
    )
    answer = await peer.hear()
    (client,) = server.clients()
    assert answer["id"] == 1
    assert answer["connect"]["client"] == str(client.id)
    assert (answer["connect"]["ping"], answer["connect"]["pong"]) == (25, True)
    assert client.name == "ann"
    assert await peer.hear() == {"id": 2, "subscribe": {}}
    info = {"user": "ann", "client": str(client.id)}
    assert await peer.hear() == {"id": 3, "presence": {"presence": {str(client.id): info}}}
    assert await peer.hear() == {"id": 4, "unsubscribe": {}}
    assert await peer.hear() == {"id": 5, "presence_stats": {"num_clients": 0, "num_users": 0}}
    assert client.topics == frozenset()


async def test_what_is_published_is_encoded_once_for_all(stack: Stack) -> None:
    server = await speaking(stack)
    peers = [await connect(stack, server, "", "chat") for _ in range(3)]
    wrap = server.topics.wrap
    assert wrap is not None
    made = []

    def counting(*arguments: Any) -> Message:
        made.append(arguments)
        message: Message = wrap(*arguments)
        return message

    server.topics.wrap = counting
    listener = server.topic("chat")
    peers[0].say({"id": 9, "publish": {"channel": "chat", "data": {"a": [1, None]}}})
    push = {"push": {"channel": "chat", "pub": {"data": {"a": [1, None]}}}}
    assert [await peers[0].hear(), await peers[0].hear()] == [push, {"id": 9, "publish": {}}]
    assert [await peer.hear() for peer in peers[1:]] == [push, push]
    assert len(made) == 1
    assert (await anext(listener)).json() == {"a": [1, None]}


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("", 3501),
        ("nonsense", 3501),
        ("[]", 3501),
        ("{}", 3501),  # a pong that nobody has asked for
        ('{"id":1}', 3501),
        ('{"subscribe":{"channel":"a"}}', 3501),
        ('{"id":1,"connect":{}}', 3501),  # again
        ('{"id":1,"subscribe":{"channel":""}}', 3501),
        ('{"id":1,"publish":{"data":1}}', 3501),
        ('{"id":1,"subscribe":{"channel":7}}', 3501),
        ('{"send":{"data":1}}', 3508),
    ],
)
async def test_a_malformed_command_ends_the_connection(stack: Stack, frame: str, code: int) -> None:
    server = await speaking(stack)
    peer = await connect(stack, server)
    peer.send_text(frame)
    assert (await peer.close_seen())[0] == code


async def test_a_binary_frame_ends_the_connection(stack: Stack) -> None:
    server = await speaking(stack)
    peer = await open_peer(stack, server)
    peer.send_binary(b'{"id":1,"connect":{}}')
    assert await peer.close_seen() == (3506, "inappropriate protocol")


@pytest.mark.parametrize("frame", ['{"id":1,"subscribe":{"channel":"a"}}', "{}", '{"id":1,"rpc":{}}', "x"])
async def test_connect_comes_first(stack: Stack, frame: str) -> None:
    asked: list[str] = []
    server = await speaking(stack, lambda client, action, topic: asked.append(action) or True)
    peer = await open_peer(stack, server)
    peer.send_text(frame)
    assert await peer.close_seen() == (3501, "bad request")
    assert asked == []


async def test_what_follows_a_malformed_command_is_not_done(stack: Stack) -> None:
    server = await speaking(stack, close_timeout=0.1)
    peer = await connect(stack, server, "", "chat")
    listener = server.topic("chat")
    peer.send_text('{"id":1,"unsubscribe":{"channel":""}}\n{"id":2,"publish":{"channel":"chat","data":1}}')
    assert (await peer.close_seen())[0] == 3501
    await until(lambda: server.connection_count == 0)
    server.publish("chat", "nothing before")
    assert await anext(listener) == "nothing before"


async def test_one_who_does_not_connect_is_closed(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fabric.centrifuge, "PATIENCE", 0.001)
    server = await speaking(stack)
    peer = await open_peer(stack, server)
    assert await peer.close_seen() == (3502, "stale")


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ({"subscribe": {"channel": "a.*"}}, 103),
        ({"subscribe": {"channel": "a.>"}}, 103),
        ({"subscribe": {"channel": "$fleet"}}, 103),
        ({"publish": {"channel": "$fleet", "data": 1}}, 103),
        ({"presence": {"channel": "*"}}, 103),
        ({"subscribe": {"channel": "a b"}}, 107),
        ({"subscribe": {"channel": "a..b"}}, 107),
        ({"subscribe": {"channel": "a\x00"}}, 107),
        ({"subscribe": {"channel": "x" * 256}}, 107),
        ({"subscribe": {"channel": ".".join("a" * 33)}}, 107),
        ({"subscribe": {"channel": "known"}}, 105),
        ({"subscribe": {"channel": "a", "type": 1}}, 108),
        ({"subscribe": {"channel": "log.1", "recover": True, "offset": 2**60, "epoch": "x"}}, 107),
        ({"subscribe": {"channel": "log.1", "recover": True, "epoch": "x" * 65}}, 107),
        ({"subscribe": {"channel": "log.1", "recover": True, "epoch": "x", "flag": 2}}, 112),
        ({"publish": {"channel": "a"}}, 107),
        ({"publish": {"channel": "a", "data": 1, "type": 1}}, 108),
        ({"presence": {"channel": "known"}}, 108),
        ({"presence_stats": {"channel": "known"}}, 108),
        ({"history": {"channel": "known"}}, 108),
        ({"history": {"channel": "log.1", "since": {"offset": 0, "epoch": "x"}}}, 112),
        ({"history": {"channel": "log.1", "since": {"offset": 9}}}, 112),
        ({"rpc": {"method": "unknown"}}, 104),
        ({"rpc": {"method": "fail"}}, 100),
        ({"rpc": {"method": "fail later"}}, 100),
        ({"rpc": {"method": "no json"}}, 100),
        ({"ping": {}}, 108),
        ({"refresh": {"token": "x"}}, 108),
        ({"sub_refresh": {"channel": "a"}}, 108),
    ],
)
async def test_errors(stack: Stack, command: dict[str, Any], code: int, caplog: pytest.LogCaptureFixture) -> None:
    def fail(client: ConnectedClient, data: Any) -> None:
        raise KeyError("secret")

    async def fail_later(client: ConnectedClient, data: Any) -> None:
        fail(client, data)

    methods = {
        "fail": fail,
        "fail later": fail_later,
        "no json": lambda client, data: object(),
    }
    server = await speaking(stack, methods=methods)
    peer = await connect(stack, server, "", "known")
    with caplog.at_level(logging.CRITICAL, "fabric.centrifuge"):
        assert await peer.refused(**command) == code
    assert "publish" in await peer.ask(publish={"channel": "elsewhere", "data": 1})  # the connection goes on
    (client,) = server.clients()
    assert client.topics == {"known"}


async def test_a_client_has_so_many_channels_and_no_more(stack: Stack) -> None:
    server = await speaking(stack, max_topics=2)
    peer = await connect(stack, server, "", "a", "b")
    assert await peer.refused(subscribe={"channel": "c"}) == 106
    assert "unsubscribe" in await peer.ask(unsubscribe={"channel": "a"})
    assert "subscribe" in await peer.ask(subscribe={"channel": "c"})


async def test_the_application_is_asked_before_anything(stack: Stack) -> None:
    asked: list[tuple[str, str, str, Any]] = []

    async def authorize(client: ConnectedClient, action: Action, topic: str) -> bool:
        asked.append((action, topic, action.token, action.data))
        return action == "connect"

    server = await speaking(stack, authorize, methods={"add": lambda client, data: data})
    peer = await open_peer(stack, server)
    assert "connect" in await peer.ask(connect={"token": "t", "data": {"a": 1}})
    for command in (
        {"subscribe": {"channel": "room.1", "token": "s", "data": 2}},
        {"publish": {"channel": "room.1", "data": [3]}},
        {"presence": {"channel": "room.1"}},
        {"presence_stats": {"channel": "room.1"}},
        {"history": {"channel": "log.1"}},
        {"rpc": {"method": "add", "data": 4}},
        {"rpc": {"method": "unknown"}},
    ):
        assert await peer.refused(**command) == 103
    assert asked == [
        ("connect", "", "t", {"a": 1}),
        ("subscribe", "room.1", "s", 2),
        ("publish", "room.1", "", [3]),
        ("presence", "room.1", "", None),
        ("presence", "room.1", "", None),
        ("history", "log.1", "", None),
        ("rpc", "add", "", 4),
        ("rpc", "unknown", "", None),
    ]
    (client,) = server.clients()
    assert client.topics == frozenset()


async def test_joining_is_heard_by_those_who_may_see_the_presence(stack: Stack) -> None:
    def authorize(client: ConnectedClient, action: Action, topic: str) -> bool:
        return everything(client, action, topic) and (action != "presence" or client.name != "bob")

    server = await speaking(stack, authorize)
    ann = await connect(stack, server, "ann")
    bob = await connect(stack, server, "bob")
    cid = await connect(stack, server, "cid", "room.1")
    for peer in (ann, bob):
        assert "subscribe" in await peer.ask(subscribe={"channel": "room.1", "join_leave": True})
    heard = []
    for _ in range(2):
        push = (await ann.hear())["push"]
        assert push["channel"] == "room.1"
        heard.append(push["join"]["info"]["user"])
    assert heard == ["ann", "bob"]
    await cid.ask(unsubscribe={"channel": "room.1"})
    assert (await ann.hear())["push"]["leave"]["info"]["user"] == "cid"
    await ann.ask(unsubscribe={"channel": "room.1"})
    server.publish("room.1", "1")
    assert "pub" in (await bob.hear())["push"]
    bob.send_close()
    await bob.close_seen()
    await until(lambda: server.connection_count == 2)
    assert "presence_stats" in await ann.ask(presence_stats={"channel": "room.1"})


async def test_the_server_subscribes_and_unsubscribes(stack: Stack) -> None:
    def authorize(client: ConnectedClient, action: Action, topic: str) -> bool:
        client.subscribe("first")
        return everything(client, action, topic)

    server = await speaking(stack, authorize, on_connect=lambda client: client.subscribe("zero"))
    peer = await open_peer(stack, server)
    answer = await peer.ask(connect={"token": "ann"})
    assert answer["connect"]["subs"] == {"zero": {}, "first": {}}
    (client,) = server.clients()
    client.subscribe("second")
    client.subscribe("second")
    assert await peer.hear() == {"push": {"channel": "second", "subscribe": {}}}
    server.publish("second", "1")
    assert await peer.hear() == {"push": {"channel": "second", "pub": {"data": 1}}}
    assert await server.unsubscribe("ann", "second") == 1
    left = {"code": 2000, "reason": "server unsubscribe"}
    assert await peer.hear() == {"push": {"channel": "second", "unsubscribe": left}}
    assert server.publish("second", "2").value == 0


@pytest.mark.parametrize(
    ("raised", "answer"),
    [
        (Refused(109, "token expired"), {"code": 109, "message": "token expired"}),
        (Refused(100, "later", temporary=True), {"code": 100, "message": "later", "temporary": True}),
        (KeyError("secret"), {"code": 100, "message": "internal server error", "temporary": True}),
    ],
)
async def test_a_refused_connect_is_an_error_and_makes_the_connection_useless(
    stack: Stack, raised: Exception, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def authorize(client: ConnectedClient, action: Action, topic: str) -> bool:
        raise raised

    server = await speaking(stack, authorize)
    peer = await open_peer(stack, server)
    with caplog.at_level(logging.CRITICAL, "fabric.centrifuge"):
        assert (await peer.ask(connect={}))["error"] == answer
    peer.say({"id": 1, "connect": {}})
    assert (await peer.close_seen())[0] == 3501


@pytest.mark.parametrize("raised", [Refused(4500, "banned"), None])
async def test_a_refused_connect_may_close(stack: Stack, raised: Exception | None) -> None:
    def authorize(client: ConnectedClient, action: Action, topic: str) -> bool:
        if raised is not None:
            raise raised
        return False

    server = await speaking(stack, authorize)
    peer = await open_peer(stack, server)
    peer.say({"id": 1, "connect": {}}, {"id": 2, "subscribe": {"channel": "a"}})
    assert await peer.close_seen() == ((4500, "banned") if raised else (3507, "permission denied"))


@pytest.mark.parametrize("duplicates", ["reject", "newest"])
async def test_a_name_that_is_taken_is_the_end_for_one_of_two(stack: Stack, duplicates: str) -> None:
    server = await speaking(stack, duplicate_names=duplicates)
    first = await connect(stack, server, "ann")
    second = await open_peer(stack, server)
    second.say({"id": 1, "connect": {"token": "ann"}})
    ended = second if duplicates == "reject" else first
    assert await ended.close_seen() == (3504, "connection limit")


async def test_methods_run_beside_each_other_up_to_a_limit(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fabric.centrifuge, "MOST_RUNNING", 2)
    going = asyncio.Event()
    begun: list[int] = []

    async def wait(client: ConnectedClient, data: Any) -> Any:
        begun.append(data)
        await going.wait()
        return data

    server = await speaking(stack, methods={"wait": wait})
    peer = await connect(stack, server)
    peer.say({"id": 1, "rpc": {"method": "wait", "data": 1}}, {"id": 2, "presence_stats": {"channel": "room.1"}})
    assert (await peer.hear())["id"] == 2
    peer.say(*({"id": number, "rpc": {"method": "wait", "data": number}} for number in (3, 4)))
    await until(lambda: len(begun) == 2)
    going.set()
    assert sorted([(await peer.hear())["rpc"]["data"] for _ in range(3)]) == [1, 3, 4]
    assert begun == [1, 3, 4]


async def test_methods_end_with_their_client(stack: Stack) -> None:
    ended: list[bool] = []

    async def wait(client: ConnectedClient, data: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    server = await speaking(stack, methods={"wait": wait})
    peer = await connect(stack, server)
    peer.say({"id": 1, "rpc": {"method": "wait"}}, {"id": 2, "presence_stats": {"channel": "room.1"}})
    assert (await peer.hear())["id"] == 2
    peer.reset()
    await until(lambda: ended)


async def test_methods_that_have_not_begun_end_with_their_client(stack: Stack) -> None:
    """Nothing warns that they were never awaited."""
    begun: list[Any] = []

    async def method(client: ConnectedClient, data: Any) -> None:
        begun.append(data)

    server = await speaking(stack, methods={"method": method})
    peer = await connect(stack, server)
    peer.say(
        {"id": 1, "rpc": {"method": "method"}}, {"id": 2, "publish": {"channel": "a", "data": 1}}, {"id": 3, "send": {}}
    )
    assert (await peer.frame()).payload[:2] == (3508).to_bytes(2, "big")
    peer.reset()
    await until(lambda: not server.connection_count)
    gc.collect()
    assert not begun


async def cancelled(*_: Any) -> bool:
    """It waits for something of the application's own that is cancelled."""
    other = asyncio.ensure_future(asyncio.sleep(3600))
    asyncio.get_running_loop().call_soon(other.cancel)
    await other
    return True


async def test_what_waits_for_something_cancelled_is_answered_all_the_same(stack: Stack) -> None:
    def authorize(client: ConnectedClient, action: Action, topic: str) -> Any:
        return cancelled() if action == "subscribe" else True

    server = await speaking(stack, authorize, methods={"method": cancelled})
    peer = await connect(stack, server)
    assert await peer.refused(rpc={"method": "method"}) == 100
    assert await peer.refused(subscribe={"channel": "a"}) == 100
    assert await peer.ask(publish={"channel": "a", "data": 1}) == {"publish": {}}


async def test_a_method_may_close_the_connection(stack: Stack) -> None:
    async def close(client: ConnectedClient, data: Any) -> None:
        raise Refused(4000, "come again")

    server = await speaking(stack, methods={"close": close})
    peer = await connect(stack, server)
    peer.say({"id": 1, "rpc": {"method": "close"}})
    assert await peer.close_seen() == (4000, "come again")


async def test_pings_are_answered_by_pongs(stack: Stack) -> None:
    server = await speaking(stack, ping_interval=3600, ping_timeout=3600)
    peer = await connect(stack, server)
    (client,) = server.clients()
    session = client._translator
    assert session is not None
    for _ in range(2):
        session._ping(3600)
        assert await peer.hear() == {}
        peer.send_text("{}")
        assert "presence_stats" in await peer.ask(presence_stats={"channel": "room.1"})
        session._timer.cancel()
        session._check_pong(3600)
        session._timer.cancel()
    session._ping(3600)
    assert await peer.hear() == {}
    session._timer.cancel()
    session._check_pong(3600)
    assert await peer.close_seen() == (3012, "no pong")


async def test_pings_come_by_themselves(stack: Stack) -> None:
    server = await speaking(stack, ping_interval=0.01, ping_timeout=3600, ping_mode="idle")
    peer = await open_peer(stack, server)
    peer.say({"id": 1, "connect": {}})
    while (await peer.frame()).payload != b"{}":  # the pings of WebSocket come as well
        pass


async def test_too_many_members_are_not_listed(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fabric.centrifuge, "MOST_MEMBERS", 1)
    server = await speaking(stack, duplicate_names="both")
    peers = [await connect(stack, server, "ann", "room.1")]
    assert len((await peers[0].ask(presence={"channel": "room.1"}))["presence"]["presence"]) == 1
    peers.append(await connect(stack, server, "ann", "room.1"))
    assert await peers[0].refused(presence={"channel": "room.1"}) == 106
    answer = await peers[0].ask(presence_stats={"channel": "room.1"})
    assert answer == {"presence_stats": {"num_clients": 2, "num_users": 1}}


async def test_histories_are_recovered_and_read(stack: Stack) -> None:
    server = await speaking(stack)
    for number in range(1, 4):
        server.publish("log.1", str(number))
    peer = await connect(stack, server)
    answer = (await peer.ask(subscribe={"channel": "log.1"}))["subscribe"]
    epoch = answer.pop("epoch")
    assert answer == {"recoverable": True, "positioned": True, "offset": 3}
    await peer.ask(unsubscribe={"channel": "log.1"})

    kept = [{"data": number, "offset": number} for number in range(1, 4)]
    recover = {"channel": "log.1", "recover": True, "epoch": epoch}
    answer = (await peer.ask(subscribe={**recover, "offset": 1}))["subscribe"]
    assert (answer["was_recovering"], answer["recovered"], answer["offset"]) == (True, True, 1)
    assert answer["publications"] == kept[1:]
    server.publish("log.1", "4")
    assert await peer.hear() == {"push": {"channel": "log.1", "pub": {"data": 4, "offset": 4}}}
    await peer.ask(unsubscribe={"channel": "log.1"})
    answer = (await peer.ask(subscribe={**recover, "offset": 1, "epoch": "another"}))["subscribe"]
    assert answer == {
        "recoverable": True,
        "positioned": True,
        "epoch": epoch,
        "offset": 4,
        "was_recovering": True,
    }

    kept.append({"data": 4, "offset": 4})
    for asked, expected in (
        ({}, []),
        ({"limit": -1}, kept),
        ({"limit": 2}, kept[:2]),
        ({"limit": 2, "reverse": True}, kept[:1:-1]),
        ({"limit": -1, "since": {"offset": 2, "epoch": epoch}}, kept[2:]),
        ({"limit": -1, "since": {"offset": 2}}, kept[2:]),
        ({"limit": -1, "since": {"offset": 3, "epoch": epoch}, "reverse": True}, kept[1::-1]),
    ):
        found = (await peer.ask(history={"channel": "log.1", **asked}))["history"]
        assert found == {"publications": expected, "epoch": epoch, "offset": 4}


async def test_a_channel_without_history_recovers_nothing(stack: Stack) -> None:
    server = await speaking(stack)
    peer = await connect(stack, server)
    asked = {"channel": "chat", "recover": True, "recoverable": True, "offset": 7, "epoch": "x"}
    assert await peer.ask(subscribe=asked) == {"subscribe": {"was_recovering": True}}


async def test_a_refused_recovery_over_a_broker_is_an_error_and_nothing_else(
    stack: Stack, tmp_path: Path, require: Callable[[object, str], None], caplog: pytest.LogCaptureFixture
) -> None:
    require(RedisServer.program(), "redis-server is not in PATH: .ci/setup installs it")
    broker = await stack.enter_async_context(RedisServer(tmp_path))
    server = await speaking(stack, broker=broker.url)
    server.topics.configure("log.>", history=5)
    peer = await connect(stack, server)
    recover = {"channel": "log.1", "recover": True, "epoch": "x", "flag": 2}
    for _ in range(2):
        assert await peer.refused(subscribe=recover) == 112
    (client,) = server.clients()
    assert client.topics == frozenset()
    assert "subscribe" in await peer.ask(subscribe={"channel": "log.1"})
    assert await peer.refused(subscribe={**recover, "channel": "log.2"}) == 112
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("history", [0, 5])
async def test_a_client_that_is_unsubscribed_before_it_has_subscribed(stack: Stack, history: int) -> None:
    """While the broker is to confirm it: the client is told that it has no subscription."""
    hub = Hub()
    broker = Slow(hub)
    server = await speaking(stack, broker=broker)
    server.topics.configure("log.>", history=history)
    peer = await connect(stack, server)
    (client,) = server.clients()
    peer.say({"id": 1, "subscribe": {"channel": "log.1"}})
    await until(lambda: broker.waiting)
    client.unsubscribe("log.1")
    broker.going.set()
    left = {"code": 2000, "reason": "server unsubscribe"}
    assert await peer.hear() == {"push": {"channel": "log.1", "unsubscribe": left}}
    assert (await peer.hear())["error"]["code"] == 103
    assert "presence_stats" in await peer.ask(presence_stats={"channel": "room.1"})


class Slow(FakeBroker):
    """A broker that confirms nothing until `going` is set; `waiting` counts what waits."""

    keeps_histories = True

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self.going = asyncio.Event()
        self.waiting = 0

    async def flush(self) -> None:
        self.waiting += 1
        await self.going.wait()


async def test_channels_of_several_servers(
    stack: Stack, tmp_path: Path, require: Callable[[object, str], None]
) -> None:
    require(find_nats_server(), 'nats-server is not in PATH: pip install "websocket-fabric[nats-server]" brings it')
    broker = await stack.enter_async_context(NatsServer(tmp_path))
    one, two = [await speaking(stack, broker=broker.url) for _ in range(2)]
    ann = await connect(stack, one, "ann", "room.1")
    bob = await connect(stack, two, "bob")
    assert "subscribe" in await bob.ask(subscribe={"channel": "room.1"})
    bob.say({"id": 5, "publish": {"channel": "room.1", "data": {"x": 1}}})
    push = {"push": {"channel": "room.1", "pub": {"data": {"x": 1}}}}
    assert await ann.hear() == push
    assert [await bob.hear(), await bob.hear()] == [push, {"id": 5, "publish": {}}]
    answer = await ann.ask(presence={"channel": "room.1"})
    assert sorted(info["user"] for info in answer["presence"]["presence"].values()) == ["ann", "bob"]


def test_what_goes_together() -> None:
    async def handler(client: ConnectedClient) -> None: ...

    for options, text in (
        ({"protocol": "centrifuge"}, "authorize"),
        ({"protocol": "stomp", "authorize": everything}, "allowed are 'centrifuge'"),
        ({"protocol": "centrifuge", "authorize": everything, "handler": handler}, "handler"),
        ({"protocol": "centrifuge", "authorize": everything, "on_message": lambda client, message: None}, "on_message"),
        ({"authorize": everything}, "protocol"),
        ({"methods": {}}, "protocol"),
    ):
        with pytest.raises(ValueError, match=text):
            WebSocketServer.bind("127.0.0.1:0", **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="authorize is called with"):
        WebSocketServer.bind("127.0.0.1:0", protocol="centrifuge", authorize=lambda client: True)
    with pytest.raises(TypeError, match="the method 'x'"):
        WebSocketServer.bind(
            "127.0.0.1:0",
            protocol="centrifuge",
            authorize=everything,
            methods={"x": lambda client: 1},  # type: ignore[dict-item]
        )
