"""Official SDKs of the Centrifugal protocol against a server of ours: everything that they offer, and being cut off."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from fabric.centrifuge import Action, Refused
from fabric.server import ConnectedClient, WebSocketServer
from fault.relay import Relay
from interop import sdks
from interop.sdks import Failed, Sdk
from support.serving import serve

Stack = contextlib.AsyncExitStack
Open = Callable[[str, str], AbstractAsyncContextManager[Sdk]]

pytestmark = pytest.mark.deadline(120)


@pytest.fixture(params=["python", "js"])
def sdk(request: pytest.FixtureRequest, require: Callable[[object, str], None]) -> Open:
    missing = sdks.missing_python() if request.param == "python" else sdks.missing_js()
    require(not missing, missing)
    chosen: Open = sdks.python if request.param == "python" else sdks.js
    return chosen


def authorize(client: ConnectedClient, action: Action, topic: str) -> bool:
    if action == "connect":
        client.name = action.token
        client.subscribe("news")
        return action.token != "nobody"
    return topic != "secret"


async def add(client: ConnectedClient, data: Any) -> Any:
    if not isinstance(data, list):
        raise Refused(400, "give a list")
    return {"sum": sum(data), "for": client.name}


async def serving(stack: Stack) -> WebSocketServer:
    server = await serve(
        stack,
        protocol="centrifuge",
        authorize=authorize,
        methods={"add": add},
        duplicate_names="both",
        ping_interval=30,
    )
    server.topics.configure("room.>", presence=True)
    server.topics.configure("log.>", history=10)
    return server


async def connected(stack: Stack, sdk: Open, port: int, name: str) -> Sdk:
    client = await stack.enter_async_context(sdk(f"ws://127.0.0.1:{port}/", name))
    await client.order("connect")
    await event(client, "connected", ...)
    await event(client, "server subscribed", "news")
    return client


async def event(client: Sdk, *expected: Any) -> None:
    """The next event, each part of which is as expected, or `...`."""
    told = await client.events.get()
    assert len(told) == len(expected), told
    assert [want for want in expected if want is not ...] == [
        got for got, want in zip(told, expected, strict=True) if want is not ...
    ], told


async def test_what_an_sdk_offers(stack: Stack, sdk: Open) -> None:
    server = await serving(stack)
    ann = await connected(stack, sdk, server.port, "ann")
    await ann.order("subscribe", channel="room.7", join_leave=True)
    for kind in ("subscribed", "join"):
        await event(ann, kind, "room.7", *(["ann"] if kind == "join" else [False, False]))
    bob = await connected(stack, sdk, server.port, "bob")
    await bob.order("subscribe", channel="room.7")
    await event(bob, "subscribed", "room.7", False, False)
    await event(ann, "join", "room.7", "bob")

    await ann.order("publish", channel="room.7", data={"text": "hello\nü"})
    for client in (ann, bob):
        await event(client, "publication", "room.7", {"text": "hello\nü"}, 0)
    server.publish("room.7", "plain text")
    server.publish("news", '{\n"of": ["all"]\n}')
    for client in (ann, bob):
        await event(client, "publication", "room.7", "plain text", 0)
        await event(client, "publication", "news", {"of": ["all"]}, 0)

    assert await ann.order("presence", channel="room.7") == ["ann", "bob"]
    assert await ann.order("presence_stats", channel="room.7") == [2, 2]
    assert await ann.order("rpc", method="add", data=[1, 2, 3]) == {"sum": 6, "for": "ann"}
    for order, code in (
        ({"order": "rpc", "method": "add", "data": "x"}, 400),
        ({"order": "rpc", "method": "unknown", "data": None}, 104),
        ({"order": "publish", "channel": "secret", "data": 1}, 103),
        ({"order": "presence", "channel": "news"}, 108),
        ({"order": "history", "channel": "news", "limit": 1}, 108),
    ):
        with pytest.raises(Failed, match=str(code)):
            await ann.order(**order)

    await ann.order("subscribe", channel="secret")
    await event(ann, "unsubscribed", "secret", 103)
    await bob.order("unsubscribe", channel="room.7")
    await event(bob, "unsubscribed", "room.7", 0)
    await event(ann, "leave", "room.7", "bob")
    assert await server.unsubscribe("ann", "room.7") == 1
    await event(ann, "unsubscribed", "room.7", 2000)
    assert await server.disconnect("bob", 4500, "enough") == 1
    await event(bob, "disconnected", 4500, "enough")


async def test_what_was_missed_is_recovered(stack: Stack, sdk: Open) -> None:
    server = await serving(stack)
    relay = await stack.enter_async_context(Relay(server.port))
    ann = await connected(stack, sdk, relay.port, "ann")
    await ann.order("subscribe", channel="log.1", recoverable=True)
    await event(ann, "subscribed", "log.1", False, False)
    server.publish("log.1", "1")
    await event(ann, "publication", "log.1", 1, 1)
    assert await ann.order("history", channel="log.1", limit=10) == [[[1, 1]], 1]

    for last, missed in ((4, 3), (5, 1), (5, 0)):
        first = last - missed + 1
        await relay.reset()
        for number in range(first, last + 1):
            server.publish("log.1", str(number))
        await event(ann, "connected", ...)
        await event(ann, "server subscribed", "news")
        await event(ann, "subscribed", "log.1", True, True)
        for number in range(first, last + 1):
            await event(ann, "publication", "log.1", number, number)
    server.publish("log.1", "6")
    await event(ann, "publication", "log.1", 6, 6)

    await relay.reset()
    for number in range(7, 20):  # more than are kept
        server.publish("log.1", str(number))
    await event(ann, "connected", ...)
    await event(ann, "server subscribed", "news")
    await event(ann, "subscribed", "log.1", True, False)
    server.publish("log.1", "20")
    await event(ann, "publication", "log.1", 20, 20)


async def test_one_who_is_cut_off_subscribes_again(stack: Stack, sdk: Open) -> None:
    server = await serving(stack)
    relay = await stack.enter_async_context(Relay(server.port))
    ann = await connected(stack, sdk, relay.port, "ann")
    await ann.order("subscribe", channel="room.7")
    await event(ann, "subscribed", "room.7", False, False)
    for number in range(3):
        await relay.reset()
        await event(ann, "connected", ...)
        await event(ann, "server subscribed", "news")
        await event(ann, "subscribed", "room.7", False, False)
        server.publish("room.7", str(number))
        await event(ann, "publication", "room.7", number, 0)


async def test_one_who_may_not_connect_does_not_come_back(stack: Stack, sdk: Open) -> None:
    server = await serving(stack)
    nobody = await stack.enter_async_context(sdk(f"ws://127.0.0.1:{server.port}/", "nobody"))
    await nobody.order("connect")
    await event(nobody, "disconnected", 3507, "permission denied")
