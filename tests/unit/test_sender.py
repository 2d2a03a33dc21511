"""fabric_ext.sender: messages as frames, compressed and split as agreed on, whole and in parts."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from fabric_ext.deflate import DeflateCodec
from support.frames import BINARY, TEXT, decode_all
from support.kernel import Kernel
from support.writing import SIZES, Echo, cork, end_of_turn, open_on

if TYPE_CHECKING:
    pass


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("masking", [False, True], ids=["server", "client"])
async def test_one_message_of_each_size(size: int, masking: bool, datagrams: Kernel) -> None:
    connection = Echo()
    open_on(datagrams, connection, masking=masking)
    connection.send_nowait("é" * (size // 2))
    connection.send_nowait(b"e" * size)
    await end_of_turn()
    frames = decode_all(b"".join(datagrams.take()))
    assert [(frame.opcode, frame.fin, frame.rsv) for frame in frames] == [(TEXT, True, 0), (BINARY, True, 0)]
    assert [frame.payload for frame in frames] == [("é" * (size // 2)).encode(), b"e" * size]


@pytest.mark.parametrize("size", [0, 9, 10, 11, 20, 21, 20_000])
async def test_fragment_size_splits_what_is_longer(size: int, datagrams: Kernel) -> None:
    limit = 9_000 if size > 100 else 10
    connection = Echo()
    open_on(datagrams, connection, fragment_size=limit)
    payload = bytes(itertools.islice(itertools.cycle(range(256)), size))
    connection.send_nowait(payload)
    await end_of_turn()
    frames = decode_all(b"".join(datagrams.take()))
    assert b"".join(frame.payload for frame in frames) == payload
    assert [frame.opcode for frame in frames] == [BINARY] + [0] * (len(frames) - 1)
    assert [frame.fin for frame in frames] == [False] * (len(frames) - 1) + [True]
    assert all(len(frame.payload) == limit for frame in frames[:-1])
    assert len(frames[-1].payload) <= limit
    assert len(frames) == max(1, -(-size // limit))


async def test_a_message_in_parts_comes_back_while_all_of_it_is_gathered(stream: Kernel) -> None:
    for early in (False, True):
        connection = Echo()
        transport = open_on(stream, connection)
        cork(connection, 1)
        connection._write_part(TEXT, "é".encode()[:1], False, None)
        if early:
            connection.flush()  # its beginning leaves
        connection._write_part(0, "é".encode()[1:], False, True)
        connection._write_part(0, b"!", True, None)
        transport.lose()
        assert connection.taken_back() == ([] if early else [("é!", None)])
        stream.take()


@pytest.mark.parametrize(
    ("size", "compress", "packed"),
    [(99, None, False), (100, None, True), (99, True, True), (100, False, False), (0, True, True)],
)
@pytest.mark.parametrize("masking", [False, True], ids=["server", "client"])
async def test_what_is_compressed(
    size: int, compress: bool | None, packed: bool, masking: bool, datagrams: Kernel
) -> None:
    codec = DeflateCodec(own_takeover=True, peer_takeover=True, threshold=100)
    connection = Echo()
    open_on(datagrams, connection, masking=masking, codec=codec)
    connection.send_nowait(b"a" * size, compress=compress)
    await end_of_turn()
    (frame,) = decode_all(b"".join(datagrams.take()))
    assert frame.rsv == (4 if packed else 0)
    assert frame.payload == b"a" * size or packed


async def test_the_first_part_decides_whether_a_message_is_compressed(datagrams: Kernel) -> None:
    codec = DeflateCodec(own_takeover=True, peer_takeover=True, threshold=10)
    connection = Echo()
    open_on(datagrams, connection, codec=codec)
    for first, second in ((b"a" * 9, b"a" * 10), (b"a" * 10, b"a" * 9)):
        connection._write_part(BINARY, first, False, None)
        connection._write_part(0, second, True, None)
    connection.flush()
    frames = decode_all(b"".join(datagrams.take()))
    assert [frame.rsv for frame in frames] == [0, 0, 4, 0]
    assert [frame.fin for frame in frames] == [False, True, False, True]


async def test_what_is_counted(datagrams: Kernel) -> None:
    connection = Echo()
    transport = open_on(datagrams, connection)
    connection.send_nowait("é")
    connection._write_part(TEXT, b"ab", False, None)
    assert (connection.messages_sent, connection.bytes_sent) == (1, 4)
    connection._write_part(0, b"c", True, None)
    assert (connection.messages_sent, connection.bytes_sent) == (2, 5)
    transport.lose()
    await end_of_turn()
