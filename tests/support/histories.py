"""Servers with topics that have a history over a real broker, and counted messages of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from fabric.server import ConnectedClient, WebSocketServer
from support.brokers import RealBroker
from support.raw_peer import RawPeer
from support.serving import Held, serve, until

Stack = contextlib.AsyncExitStack


async def started(stack: Stack, broker: RealBroker, held: Held, **limits: Any) -> tuple[WebSocketServer, ...]:
    await stack.enter_async_context(broker)
    servers = await serve(stack, held, broker=broker.url), await serve(stack, Held(), broker=broker.url)
    for server in servers:
        server.topics.configure("room.>", **({"history": 1000} | limits))
    return servers


async def connect(stack: Stack, server: WebSocketServer, held: Held) -> tuple[ConnectedClient, RawPeer]:
    peer = await stack.enter_async_context(await RawPeer.open(server.port))
    return await held.next(), peer


async def payloads(peer: RawPeer, count: int) -> list[str]:
    return [(await peer.payload()).decode() for _ in range(count)]


class Counted:
    """Two topics, two publishers, a listener on one server, all counted."""

    def __init__(self, near: WebSocketServer, far: WebSocketServer) -> None:
        self.near, self.far = near, far
        self.begun = 0
        self.gaps: list[tuple[str, float, float]] = []
        self.received: dict[str, list[tuple[str, int, str]]] = {"room.1": [], "room.2": []}  # with the epoch
        self.epochs: dict[str, list[str]] = {"room.1": [], "room.2": []}
        self.published: dict[tuple[str, str, int], float] = {}
        near.on_gap = lambda topic, since: self.gaps.append((topic, since, time.time()))

    async def hear(self, topic: str) -> None:
        async with self.near.topic(topic, limit=100_000) as listener:
            self.begun += 1
            async for message in listener:
                publisher, _, number = message.text.partition(" ")
                if publisher == "end":
                    return
                assert listener.position is not None
                self.received[topic].append((publisher, int(number), listener.position.epoch))
                if listener.position.epoch not in self.epochs[topic]:
                    self.epochs[topic].append(listener.position.epoch)

    async def run(self, faults: dict[int, Callable[[], Any]], total: int = 300) -> None:
        hearing = [asyncio.create_task(self.hear(topic)) for topic in self.received]
        await until(lambda: self.begun == 2)
        for number in range(total):
            for topic in self.received:
                for name, server in (("near", self.near), ("far", self.far)):
                    self.published[topic, name, number] = time.time()
                    server.publish(topic, f"{name} {number}")
            if number in faults:
                await faults[number]()
            await asyncio.sleep(0.001)
        await until(lambda: self.near.broker_healthy and self.far.broker_healthy)
        for topic in self.received:
            for name, server in (("near", self.near), ("far", self.far)):
                await self.retry(server, topic, f"last {name == 'far':d}")
            await self.retry(self.far, topic, "end")
        await asyncio.gather(*hearing)

    @staticmethod
    async def retry(server: WebSocketServer, topic: str, text: str) -> None:
        """It stands in line behind all that the server has published, so it is confirmed after that."""
        outcome = server.publish(topic, text)
        await outcome

    def lost(self) -> list[tuple[str, str, int]]:
        lost = []
        for topic, received in self.received.items():
            for name in ("near", "far"):
                numbers = []
                for epoch in self.epochs[topic]:
                    of_epoch = [number for publisher, number, its in received if (publisher, its) == (name, epoch)]
                    assert of_epoch == sorted(set(of_epoch)), "doubled, or not in order"
                    numbers += of_epoch
                lost += [(topic, name, n) for t, p, n in self.published if (t, p) == (topic, name) and n not in numbers]
        return lost

    def repeated(self) -> set[tuple[str, int]]:
        """What has come in more than one epoch."""
        found: set[tuple[str, int]] = set()
        for received in self.received.values():
            times = Counter((name, number) for name, number, _ in received)
            found |= {each for each in times if times[each] > 1}
        return found

    def all_away(self) -> bool:
        return not self.near.broker_healthy and not self.far.broker_healthy
