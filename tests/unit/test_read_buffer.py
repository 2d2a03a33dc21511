"""fabric_ext.read_buffer: one block for all connections of a loop, as large as reads make use of."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import itertools
import random
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from fabric_ext.connection import Connection
from fabric_ext.counters import Counters
from support.fake_transport import FakeTransport
from support.frames import BINARY, CONTINUATION, TEXT, encode

SMALLEST = 64 * 1024
LARGEST = 128 * 1024
QUIET = 256


def connect(on_message: Callable[[Any, Any], Any] | None = None) -> tuple[Connection, FakeTransport]:
    connection = Connection(
        asyncio.get_running_loop(), Counters(), queue_limit=10_000, queue_byte_limit=1 << 40, on_message=on_message
    )
    return connection, FakeTransport().connect(connection)


def address(buffer: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def size_of(transport: FakeTransport) -> int:
    """Bytes that the next read may have."""
    return len(transport.protocol.get_buffer(-1))


def read(transport: FakeTransport, size: int) -> None:
    """One read of `size` bytes, inside a frame that never ends."""
    buffer = transport.protocol.get_buffer(-1)
    assert size <= len(buffer)
    buffer[:size] = bytes(size)
    transport.protocol.buffer_updated(size)


def begin_endless(transport: FakeTransport) -> None:
    transport.feed(encode(BINARY, b"", length=1 << 30, form=8))


# --- its size ----------------------------------------------------------------------------------------------


async def test_it_grows_while_reads_fill_it_up_to_its_largest() -> None:
    _, transport = connect()
    begin_endless(transport)
    sizes = []
    for _ in range(6):
        sizes.append(size_of(transport))
        read(transport, sizes[-1])
    assert sizes == [SMALLEST, *[LARGEST] * 5]
    assert LARGEST == 2 * SMALLEST


async def test_a_read_that_does_not_fill_it_changes_nothing() -> None:
    _, transport = connect()
    begin_endless(transport)
    for _ in range(3):
        read(transport, SMALLEST - 1)
    assert size_of(transport) == SMALLEST
    read(transport, SMALLEST)
    for _ in range(2 * QUIET):
        read(transport, 2 * SMALLEST // 4)  # a quarter is use enough
    assert size_of(transport) == 2 * SMALLEST


async def test_a_while_of_small_reads_gives_the_memory_back() -> None:
    _, transport = connect()
    begin_endless(transport)
    for _ in range(4):
        read(transport, size_of(transport))
    assert size_of(transport) == LARGEST
    for _ in range(QUIET - 1):
        read(transport, 100)
    assert size_of(transport) == LARGEST
    read(transport, LARGEST // 2)  # not yet: there is use for it
    for _ in range(QUIET - 1):
        read(transport, 100)
    assert size_of(transport) == LARGEST
    read(transport, 100)
    assert size_of(transport) == SMALLEST


# --- one block for all -------------------------------------------------------------------------------------


async def test_all_connections_of_a_loop_read_into_the_same_block() -> None:
    transports = [connect()[1] for _ in range(5)]
    assert len({address(transport.protocol.get_buffer(-1)) for transport in transports}) == 1
    begin_endless(transports[0])
    read(transports[0], SMALLEST)
    assert {size_of(transport) for transport in transports} == {2 * SMALLEST}


async def test_what_one_leaves_unfinished_is_no_part_of_the_next() -> None:
    got: list[list[bytes]] = [[], []]
    first, second = (connect(lambda _, message, kept=kept: kept.append(message.as_bytes()))[1] for kept in got)
    frames = [encode(BINARY, bytes([number]) * 1000) for number in range(20)]
    rest: list[bytes] = [b"", b""]
    for number, frame in enumerate(frames):
        for side, transport in enumerate((first, second)):
            data = rest[side] + frame
            cut = (number * 97) % len(data)
            transport.feed(data[:cut])
            rest[side] = data[cut:]
    for side, transport in enumerate((first, second)):
        transport.feed(rest[side])
    assert got == [[bytes([number]) * 1000 for number in range(20)]] * 2


def test_loops_do_not_share(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    transports = []

    async def open_one() -> None:
        transports.append(connect()[1])

    loops = [loop_factory() for _ in range(2)]
    try:
        for loop in loops:
            loop.run_until_complete(open_one())
        assert len({address(transport.protocol.get_buffer(-1)) for transport in transports}) == 2
    finally:
        for loop in loops:
            loop.close()


async def test_it_goes_with_the_last_connection() -> None:
    """A block of 64 KB for a loop that has connections, none for one that had."""
    connection, transport = connect()
    buffer = transport.protocol.get_buffer(-1)
    watched = weakref.ref(buffer)
    del buffer
    transport.lose()
    del connection, transport
    gc.collect()
    assert watched() is None


async def test_a_block_that_was_replaced_goes_by_itself() -> None:
    _, transport = connect()
    begin_endless(transport)
    gc.disable()
    try:
        watched = weakref.ref(transport.protocol.get_buffer(-1))
        read(transport, SMALLEST)
        assert watched() is None
    finally:
        gc.enable()


async def test_the_block_goes_by_itself_with_the_last_connection() -> None:
    connection, transport = connect()
    gc.disable()
    try:
        watched = weakref.ref(transport.protocol.get_buffer(-1))
        transport.lose()
        del connection, transport
        await asyncio.sleep(0)
        assert watched() is None
    finally:
        gc.enable()


# --- while it is delivered from ----------------------------------------------------------------------------


async def test_a_read_inside_a_delivery_gets_another_block() -> None:
    """A nested loop, a signal handler: what is being delivered stays as it is."""
    got: list[bytes] = []
    _, inner = connect(lambda _, message: got.append(message.as_bytes()))
    addresses = []

    def nested(_: Any, message: Any) -> None:
        addresses.append(address(inner.protocol.get_buffer(-1)))
        inner.feed(encode(BINARY, b"i" * 30_000))
        got.append(message.as_bytes())

    _, outer = connect(nested)
    addresses.append(address(outer.protocol.get_buffer(-1)))
    outer.feed(b"".join(encode(BINARY, bytes([number]) * 1000) for number in range(3)))
    assert got == [message for number in range(3) for message in (b"i" * 30_000, bytes([number]) * 1000)]
    assert addresses[0] not in addresses[1:]


@pytest.mark.parametrize("cut", [0, 1, 3, 20, 100])
async def test_a_read_of_the_same_connection_inside_its_delivery_follows_what_is_left_of_it(cut: int) -> None:
    """A handler that lets the loop run (as with nest_asyncio) may get what comes next before it has returned."""
    got: list[bytes] = []
    stream = b"".join(encode(BINARY, bytes([number]) * 100) for number in range(6))
    inner = len(stream) // 2 + cut

    def nested(_: Any, message: Any) -> None:
        if message.as_bytes()[0] == 1:
            transport.feed(stream[inner:])
            got.append(b"returned")
        got.append(message.as_bytes())

    _, transport = connect(nested)
    transport.feed(stream[:inner])
    numbers = [payload[0] for payload in got if payload != b"returned"]
    assert numbers == [0, 2, 3, 4, 5, 1]
    assert got[-2] == b"returned"


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("attempt", range(30))
async def test_reads_of_the_same_connection_inside_each_other_keep_their_order(attempt: int, *, early: bool) -> None:
    """However deep: a read that waits for the rest of another one goes before the next."""
    rng = random.Random(attempt)
    count = 40
    stream = b"".join(encode(BINARY, bytes([number]) * rng.randrange(1, 300)) for number in range(count))
    cuts = sorted(rng.sample(range(1, len(stream)), 12))
    reads = [stream[begin:end] for begin, end in itertools.pairwise([0, *cuts, len(stream)])]
    got: list[int] = []

    def nested(_: Any, message: Any) -> None:
        got.append(message.as_bytes()[0])
        while reads and rng.random() < 0.4:
            transport.feed(reads.pop(0))

    _, transport = connect(nested)
    if early:
        transport.protocol.feed_early(reads.pop(0))
    while reads:
        transport.feed(reads.pop(0))
    assert got == list(range(count))


@pytest.mark.parametrize("filled", [False, True])
async def test_the_next_read_after_a_nested_one_has_a_block(filled: bool) -> None:
    _, inner = connect()
    begin_endless(inner)
    _, outer = connect(lambda *_: read(inner, SMALLEST if filled else 10))
    outer.feed(encode(TEXT, "x"))
    for transport in (inner, outer):
        assert size_of(transport) in (SMALLEST, 2 * SMALLEST)
    outer.feed(encode(TEXT, "y"))
    read(inner, 10)


async def test_nothing_points_into_it_after_the_delivery() -> None:
    """Messages, parts and pongs are copies."""
    connection, transport = connect()
    payload = bytes(range(256)) * 4
    transport.feed(encode(BINARY, payload) + encode(BINARY, payload, fin=False) + encode(CONTINUATION, payload))
    buffer = transport.protocol.get_buffer(-1)
    buffer[:] = b"\xff" * len(buffer)
    for expected in (payload, payload * 2):
        message = await connection.recv()
        assert message is not None
        assert message.as_bytes() == expected


# --- misuse ------------------------------------------------------------------------------------------------


async def test_more_than_was_read_is_refused() -> None:
    _, transport = connect()
    with pytest.raises(RuntimeError, match="without get_buffer"):
        transport.protocol.buffer_updated(1)
    size = size_of(transport)
    with pytest.raises(RuntimeError, match="without get_buffer"):
        transport.protocol.buffer_updated(size + 1)
