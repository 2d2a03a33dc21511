"""Peers that read slowly, or not at all, or send without end: memory is bounded, nobody else waits, nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fabric.client import WebSocketClient
from fabric.config import BackpressureConfig
from fabric.error import BackpressureTimeout, BufferFull, ConnectionClosed
from fabric.server import ConnectedClient, WebSocketServer
from fault.counted import number_of, numbered
from fault.relay import Relay
from support.frames import BINARY, PING, encode
from support.measured import measured
from support.raw_peer import RawPeer
from support.serving import Held, serve, until

MB = 1 << 20
SMALL = 4096  # bytes of a kernel's buffer
PLAIN: dict[str, Any] = {"compression": None, "auto_reconnect": False}


def shrink(client: ConnectedClient) -> None:
    """Let the system keep as little as it can of what is sent."""
    sock = client._transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)


def held_by(client: Any) -> int:
    """Bytes that wait to be sent, in our hands."""
    transport = client._transport
    return client._outbox_bytes + (0 if transport is None else transport.get_write_buffer_size())


async def test_a_slow_reader_gets_everything_and_the_sender_waits(stack: contextlib.AsyncExitStack) -> None:
    few = BackpressureConfig(max_buffer_size=20)
    most = 0

    async def handle(client: ConnectedClient) -> None:
        nonlocal most
        shrink(client)
        for number in range(300):
            await client.send(numbered(number, 5000))
            most = max(most, client.backpressure.messages)

    server = await serve(stack, handle, backpressure=few)
    async with Relay(server.port, buffers=SMALL) as relay:
        relay.to_client.rate, relay.to_client.piece = 3_000_000, 3000
        async with WebSocketClient.connect(relay.url, **PLAIN) as client:
            assert [number_of(await client.recv()) for _ in range(300)] == list(range(300))
    assert 10 <= most <= 16  # it did wait, at the threshold of 0.8


async def test_sending_to_a_peer_that_never_reads(stack: contextlib.AsyncExitStack) -> None:
    held = Held()
    limits = BackpressureConfig(max_buffer_size=50, max_buffer_bytes=200_000, timeout=0.1)
    server = await serve(stack, held, backpressure=limits, close_timeout=0.1)
    async with await RawPeer.open(server.port, receive_buffer=SMALL):
        client = await held.next()
        shrink(client)
        sent = 0

        async def fill() -> None:
            nonlocal sent
            while True:
                await client.send(numbered(sent, 1000))
                sent += 1

        def stuff() -> None:
            nonlocal sent
            while True:
                client.send_nowait(numbered(sent, 1000))
                sent += 1

        with pytest.raises(BackpressureTimeout):
            await fill()
        assert client.backpressure.is_active
        with pytest.raises(BufferFull):
            stuff()
        assert client.backpressure.messages == 50
        assert held_by(client) <= 200_000
        with pytest.raises(BufferFull):
            client.send_nowait(numbered(sent, 1000))
        await client.close()  # aborted after close_timeout
        undelivered = [number_of(message) for message in client.undelivered]
        # Those of the outbox, and before them those that the transport held.
        assert len(undelivered) >= 50
        assert undelivered == list(range(sent - len(undelivered), sent))


async def test_answering_pings_of_a_peer_that_never_reads(stack: contextlib.AsyncExitStack) -> None:
    """20 MB of pings: what waits to be answered is one pong, whatever came."""
    held = Held()
    server = await serve(stack, held, close_timeout=0.1)
    async with await RawPeer.open(server.port, receive_buffer=SMALL) as peer:
        client = await held.next()
        shrink(client)
        pings = b"".join(encode(PING, f"{number:0125}") for number in range(1000))
        most = 0
        for _ in range(160):
            peer.send(pings)
            await peer.writer.drain()
            most = max(most, held_by(client))
        assert most < 300_000  # never more than one read's worth of pongs
        await peer.writer.drain()
        assert client.is_connected
        held.release()


async def test_a_flood_while_the_handler_sleeps(stack: contextlib.AsyncExitStack) -> None:
    """The sender is stopped by TCP: not 256 MB are taken, but as much as the queue and both systems' buffers hold."""
    held = Held()
    limits = BackpressureConfig(max_buffer_bytes=MB)
    server = await serve(stack, held, buffer_size=100, backpressure=limits, close_timeout=0.1)
    async with await RawPeer.open(server.port) as peer:
        client = await held.next()
        flood = encode(BINARY, bytes(50_000)) * 20
        taken = 0
        try:
            with contextlib.suppress(TimeoutError):
                while taken < 256 * MB:
                    peer.send(flood)
                    async with asyncio.timeout(0.5):
                        await peer.writer.drain()
                    taken += len(flood)
            print(f"{taken / MB:.0f} MB were taken")
            assert client.is_reading_paused
            assert client.messages_received <= 24  # 1 MB, and what was left of one read
            assert taken < 32 * MB
            for _ in range(100):  # and it goes on where it stopped
                assert len(await client.recv()) == 50_000
        finally:
            peer.writer.transport.abort()
            held.release()


