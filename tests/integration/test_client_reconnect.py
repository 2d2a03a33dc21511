"""A client that stays connected: outages, queues, callbacks, and the ends of it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from typing import Any, Self

import pytest

from fabric.client import WebSocketClient
from fabric.config import (
    BackpressureConfig,
    HeartbeatConfig,
    RateLimitConfig,
    ReconnectConfig,
    ServerConfig,
)
from fabric.error import (
    AuthenticationFailed,
    BufferFull,
    ConnectionClosed,
    ConnectionFailed,
    InvalidState,
    ReconnectTimeout,
    Timeout,
)
from fabric.message import Frame, Message
from fabric.server import ConnectedClient, WebSocketServer
from integration.raw import RawServer, Visit
from support.serving import turns, until

QUICK = ReconnectConfig(initial_delay=0.01, max_delay=0.05, jitter=0)


class Echo:
    """A server that can be killed, and started again on the same port."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.port = 0
        self.received: list[str] = []
        self.server: WebSocketServer | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.kill()

    async def start(self) -> None:
        config = ServerConfig(f"127.0.0.1:{self.port}", **self.options)
        self.server = WebSocketServer(config, self.handle)
        await self.server.start()
        self.port = self.server.port

    async def kill(self) -> None:
        """Drop everything, as SIGKILL does: no close frames."""
        server, self.server = self.server, None
        if server is not None:
            for client in server.clients():
                client._abort()
            await until(lambda: not server.connection_count)
            await server.shutdown()

    async def handle(self, client: ConnectedClient) -> None:
        async for message in client:
            self.received.append(message.as_text())
            await client.send(message)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/"


class Log(list[Any]):
    """The callbacks, noting when they are called."""

    async def on_disconnect(self, client: WebSocketClient, error: Exception) -> None:
        self.append(error)

    async def on_reconnect(self, client: WebSocketClient) -> None:
        self.append("reconnected")

    @property
    def options(self) -> dict[str, Any]:
        return {"on_disconnect": self.on_disconnect, "on_reconnect": self.on_reconnect}


# Outages that end.


async def test_the_same_object_goes_on_after_an_outage() -> None:
    log = Log()
    async with Echo() as echo:
        async with WebSocketClient.connect(echo.url, reconnect=QUICK, **log.options) as client:
            identity, metrics = client.id, client.metrics
            waiting = asyncio.create_task(client.recv())
            await echo.kill()
            await until(lambda: client.state.name == "RECONNECTING")
            assert not client.is_connected
            assert client.close_code is None
            await client.send("while it is away")
            client.send_nowait("and another one")
            assert client.backpressure.messages == 2
            await turns()
            assert not waiting.done()
            await echo.start()
            assert await waiting == Message("while it is away")
            assert await client.recv() == Message("and another one")
            assert client.is_connected
            assert client.id == identity
            assert client.metrics is metrics
            assert metrics.reconnections == 1
            assert metrics.total_connections == 2
            assert metrics.active_connections == 1
            assert client.backpressure.messages == 0
            await until(lambda: len(log) == 2)
            assert isinstance(log[0], ConnectionClosed)
            assert log[0].code == 1006
            assert log[1] == "reconnected"
        assert client.close_code == 1000
        assert log[2].code == 1000
        assert len(log) == 3


async def test_iteration_waits_through_outages() -> None:
    got = []
    async with Echo() as echo, WebSocketClient.connect(echo.url, reconnect=QUICK) as client:
        await client.send("0")
        async for message in client:
            got.append(message.as_text())
            if len(got) == 4:
                break
            await echo.kill()
            await client.send(str(len(got)))
            await echo.start()
    assert got == ["0", "1", "2", "3"]


