"""Flow in: what a connection holds of a fast or malicious peer is bounded, and nothing is lost by that."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import tracemalloc
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import trustme

from fabric.config import BackpressureConfig, CompressionConfig
from fabric.error import ConnectionClosed
from fabric.server import ConnectedClient
from fabric_ext.session_user import Part
from support.frames import BINARY, CONTINUATION, PING, PONG, TEXT, Wire, encode
from support.raw_peer import RawPeer, request
from support.serving import Held, Recorder, serve, turns, until

Stack = contextlib.AsyncExitStack


@contextlib.contextmanager
def memory(limit: int) -> Iterator[None]:
    """What is allocated in here, by both ends, stays below `limit` bytes at any moment."""
    tracemalloc.start()
    try:
        yield
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < limit, f"{most} bytes"


async def push(peer: RawPeer, data: bytes, total: int, patience: float = 0.2) -> int:
    """Send `data` again and again, up to `total` bytes, while the server goes on reading; bytes sent."""
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < total:
            peer.send(data)
            sent += len(data)
            async with asyncio.timeout(patience):
                await peer.writer.drain()
    return sent


# --- the receive queue -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_look_ahead")
@pytest.mark.parametrize("size", [0, 100, 20_000])
async def test_a_full_queue_stops_reading_and_loses_nothing(stack: Stack, size: int) -> None:
    held = Held()
    server = await serve(stack, held, buffer_size=10)
    async with await RawPeer.open(server.port) as peer:
        client = await held.next()
        payloads = [b"%06d" % number + b"x" * size for number in range(40_000_000 // (size + 100) % 40_000 + 400)]

        async def feed() -> None:
            for at in range(0, len(payloads), 50):
                peer.send(*(encode(BINARY, payload) for payload in payloads[at : at + 50]))
                await peer.writer.drain()

        feeding = asyncio.create_task(feed())
        await until(lambda: client.is_reading_paused)
        await turns()
        held_back = client.queued
        assert held_back >= 10
        assert held_back * (size + 12) < 300_000, "more than one read beyond the limit"
        for payload in payloads:
            message = await client.recv()
            assert message is not None
            assert message.as_bytes() == payload
        await feeding
        assert client.queued == 0
        assert not client.is_reading_paused


async def test_bytes_fill_the_queue_too(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held, backpressure=BackpressureConfig(max_buffer_bytes=200_000))
    async with await RawPeer.open(server.port) as peer:
        client = await held.next()
        feeding = asyncio.create_task(push(peer, encode(BINARY, b"x" * 50_000), 20_000_000, patience=10))
        await until(lambda: client.is_reading_paused)
        assert 4 <= client.queued <= 8
        for _ in range(400):
            assert len(await client.recv()) == 50_000  # type: ignore[arg-type]
        await feeding


@pytest.mark.parametrize("payload", [b"", b"x" * 100, b"x" * 50_000], ids=len)
async def test_memory_while_the_handler_sleeps(stack: Stack, payload: bytes) -> None:
    held = Held()
    server = await serve(stack, held, buffer_size=100, backpressure=BackpressureConfig(max_buffer_bytes=1_000_000))
    async with await RawPeer.open(server.port) as peer:
        await held.next()
        data = encode(BINARY, payload) * (1 + 50_000 // (len(payload) + 6))
        with memory(8_000_000):
            sent = await push(peer, data, 200_000_000)
        assert sent < 100_000_000, "the server has read everything"
        peer.reset()


@pytest.mark.parametrize("end", ["stays", "leaves"])
async def test_memory_while_the_handler_sleeps_and_a_peer_sends_what_inflates(stack: Stack, end: str) -> None:
    """Of one read no more is inflated than the queue takes; of a peer that has left, no more than 16 MB beyond that."""
    held = Held()
    limits = BackpressureConfig(max_buffer_bytes=1_000_000)
    packing = CompressionConfig()
    server = await serve(stack, held, compression=packing, max_message_size=8_000_000, backpressure=limits)
    async with await RawPeer.open(server.port, "Sec-WebSocket-Extensions: permessage-deflate") as peer:
        client = await held.next()
        packer = zlib.compressobj(9, zlib.DEFLATED, -12)
        bomb = (packer.compress(bytes(7_000_000)) + packer.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\0\0\xff\xff")
        assert len(bomb) < 8_000
        frames = encode(BINARY, bomb, rsv=4) * 10
        with memory(40_000_000 if end == "leaves" else 24_000_000):
            peer.send(frames)
            await peer.writer.drain()
            await until(lambda: client.is_reading_paused)
            await turns()
            assert client.queued == 2
            if end == "leaves":
                peer.writer.write_eof()
                await until(lambda: client.close_code or not client._is_open)
        peer.reset()
    if end == "leaves":
        await client.wait_closed()
        assert client.close_code == 1008
    held.release()


async def test_the_read_buffer_does_not_follow_the_peer(stack: Stack) -> None:
    """picows doubles its buffer whenever a read fills it."""

    async def discard(client: ConnectedClient) -> None:
        async for _ in client:
            pass

    server = await serve(stack, discard)
    async with await RawPeer.open(server.port) as peer:
        with memory(4_000_000):
            await push(peer, encode(BINARY, b"x" * 1000) * 60, 50_000_000, patience=10)


@pytest.mark.usefixtures("no_look_ahead")
async def test_pausing_and_resuming_again_and_again(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held, buffer_size=2)
    async with await RawPeer.open(server.port) as peer:
        client = await held.next()
        peer.send(*(encode(TEXT, str(number)) for number in range(500)))
        for number in range(500):
            if number % 50 == 0:
                await asyncio.sleep(0.002)
            message = await asyncio.wait_for(client.recv(), 20)
            assert message is not None
            assert message.as_text() == str(number)


@pytest.mark.usefixtures("no_look_ahead")
async def test_a_peer_that_leaves_while_reading_is_paused(stack: Stack) -> None:
    """Its end is noticed once what came before has been taken."""
    held = Held()
    server = await serve(stack, held, buffer_size=2)
    async with await RawPeer.open(server.port) as peer:
        client = await held.next()
        for number in range(10):
            peer.send_text(str(number))
            await asyncio.sleep(0.001)
        await until(lambda: client.is_reading_paused)
        peer.send_close(1000, "done")
        peer.writer.write_eof()
        got = []
        while (message := await asyncio.wait_for(client.recv(), 20)) is not None:
            got.append(int(message.as_text()))
        assert got == list(range(10))
        assert (client.close_code, client.close_reason) == (1000, "done")


@pytest.mark.usefixtures("no_look_ahead")
async def test_closing_while_reading_is_paused(stack: Stack) -> None:
    """The answer stands behind what was not read: reading goes on for it."""
    held = Held()
    server = await serve(stack, held, buffer_size=2, close_timeout=5)
    async with await RawPeer.open(server.port) as peer:
        client = await held.next()
        for number in range(100):
            peer.send_text(str(number) + "x" * 5000)
        await until(lambda: client.is_reading_paused)
        closing = asyncio.create_task(client.close(4000))
        await peer.close_seen()
        peer.send_close(4000)
        await asyncio.wait_for(closing, 20)
        assert client.close_code == 4000
        for number in range(2):
            message = await client.recv()
            assert message is not None
            assert message.as_text().startswith(str(number))


# --- pings -------------------------------------------------------------------------------------------------


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    return server, client


async def open_securely(port: int, context: ssl.SSLContext) -> RawPeer:
    peer = RawPeer(*await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost"))
    peer.send(request())
    assert (await peer.read_answer()).status == 101
    return peer


@pytest.mark.parametrize("kind", ["plain", "TLS"])
async def test_a_peer_that_pings_and_does_not_read(stack: Stack, kind: str) -> None:
    """PICOWS: 10 MB of pongs piled up. One may wait, the answer to the newest ping (RFC 6455 §5.5.3)."""
    held = Held()
    theirs, ours = contexts() if kind == "TLS" else (None, None)
    server = await serve(stack, held, ssl=theirs)
    if ours is not None:
        peer = await stack.enter_async_context(await open_securely(server.port, ours))
    else:
        peer = await stack.enter_async_context(await RawPeer.open(server.port, receive_buffer=4096))
    client = await held.next()
    peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
    block = encode(PING, b"p" * 125) * 500
    for _ in range(20):  # until the pongs fill what the system holds
        await push(peer, block, len(block) * 10)
        if client._is_blocked:
            break
    else:
        await push(peer, block, len(block) * 1000, patience=5)
    assert client._is_blocked
    with memory(3_000_000):
        await push(peer, block, 20_000_000, patience=5)
        peer.send_frame(PING, "the last")
        await peer.writer.drain()
        await asyncio.sleep(0.02)
    assert client._transport.get_write_buffer_size() < 1_000_000
    peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
    last = b""
    while last != b"the last":
        wire = await peer.frame()
        assert wire.opcode == PONG
        last = wire.payload
    client.send_nowait("still there")
    assert await peer.frame() == Wire(TEXT, b"still there")
    peer.send_close(1000)
    await peer.close_seen()


async def test_pings_are_answered_while_messages_wait(stack: Stack) -> None:
    """The pong goes before the outbox: the peer's heartbeat does not wait for megabytes."""
    held = Held()
    server = await serve(stack, held)
    async with await RawPeer.open(server.port, receive_buffer=4096) as peer:
        client = await held.next()
        sent = 0
        while client._outbox_size < 50:
            client.send_nowait(b"x" * 100_000)
            sent += 1
        peer.send_frame(PING, "now")
        before = 0
        while (await peer.frame()).opcode != PONG:
            before += 1
        assert before < sent - 40