async def test_a_flood_of_small_messages_costs_the_process_little() -> None:
    """The same seen from outside: the server's resident memory, while it is busy elsewhere."""
    async with measured(compression=None, buffer_size=1000) as server:
        async with await RawPeer.open(server.port) as peer:
            peer.send_text("busy")
            small = encode(BINARY, bytes(100)) * 10_000
            for _ in range(40):
                peer.send(small)
                await peer.writer.drain()
            peer.send_close()
            await peer.close_seen()
        told = await server.ended()
        print(json.dumps(told))
        assert told["received"]["100"] == 400_000
        assert told["peak"] < 16 * MB


class Audience:
    """990 clients that count what they hear, and 10 peers that never read."""

    def __init__(self, server: WebSocketServer) -> None:
        self.server = server
        self.heard: dict[WebSocketClient, list[int]] = {}
        self.deaf: list[ConnectedClient] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def gather(cls, server: WebSocketServer) -> AsyncIterator[Audience]:
        self = cls(server)

        def hear(client: WebSocketClient, message: Any) -> None:
            self.heard[client].append(number_of(message))

        async with contextlib.AsyncExitStack() as stack:
            url = f"ws://127.0.0.1:{server.port}/"
            options = {**PLAIN, "heartbeat": None, "on_message": hear, "connection_timeout": 20}
            for _ in range(10):
                await stack.enter_async_context(await RawPeer.open(server.port, receive_buffer=SMALL))
            self.deaf = server.clients()
            for client in self.deaf:
                shrink(client)
            for _ in range(0, 990, 55):
                made = await asyncio.gather(*(WebSocketClient.connect(url, **options) for _ in range(55)))
                self.heard |= {client: [] for client in made}
            await until(lambda: server.connection_count == 1000)
            yield self
            for client in self.heard:
                client._begin_closing(1000, "")
            for client in self.heard:
                await client.wait_closed()

    def all_heard(self, count: int) -> bool:
        return all(len(numbers) == count for numbers in self.heard.values())

    def most_held(self) -> int:
        return max(held_by(client) for client in self.server.clients())


LIMITS = BackpressureConfig(max_buffer_size=20, timeout=2)
ROUNDS = 60
MOST_HELD = 20 * 2020 + 65536  # bytes for one peer: its outbox, and what is written by one system call


