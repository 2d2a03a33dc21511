"""Whom the heartbeat gives up, and whom it does not, over wires that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from typing import Any, Self

import pytest

from fabric.client import WebSocketClient
from fabric.config import HeartbeatConfig, ReconnectConfig
from fabric.error import ConnectionClosed, Timeout
from fabric.server import ConnectedClient, WebSocketServer
from fault.counted import account, number_of, numbered
from fault.relay import Relay
from support.serving import Held, Recorder, echo, serve, until

BEAT = HeartbeatConfig(ping_interval=0.3, ping_timeout=0.3)
QUICK = ReconnectConfig(initial_delay=0.01, max_delay=0.05)
ONCE: dict[str, Any] = {"compression": None, "auto_reconnect": False, "heartbeat": BEAT}
SERVER_BEAT: dict[str, Any] = {"ping_interval": BEAT.ping_interval, "ping_timeout": BEAT.ping_timeout}
NO_BEAT: dict[str, Any] = {"compression": None, "auto_reconnect": False, "heartbeat": None}


@pytest.mark.parametrize("lost", ["all", "answers"])
async def test_a_half_open_connection_is_found_by_the_client(stack: contextlib.AsyncExitStack, lost: str) -> None:
    arrived: list[list[int]] = []

    async def handle(client: ConnectedClient) -> None:
        arrived.append(mine := [])
        async for message in client:
            mine.append(number_of(message))
            await client.send(message)

    server = await serve(stack, handle)
    ended: asyncio.Queue[Exception] = asyncio.Queue()
    options: dict[str, Any] = {
        "compression": None,
        "heartbeat": BEAT,
        "reconnect": QUICK,
        "on_disconnect": lambda client, error: ended.put_nowait(error),
    }
    async with Relay(server.port) as relay, WebSocketClient.connect(relay.url, **options) as client:
        await client.send(numbered(0))
        assert number_of(await client.recv()) == 0
        relay.to_client.swallowing = True
        relay.to_server.swallowing = lost == "all"
        began = time.monotonic()
        await client.send(numbered(1))
        error = await ended.get()
        print(f"found after {time.monotonic() - began:.3f} s, promised within 0.6 s")
        assert isinstance(error, ConnectionClosed)
        assert error.code == 1006
        assert isinstance(error.__cause__, Timeout)
        relay.to_client.swallowing = relay.to_server.swallowing = False
        await client.send(numbered(2))
        assert number_of(await client.recv()) == 2
        gone = account([0, 1, 2], arrived)
        assert gone == ([1] if lost == "all" else [])
        await relay.reset()  # the first connection, which the server still believes in


async def test_a_half_open_connection_is_found_by_the_server(stack: contextlib.AsyncExitStack) -> None:
    recorder = Recorder()
    server = await serve(stack, recorder, **SERVER_BEAT)
    async with Relay(server.port) as relay, WebSocketClient.connect(relay.url, **NO_BEAT) as client:
        await client.send("before")
        await recorder.connected()
        await until(lambda: recorder.messages)
        relay.to_client.swallowing = relay.to_server.swallowing = True
        began = time.monotonic()
        await recorder.ended()
        print(f"found after {time.monotonic() - began:.3f} s, promised within 0.6 s")
        assert recorder.error is not None
        assert recorder.error.code == 1006
        assert isinstance(recorder.error.__cause__, Timeout)
        assert server.heartbeat is not None
        assert server.heartbeat.peers_failed == 1
        await relay.reset()
        with pytest.raises(ConnectionClosed):
            await client.recv()


async def test_a_silent_wire_that_comes_back_in_time_costs_nothing(stack: contextlib.AsyncExitStack) -> None:
    server = await serve(stack, echo)
    slow = HeartbeatConfig(ping_interval=0.3, ping_timeout=2)
    async with Relay(server.port) as relay:
        async with WebSocketClient.connect(relay.url, **{**ONCE, "heartbeat": slow}) as client:
            assert client.heartbeat is not None
            for number in range(3):
                relay.to_server.go_silent()
                sent = client.heartbeat.pings_sent
                await client.send(numbered(number))
                await until(lambda sent=sent: client.heartbeat.pings_sent > sent)  # type: ignore[union-attr]
                relay.to_server.resume()
                assert number_of(await client.recv()) == number
            assert relay.accepted == 1


async def test_a_peer_that_is_busy_for_less_than_the_timeout_lives(stack: contextlib.AsyncExitStack) -> None:
    async def handle(client: ConnectedClient) -> None:
        async for message in client:
            time.sleep(0.5)  # noqa: ASYNC251 - no event but blocked time itself: nothing is answered meanwhile
            await client.send(message)

    server = await serve(stack, handle, ping_interval=0.3, ping_timeout=1)
    patient = HeartbeatConfig(ping_interval=0.3, ping_timeout=1)
    async with WebSocketClient.connect(f"ws://127.0.0.1:{server.port}/", **{**ONCE, "heartbeat": patient}) as client:
        for number in range(3):
            await client.send(numbered(number))
            assert number_of(await client.recv()) == number


class Hanging:
    """A server in a thread and a loop of its own, which hangs in the message "hang" until it is let go."""

    def __init__(self) -> None:
        self.arrived: list[list[int]] = []
        self.let_go = threading.Event()
        self.url = ""
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="hanging")

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with WebSocketServer.bind(
            "127.0.0.1:0", self._handle, ping_interval=None, compression=None, close_timeout=0.2
        ) as server:
            self.url = f"ws://127.0.0.1:{server.port}/"
            self._ready.set()
            await self._stop.wait()

    async def _handle(self, client: ConnectedClient) -> None:
        self.arrived.append(mine := [])
        with contextlib.suppress(ConnectionClosed):
            async for message in client:
                if message.as_text() == "hang":
                    self.let_go.wait(20)
                else:
                    mine.append(number_of(message))
                    await client.send(message)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go.set()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells whether the peer's kernel lives")
async def test_a_busy_peer_whose_kernel_lives_is_borne_with_for_ever() -> None:
    options = {**ONCE, "heartbeat": BEAT.with_busy_timeout(None)}
    with Hanging() as server:
        async with WebSocketClient.connect(server.url, **options) as client:
            assert client.heartbeat is not None
            await client.send(numbered(0))
            await client.send("hang")
            for number in range(1, 20):
                await client.send(numbered(number))
            sent = client.heartbeat.pings_sent
            await until(lambda: client.heartbeat.pings_sent >= sent + 5)  # type: ignore[union-attr]
            assert client.is_connected
            server.let_go.set()
            assert [number_of(await client.recv()) for _ in range(20)] == list(range(20))
            assert client.heartbeat.peers_failed == 0
    assert server.arrived == [list(range(20))]


@pytest.mark.parametrize("busy", [0, 0.9])
async def test_a_peer_that_hangs_is_found_after_its_time(busy: float) -> None:
    with Hanging() as server:
        options = {**ONCE, "heartbeat": BEAT.with_busy_timeout(busy)}
        async with WebSocketClient.connect(server.url, **options) as client:
            await client.send("hang")
            began = time.monotonic()
            with pytest.raises(ConnectionClosed) as caught:
                await client.recv()
            took = time.monotonic() - began
            assert isinstance(caught.value.__cause__, Timeout)
            told = sys.platform == "linux"
            assert (busy if told else 0) + BEAT.ping_timeout <= took
            assert client.heartbeat is not None
            assert client.heartbeat.pings_sent == (1 + round(busy / BEAT.ping_timeout) if told else 1)


@pytest.mark.usefixtures("no_look_ahead")
async def test_a_paused_reader_is_not_taken_for_dead(stack: contextlib.AsyncExitStack) -> None:
    """The client's queue is full: it neither hears pongs nor answers pings, for many times the timeout."""
    held = Held()
    server = await serve(stack, held, **SERVER_BEAT)
    options = {**ONCE, "buffer_size": 4}
    async with WebSocketClient.connect(f"ws://127.0.0.1:{server.port}/", **options) as client:
        peer = await held.next()
        for number in range(20):
            await peer.send(numbered(number))
        await until(lambda: client.is_reading_paused)
        assert client.heartbeat is not None
        assert server.heartbeat is not None
        sent = client.heartbeat.pings_sent
        await until(lambda: client.heartbeat.pings_sent >= sent + 5)  # type: ignore[union-attr]
        assert client.is_reading_paused
        assert client.is_connected
        assert peer.is_connected
        assert [number_of(await client.recv()) for _ in range(20)] == list(range(20))
        assert server.heartbeat.peers_failed == client.heartbeat.peers_failed == 0
        held.release()