# --- fragments ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1000])
async def test_an_endless_message(stack: Stack, size: int) -> None:
    recorder = Recorder()
    server = await serve(stack, recorder, max_message_size=1_000_000, max_fragments=5000)
    async with await RawPeer.open(server.port) as peer:
        await recorder.connected()
        with memory(6_000_000):
            peer.send_frame(TEXT, b"", fin=False)
            with contextlib.suppress(ConnectionError):
                await push(peer, encode(CONTINUATION, b"x" * size, fin=False) * 1000, 20_000_000)
            code, _ = await peer.close_seen()
        assert code == (1009 if size == 1000 else 1008)
    await recorder.ended()
    assert isinstance(recorder.error, ConnectionClosed)


# --- streams -----------------------------------------------------------------------------------------------


async def test_a_message_received_in_parts(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held)
    text = "aé日💥z"
    async with await RawPeer.open(server.port) as peer:
        client = await held.next()
        for number, byte in enumerate(text.encode()):
            peer.send_frame(CONTINUATION if number else TEXT, bytes([byte]), fin=False)
        peer.send_frame(PING, "between")
        peer.send_frame(CONTINUATION, b"")
        peer.send_text("whole")
        parts: list[Any] = [part async for part in client.recv_stream()]
        assert "".join(parts) == text
        message = await client.recv()
        assert message is not None
        assert message.as_text() == "whole"