async def test_what_was_accepted_in_an_outage_goes_out_in_order_before_newer_ones() -> None:
    async with Echo() as echo, WebSocketClient.connect(echo.url, reconnect=QUICK) as client:
        await echo.kill()
        await until(lambda: client.state.name == "RECONNECTING")
        expected = [str(number) for number in range(500)]
        for text in expected:
            await client.send(text)

        async def newer() -> None:
            await until(lambda: client.is_connected)
            for number in range(100):
                await client.send(f"new {number}")

        sender = asyncio.create_task(newer())
        await echo.start()
        await sender
        expected += [f"new {number}" for number in range(100)]
        await until(lambda: len(echo.received) >= len(expected))
        assert echo.received == expected


async def test_send_is_refused_when_the_outbox_is_full() -> None:
    few = BackpressureConfig(max_buffer_size=3)
    async with Echo() as echo, WebSocketClient.connect(echo.url, reconnect=QUICK, backpressure=few) as client:
        await echo.kill()
        await until(lambda: client.state.name == "RECONNECTING")
        for text in "abc":
            await client.send(text)
        with pytest.raises(BufferFull):
            await client.send("d")
        with pytest.raises(BufferFull):
            client.send_nowait("e")
        await echo.start()
        for text in "abc":
            assert await client.recv() == Message(text)
        await client.send("f")
        assert await client.recv() == Message("f")


async def test_parts_and_pings_end_with_their_connection() -> None:
    stalled = asyncio.Event()
    go_on = asyncio.Event()

    async def parts() -> AsyncIterator[str]:
        yield "half "
        yield "of it "
        stalled.set()
        await go_on.wait()
        yield "and the rest"

    async def handle(visit: Visit) -> None:
        await visit.accept()
        if server.visits == 1:
            await visit.frame()
            await silent.wait()
            visit.writer.transport.abort()
        else:
            while True:
                frame = await visit.frame()
                frames.append(frame)
                if frame.opcode == 8:
                    visit.writer.write(Frame(opcode=8, payload=frame.payload).encode())
                    return

    frames: list[Frame] = []
    silent = asyncio.Event()
    async with RawServer(handle) as server:
        async with WebSocketClient.connect(server.url, reconnect=QUICK, compression=None) as client:
            sender = asyncio.create_task(client.send(parts()))
            await stalled.wait()
            ping = asyncio.create_task(client.ping())
            await turns()
            queued = asyncio.create_task(client.send("queued behind"))
            await asyncio.sleep(0)
            silent.set()
            with pytest.raises(ConnectionClosed) as info:
                await ping
            assert info.value.code == 1006
            await until(lambda: client.is_connected)
            go_on.set()
            with pytest.raises(ConnectionClosed):
                await sender
            await queued
            assert client.is_connected  # the new connection has nothing to do with the old message
            await client.send(iter(["a", "b"]))
        texts = [(frame.opcode, frame.fin, frame.payload) for frame in frames if frame.opcode < 8]
        assert texts == [(1, True, b"queued behind"), (1, False, b"a"), (0, True, b"b")]


async def test_a_message_in_parts_that_begins_in_an_outage_waits_for_its_end() -> None:
    async with Echo() as echo, WebSocketClient.connect(echo.url, reconnect=QUICK) as client:
        await echo.kill()
        await until(lambda: client.state.name == "RECONNECTING")
        with pytest.raises(ConnectionClosed):
            await client.ping()
        sender = asyncio.create_task(client.send(iter(["a", "b"])))
        await client.send("first")
        await turns()
        assert not sender.done()
        await echo.start()
        await sender
        assert await client.recv() == Message("first")
        assert await client.recv() == Message("ab")


async def test_half_a_received_message_is_forgotten() -> None:
    async def handle(visit: Visit) -> None:
        await visit.accept()
        if server.visits == 1:
            visit.writer.write(Frame(opcode=1, fin=False, payload=b"half").encode())
        else:
            visit.writer.write(Frame(opcode=1, payload=b"whole").encode())
            await visit.until_closed()

    async with (
        RawServer(handle) as server,
        WebSocketClient.connect(server.url, reconnect=QUICK, close_timeout=0.1) as client,
    ):
        assert await client.recv() == Message("whole")


