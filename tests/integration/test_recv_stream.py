"""recv_stream: a message part by part, as its frames arrive."""

from __future__ import annotations

import asyncio
import contextlib
import random
from itertools import pairwise

import pytest

from fabric.config import CompressionConfig
from fabric.error import ConnectionClosed, InvalidState, MessageTooLarge, Utf8Error
from fabric.server import ConnectedClient
from support.deflate import TAIL, Deflate
from support.frames import BINARY, CONTINUATION, PING, PONG, TEXT, Wire, encode
from support.raw_peer import RawPeer
from support.serving import Held, serve, until

Stack = contextlib.AsyncExitStack

OFFER = "Sec-WebSocket-Extensions: permessage-deflate"
RSV1 = 4


async def connect(stack: Stack, *lines: str, **options: object) -> tuple[RawPeer, ConnectedClient]:
    """A peer that speaks bytes, and the server's end of its connection."""
    held = Held()
    server = await serve(stack, held, **options)
    peer = await stack.enter_async_context(await RawPeer.open(server.port, *lines))
    return peer, await held.next()


async def stream(client: ConnectedClient) -> list[str | bytes]:
    """All parts of the next message."""
    return [part async for part in client.recv_stream()]


async def refusal(client: ConnectedClient, peer: RawPeer) -> ConnectionClosed:
    """How the connection ends that refuses what it is receiving as a stream."""
    receiving = asyncio.create_task(stream(client))
    code, _ = await peer.close_seen()
    peer.writer.close()
    with pytest.raises(ConnectionClosed) as caught:
        await receiving
    assert caught.value.code == code
    return caught.value


def send_parts(peer: RawPeer, parts: list[bytes], opcode: int = TEXT) -> None:
    """Send one message, a frame for each of `parts`."""
    for number, part in enumerate(parts):
        peer.send_frame(CONTINUATION if number else opcode, part, fin=number == len(parts) - 1)


async def test_parts_arrive_before_the_message_is_complete(stack: Stack) -> None:
    peer, client = await connect(stack)
    parts = client.recv_stream()
    peer.send_frame(BINARY, b"one", fin=False)
    assert await anext(parts) == b"one"
    peer.send_frame(CONTINUATION, b"", fin=False)
    assert await anext(parts) == b""
    peer.send_frame(CONTINUATION, b"two")
    assert await anext(parts) == b"two"
    with pytest.raises(StopAsyncIteration):
        await anext(parts)


async def test_a_message_in_one_frame_is_one_part(stack: Stack) -> None:
    peer, client = await connect(stack)
    for opcode, payload, part in [(TEXT, b"", ""), (TEXT, "😀".encode(), "😀"), (BINARY, b"\xff", b"\xff")]:
        peer.send_frame(opcode, payload)
        assert await stream(client) == [part]


async def test_a_message_that_came_before_it_was_asked_for(stack: Stack) -> None:
    peer, client = await connect(stack)
    peer.send_text("early")
    send_parts(peer, [b"in ", b"parts"])
    peer.send_frame(PING)
    await peer.frame()
    assert await stream(client) == ["early"]
    assert await stream(client) == ["in parts"]


@pytest.mark.parametrize("compressed", [False, True])
async def test_a_message_that_is_half_received(stack: Stack, compressed: bool) -> None:
    """What has come before it was asked for is the first part: it is there without the rest."""
    peer, client = await connect(stack, OFFER, compression=CompressionConfig())
    packed = [b"half \xe2", b"\x82\xac and", b" half"]
    if compressed:
        packer = Deflate()
        packed = [packer.pack(part) + TAIL for part in packed]  # so that each can be inflated by itself
    peer.send_frame(TEXT, packed[0], fin=False, rsv=RSV1 if compressed else 0)
    peer.send_frame(PING)
    await peer.frame()
    parts = client.recv_stream()
    assert await anext(parts) == "half "
    peer.send_frame(CONTINUATION, packed[1], fin=False)
    assert await anext(parts) == "€ and"
    peer.send_frame(CONTINUATION, packed[2])
    assert await anext(parts) == " half"
    with pytest.raises(StopAsyncIteration):
        await anext(parts)
    assert client.messages_received == 1
    peer.send_text("next")
    assert (await client.recv()).as_text() == "next"


async def test_a_frame_of_which_only_the_header_has_come(stack: Stack) -> None:
    peer, client = await connect(stack)
    frame = encode(BINARY, b"payload")
    peer.send(encode(PING), frame[:6])
    await peer.frame()
    parts = client.recv_stream()
    receiving = asyncio.ensure_future(anext(parts))
    await asyncio.sleep(0)
    peer.send(frame[6:])
    assert await receiving == b"payload"
    with pytest.raises(StopAsyncIteration):
        await anext(parts)