async def test_parts_come_one_by_one(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held)
    async with await RawPeer.open(server.port) as peer:
        client = await held.next()
        stream = client.recv_stream()
        for number, opcode in enumerate((BINARY, CONTINUATION, CONTINUATION)):
            following = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            peer.send_frame(opcode, b"%d" % number, fin=number == 2)
            assert await following == b"%d" % number
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_a_slow_reader_of_a_stream_holds_its_peer_up(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held, buffer_size=4, max_message_size=100_000_000)
    async with await RawPeer.open(server.port) as peer:
        client = await held.next()
        stream = client.recv_stream()
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        peer.send_frame(BINARY, b"", fin=False)
        await first
        data = encode(CONTINUATION, b"x" * 10_000, fin=False) * 10
        with memory(4_000_000):
            sent = await push(peer, data, 60_000_000)
        assert sent < 40_000_000
        peer.reset()
        with pytest.raises(ConnectionClosed):
            while True:
                await anext(stream)


@pytest.mark.parametrize("after", ["message", "stream"])
async def test_an_abandoned_stream_is_skipped(stack: Stack, after: str) -> None:
    held = Held()
    server = await serve(stack, held)
    async with await RawPeer.open(server.port) as peer:
        client = await held.next()
        stream = client.recv_stream()
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        peer.send_frame(TEXT, "begun", fin=False)
        assert await first == "begun"
        await stream.aclose()
        if after == "stream":
            again = client.recv_stream()
            second: asyncio.Future[Any] = asyncio.ensure_future(anext(again))
        else:
            second = asyncio.ensure_future(client.recv())
        await asyncio.sleep(0)
        peer.send_frame(CONTINUATION, "given up", fin=False)
        peer.send_frame(CONTINUATION, "and skipped")
        peer.send_frame(TEXT, "next")
        got = await asyncio.wait_for(second, 20)
        assert (got if isinstance(got, str) else got.as_text()) == "next"
        peer.send_frame(TEXT, "last")
        message = await client.recv()
        assert message is not None
        assert not isinstance(message, Part)
        assert message.as_text() == "last"


