"""Topics with history of several servers over a real Redis: what is Redis' own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fabric.broker import BrokerUnavailable
from support.brokers import RedisServer
from support.histories import Counted, connect, payloads, started
from support.serving import Held, until

Stack = contextlib.AsyncExitStack


@pytest.fixture
def redis(require: Callable[[object, str], None], tmp_path: Path) -> RedisServer:
    require(RedisServer.program(), "redis-server is not in PATH: .ci/setup installs it")
    return RedisServer(tmp_path, *RedisServer.KEPT)


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
    times = {3: "noon", 4: "9" * 15, 5: "9" * 400}
    written = {2: ("what", "ever")} | {offset: ("at", time, "data", "x") for offset, time in times.items()}
    for offset, fields in written.items():
        await broker._streams._connection.call("XADD", "fabric-stream:room.7", f"{offset}-0", *fields)
    await broker._streams._connection.call("XDEL", "fabric-stream:room.7", "1-0")
    await broker._streams._connection.call("HSET", "fabric-meta:room.7", "top", "5")
    await near.publish("room.7", "6")
    history = await far.history("room.7")
    assert [(offset, message.text) for offset, message in history.publications] == [(6, "6")]


async def test_what_is_no_message_of_a_history(stack: Stack, redis: RedisServer) -> None:
    held = Held()
    near, far = await started(stack, redis, held)
    client, peer = await connect(stack, near, held)
    await client.subscribe("room.7")
    foreign = far.topics.broker
    head = b"\x04" + b"e" * 16
    for wrong in (b"\x04" * 13, head + b"x" * 16, head + b"1" * 32, head + b"1" * 32 + b"\x01" + bytes(12) + b"\xff"):
        foreign.publish("room.7", wrong)
    await far.publish("room.7", "good")
    assert await payloads(peer, 1) == ["good"]
    shared = near.topics._shared
    assert shared is not None
    assert shared.malformed == 4


async def test_reading_leaves_no_key_and_asks_for_no_more_than_it_needs(stack: Stack, redis: RedisServer) -> None:
    near, _ = await started(stack, redis, Held())
    broker: Any = near.topics.broker
    await near.history("room.guessed")
    assert await broker._streams._connection.call("KEYS", "*") == []
    for number in range(10):
        await near.publish("room.7", str(number))
    replies: list[Any] = []
    ask = broker._streams._ask

    async def watch(command: bytes, *, wait: bool) -> Any:
        replies.append(await ask(command, wait=wait))
        return replies[-1]

    broker._streams._ask = watch
    for arguments, count in (({"limit": 2, "reverse": True}, 2), ({"limit": 2}, 2), ({"limit": 0}, 0), ({}, 10)):
        await near.history("room.7", **arguments)  # type: ignore[arg-type]
        assert len(replies[-1].kept) == count