async def test_a_large_frame_that_is_half_received_is_not_joined(stack: Stack) -> None:
    peer, client = await connect(stack)
    frame = encode(BINARY, bytes(4_000_000))
    peer.send(encode(PING), frame[:2_000_000])
    await peer.frame()
    await until(lambda: not client.is_at_rest)
    peer.send(frame[2_000_000:])
    received = await stream(client)
    assert sum(map(len, received)) == 4_000_000
    assert len(received) > 1


async def test_utf8_may_be_cut_anywhere(stack: Stack, rng: random.Random) -> None:
    peer, client = await connect(stack)
    text = "".join(rng.choice("aé€😀\U0010ffff") for _ in range(300))
    data = text.encode()
    for size in (1, 2, 3, 5, 7, 100):
        send_parts(peer, [data[at : at + size] for at in range(0, len(data), size)])
        received = await stream(client)
        assert all(isinstance(part, str) for part in received)
        assert "".join(map(str, received)) == text


@pytest.mark.parametrize("parts", [[b"ok", b"\xff"], [b"\xe2\x82", b"a"], [b"\xf0\x9f", b""], [b"\xc3"]])
async def test_invalid_utf8_fails_at_its_part(stack: Stack, parts: list[bytes]) -> None:
    peer, client = await connect(stack)
    send_parts(peer, parts)
    error = await refusal(client, peer)
    assert error.code == 1007
    assert isinstance(error.__cause__, Utf8Error)


async def test_compressed_parts(stack: Stack, rng: random.Random) -> None:
    peer, client = await connect(stack, OFFER, compression=CompressionConfig())
    packer = Deflate(12)
    for _ in range(5):
        text = "".join(rng.choice("aé€😀") for _ in range(5000))
        packed = packer.pack(text.encode())
        cuts = [0, *sorted(rng.randrange(len(packed)) for _ in range(6)), len(packed)]
        for number, (start, end) in enumerate(pairwise(cuts)):
            peer.send_frame(
                CONTINUATION if number else TEXT,
                packed[start:end],
                fin=number == 6,
                rsv=0 if number else RSV1,
            )
        assert "".join(map(str, await stream(client))) == text


@pytest.mark.parametrize("compressed", [False, True])
async def test_the_limit_holds_for_the_whole(stack: Stack, compressed: bool) -> None:
    limit = 100_000
    peer, client = await connect(
        stack, *([OFFER] if compressed else []), compression=CompressionConfig(), max_message_size=limit
    )
    for size, closes in [(limit, False), (limit + 1, True)]:
        data = bytes(size)
        packed = Deflate(12).pack(data) if compressed else data
        half = len(packed) // 2
        peer.send_frame(BINARY, packed[:half], fin=False, rsv=RSV1 if compressed else 0)
        peer.send_frame(CONTINUATION, packed[half:])
        if closes:
            error = await refusal(client, peer)
            assert error.code == 1009
            assert isinstance(error.__cause__, MessageTooLarge)
        else:
            assert sum(map(len, await stream(client))) == limit


async def test_control_frames_between_parts_are_answered_at_once(stack: Stack) -> None:
    peer, client = await connect(stack)
    parts = client.recv_stream()
    for number, part in enumerate(["one", "two", "three"]):
        peer.send_frame(CONTINUATION if number else TEXT, part, fin=False)
        assert await anext(parts) == part
        peer.send_frame(PING, part)
        assert await peer.frame() == Wire(PONG, part.encode())
        pinging = asyncio.create_task(client.ping(b"from the server"))
        assert await peer.frame() == Wire(PING, b"from the server")
        peer.send_frame(PONG, b"from the server")
        assert await pinging >= 0
    peer.send_frame(CONTINUATION)
    assert await anext(parts) == ""
    with pytest.raises(StopAsyncIteration):
        await anext(parts)


async def test_the_connection_ends_inside_a_message(stack: Stack) -> None:
    peer, client = await connect(stack)
    parts = client.recv_stream()
    peer.send_frame(TEXT, "half", fin=False)
    assert await anext(parts) == "half"
    peer.send_close(1000)
    with pytest.raises(ConnectionClosed):
        await anext(parts)


async def test_nothing_follows_a_normal_close(stack: Stack) -> None:
    peer, client = await connect(stack)
    peer.send_close(1000)
    assert await stream(client) == []