async def test_a_cancelled_stream_loses_no_message(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held)
    async with await RawPeer.open(server.port) as peer:
        client: ConnectedClient = await held.next()

        async def take() -> list[Any]:
            return [part async for part in client.recv_stream()]

        task = asyncio.create_task(take())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        peer.send_frame(TEXT, "a", fin=False)
        peer.send_frame(CONTINUATION, "b")
        message = await client.recv()
        assert message is not None
        assert message.as_text() == "ab"


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([encode(TEXT, b"\xff", fin=False)], 1007),
        ([encode(TEXT, b"\xc3", fin=False), encode(CONTINUATION, b"(")], 1007),
        ([encode(TEXT, b"\xf0\x9f", fin=False), encode(CONTINUATION, b"")], 1007),
        ([encode(TEXT, b"a", fin=False), encode(TEXT, b"b")], 1002),
        ([encode(CONTINUATION, b"a")], 1002),
        ([encode(BINARY, b"a" * 600, fin=False), encode(CONTINUATION, b"b" * 401)], 1009),
    ],
)
async def test_faults_in_a_stream(stack: Stack, frames: list[bytes], code: int) -> None:
    held = Held()
    server = await serve(stack, held, max_message_size=1000)
    async with await RawPeer.open(server.port) as peer:
        client = await held.next()

        async def take() -> list[Any]:
            return [part async for part in client.recv_stream()]

        task = asyncio.create_task(take())
        await asyncio.sleep(0)
        peer.send(*frames)
        assert (await peer.close_seen())[0] == code
        peer.writer.close()
        with pytest.raises(ConnectionClosed) as caught:
            await task
        assert caught.value.code == code


async def test_too_many_parts_of_a_stream(stack: Stack) -> None:
    """The limit on fragments holds for a stream as well."""
    held = Held()
    server = await serve(stack, held, max_fragments=10)
    async with await RawPeer.open(server.port) as peer:
        client = await held.next()

        async def take() -> list[Any]:
            return [part async for part in client.recv_stream()]

        task = asyncio.create_task(take())
        await asyncio.sleep(0)
        peer.send(encode(TEXT, "a", fin=False), *[encode(CONTINUATION, b"", fin=False)] * 20)
        assert (await peer.close_seen())[0] == 1008
        peer.writer.close()
        with pytest.raises(ConnectionClosed):
            await task
