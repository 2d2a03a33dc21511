"""Messages made to cost memory: what closes them, and what the process grows by meanwhile.

`max_message_size` bounds a message while it arrives and inflates; the process may grow by twice as much: once
for what has come in, once for what it is turned into.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import zlib
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from typing import Any

import pytest

from support.frames import BINARY, CONTINUATION, TEXT, encode
from support.measured import measured
from support.raw_peer import RawPeer

MB = 1 << 20
LIMIT = 8 * MB
SLACK = MB  # what the first connection of a process costs, whatever it receives: code, codecs, buffers; 3.14 takes 0.7
# A machine that stalls the peer for seconds must not look like a peer that takes nothing.
OPTIONS: dict[str, Any] = {
    "max_message_size": LIMIT,
    "ping_interval": None,
    "close_timeout": 60,
    "handshake_timeout": 60,
}
DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate"
RSV1 = 4
TAIL = b"\x00\x00\xff\xff"  # RFC 7692 §7.2.1: ends a deflated message, and is not sent


def zeros(size: int) -> bytes:
    """`size` bytes of zeros, compressed. No megabyte refers to another: so one is made and repeated."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    one = compressor.compress(bytes(MB)) + compressor.flush(zlib.Z_FULL_FLUSH)
    return (one * (size // MB)).removesuffix(TAIL)


def fragments(payload: bytes, count: int, *, rsv: int = 0) -> Iterator[bytes]:
    """The frames of one binary message, `count` of them, as even as can be."""
    size = -(-len(payload) // count)
    for i in range(count):
        yield encode(
            CONTINUATION if i else BINARY,
            payload[i * size : (i + 1) * size],
            fin=i == count - 1,
            rsv=0 if i else rsv,
        )


def endless(first: bytes, more: bytes) -> Iterator[bytes]:
    return chain([first], repeat(more * 1000))


EMPTY = encode(CONTINUATION, fin=False)
ONE_BYTE = encode(CONTINUATION, b"!", fin=False)
FULL = encode(BINARY, bytes(LIMIT), fin=False)
FULL_DEFLATED = encode(BINARY, zeros(LIMIT) + TAIL, fin=False, rsv=RSV1)

BOMBS: dict[str, tuple[Callable[[], Iterator[bytes]], int]] = {
    "1 GB in a frame": (lambda: fragments(zeros(1024 * MB), 1, rsv=RSV1), 1009),
    "1 GB in 100,000 fragments": (lambda: fragments(zeros(1024 * MB), 100_000, rsv=RSV1), 1009),
    "a frame over the limit": (lambda: fragments(bytes(LIMIT + 1), 1), 1009),
    "a length of 2^62": (lambda: iter([encode(BINARY, bytes(100), length=1 << 62)]), 1009),
    "fragments over the limit": (lambda: fragments(bytes(4 * LIMIT), 1000), 1009),
    "a full fragment and a byte": (lambda: iter([FULL, ONE_BYTE]), 1009),
    "a full deflated fragment and a byte": (lambda: iter([FULL_DEFLATED, *deflated_byte()]), 1009),
    "a full fragment and nothing for ever": (lambda: endless(FULL, EMPTY), 1008),
    "nothing for ever": (lambda: endless(encode(BINARY, fin=False), EMPTY), 1008),
    "nothing for ever, as text": (lambda: endless(encode(TEXT, fin=False), EMPTY), 1008),
    "deflated nothing for ever": (lambda: endless(encode(BINARY, fin=False, rsv=RSV1), EMPTY), 1008),
    "a byte at a time for ever": (lambda: endless(encode(BINARY, fin=False), ONE_BYTE), 1008),
}


def noise(size: int) -> bytes:
    """`size` bytes that do not compress, deflated."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = compressor.compress(random.Random(size).randbytes(size)) + compressor.flush(zlib.Z_SYNC_FLUSH)
    assert len(packed) > size
    return packed.removesuffix(b"\x00\x00\xff\xff")


def deflated_byte() -> Iterator[bytes]:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    yield encode(CONTINUATION, compressor.compress(b"!") + compressor.flush(zlib.Z_SYNC_FLUSH), fin=False)


async def throw(peer: RawPeer, frames: Iterator[bytes]) -> tuple[int | None, str]:
    """Send `frames` until the peer closes; its code and reason."""
    closing = asyncio.create_task(peer.close_seen())
    with contextlib.suppress(ConnectionError):
        for frame in frames:
            peer.send(frame)
            await peer.writer.drain()
            await asyncio.sleep(0)  # drain() may return at once, and the close frame is to be read
            if closing.done():
                break
    return await closing


@pytest.mark.deadline(240)
@pytest.mark.parametrize("loop_factory", ["uvloop"], indirect=True)
@pytest.mark.parametrize("name", BOMBS)
async def test_a_bomb_is_closed_and_costs_twice_the_limit_at_most(name: str) -> None:
    """picows (Protocol): `max_frame_size` bounds a frame, not a message."""
    bomb, code = BOMBS[name]
    async with measured(**OPTIONS) as server:
        async with await RawPeer.open(server.port, DEFLATE) as peer:
            assert (await throw(peer, bomb()))[0] == code
        told = await server.ended()
    assert (told["code"], told["received"]) == (code, {})
    assert told["peak"] <= 2 * LIMIT + SLACK


FITTING: dict[str, Callable[[], Iterator[bytes]]] = {
    "in a frame": lambda: fragments(bytes(LIMIT), 1),
    "in fragments": lambda: fragments(bytes(LIMIT), 1000),
    "in a full fragment and an empty one": lambda: iter([FULL, EMPTY, encode(CONTINUATION)]),
    "deflated in a frame": lambda: fragments(zeros(LIMIT), 1, rsv=RSV1),
    "deflated in fragments": lambda: fragments(zeros(LIMIT), 1000, rsv=RSV1),
}


@pytest.mark.parametrize("loop_factory", ["uvloop"], indirect=True)
@pytest.mark.parametrize("name", FITTING)
async def test_a_message_that_just_fits_is_accepted(name: str) -> None:
    async with measured(**OPTIONS) as server:
        async with await RawPeer.open(server.port, DEFLATE) as peer:
            for frame in FITTING[name]():
                peer.send(frame)
            peer.send_close()
            assert await peer.close_seen() == (1000, "")
        told = await server.ended()
    assert (told["code"], told["received"]) == (1000, {str(LIMIT): 1})
    assert told["peak"] <= 2 * LIMIT + SLACK


@pytest.mark.parametrize("loop_factory", ["uvloop"], indirect=True)
async def test_a_message_within_the_limit_is_accepted_in_a_frame_that_is_not() -> None:
    """What does not compress is larger for it; it is there twice, while zlib joins what it has inflated."""
    async with measured(**OPTIONS) as server:
        async with await RawPeer.open(server.port, DEFLATE) as peer:
            peer.send(*fragments(noise(LIMIT), 1, rsv=RSV1))
            peer.send_close()
            assert await peer.close_seen() == (1000, "")
        told = await server.ended()
    assert (told["code"], told["received"]) == (1000, {str(LIMIT): 1})
    assert told["peak"] <= 3 * LIMIT + SLACK


@pytest.mark.parametrize("loop_factory", ["uvloop"], indirect=True)
async def test_a_frame_that_only_compression_would_allow_is_refused() -> None:
    async with measured(**OPTIONS) as server:
        async with await RawPeer.open(server.port, DEFLATE) as peer:
            assert await throw(peer, fragments(bytes(LIMIT + 1), 1)) == (1009, f"message over {LIMIT} bytes")
        assert (await server.ended())["code"] == 1009


async def measure(peer: RawPeer) -> dict[str, int]:
    peer.send_text("measure")
    told: dict[str, int] = json.loads(await peer.payload())
    return told


@pytest.mark.parametrize("loop_factory", ["uvloop"], indirect=True)
async def test_large_messages_leave_nothing_behind() -> None:
    """picows (Resources): the read buffer grows for a frame that does not fit, and never shrinks."""
    async with measured(**OPTIONS) as server, contextlib.AsyncExitStack() as peers:
        first = await peers.enter_async_context(await RawPeer.open(server.port))
        for _ in range(50):
            peer = await peers.enter_async_context(await RawPeer.open(server.port))
            peer.send(*fragments(bytes(LIMIT), 1))
            await measure(peer)
        assert (await measure(first))["kept"] <= SLACK


@pytest.mark.parametrize("loop_factory", ["uvloop"], indirect=True)
async def test_many_small_frames_do_not_enlarge_the_read_buffer() -> None:
    """picows (Resources): the read buffer doubles whenever a read fills it, be it with what waited during a pause."""
    async with (
        measured(**OPTIONS) as server,
        await RawPeer.open(server.port) as peer,
    ):
        for _ in range(3):
            peer.send_text("busy")
            peer.send(encode(BINARY, bytes(100)) * 100_000)
        assert (await measure(peer))["kept"] <= SLACK