# A stream that is not read to its end


async def receives(client: ConnectedClient, peer: RawPeer, text: str) -> None:
    peer.send_text(text)
    message = await client.recv()
    assert message is not None
    assert message.as_text() == text


async def test_a_stream_left_before_its_rest_arrives(stack: Stack) -> None:
    peer, client = await connect(stack)
    peer.send_frame(TEXT, "first", fin=False)
    async for part in client.recv_stream():
        assert part == "first"
        break
    peer.send_frame(CONTINUATION, "second", fin=False)
    peer.send_frame(CONTINUATION, "third")
    await receives(client, peer, "another message")


async def test_a_stream_left_while_its_rest_is_queued(stack: Stack) -> None:
    peer, client = await connect(stack)
    for final in (True, False):
        parts = client.recv_stream()
        receiving = asyncio.ensure_future(anext(parts))
        await asyncio.sleep(0)
        peer.send(
            encode(TEXT, "first", fin=False),
            encode(CONTINUATION, "second", fin=False),
            encode(CONTINUATION, "third", fin=final),
            *[encode(TEXT, "queued")] * final,
            encode(PING),
        )
        assert (await peer.frame()).opcode == PONG
        assert await receiving == "first"
        del parts, receiving
        if final:
            message = await client.recv()
            assert message is not None
            assert message.as_text() == "queued"
        else:
            peer.send_frame(CONTINUATION, "fourth")
        await receives(client, peer, "another message")


async def test_a_stream_left_for_another(stack: Stack) -> None:
    peer, client = await connect(stack)
    for _ in range(3):
        peer.send_frame(TEXT, "first", fin=False)
        async for part in client.recv_stream():
            assert part == "first"
            break
        peer.send_frame(CONTINUATION, "second")
        send_parts(peer, [b"an", b"other"])
        assert await stream(client) == ["an", "other"]
    await receives(client, peer, "a whole one")


async def test_a_stream_goes_no_further_once_something_else_was_received(stack: Stack) -> None:
    peer, client = await connect(stack)
    parts = client.recv_stream()
    peer.send_frame(TEXT, "first", fin=False)
    assert await anext(parts) == "first"
    peer.send(encode(CONTINUATION, "second", fin=False), encode(CONTINUATION, "third"))
    await receives(client, peer, "another message")
    with pytest.raises(InvalidState):
        await anext(parts)
    await receives(client, peer, "and another")


async def test_only_one_task_receives(stack: Stack) -> None:
    peer, client = await connect(stack)
    receiving = asyncio.create_task(stream(client))
    await asyncio.sleep(0)
    with pytest.raises(InvalidState):
        await client.recv()
    send_parts(peer, [b"one", b"two"])
    assert await receiving == ["one", "two"]


async def test_a_stream_that_is_refused_changes_nothing_for_the_task_that_receives(stack: Stack) -> None:
    peer, client = await connect(stack)
    receiving = asyncio.create_task(client.recv())
    await asyncio.sleep(0)
    with pytest.raises(InvalidState):
        await stream(client)
    peer.send_text("whole")
    assert await receiving == "whole"


async def test_a_stream_may_follow_a_wait_that_was_cancelled_and_has_not_run_since(stack: Stack) -> None:
    peer, client = await connect(stack)
    receiving = asyncio.create_task(client.recv())
    await asyncio.sleep(0)
    receiving.cancel()
    parts = client.recv_stream()
    streaming = asyncio.ensure_future(anext(parts))
    with pytest.raises(asyncio.CancelledError):
        await receiving
    peer.send_text("x")
    assert await streaming == "x"


async def test_a_cancelled_wait_loses_no_part(stack: Stack) -> None:
    peer, client = await connect(stack)
    for _ in range(2):
        parts = client.recv_stream()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await anext(parts)
        await parts.aclose()
    send_parts(peer, [b"one", b"two"])
    assert await stream(client) == ["one", "two"]


async def test_a_stream_holds_no_more_than_the_queue_may(stack: Stack) -> None:
    peer, client = await connect(stack, max_message_size=100 << 20, buffer_size=10)
    parts = client.recv_stream()
    receiving = asyncio.ensure_future(anext(parts))
    await asyncio.sleep(0)
    block = bytes(10_000)
    peer.send_frame(BINARY, block, fin=False)
    for _ in range(2000):
        peer.send_frame(CONTINUATION, block, fin=False)
    peer.send_frame(CONTINUATION)
    await receiving
    await until(lambda: client.is_reading_paused)
    assert sum([len(part) async for part in parts]) == 2000 * len(block)