@pytest.mark.parametrize("beats", ["sender", "receiver", "both"])
async def test_a_queue_in_front_of_the_ping_is_not_taken_for_death(
    stack: contextlib.AsyncExitStack, beats: str
) -> None:
    """25 messages of 20 KB through 300 KB/s: no ping overtakes them, and the relay's buffers add to its way."""
    recorder = Recorder()
    beat = {"ping_interval": 0.3, "ping_timeout": 0.7}
    server = await serve(stack, recorder, **beat if beats != "sender" else {})
    options = {**ONCE, "heartbeat": HeartbeatConfig(**beat)} if beats != "receiver" else NO_BEAT
    async with Relay(server.port, buffers=16384) as relay:
        relay.to_server.rate, relay.to_server.piece = 300_000, 4096
        async with WebSocketClient.connect(relay.url, **options) as client:
            for number in range(25):
                await client.send(numbered(number, 20_000))
            await until(lambda: len(recorder.messages) == 25)
            assert client.is_connected
            assert list(map(number_of, recorder.messages)) == list(range(25))


async def test_one_long_message_that_trickles_in_is_a_sign_of_life(stack: contextlib.AsyncExitStack) -> None:
    """RFC 6455 §5.4: no control frame comes between the bytes of one frame, so no pong for a second and a half."""
    held = Held()
    server = await serve(stack, held)
    async with Relay(server.port, buffers=8192) as relay:
        relay.to_client.rate, relay.to_client.piece = 200_000, 4096
        async with WebSocketClient.connect(relay.url, **ONCE) as client:
            peer = await held.next()
            await peer.send(numbered(1, 300_000))
            assert number_of(await client.recv()) == 1
            assert client.is_connected
        held.release()