# Which ends are final.


@pytest.mark.parametrize("code", [1000, 1002, 1003, 1007, 1008, 1010])
async def test_final_codes_end_the_client(code: int) -> None:
    log = Log()

    async def handle(visit: Visit) -> None:
        await visit.accept()
        visit.writer.write(Frame(opcode=8, payload=code.to_bytes(2, "big") + b"why").encode())
        await visit.until_closed()

    async with RawServer(handle) as server:
        client = await WebSocketClient.connect(server.url, reconnect=QUICK, close_timeout=0.1, **log.options)
        if code == 1000:
            assert await client.recv() is None
        else:
            with pytest.raises(ConnectionClosed) as info:
                await client.recv()
            assert (info.value.code, info.value.reason, info.value.by) == (code, "why", "remote")
        await client.wait_closed()
        assert (client.state.name, client.close_code, client.close_reason) == ("CLOSED", code, "why")
        assert server.visits == 1
        assert [error.code for error in log] == [code]
        with pytest.raises(ConnectionClosed):
            await client.send("too late")
        await client.close()


@pytest.mark.parametrize("code", [None, 1001, 1009, 1011, 1012, 1013, 1014, 3000, 4000])
async def test_other_codes_do_not(code: int | None) -> None:
    async def handle(visit: Visit) -> None:
        await visit.accept()
        if server.visits == 1:
            payload = b"" if code is None else code.to_bytes(2, "big")
            visit.writer.write(Frame(opcode=8, payload=payload).encode())
        else:
            visit.writer.write(Frame(opcode=1, payload=b"again").encode())
            await visit.until_closed()

    async with (
        RawServer(handle) as server,
        WebSocketClient.connect(server.url, reconnect=QUICK, close_timeout=0.1) as client,
    ):
        assert await client.recv() == Message("again")
        assert server.visits == 2


async def test_without_reconnection_a_loss_is_the_end() -> None:
    for options in ({"auto_reconnect": False}, {"reconnect": None}):
        async with Echo() as echo:
            client = await WebSocketClient.connect(echo.url, **options)
            waiting = asyncio.create_task(client.recv())
            await asyncio.sleep(0)
            await echo.kill()
            with pytest.raises(ConnectionClosed):
                await waiting
            await client.wait_closed()
            assert client.state.name == "CLOSED"
            assert client.close_code == 1006


# Giving up.


async def test_the_last_attempt_hands_back_what_was_not_delivered() -> None:
    log = Log()
    limited = QUICK.with_max_attempts(3)
    async with Echo() as echo:
        client = await WebSocketClient.connect(echo.url, reconnect=limited, **log.options)
        await client.send("delivered")
        assert await client.recv() == Message("delivered")
        waiting = asyncio.create_task(client.recv())
        closing = asyncio.create_task(client.wait_closed())
        await echo.kill()
        await until(lambda: client.state.name == "RECONNECTING")
        await client.send("one")
        await client.send(b"two")
        for task in (waiting, closing):
            with pytest.raises(ReconnectTimeout) as info:
                await task
            assert info.value.attempts == 3
            assert info.value.undelivered == (Message("one"), Message(b"two"))
            assert isinstance(info.value.cause, ConnectionFailed)
        assert client.undelivered == (Message("one"), Message(b"two"))
        assert client.state.name == "CLOSED"
        assert client.close_code == 1006
        assert [type(error) for error in log] == [ConnectionClosed, ReconnectTimeout]
        with pytest.raises(ConnectionClosed):
            await client.send("three")
        with pytest.raises(ReconnectTimeout):
            await client.recv()
        await client.close()


