"""Busy polling over sockets: what it changes, which is nothing but when bytes are read."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import socket
import threading
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from fabric.client import WebSocketClient
from fabric.config import RateLimitConfig, ReconnectConfig
from fabric.error import ConnectionClosed, HandshakeFailed
from fabric.metrics import LoopMetrics, loop_metrics_of
from fabric.server import ConnectedClient, WebSocketServer
from fabric_ext.poller import PolledSession
from support.frames import TEXT, encode
from support.raw_peer import RawPeer
from support.serving import Held, Recorder, echo, serve, turns, until
from support.tls import client_context, server_context

Stack = contextlib.AsyncExitStack

QUIET: dict[str, Any] = {"heartbeat": None, "compression": None}
POLLS = pytest.mark.parametrize("busy_poll", [0.002, math.inf], ids=["a while", "always"])


async def connect(stack: Stack, server: WebSocketServer, **options: Any) -> WebSocketClient:
    url = f"ws://127.0.0.1:{server.port}/"
    return await stack.enter_async_context(WebSocketClient.connect(url, **QUIET | options))


def loop_now() -> LoopMetrics:
    return loop_metrics_of(asyncio.get_running_loop())


async def rests(loop: LoopMetrics, count: int = 50) -> bool:
    """Is the poller at rest? It makes a pass in each turn otherwise."""
    await turns(3)
    before = loop.passes
    await turns(count)
    return loop.passes == before


async def until_at_rest(loop: LoopMetrics) -> None:
    while not await rests(loop):
        pass


async def round_trips(client: Any, count: int = 20) -> None:
    for number in range(count):
        await client.send(f"message {number}")
        answer = await client.recv()
        assert answer == f"message {number}"


# --- it reads ----------------------------------------------------------------------------------------------


@POLLS
async def test_both_ends_poll_and_the_poller_reads(stack: Stack, busy_poll: float) -> None:
    server = await serve(stack, echo, busy_poll=busy_poll)
    client = await connect(stack, server, busy_poll=busy_poll)
    loop = loop_now()
    await round_trips(client)
    assert loop.passes >= 1
    assert loop.hits >= 1
    assert 0 < loop.polled_share <= 1
    large = os.urandom(3_000_000)
    await client.send(large)
    assert await client.recv() == large


async def test_off_there_is_no_poller(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held)
    client = await connect(stack, server)
    end = await held.next()
    await client.send("x")
    assert await end.recv() == "x"
    assert loop_now().passes == 0
    for one in (client, end):
        assert not isinstance(one._session_now, PolledSession)


@pytest.mark.parametrize("side", ["server", "client"])
async def test_one_end_may_poll_alone(stack: Stack, side: str) -> None:
    ours, theirs = {"busy_poll": math.inf}, {}
    server = await serve(stack, echo, **(ours if side == "server" else theirs))
    client = await connect(stack, server, **(theirs if side == "server" else ours))
    await round_trips(client)


@POLLS
async def test_over_tls_the_loop_stays_awake(stack: Stack, busy_poll: float) -> None:
    server = await serve(stack, echo, ssl=server_context(), busy_poll=busy_poll)
    url = f"wss://127.0.0.1:{server.port}/"
    options = {"ssl": client_context(), "busy_poll": busy_poll, **QUIET}
    client = await stack.enter_async_context(WebSocketClient.connect(url, **options))
    await round_trips(client)
    assert loop_now().passes >= 1
    assert loop_now().hits == 0


async def test_over_a_unix_socket(stack: Stack, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    server = WebSocketServer.bind(f"unix:{path}", echo, ping_interval=None, compression=None, busy_poll=math.inf)
    await stack.enter_async_context(server)
    options = {"unix_path": str(path), "busy_poll": math.inf, **QUIET}
    client = await stack.enter_async_context(WebSocketClient.connect("ws://localhost/", **options))
    await round_trips(client)
    assert loop_now().hits >= 1


async def test_compressed_and_in_parts(stack: Stack) -> None:
    server = await serve(stack, echo, compression=None, busy_poll=math.inf)
    client = await connect(stack, server, busy_poll=math.inf, fragment_size=100)
    text = "Grüße " * 1000
    await client.send(text)
    assert await client.recv() == text
    await client.send_parts(["a", "b" * 1000, "c"])
    parts = [part async for part in client.recv_stream()]
    assert "".join(parts) == f"a{'b' * 1000}c"


async def test_what_comes_right_behind_the_handshake(stack: Stack) -> None:
    recorder = Recorder()
    server = await serve(stack, recorder, busy_poll=math.inf)
    frames = [encode(TEXT, str(number)) for number in range(100)]
    async with await RawPeer.open(server.port, rest=b"".join(frames[:50])) as peer:
        peer.send(*frames[50:])
        await until(lambda: len(recorder.messages) == 100)
        assert recorder.messages == [str(number) for number in range(100)]


# --- and lets everything else be ---------------------------------------------------------------------------


async def test_when_nothing_comes_the_loop_may_sleep(stack: Stack) -> None:
    server = await serve(stack, echo, busy_poll=0.001)
    clients = [await connect(stack, server, busy_poll=0.001) for _ in range(3)]
    for client in clients:
        await round_trips(client, 3)
    loop = loop_now()
    await until_at_rest(loop)
    await round_trips(clients[0], 3)
    await until_at_rest(loop)


async def test_timers_threads_signals_and_other_descriptors_have_their_turn(stack: Stack) -> None:
    server = await serve(stack, echo, busy_poll=math.inf)
    client = await connect(stack, server, busy_poll=math.inf)
    loop = asyncio.get_running_loop()
    fired: list[str] = []
    ours, theirs = socket.socketpair()
    stack.callback(ours.close)
    stack.callback(theirs.close)
    ours.setblocking(False)
    stop = asyncio.Event()

    async def busy() -> None:
        while not stop.is_set():
            await round_trips(client, 1)

    working = asyncio.create_task(busy())
    loop.add_signal_handler(signal.SIGUSR1, fired.append, "signal")
    stack.callback(loop.remove_signal_handler, signal.SIGUSR1)
    loop.call_later(0.001, fired.append, "timer")
    thread = threading.Thread(target=loop.call_soon_threadsafe, args=(fired.append, "thread"))
    thread.start()
    os.kill(os.getpid(), signal.SIGUSR1)
    theirs.send(b"x")
    assert await loop.sock_recv(ours, 1) == b"x"
    await until(lambda: {"timer", "thread", "signal"} <= set(fired))
    thread.join()
    stop.set()
    await working


@POLLS
async def test_a_full_queue_stops_reading_and_loses_nothing(stack: Stack, busy_poll: float) -> None:
    held = Held()
    server = await serve(stack, held, buffer_size=5, busy_poll=busy_poll)
    async with await RawPeer.open(server.port) as peer:
        client = await held.next()
        frames = [encode(TEXT, f"{number} {'x' * 1000}") for number in range(2000)]

        async def feed() -> None:
            for frame in frames:
                peer.send(frame)
                await peer.writer.drain()

        feeding = asyncio.create_task(feed())
        await until(lambda: client.is_reading_paused)
        await turns()
        queued = client.queued
        await turns()
        assert client.queued == queued
        if math.isinf(busy_poll):
            assert await rests(loop_now())  # there is nobody to poll
        for number in range(2000):
            message = await client.recv()
            assert message is not None
            assert message.text.startswith(f"{number} ")
        await feeding
        assert loop_now().hits >= 1


@POLLS
async def test_a_rate_limit_slows(stack: Stack, busy_poll: float) -> None:
    recorder = Recorder()
    limit = RateLimitConfig(messages_per_second=2000, messages_burst=5)
    server = await serve(stack, recorder, rate_limit=limit, busy_poll=busy_poll)
    async with await RawPeer.open(server.port) as peer:
        peer.send(*(encode(TEXT, str(number)) for number in range(50)))
        await until(lambda: len(recorder.messages) == 50)
        assert recorder.messages == [str(number) for number in range(50)]


@POLLS
async def test_a_client_reconnects_and_polls_again(stack: Stack, busy_poll: float) -> None:
    held = Held()
    server = await serve(stack, held, busy_poll=busy_poll)
    client = await connect(stack, server, busy_poll=busy_poll, reconnect=ReconnectConfig(initial_delay=0.001))
    for number in range(3):
        end = await held.next()
        await end.send(str(number))
        assert await client.recv() == str(number)
        end._session_now.abort()  # type: ignore[union-attr]
    end = await held.next()
    await end.send("again")
    assert await client.recv() == "again"
    assert isinstance(client._session_now, PolledSession)


@pytest.mark.parametrize("busy_poll", [0, math.inf], ids=["off", "always"])
async def test_a_reset_is_told_as_without_polling(stack: Stack, busy_poll: float) -> None:
    recorder = Recorder()
    server = await serve(stack, recorder, busy_poll=busy_poll)
    async with await RawPeer.open(server.port) as peer:
        peer.send(encode(TEXT, "last"))
        await until(lambda: recorder.messages == ["last"])
        peer.reset()
        await recorder.ended()
    assert recorder.error is not None
    assert recorder.error.code == 1006
    assert "lost" in str(recorder.error)


async def test_the_end_of_a_stream_is_told(stack: Stack) -> None:
    recorder = Recorder()
    server = await serve(stack, recorder, busy_poll=math.inf)
    async with await RawPeer.open(server.port) as peer:
        peer.send(encode(TEXT, "last"))
        peer.writer.write_eof()
        await recorder.ended()
    assert recorder.messages == ["last"]
    assert await rests(loop_now())


async def test_one_connection_too_many_is_turned_away(stack: Stack) -> None:
    server = await serve(stack, echo, max_connections=1, busy_poll=math.inf)
    client = await connect(stack, server, busy_poll=math.inf, auto_reconnect=False)
    with pytest.raises(HandshakeFailed):
        await connect(stack, server, busy_poll=math.inf, auto_reconnect=False)
    await round_trips(client)


async def test_a_shutdown_ends_it(stack: Stack) -> None:
    server = await serve(stack, echo, busy_poll=math.inf)
    clients = [await connect(stack, server, busy_poll=math.inf, auto_reconnect=False) for _ in range(3)]
    await round_trips(clients[0])
    await server.shutdown(timeout=5)
    for client in clients:
        assert await client.recv() is None
        await client.wait_closed()
        assert client.close_code == 1001
    assert await rests(loop_now())


async def test_several_servers_and_clients_on_one_loop(stack: Stack) -> None:
    servers = [await serve(stack, echo, busy_poll=seconds) for seconds in (0, 0.001, math.inf)]
    clients = [
        await connect(stack, server, busy_poll=seconds) for server in servers for seconds in (0, 0.001, math.inf)
    ]
    await asyncio.gather(*(round_trips(client) for client in clients))
    shared = {id(metrics.loop) for metrics in (*(c.metrics for c in clients), *(s.metrics for s in servers))}
    assert shared == {id(loop_now())}


async def test_many_hot_connections_have_their_turn_each(stack: Stack) -> None:
    server = await serve(stack, echo, busy_poll=math.inf)
    clients = [await connect(stack, server, busy_poll=math.inf) for _ in range(64)]
    await asyncio.gather(*(round_trips(client, 10) for client in clients))


# --- callbacks ---------------------------------------------------------------------------------------------


number: ContextVar[int] = ContextVar("number", default=0)


async def test_a_callback_runs_in_the_context_of_its_connection(stack: Stack) -> None:
    seen: list[int] = []
    server = await serve(stack, echo, busy_poll=math.inf)
    number.set(7)
    client = await connect(stack, server, busy_poll=math.inf, on_message=lambda _, __: seen.append(number.get()))
    number.set(0)
    for count in range(5):
        await client.send("x")
        await until(lambda count=count: len(seen) > count)
    assert seen == [7] * 5


async def test_a_callback_that_raises_ends_its_connection_alone(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    def fail(client: ConnectedClient, message: Any) -> None:
        if message == "fail":
            raise ValueError("no")
        client.send_nowait(message)

    server = await serve(stack, on_message=fail, busy_poll=math.inf)
    bad, good = [await connect(stack, server, busy_poll=math.inf, auto_reconnect=False) for _ in range(2)]
    await bad.send("fail")
    with pytest.raises(ConnectionClosed):
        await bad.recv()
    assert bad.close_code == 1011
    await round_trips(good)
    assert "ValueError: no" in caplog.text


def test_keyboard_interrupt_in_a_callback_stops_the_loop(loop_factory: Any) -> None:
    def interrupt(_: ConnectedClient, __: Any) -> None:
        raise KeyboardInterrupt

    async def main() -> None:
        async with WebSocketServer.bind("127.0.0.1:0", on_message=interrupt, busy_poll=math.inf) as server:
            url = f"ws://127.0.0.1:{server.port}/"
            async with WebSocketClient.connect(url, busy_poll=math.inf, auto_reconnect=False) as client:
                await client.send("x")
                await asyncio.Future()

    with asyncio.Runner(loop_factory=loop_factory) as runner, pytest.raises(KeyboardInterrupt):
        runner.run(main())


def test_a_loop_that_is_closed_over_hot_connections_leaves_nothing_running(loop_factory: Any) -> None:
    loop = loop_factory()
    kept: list[Any] = []

    async def main() -> None:
        server = WebSocketServer.bind("127.0.0.1:0", echo, busy_poll=math.inf, ping_interval=None)
        await server.start()
        client = await WebSocketClient.connect(f"ws://127.0.0.1:{server.port}/", busy_poll=math.inf, **QUIET)
        await round_trips(client, 2)
        kept.extend((server, client))
        client._session_now.abort()  # type: ignore[union-attr]
        await server.shutdown(timeout=0)
        await client.close()

    loop.run_until_complete(main())
    loop.close()
    assert not kept[1].is_connected
