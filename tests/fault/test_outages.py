"""Servers that die, restart, shut down and fail, while counted messages are on their way."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from fabric._handshake.rules import accept_key
from fabric.client import WebSocketClient
from fabric.config import BackpressureConfig, CompressionConfig, ReconnectConfig
from fabric.error import BufferFull, ConnectionClosed, ReconnectTimeout
from fabric.server import ConnectedClient
from fabric_ext.protocol import State
from fault.counted import account, number_of, numbered
from fault.relay import HARD, Relay
from fault.service import Service
from support.frames import Wire, decode
from support.serving import serve, until

QUICK = ReconnectConfig(initial_delay=0.01, max_delay=0.05)
PLAIN: dict[str, Any] = {"compression": None, "reconnect": QUICK}


class Sender:
    """Sends numbered messages; keeps what was accepted, and what was when a connection was found lost."""

    def __init__(self) -> None:
        self.accepted: list[int] = []
        self.refused = 0
        self.before_loss: list[int] = []
        self.away = asyncio.Event()
        self.back = asyncio.Event()

    def on_disconnect(self, client: WebSocketClient, error: Exception) -> None:
        self.before_loss.append(len(self.accepted))
        self.away.set()

    def on_reconnect(self, client: WebSocketClient) -> None:
        self.back.set()

    @property
    def callbacks(self) -> dict[str, Any]:
        return {"on_disconnect": self.on_disconnect, "on_reconnect": self.on_reconnect}

    async def send(self, client: WebSocketClient, count: int, size: int = 0) -> None:
        for _ in range(count):
            number = len(self.accepted)
            try:
                await client.send(numbered(number, size))
            except BufferFull:
                self.refused += 1
            else:
                self.accepted.append(number)


async def test_a_server_killed_in_mid_message_and_restarted(tmp_path: Path, rng: random.Random) -> None:
    sender = Sender()
    async with Service(tmp_path) as service, Relay(service.port) as relay:
        relay.to_server.piece = lambda: rng.randrange(1, 3000)
        async with WebSocketClient.connect(relay.url, **PLAIN, **sender.callbacks) as client:
            await sender.send(client, 200, 100)
            for number in range(200):
                assert number_of(await client.recv()) == number
            # The next message is 200 KB, of which half arrives.
            relay.to_server.go_silent(after=100_000)
            reached = relay.to_server.passed + 100_000
            await sender.send(client, 1, 200_000)
            await relay.to_server.reached(reached)
            await sender.send(client, 50, 10_000)
            await service.kill()
            await relay.reset()
            relay.to_server.resume()
            await sender.away.wait()
            assert client.state.name == "RECONNECTING"
            await sender.send(client, 100, 100)
            await service.start()
            await sender.back.wait()
            await sender.send(client, 100, 100)
            await client.ping()
            await until(lambda: sum(map(len, service.arrived)) >= 200 + 200)
            gone = account(sender.accepted, service.arrived, client.undelivered)
        assert set(gone) <= set(range(200, sender.before_loss[0]))
        assert 200 in gone  # the half one
        assert service.arrived[-1][-200:] == list(range(251, 451))
        assert sender.refused == 0
        assert service.errors == []


async def test_a_server_killed_for_good_leaves_nothing_unreported(tmp_path: Path) -> None:
    sender = Sender()
    limits = BackpressureConfig(max_buffer_size=50)
    config = {**PLAIN, "reconnect": QUICK.with_max_attempts(8)}
    async with Service(tmp_path) as service:
        client = await WebSocketClient.connect(service.url, backpressure=limits, **config, **sender.callbacks)
        await sender.send(client, 20)
        await until(lambda: sum(map(len, service.arrived)) == 20)
        await service.kill()
        await sender.away.wait()
        await sender.send(client, 80)
        with pytest.raises(ReconnectTimeout) as info:
            await client.wait_closed()
        assert info.value.attempts == 8
        assert len(sender.accepted) == 20 + 50
        assert sender.refused == 30
        assert account(sender.accepted, service.arrived, info.value.undelivered) == []
        assert len(info.value.undelivered) == 50
        await client.close()


@pytest.mark.deadline(180)
async def test_kills_at_random_moments(tmp_path: Path, rng: random.Random) -> None:
    sender = Sender()
    async with Service(tmp_path) as service:
        async with WebSocketClient.connect(service.url, **PLAIN, **sender.callbacks) as client:
            done = asyncio.Event()

            async def keep_sending() -> None:
                while not done.is_set():
                    await sender.send(client, rng.randrange(1, 20), rng.choice((10, 1000, 50_000)))
                    await asyncio.sleep(rng.random() * 0.005)

            async def take() -> None:
                async for _ in client:
                    pass

            tasks = [asyncio.create_task(keep_sending()), asyncio.create_task(take())]
            for _ in range(4):
                count = sum(map(len, service.arrived))
                await until(lambda count=count: sum(map(len, service.arrived)) > count + 30)
                sender.away.clear()
                await service.kill()
                await sender.away.wait()
                sender.back.clear()
                await service.start()
                await sender.back.wait()
            done.set()
            await tasks[0]
            last = sender.accepted[-1]
            await until(lambda: service.arrived[-1][-1:] == [last])
            gone = account(sender.accepted, service.arrived)
            assert service.connections == 5
            print(f"{len(sender.accepted)} accepted, {len(gone)} were on their way when a server was killed")
        await tasks[1]
    assert service.errors == []


class Accepted:
    """The server's end of one connection, as a socket of the test's own: what it does happens at once."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()

    @classmethod
    async def by(cls, listener: socket.socket) -> Self:
        loop = asyncio.get_running_loop()
        sock, _ = await loop.sock_accept(listener)
        sock.setblocking(False)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await loop.sock_recv(sock, 4096)
        key = next(line for line in head.decode().split("\r\n") if line.lower().startswith("sec-websocket-key:"))
        lines = [
            "HTTP/1.1 101 Switching Protocols",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Accept: {accept_key(key.partition(': ')[2])}",
        ]
        if b"permessage-deflate" in head:
            lines.append("Sec-WebSocket-Extensions: permessage-deflate")
        await loop.sock_sendall(sock, "\r\n".join([*lines, "", ""]).encode())
        return cls(sock)

    async def frame(self) -> Wire:
        while (found := decode(self._buffer)) is None:
            self._buffer += await asyncio.get_running_loop().sock_recv(self._sock, 65536)
        del self._buffer[: found[1]]
        return found[0]

    async def message(self) -> bytes:
        """The payload of one message, of one frame or several."""
        parts = [frame := await self.frame()]
        while not frame.fin:
            parts.append(frame := await self.frame())
        return b"".join(part.payload for part in parts)

    def reset(self) -> None:
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, HARD)
        self._sock.close()