async def test_who_waits_for_room_hears_of_the_end() -> None:
    async def handle(visit: Visit) -> None:
        await visit.accept()
        await enough.wait()

    enough = asyncio.Event()
    few = BackpressureConfig(max_buffer_size=4)
    async with RawServer(handle) as server:
        client = await WebSocketClient.connect(
            server.url, reconnect=QUICK.with_max_attempts(1), backpressure=few, compression=None
        )
        senders = [asyncio.create_task(client.send(b"x" * 3_000_000)) for _ in range(10)]
        await until(lambda: client.backpressure.waiting)
        await asyncio.sleep(0.05)
        server._server.close()
        enough.set()
        results = await asyncio.gather(*senders, return_exceptions=True)
        accepted = [result for result in results if result is None]
        refused = [result for result in results if isinstance(result, (ConnectionClosed, BufferFull))]
        assert len(accepted) + len(refused) == 10
        assert refused
        with pytest.raises(ReconnectTimeout):
            await client.wait_closed()
        assert client.backpressure.messages == 0


async def test_a_refusal_that_would_repeat_itself_is_final() -> None:
    async def handle(visit: Visit) -> None:
        if server.visits == 1:
            await visit.accept()
        elif server.visits == 2:
            await visit.request()
            visit.send("HTTP/1.1 503 Busy", "Content-Length: 0")
        else:
            await visit.request()
            visit.send("HTTP/1.1 401 Who", "Content-Length: 2", body=b"no")

    async with RawServer(handle) as server:
        client = await WebSocketClient.connect(server.url, reconnect=QUICK)
        with pytest.raises(ReconnectTimeout) as info:
            await client.recv()
        assert isinstance(info.value.cause, AuthenticationFailed)
        assert isinstance(info.value.__cause__, AuthenticationFailed)
        assert info.value.attempts == 2
        assert server.visits == 3
        await client.close()


async def test_retry_after_is_honoured() -> None:
    async def handle(visit: Visit) -> None:
        moments.append(time.monotonic())
        if server.visits == 2:
            await visit.request()
            visit.send("HTTP/1.1 503 Busy", "Retry-After: 1", "Content-Length: 0")
        else:
            await visit.accept()
            if server.visits == 3:
                await visit.until_closed()

    moments: list[float] = []
    async with (
        RawServer(handle) as server,
        WebSocketClient.connect(server.url, reconnect=QUICK, close_timeout=0.1),
    ):
        await until(lambda: server.visits == 3)
    assert moments[2] - moments[1] >= 0.99


async def test_a_server_that_accepts_and_closes_is_not_hammered() -> None:
    async def handle(visit: Visit) -> None:
        await visit.accept()

    slower = ReconnectConfig(initial_delay=0.02, backoff_multiplier=2, max_delay=10, jitter=0)
    async with RawServer(handle) as server, WebSocketClient.connect(server.url, reconnect=slower) as client:
        await asyncio.sleep(0.5)
        assert 4 <= server.visits <= 6  # after 0.02, 0.06, 0.14, 0.3 s
        assert client.reconnect_state.attempts == server.visits - (0 if client.state.name == "RECONNECTING" else 1)


async def test_the_first_connection_is_tried_once() -> None:
    async def handle(visit: Visit) -> None:
        await visit.request()
        visit.send("HTTP/1.1 503 Busy", "Content-Length: 0")

    async with RawServer(handle) as server:
        with contextlib.suppress(Exception):
            await WebSocketClient.connect(server.url, reconnect=QUICK)
        assert server.visits == 1


# Closing.


async def test_close_ends_a_search_at_once() -> None:
    slow = ReconnectConfig(initial_delay=60, max_delay=60, jitter=0)
    log = Log()
    async with Echo() as echo:
        client = await WebSocketClient.connect(echo.url, reconnect=slow, **log.options)
        iterating = asyncio.create_task(client.recv())
        await echo.kill()
        await until(lambda: client.state.name == "RECONNECTING")
        await client.send("not delivered")
        await client.close()
        assert await iterating is None
        assert client.undelivered == (Message("not delivered"),)
        assert client.state.name == "CLOSED"
        assert client.close_code == 1006
        await client.wait_closed()
        await client.close()
        assert [type(error) for error in log] == [ConnectionClosed]


