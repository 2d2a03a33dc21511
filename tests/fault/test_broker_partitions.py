"""A server that is cut off from its broker, or reads too slowly: counted messages, and every loss lies in a gap."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fabric.broker.embedded import find_nats_server
from fault.relay import Relay
from support.brokers import NatsServer, RealBroker, RedisServer
from support.histories import Counted
from support.raw_peer import RawPeer
from support.serving import Held, serve, until

Stack = contextlib.AsyncExitStack

#: Lines that let the broker drop a subscriber sooner that does not read.
IMPATIENT = {
    "nats": ("max_payload: 100000", "max_pending: 200000", 'write_deadline: "1s"'),
    "redis": ("client-output-buffer-limit pubsub 200kb 200kb 1",),
}


@pytest.fixture(params=["nats", "redis"])
def broker(request: pytest.FixtureRequest, tmp_path: Path, require: Callable[[object, str], None]) -> RealBroker:
    if request.param == "nats":
        require(find_nats_server(), 'nats-server is not in PATH: pip install "websocket-fabric[nats-server]" brings it')
        return NatsServer(tmp_path, *IMPATIENT["nats"])
    require(RedisServer.program(), "redis-server is not in PATH: .ci/setup installs it")
    return RedisServer(tmp_path, *IMPATIENT["redis"])


@pytest.mark.deadline(90)
@pytest.mark.parametrize("loop_factory", ["uvloop"], indirect=True)
@pytest.mark.parametrize("cut", ["silence", "reset", "flood"])
async def test_every_loss_lies_in_a_gap(stack: Stack, broker: RealBroker, cut: str) -> None:
    await stack.enter_async_context(broker)
    relay = await stack.enter_async_context(Relay(broker.port, buffers=16384))
    held = Held()
    near = await serve(stack, held, broker=f"{broker.scheme}://127.0.0.1:{relay.port}")
    far = await serve(stack, Held(), broker=broker.url)
    peer = await stack.enter_async_context(await RawPeer.open(near.port))
    await (await held.next()).subscribe("local")
    gaps: list[tuple[float, float]] = []
    near.on_gap = lambda topic, since: gaps.append((since, time.time())) if topic == "counted" else None
    received: list[int] = []
    published: dict[int, float] = {}
    payload = "x" * 10_000 if cut == "flood" else ""

    async def hear() -> None:
        async for message in listener:
            received.append(int(message.as_text().rstrip("x")))

    def publish() -> None:
        published[len(published)] = time.time()
        far.publish("counted", f"{len(published) - 1}{payload}")

    async with near.topic("counted", limit=100_000) as listener:
        hearing = asyncio.create_task(hear())
        for _ in range(50):
            publish()
            await asyncio.sleep(0)
        if cut == "reset":
            await relay.reset()
        else:
            relay.to_client.go_silent()
            relay.to_server.go_silent()
        for _ in range(400):  # 4 MB in a flood: more than the sockets and the broker keep
            publish()
            await asyncio.sleep(0)
        if cut != "reset":
            await until(lambda: not near.broker_healthy)
            assert near.publish("local", "goes on").value == 1
            assert await peer.payload() == b"goes on"
            await relay.reset()
            relay.to_client.resume()
            relay.to_server.resume()
        await until(lambda: near.broker_healthy and gaps)
        for _ in range(50):
            publish()
            await asyncio.sleep(0)
        last = len(published) - 1
        await until(lambda: last in received)
    await hearing
    assert received == sorted(set(received))
    lost = published.keys() - set(received)
    assert all(any(begin <= published[number] <= end for begin, end in gaps) for number in lost)
    assert set(range(last - 49, last + 1)) <= set(received)


@pytest.mark.deadline(120)
@pytest.mark.parametrize("loop_factory", ["uvloop"], indirect=True)
@pytest.mark.parametrize("cut", ["silence", "reset"])
async def test_topics_with_history_lose_nothing(stack: Stack, broker: RealBroker, cut: str) -> None:
    """Whichever server is cut off, while both publish: nothing is lost, nothing comes twice."""
    broker.lines += broker.KEPT
    await stack.enter_async_context(broker)
    relays = [await stack.enter_async_context(Relay(broker.port)) for _ in range(2)]
    servers = [await serve(stack, Held(), broker=f"{broker.scheme}://127.0.0.1:{relay.port}") for relay in relays]
    for server in servers:
        server.topics.configure("room.>", history=5000)
    counted = Counted(*servers)

    async def cut_off(index: int) -> None:
        relay, server = relays[index], servers[index]
        if cut == "silence":
            relay.to_client.go_silent()
            relay.to_server.go_silent()
            await until(lambda: not server.broker_healthy)
            relay.to_client.resume()
            relay.to_server.resume()
        await relay.reset()

    cuts = {40: 0, 80: 1, 120: 0} if cut == "reset" else {40: 0, 80: 1}
    await counted.run({number: functools.partial(cut_off, index) for number, index in cuts.items()}, 160)
    assert counted.lost() == []
    assert counted.gaps == []
    assert [len(epochs) for epochs in counted.epochs.values()] == [1, 1]