@pytest.mark.deadline(180)
@pytest.mark.parametrize("loop_factory", ["uvloop"], indirect=True)
@pytest.mark.parametrize("slow_peer", ["drop", "close"])
async def test_broadcast_to_a_thousand_of_which_ten_never_read(
    stack: contextlib.AsyncExitStack, slow_peer: str
) -> None:
    server = await serve(stack, on_message=lambda *_: None, slow_peer=slow_peer, backpressure=LIMITS, close_timeout=0.2)
    async with Audience.gather(server) as audience:
        most = 0
        reached = []
        for number in range(ROUNDS):
            # It returns without waiting for anybody, so nothing it does can delay one peer for another.
            broadcast = server.broadcast(numbered(number, 2000))
            with pytest.raises(StopIteration) as done:
                broadcast.send(None)
            reached.append(done.value.value)
            most = max(most, audience.most_held())
            await asyncio.sleep(0)
        await until(lambda: audience.all_heard(ROUNDS))
        assert all(numbers == list(range(ROUNDS)) for numbers in audience.heard.values())
        assert reached[0] == 1000
        assert reached[-1] == 990
        print(f"{most} bytes held for one peer, {server.metrics.slow_peer_drops} drops")
        assert most <= MOST_HELD
        if slow_peer == "drop":
            assert all(client.is_connected for client in audience.deaf)
            assert sum(reached) + server.metrics.slow_peer_drops == 1000 * ROUNDS
        else:
            await until(lambda: server.connection_count == 990)
            assert server.metrics.slow_peer_drops == 10
            for client in audience.deaf:
                back = [number_of(message) for message in client.undelivered]
                # The outbox, and before it what the transport held.
                assert len(back) >= 20
                assert back == list(range(back[0], back[0] + len(back)))
                assert client.close_code == 1006


@pytest.mark.deadline(180)
@pytest.mark.parametrize("loop_factory", ["uvloop"], indirect=True)
async def test_broadcast_that_waits_for_ten_holds_up_no_other(stack: contextlib.AsyncExitStack) -> None:
    server = await serve(stack, on_message=lambda *_: None, slow_peer="wait", backpressure=LIMITS, close_timeout=10)
    async with Audience.gather(server) as audience:
        number = 0
        while True:
            task = asyncio.create_task(server.broadcast(numbered(number, 2000)))
            number += 1
            await until(lambda number=number: audience.all_heard(number))  # whether it has returned or not
            if not task.done():
                break
            assert await task == 1000
        assert audience.most_held() <= MOST_HELD
        await until(lambda: sum(client.backpressure.waiting for client in audience.deaf) == 10)
        assert await task == 990  # LIMITS.timeout has passed
        for client in audience.deaf:
            client._abort()
        await until(lambda: server.connection_count == 990)


async def test_heartbeats_drop_one_that_hangs_but_none_to_which_data_is_on_its_way(
    stack: contextlib.AsyncExitStack,
) -> None:
    """Neither reads. The second has a ping that waits behind our own data: what drops it are limits of sending."""
    held = Held()
    limits = BackpressureConfig(max_buffer_size=20, timeout=0.1)
    server = await serve(stack, held, backpressure=limits, ping_interval=0.05, ping_timeout=0.05, close_timeout=0.1)
    slow = await stack.enter_async_context(await RawPeer.open(server.port, receive_buffer=SMALL))
    client = await held.next()
    shrink(client)
    with pytest.raises(BufferFull):
        while True:
            client.send_nowait(numbered(0, 5000))
    for _ in range(3):  # each is found after the time that the first one has had as well
        async with await RawPeer.open(server.port):
            await (await held.next()).wait_closed()
    assert client.is_connected
    with pytest.raises(BackpressureTimeout):
        await client.send("x")
    await client.close()
    assert client.undelivered
    assert server.connection_count == 0
    slow.writer.transport.abort()
    held.release()


async def test_who_waits_to_send_hears_of_the_loss(stack: contextlib.AsyncExitStack) -> None:
    held = Held()
    server = await serve(stack, held, backpressure=BackpressureConfig(max_buffer_size=5))
    async with await RawPeer.open(server.port, receive_buffer=SMALL) as peer:
        client = await held.next()
        shrink(client)
        accepted = []

        async def send() -> None:
            while True:
                await client.send(numbered(len(accepted), 10_000))
                accepted.append(len(accepted))

        sending = asyncio.create_task(send())
        await until(lambda: client.backpressure.waiting)
        peer.reset()
        with pytest.raises(ConnectionClosed):
            await sending
        back = [number_of(message) for message in client.undelivered]
        assert back == accepted[len(accepted) - len(back) :]
        assert len(back) >= 4  # all that was in the outbox, up to the threshold, and what the transport held
        held.release()