async def test_a_cancelled_close_leaves_a_client_that_goes_on() -> None:
    async def handle(visit: Visit) -> None:
        await visit.accept()
        if server.visits == 1:
            await lose.wait()
            visit.writer.transport.abort()
        elif server.visits == 2:
            while (frame := await visit.frame()).opcode != 8:
                sizes.append(len(frame.payload))
            visit.writer.write(Frame(opcode=8, payload=frame.payload).encode())

    sizes: list[int] = []
    lose = asyncio.Event()
    async with RawServer(handle) as server:
        async with WebSocketClient.connect(server.url, reconnect=QUICK, compression=None) as client:
            await client.send(b"x" * 10_000_000)  # more than the kernel takes
            await client.send(b"kept")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.close(), 0.02)
            assert client.is_connected
            lose.set()
            await until(lambda: sizes)
        assert sizes == [4]
        assert client.close_code == 1000
        assert client.undelivered == ()


async def test_close_ends_an_attempt_at_once() -> None:
    async def handle(visit: Visit) -> None:
        if server.visits == 1:
            await visit.accept()
        else:
            await visit.until_closed()

    async with RawServer(handle) as server:
        client = await WebSocketClient.connect(server.url, reconnect=QUICK)
        await until(lambda: server.visits == 2)
        await client.close()
        assert client.state.name == "CLOSED"


@pytest.mark.parametrize("name", ["on_connect", "on_disconnect", "on_reconnect"])
async def test_close_may_be_called_in_every_callback(name: str) -> None:
    async def close(client: WebSocketClient, *args: Any) -> None:
        called.append(args)
        await client.close()

    called: list[Any] = []
    async with Echo() as echo:
        client = await WebSocketClient.connect(echo.url, reconnect=QUICK, **{name: close})
        if name != "on_connect":
            await echo.kill()
            await until(lambda: client.state.name == "RECONNECTING" or called)
            await echo.start()
        await client.wait_closed()
        assert client.state.name == "CLOSED"
        assert len(called) == 1


async def test_callbacks_that_raise_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fail(client: WebSocketClient, *args: Any) -> None:
        raise KeyError("mine")

    options = {"on_disconnect": fail, "on_reconnect": fail}
    async with Echo() as echo, WebSocketClient.connect(echo.url, reconnect=QUICK, **options) as client:
        await echo.kill()
        await echo.start()
        await until(lambda: client.is_connected and client.metrics.reconnections)
    errors = [record.name for record in caplog.records if record.levelname == "ERROR"]
    assert errors == ["fabric.client"] * 3