@contextlib.asynccontextmanager
async def direct(**options: Any) -> AsyncIterator[tuple[socket.socket, WebSocketClient, Accepted]]:
    """A listener, a client, and the server's end of its first connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}/"
        connecting = asyncio.create_task(WebSocketClient.connect(url, **(PLAIN | options)))
        first = await Accepted.by(listener)
        client = await connecting
        try:
            yield listener, client, first
        finally:
            await client.close()


async def test_what_a_failed_write_has_not_taken_waits_for_the_next_connection() -> None:
    """The loss is found by a write, before anything could be read: the kernel took nothing of it."""
    async with direct() as (listener, client, first):
        first.reset()
        for number in range(100):
            client.send_nowait(numbered(number))
        assert client.backpressure.messages == 100
        assert client.metrics.messages_sent == 0
        second = await Accepted.by(listener)
        assert [number_of((await second.frame()).payload.decode()) for _ in range(100)] == list(range(100))
        second.reset()
        for number in range(100, 110):
            client.send_nowait(numbered(number))
        await client.close()
        assert [number_of(message) for message in client.undelivered] == list(range(100, 110))
        assert client.metrics.messages_sent == 100


@pytest.mark.parametrize("fragment_size", [None, 10])
async def test_what_is_gathered_when_the_connection_is_lost_waits_for_the_next(fragment_size: int | None) -> None:
    async with direct(fragment_size=fragment_size) as (listener, client, first):
        await client.send("written")
        with client.cork():  # 64 KB at a time
            for number in range(50):
                await client.send(numbered(number, 25))
            await client.send(bytearray(b"mutable"))
            await client.send(iter([b"in ", b"parts"]))
            first.reset()
            await client.send(b"large" * 20_000)
        second = await Accepted.by(listener)
        arrived = [await second.message() for _ in range(53)]
        assert [number_of(payload.decode()) for payload in arrived[:50]] == list(range(50))
        assert arrived[50:] == [b"mutable", b"in parts", b"large" * 20_000]
        second.reset()


async def test_what_is_gathered_compressed_is_taken_back_as_it_was() -> None:
    async with direct(compression=CompressionConfig(threshold=20)) as (_, client, first):
        assert client.extensions
        await client.send("written")
        sent: list[str | bytes] = []
        with client.cork():
            for number in range(20):
                sent += [numbered(number, 40), numbered(number, 40).encode(), "short", b"a secret that stays plain" * 2]
                for message in sent[-4:]:
                    await client.send(message, compress=None if message != sent[-1] else False)
            await client.send(bytearray(b"mutable" * 10))
            await client.send(iter(["in ", "parts" * 10]), compress=True)
            first.reset()
        await client.close()
        taken = [message.as_text() if message.is_text else message.payload for message in client.undelivered]
        assert taken == [*sent, b"mutable" * 10, "in " + "parts" * 10]


async def test_a_message_that_left_in_part_is_not_sent_again() -> None:
    async with direct(fragment_size=40_000) as (listener, client, first):
        await client.send("written")
        await client.send("a" * 100_000)  # its first two frames fill the buffer and leave
        first.reset()
        await client.send("b")
        second = await Accepted.by(listener)
        assert await second.message() == b"b"
        second.reset()


async def test_who_waits_for_room_when_the_connection_is_lost_is_not_overtaken() -> None:
    async with direct(backpressure=BackpressureConfig(max_buffer_size=10)) as (listener, client, first):
        first.reset()
        for number in range(8):
            client.send_nowait(numbered(number))
        older = asyncio.create_task(client.send(numbered(8)))
        await asyncio.sleep(0)
        assert client.backpressure.waiting == 1
        await until(lambda: client.state is State.RECONNECTING)
        await client.send(numbered(9))
        await older
        with pytest.raises(BufferFull):
            await client.send(numbered(10))
        assert client.metrics.send_errors == 1
        second = await Accepted.by(listener)
        assert [number_of((await second.frame()).payload.decode()) for _ in range(10)] == list(range(10))
        second.reset()


async def test_resets_and_half_closes_in_mid_stream(stack: contextlib.AsyncExitStack, rng: random.Random) -> None:
    arrived: list[list[int]] = []

    async def handle(client: ConnectedClient) -> None:
        arrived.append(mine := [])
        async for message in client:
            mine.append(number_of(message))

    sender = Sender()
    server = await serve(stack, handle)
    async with Relay(server.port) as relay:
        relay.to_server.piece = lambda: rng.randrange(1, 2000)
        async with WebSocketClient.connect(relay.url, **PLAIN, **sender.callbacks) as client:
            for fault in (relay.reset, relay.end_to_client, relay.end_to_server, relay.reset):
                await sender.send(client, 50, 500)
                await relay.to_server.reached(relay.to_server.passed + 5000)
                sender.away.clear()
                sender.back.clear()
                result = fault()
                if result is not None:
                    await result
                await sender.away.wait()
                await sender.back.wait()
            await sender.send(client, 50, 500)
            await until(lambda: arrived[-1][-1:] == [249])
            account(sender.accepted, arrived)
            assert len(arrived) == 5


async def test_shutdown_with_traffic_in_flight(stack: contextlib.AsyncExitStack) -> None:
    """Each side keeps sending when the server stops: what was received is a beginning of what was sent, no gap."""
    received: dict[ConnectedClient, list[int]] = {}
    sent: dict[ConnectedClient, int] = {}

    async def handle(client: ConnectedClient) -> None:
        received[client] = mine = []
        sent[client] = 0
        talk = asyncio.create_task(chatter(client))
        try:
            async for message in client:
                mine.append(number_of(message))
        finally:
            await talk

    async def chatter(client: ConnectedClient) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await client.send(numbered(sent[client], 1000))
                sent[client] += 1
                await asyncio.sleep(0)

    server = await serve(stack, handle)
    clients, accepted, got = [], [], []

    async def talk(index: int) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await clients[index].send(numbered(accepted[index], 1000))
                accepted[index] += 1
                await asyncio.sleep(0)

    async def listen(index: int) -> None:
        async for message in clients[index]:
            got[index].append(number_of(message))

    for _ in range(20):
        url = f"ws://127.0.0.1:{server.port}/"
        clients.append(await WebSocketClient.connect(url, compression=None, auto_reconnect=False))
        accepted.append(0)
        got.append([])
    tasks = [asyncio.create_task(each(index)) for index in range(20) for each in (talk, listen)]
    await until(lambda: min(map(len, got)) > 20 and min(map(len, received.values())) > 20)
    await server.shutdown(timeout=5)
    assert server.connection_count == 0
    await asyncio.gather(*tasks)
    assert {client.close_code for client in clients} == {1001}
    assert all(client.close_reason == "server shutdown" for client in clients)
    for numbers in (*got, *received.values()):
        assert numbers == list(range(len(numbers)))
    # All that the server accepted to send came before its close frame.
    assert Counter(map(len, got)) == Counter(sent.values())
    assert all(len(mine) <= most for mine, most in zip(received.values(), accepted, strict=True))


async def test_handlers_that_raise_close_their_own_connection_only(
    stack: contextlib.AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    async def handle(client: ConnectedClient) -> None:
        async for message in client:
            if number_of(message) == 13:
                raise LookupError("thirteen")
            await client.send(message)

    server = await serve(stack, handle)
    url = f"ws://127.0.0.1:{server.port}/"
    options: dict[str, Any] = {"compression": None, "auto_reconnect": False}
    async with WebSocketClient.connect(url, **options) as steady:
        for attempt in range(5):
            client = await WebSocketClient.connect(url, **options)
            for number in range(13):
                await client.send(numbered(number))
                assert number_of(await client.recv()) == number
            await client.send(numbered(13))
            with pytest.raises(ConnectionClosed) as info:
                await client.recv()
            assert (info.value.code, info.value.reason) == (1011, "internal error")
            await steady.send(numbered(attempt))
            assert number_of(await steady.recv()) == attempt
            await client.close()
    await until(lambda: not server.connection_count)
    raised = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(raised) == 5
    assert all(record.exc_info and isinstance(record.exc_info[1], LookupError) for record in raised)


async def test_a_callback_that_raises_closes_its_own_connection_only(
    stack: contextlib.AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    def on_message(client: ConnectedClient, message: Any) -> None:
        if number_of(message) == 13:
            raise LookupError("thirteen")
        client.send_nowait(message)

    server = await serve(stack, on_message=on_message)
    url = f"ws://127.0.0.1:{server.port}/"
    async with WebSocketClient.connect(url, compression=None) as steady:
        client = await WebSocketClient.connect(url, compression=None, auto_reconnect=False)
        for number in range(10, 20):
            await client.send(numbered(number))
        assert [number_of(await client.recv()) for _ in range(3)] == [10, 11, 12]
        with pytest.raises(ConnectionClosed) as info:
            await client.recv()
        assert info.value.code == 1011
        await steady.send(numbered(1))
        assert number_of(await steady.recv()) == 1
        await client.close()
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1


@pytest.fixture
def attempts() -> Iterator[list[tuple[int, float]]]:
    """Each attempt to reconnect that clients announce: which one it is, and its moment."""
    found: list[tuple[int, float]] = []

    def note(record: logging.LogRecord) -> bool:
        if record.msg.startswith("attempt ") and isinstance(record.args, tuple):
            number, _, delay = record.args
            found.append((number, record.created + delay))  # type: ignore[arg-type, operator]
        return False  # thousands: nobody else wants to see them

    client_logger = logging.getLogger("fabric.client")
    level = client_logger.level
    client_logger.setLevel(logging.INFO)
    client_logger.addFilter(note)
    yield found
    client_logger.removeFilter(note)
    client_logger.setLevel(level)


@pytest.mark.deadline(180)
@pytest.mark.parametrize("loop_factory", ["uvloop"], indirect=True)
async def test_a_thousand_clients_come_back_spread_out(tmp_path: Path, attempts: list[tuple[int, float]]) -> None:
    """The moments of their attempts, as each client chose them, do not pile up; each comes back exactly once."""
    count = 1000
    config = ReconnectConfig(initial_delay=0.5, max_delay=4, backoff_multiplier=1.5, jitter=0.5)
    async with Service(tmp_path, ping_interval=None) as service:
        clients: list[WebSocketClient] = []
        async with contextlib.AsyncExitStack() as ended:
            for _ in range(0, count, 50):
                options = {"compression": None, "reconnect": config, "connection_timeout": 20}
                made = [WebSocketClient.connect(service.url, **options) for _ in range(50)]
                clients += await asyncio.gather(*made)
            for client in clients:
                ended.push_async_callback(client.close)
            await service.kill()
            await until(lambda: all(client.state.name == "RECONNECTING" for client in clients))
            for client in clients:
                await client.send(numbered(7))
            await service.start()
            async with asyncio.timeout(30):
                for client in clients:
                    assert number_of(await client.recv()) == 7
            assert all(client.metrics.reconnections == 1 for client in clients)
            assert service.connections == 2 * count
            assert Counter(map(tuple, service.arrived[count:])) == {(7,): count}
            for client in clients:
                client._begin_closing(1000, "")  # all at once, rather than one after the other
    first = [moment for number, moment in attempts if number == 1]
    assert len(first) == count
    start = min(first)
    bins = Counter(int((moment - start) / 0.025) for moment in first)
    print(f"first attempts of {count} clients, 25 ms each:")
    for number in range(max(bins) + 1):
        print(f"{number * 25:5d} ms {bins[number]:4d} {'#' * (bins[number] // 4)}")
    print(f"{len(attempts)} attempts in all")
    # Even over the half of 0.5 s that is random there would be 100 in each.
    assert len(bins) >= 9
    assert max(bins.values()) < 250
    assert len({round(moment, 3) for moment in first}) > 150
