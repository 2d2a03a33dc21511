"""fabric.websockets and websockets itself, each with the other: messages, frames, compression, pings, closing."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

import pytest

OURS, THEIRS = "fabric.websockets", "websockets"


@pytest.fixture(params=[(OURS, THEIRS), (THEIRS, OURS)], ids=["our client", "our server"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """`connect` of one and `serve` of the other."""
    client, server = request.param
    connect = importlib.import_module(f"{client}.asyncio.client").connect
    return connect, importlib.import_module(f"{server}.asyncio.server").serve


@pytest.mark.parametrize("compression", ["deflate", None])
async def test_messages_both_ways(pair: tuple[Any, Any], compression: str | None) -> None:
    connect, serve = pair
    messages: list[Any] = ["", "é" * 100, b"", bytes(range(256)), "x" * 70_000, b"y" * 200_000]

    async def echo(connection: Any) -> None:
        async for message in connection:
            await connection.send(message)

    async with serve(echo, "127.0.0.1", 0, compression=compression, subprotocols=["chat"]) as server:
        uri = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        async with connect(uri, compression=compression, subprotocols=["chat"], proxy=None) as client:
            assert client.subprotocol == "chat"
            for message in messages * 2:
                await client.send(message)
                assert await client.recv() == message
            await client.send(["a", "", "b"])
            assert await client.recv() == "ab"
            assert await (await client.ping()) >= 0


async def test_frames_both_ways(pair: tuple[Any, Any]) -> None:
    connect, serve = pair
    seen: list[Any] = []

    async def handler(connection: Any) -> None:
        seen.extend([fragment async for fragment in connection.recv_streaming()])
        await connection.send([b"x", b"y"])
        await connection.close(3001, "enough")

    async with serve(handler, "127.0.0.1", 0) as server:
        uri = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        async with connect(uri, proxy=None) as client:
            await client.send(["a", "b"])
            assert [fragment async for fragment in client.recv_streaming()] == [b"x", b"y", b""]
            with pytest.raises(Exception, match=r"^received 3001 \(registered\) enough; then sent 3001"):
                await client.recv()
    assert seen == ["a", "b", ""]


async def test_many_at_once(pair: tuple[Any, Any]) -> None:
    connect, serve = pair

    async def echo(connection: Any) -> None:
        async for message in connection:
            await connection.send(message)

    async def talk(uri: str, number: int) -> None:
        async with connect(uri, proxy=None) as client:
            texts = [f"{number} {i}" * (i % 40) for i in range(100)]
            sending = asyncio.ensure_future(_send_all(client, texts))
            assert [await client.recv() for _ in texts] == texts
            await sending

    async with serve(echo, "127.0.0.1", 0) as server:
        uri = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        await asyncio.gather(*(talk(uri, number) for number in range(10)))


async def _send_all(client: Any, texts: list[str]) -> None:
    for text in texts:
        await client.send(text)