async def test_a_cancellation_that_a_callback_lets_through_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Such as of a helper task that the callback has cancelled and awaits."""

    async def stop_helper(client: WebSocketClient, error: Exception) -> None:
        helper = asyncio.create_task(asyncio.sleep(60))
        helper.cancel()
        await helper

    async with Echo() as echo, WebSocketClient.connect(echo.url, reconnect=QUICK, on_disconnect=stop_helper) as client:
        await echo.kill()
        await echo.start()
        await until(lambda: client.is_connected and client.metrics.reconnections)
    assert [record.name for record in caplog.records if record.levelname == "ERROR"] == ["fabric.client"] * 2


async def test_two_closes_of_which_one_is_cancelled() -> None:
    async def handle(visit: Visit) -> None:
        await visit.accept()
        await lose.wait()
        visit.writer.transport.abort()

    lose = asyncio.Event()
    async with RawServer(handle) as server:
        client = await WebSocketClient.connect(server.url, reconnect=QUICK, compression=None)
        await client.send(b"x" * 10_000_000)  # more than the kernel takes
        await client.send(b"kept")
        first, second = asyncio.create_task(client.close()), asyncio.create_task(client.close())
        await turns()
        first.cancel()
        await turns()
        lose.set()
        await asyncio.wait_for(second, 20)
        assert client.state.name == "CLOSED"
        assert server.visits == 1
        assert [message.payload for message in client.undelivered] == [b"kept"]


async def test_close_does_not_wait_for_ever_for_a_callback() -> None:
    gate = asyncio.Event()

    async def wait(client: WebSocketClient, error: Exception) -> None:
        await gate.wait()

    async with Echo() as echo:
        client = await WebSocketClient.connect(echo.url, on_disconnect=wait, close_timeout=0.2)
        await asyncio.wait_for(client.close(), 20)
        assert client.state.name == "CLOSED"
        gate.set()
        await client.wait_closed()


async def test_on_reconnect_is_cancelled_by_the_next_loss() -> None:
    calls = []

    async def on_reconnect(client: WebSocketClient) -> None:
        calls.append("begun")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            calls.append("cancelled")
            raise

    async with Echo() as echo:
        async with WebSocketClient.connect(echo.url, reconnect=QUICK, on_reconnect=on_reconnect):
            for number in range(1, 3):
                await echo.kill()
                await echo.start()
                await until(lambda number=number: calls.count("begun") == number)
        assert calls == ["begun", "cancelled"] * 2


async def test_recv_can_be_cancelled_in_an_outage_and_loses_nothing() -> None:
    async with Echo() as echo, WebSocketClient.connect(echo.url, reconnect=QUICK) as client:
        await echo.kill()
        await until(lambda: client.state.name == "RECONNECTING")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.recv(), 0.01)
        await client.send("kept")
        await echo.start()
        assert await client.recv() == Message("kept")


async def test_a_socket_of_ones_own_is_not_replaced() -> None:
    import socket

    async with Echo() as echo:
        sock = socket.create_connection(("127.0.0.1", echo.port))
        client = await WebSocketClient.connect(echo.url, sock=sock)
        await echo.kill()
        with pytest.raises(ConnectionClosed):
            await client.recv()
        with pytest.raises((ConnectionClosed, InvalidState)):
            await client.send("x")
        await client.close()


# Rate limits.


async def test_what_a_client_receives_can_be_limited() -> None:
    async def handle(visit: Visit) -> None:
        await visit.accept(body=b"".join(Frame(opcode=1, payload=b"%d" % n).encode() for n in range(5)))
        await visit.until_closed()

    async with RawServer(handle) as server:
        slow = RateLimitConfig(messages_per_second=50, messages_burst=1)
        began = time.monotonic()
        async with WebSocketClient.connect(server.url, rate_limit=slow, close_timeout=0.1) as client:
            assert [(await client.recv()).as_text() for _ in range(5)] == ["0", "1", "2", "3", "4"]
        assert time.monotonic() - began >= 0.07
        strict = slow.with_on_exceed("close")
        client = await WebSocketClient.connect(server.url, rate_limit=strict, close_timeout=0.1)
        assert await client.recv() == Message("0")
        with pytest.raises(ConnectionClosed) as info:
            await client.recv()
        assert (info.value.code, info.value.by) == (1008, "local")
        await client.close()


# The heartbeat.


async def test_a_server_that_answers_no_ping_is_dropped_and_one_that_does_is_measured() -> None:
    async def handle(visit: Visit) -> None:
        await visit.accept()
        if server.visits == 1:
            await visit.until_closed()
            return
        while (frame := await visit.frame()).opcode == 9:
            pings.append(frame)
            visit.writer.write(Frame(opcode=10, payload=frame.payload).encode())
        visit.writer.write(Frame(opcode=8, payload=frame.payload).encode())

    pings: list[Frame] = []
    log = Log()
    beat = HeartbeatConfig(ping_interval=0.1, ping_timeout=0.1)
    async with RawServer(handle) as server:
        options = {"reconnect": QUICK, "heartbeat": beat} | log.options
        async with WebSocketClient.connect(server.url, **options) as client:
            await until(lambda: log)
            assert log[0].code == 1006
            assert isinstance(log[0].__cause__, Timeout)
            await until(lambda: len(pings) >= 2)
            assert client.latency is not None
            assert client.metrics.heartbeat_percentiles().count >= 1


# All of it at random.


@pytest.mark.deadline(60)
async def test_random_outages_lose_nothing_that_was_accepted_while_away(rng: random.Random) -> None:
    async with Echo() as echo:
        async with WebSocketClient.connect(echo.url, reconnect=QUICK) as client:
            number = 0
            promised: list[str] = []
            for _ in range(15):
                await client.send(f"live {number}")
                if rng.random() < 0.5:
                    assert (await client.recv()) is not None
                await echo.kill()
                await until(lambda: client.state.name == "RECONNECTING")
                away: list[str] = []
                for _ in range(rng.randrange(20)):
                    number += 1
                    away.append(f"away {number}")
                    await client.send(away[-1])
                    if rng.random() < 0.3:
                        await asyncio.sleep(rng.random() * 0.01)
                await echo.start()
                await until(lambda: client.is_connected)
                # What was written to a connection that is lost before it is read may be lost: no promise for that.
                if rng.random() < 0.7:
                    promised.extend(away)
                    await client.ping()
                    await until(lambda: set(promised) <= set(echo.received))
        arrived = [text for text in echo.received if text.startswith("away")]
        assert [text for text in arrived if text in set(promised)] == promised
        assert len(arrived) == len(set(arrived))


# Streams.


async def begin(client: WebSocketClient, parts: AsyncIterator[str | bytes]) -> str | bytes:
    """The first part, which the server sends when it is asked to: then the stream is waited for already."""
    first = asyncio.ensure_future(anext(parts))
    await asyncio.sleep(0)
    await client.send("go")
    return await first


async def test_a_message_received_in_parts_ends_with_its_connection() -> None:
    async def handle(visit: Visit) -> None:
        await visit.accept()
        await visit.frame()
        if server.visits == 1:
            visit.writer.write(Frame(opcode=1, fin=False, payload=b"half").encode())
            await lose.wait()
        else:
            visit.writer.write(Frame(opcode=1, fin=False, payload=b"an").encode())
            visit.writer.write(Frame(opcode=0, payload=b"other").encode())
            await visit.until_closed()

    lose = asyncio.Event()
    async with (
        RawServer(handle) as server,
        WebSocketClient.connect(server.url, reconnect=QUICK, close_timeout=0.1) as client,
    ):
        parts = client.recv_stream()
        assert await begin(client, parts) == "half"
        rest = asyncio.ensure_future(anext(parts))
        await asyncio.sleep(0)
        lose.set()
        with pytest.raises(ConnectionClosed):
            await rest
        parts = client.recv_stream()
        assert [await begin(client, parts), *[part async for part in parts]] == ["an", "other"]


async def test_a_stream_that_was_given_up_does_not_swallow_the_next_message() -> None:
    async def handle(visit: Visit) -> None:
        await visit.accept()
        if server.visits == 1:
            await visit.frame()
            visit.writer.write(Frame(opcode=2, fin=False, payload=b"half").encode())
            await lose.wait()
        else:
            visit.writer.write(Frame(opcode=2, payload=b"whole").encode())
            await visit.until_closed()

    lose = asyncio.Event()
    async with (
        RawServer(handle) as server,
        WebSocketClient.connect(server.url, reconnect=QUICK, close_timeout=0.1) as client,
    ):
        async with contextlib.aclosing(client.recv_stream()) as parts:
            assert await begin(client, parts) == b"half"
        lose.set()
        assert await client.recv() == Message(b"whole")
