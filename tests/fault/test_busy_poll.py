"""Busy polling at both ends of a line that cuts, delays, stalls and breaks: what arrives is what was sent."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from typing import Any

import pytest

from fabric.client import WebSocketClient
from fabric.config import ReconnectConfig
from fabric.error import ConnectionClosed
from fabric.server import ConnectedClient
from fault.relay import Relay
from support.serving import serve, until

Stack = contextlib.AsyncExitStack

POLLS = pytest.mark.parametrize("busy_poll", [0.001, math.inf], ids=["a while", "always"])


class Service:
    """Echoes, and keeps what each connection brought."""

    def __init__(self) -> None:
        self.arrived: list[list[str]] = []
        self.ended = 0

    async def __call__(self, client: ConnectedClient) -> None:
        self.arrived.append(mine := [])
        try:
            async for message in client:
                mine.append(message.text)
                await client.send(message)
        except ConnectionClosed:
            pass
        finally:
            self.ended += 1


async def between(stack: Stack, busy_poll: float, **options: Any) -> tuple[Service, Relay, Any]:
    service = Service()
    common = {"busy_poll": busy_poll, "compression": None}
    server = await serve(stack, service, **common)
    relay = await stack.enter_async_context(Relay(server.port))
    options = {
        "heartbeat": None,
        "reconnect": ReconnectConfig(initial_delay=0.001, max_delay=0.01),
        **common,
        **options,
    }
    client = await stack.enter_async_context(WebSocketClient.connect(relay.url, **options))
    return service, relay, client


@POLLS
async def test_frames_in_pieces(stack: Stack, rng: random.Random, busy_poll: float) -> None:
    service, relay, client = await between(stack, busy_poll)
    for way in (relay.to_server, relay.to_client):
        way.piece = lambda: rng.choice([1, 2, 3, 7, 50, 1000])
    texts = [f"{number}:" + "x" * rng.choice([0, 10, 200, 3000]) for number in range(100)]

    async def send() -> None:
        for text in texts:
            await client.send(text)

    sending = asyncio.create_task(send())
    answers = [(await client.recv()).text for _ in texts]
    await sending
    assert answers == texts
    assert service.arrived == [texts]


@POLLS
async def test_a_line_that_stalls_and_goes_on(stack: Stack, busy_poll: float) -> None:
    _, relay, client = await between(stack, busy_poll)
    for number in range(10):
        relay.to_client.go_silent()
        await client.send(str(number))
        await relay.to_server.reached(1)
        relay.to_client.resume()
        assert await client.recv() == str(number)


@POLLS
async def test_connections_that_break(stack: Stack, rng: random.Random, busy_poll: float) -> None:
    service, relay, client = await between(stack, busy_poll)
    for number in range(10):
        await client.send(f"{number}")
        if rng.random() < 0.5:
            await relay.reset()
        else:
            relay.end_to_client()
            relay.end_to_server()
        await until(lambda number=number: client.metrics.reconnections > number and client.is_connected)
    await client.send("end")
    while await client.recv() != "end":
        pass
    arrived = [text for mine in service.arrived for text in mine]
    assert arrived == sorted(set(arrived), key=[*map(str, range(10)), "end"].index)
